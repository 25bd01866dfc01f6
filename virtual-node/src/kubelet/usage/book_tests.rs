use super::*;

const SECOND: u64 = 1_000_000_000;

fn second(second: i64) -> Timestamp {
    Timestamp::constant(second, 0)
}

fn used(nanocores: u64, memory_bytes: u64) -> Used {
    Used { nanocores, memory_bytes }
}

/// A sample of pod `shop/web` over the 15 s until `at`.
fn sample(at: i64, containers: &[(&str, Used)]) -> PodSample {
    PodSample {
        lower: Key::new("shop-below", "web"),
        upper_uid: Some("u".into()),
        at: second(at),
        window: SignedDuration::from_secs(15),
        containers: containers.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect(),
    }
}

fn node(at: i64, nanocores: u64) -> NodeSample {
    NodeSample { at: second(at), used: used(nanocores, 1 << 30) }
}

/// Takes one sample in, of containers that started when `starts` say.
fn take_in(book: &mut Book, sample: &PodSample, starts: &[(&str, i64)]) -> Option<PodFigures> {
    let containers = starts.iter().map(|(name, start)| ((*name).to_owned(), second(*start))).collect();
    let pod = RunningPod { key: Key::new("shop", "web"), uid: "u".into(), containers };
    let running = |lower: &Key, uid: Option<&str>| {
        assert_eq!((lower, uid), (&Key::new("shop-below", "web"), Some("u")));
        Some(pod.clone())
    };
    book.take_in(std::slice::from_ref(sample), &[], running, sample.at).pods.pop()
}

/// A book that has watched since 1000.
fn watching() -> Book {
    let mut book = Book::default();
    book.take_in(&[], &[node(1000, 1)], |_, _| None, second(1000));
    book
}

fn total(pod: &PodFigures, container: &str) -> Figures {
    pod.containers.iter().find(|(name, _)| name == container).unwrap().1
}

/// What metrics-server makes of two totals.
fn rate(before: &Figures, after: &Figures) -> u64 {
    let seconds = u64::try_from(after.at.duration_since(before.at).as_secs()).unwrap();
    (after.core_nanos - before.core_nanos) / seconds
}

#[test]
fn what_is_told_twice_gives_the_rate_that_the_lower_cluster_told() {
    let mut book = watching();
    let starts = [("main", 1010), ("side", 1010)];
    let one = sample(1030, &[("main", used(SECOND, 7)), ("side", used(SECOND / 4, 5))]);
    let one = take_in(&mut book, &one, &starts).unwrap();
    let two = sample(1047, &[("main", used(2 * SECOND, 8)), ("side", used(SECOND / 2, 6))]);
    let two = take_in(&mut book, &two, &starts).unwrap();
    assert_eq!(two.key, Key::new("shop", "web"));
    assert_eq!(rate(&total(&one, "main"), &total(&two, "main")), 2 * SECOND);
    assert_eq!(rate(&total(&one, "side"), &total(&two, "side")), SECOND / 2);
    assert_eq!(rate(&one.whole, &two.whole), 2 * SECOND + SECOND / 2);
    assert_eq!((two.whole.used, total(&two, "main").at), (used(2 * SECOND + SECOND / 2, 14), second(1047)));
}

#[test]
fn a_container_that_started_under_our_eyes_is_counted_from_the_window_of_its_first_sample() {
    let mut book = watching();
    let pod = take_in(&mut book, &sample(1030, &[("main", used(SECOND, 7))]), &[("main", 1012)]).unwrap();
    let main = total(&pod, "main");
    assert_eq!((main.began, main.core_nanos / SECOND), (second(1015), 15));
    // The window reaches back to before its start, by the second that clocks are cut to.
    let mut book = watching();
    let pod = take_in(&mut book, &sample(1026, &[("main", used(SECOND, 7))]), &[("main", 1012)]).unwrap();
    let main = total(&pod, "main");
    assert_eq!((main.began, main.core_nanos / SECOND), (second(1012), 14));
}

/// The process before this one has told of a bigger total with an earlier start. metrics-server forgets it when the new
/// start is not before the time of what it has, and else reports an error and no containers.
#[test]
fn a_new_process_begins_totals_where_the_one_before_it_ended() {
    let mut old = watching();
    let starts = [("main", 1010)];
    take_in(&mut old, &sample(1030, &[("main", used(SECOND, 7))]), &starts).unwrap();
    let last = take_in(&mut old, &sample(1045, &[("main", used(SECOND, 7))]), &starts).unwrap();

    for at in [1045, 1060] {
        let mut new = Book::default();
        let first = take_in(&mut new, &sample(at, &[("main", used(SECOND, 7))]), &starts).unwrap();
        assert!(total(&first, "main").began >= total(&last, "main").at, "{first:?}");
        assert!(total(&first, "main").core_nanos < SECOND, "what was used before is not known");
        let second = take_in(&mut new, &sample(at + 15, &[("main", used(3 * SECOND, 7))]), &starts).unwrap();
        assert_eq!(rate(&total(&first, "main"), &total(&second, "main")), 3 * SECOND);
    }
}

#[test]
fn a_restarted_container_begins_anew_and_the_pods_total_goes_on() {
    let mut book = watching();
    let one = take_in(&mut book, &sample(1030, &[("main", used(SECOND, 7))]), &[("main", 1010)]).unwrap();
    // Restarted at 1040; the lower cluster still tells of the run before. No pod is told of in part.
    let early = [("main", used(SECOND, 7)), ("side", used(SECOND, 7))];
    assert_eq!(take_in(&mut book, &sample(1038, &early), &[("main", 1040), ("side", 1010)]), None);
    let two = take_in(&mut book, &sample(1055, &[("main", used(SECOND, 7))]), &[("main", 1040)]).unwrap();
    assert_eq!(total(&two, "main").began, second(1040));
    assert!(total(&two, "main").core_nanos < 16 * SECOND);
    assert!(two.whole.core_nanos > one.whole.core_nanos, "{two:?}");
}

#[test]
fn a_container_that_has_ended_is_told_of_no_more() {
    let mut book = watching();
    let both = [("main", used(SECOND, 7)), ("side", used(SECOND, 7))];
    take_in(&mut book, &sample(1030, &both), &[("main", 1010), ("side", 1010)]).unwrap();
    let pod = take_in(&mut book, &sample(1045, &both), &[("main", 1010)]).unwrap();
    assert_eq!(pod.containers.len(), 1);
    assert_eq!(pod.whole.used, used(SECOND, 7));
}

#[test]
fn the_same_sample_again_changes_nothing() {
    let mut book = watching();
    let starts = [("main", 1010)];
    let one = take_in(&mut book, &sample(1030, &[("main", used(SECOND, 7))]), &starts);
    assert_eq!(take_in(&mut book, &sample(1030, &[("main", used(SECOND, 7))]), &starts), one);
}

#[test]
fn an_idle_container_has_a_total_that_metrics_server_does_not_take_for_missing() {
    let mut book = watching();
    let pod = take_in(&mut book, &sample(1030, &[("main", used(0, 7))]), &[("main", 1010)]).unwrap();
    assert!(total(&pod, "main").core_nanos > 0);
}

#[test]
fn the_node_is_the_sum_of_the_lower_nodes_and_its_total_survives_their_coming_and_going() {
    let mut book = Book::default();
    let mut told = |nodes: &[NodeSample]| book.take_in(&[], nodes, |_, _| None, second(1000)).node;
    assert_eq!(told(&[]), None);
    let one = told(&[node(1000, SECOND), node(1007, 2 * SECOND)]).unwrap();
    assert_eq!((one.at, one.used), (second(1007), used(3 * SECOND, 2 << 30)));
    let two = told(&[node(1015, SECOND), node(1022, 2 * SECOND), node(1020, SECOND)]).unwrap();
    assert_eq!(rate(&one, &two), 4 * SECOND);
    let three = told(&[node(1037, SECOND)]).unwrap();
    assert_eq!(rate(&two, &three), SECOND);
}

#[test]
fn totals_of_pods_that_are_gone_are_dropped() {
    let mut book = watching();
    take_in(&mut book, &sample(1030, &[("main", used(SECOND, 7))]), &[("main", 1010)]).unwrap();
    book.take_in(&[], &[], |_, _| None, second(1100));
    assert_eq!(book.pods.len(), 1, "a hiccup below must not begin totals anew");
    book.take_in(&[], &[], |_, _| None, second(1030 + 600));
    assert_eq!(book.pods.len(), 0);
}
