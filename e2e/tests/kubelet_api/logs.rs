//! `kubectl logs`.

use crate::{
    access::{direct, get},
    command::{Running, run, until},
    world::world,
};

#[test]
fn logs_with_every_option_are_those_of_the_lower_container() {
    let Some(world) = world() else { return };
    let logs = |arguments: &[&str]| run(&mut world.kubectl(&[&["logs"], arguments].concat()), b"").ok();
    until("the log has all its lines", || {
        let log = logs(&["talk", "--container", "main"]);
        (log.lines().count() == 6).then_some(()).ok_or(log)
    });
    let mut lines: Vec<String> = logs(&["talk", "-c", "main"]).lines().map(str::to_owned).collect();
    // The two streams are separate pipes, so their order is not sure.
    lines.sort();
    assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5", "oops"]);
    assert_eq!(logs(&["talk", "-c", "side"]), "from the side\n");
    assert_eq!(logs(&["talk", "-c", "main", "--tail", "2"]).lines().count(), 2);
    assert_eq!(logs(&["talk", "-c", "main", "--limit-bytes", "9"]).len(), 9);
    assert_eq!(logs(&["talk", "-c", "main", "--since", "1h"]).lines().count(), 6);
    assert_eq!(logs(&["talk", "-c", "main", "--since-time", "2124-01-01T00:00:00+02:00"]), "");
    let stamped = logs(&["talk", "-c", "side", "--timestamps"]);
    assert!(stamped.starts_with("20") && stamped.contains('T') && stamped.ends_with("Z from the side\n"), "{stamped}");
    assert!(logs(&["talk", "--all-containers", "--prefix"]).contains("[pod/talk/side] from the side"));
}

#[test]
fn logs_of_the_life_before_are_there() {
    let Some(world) = world() else { return };
    assert_eq!(run(&mut world.kubectl(&["logs", "crash", "--previous"]), b"").ok(), "life 1\n");
    assert_eq!(run(&mut world.kubectl(&["logs", "crash"]), b"").ok(), "life 2\n");
}

#[test]
fn a_followed_log_comes_line_by_line_and_ends_with_its_container() {
    let Some(world) = world() else { return };
    let mut follower = Running::start(&mut world.kubectl(&["logs", "--follow", "count"]), false);
    let mut log = follower.screen();
    assert_eq!(log.line(""), "begin");
    run(&mut world.kubectl(&["exec", "count", "--", "touch", "/data/go"]), b"").ok();
    let rest = log.rest();
    let ended = follower.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let lines: Vec<&str> = rest.lines().collect();
    assert_eq!(lines.len(), 5001, "{} ... {:?}", ended.err, lines.last());
    assert_eq!(lines[5000], "end");
}

/// Other tests read logs at the same time, so the test looks for many.
const FOLLOWERS: usize = 12;

#[test]
fn a_follower_that_goes_away_ends_the_lower_stream_even_before_the_first_line() {
    let Some(world) = world() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let below = || {
        let metrics = runtime.block_on(world.lower.metrics()).unwrap();
        metrics
            .lines()
            .filter(|line| line.starts_with("apiserver_longrunning_requests{") && line.contains("subresource=\"log\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum::<u64>()
    };
    let open = || (world.metric("tensile_kubelet_streams_open{kind=\"logs\"}"), below());
    let mut followers: Vec<Running> =
        (0..FOLLOWERS).map(|_| Running::start(&mut world.kubectl(&["logs", "--follow", "mute"]), true)).collect();
    until("all are followed here and below", || {
        let (here, below) = open();
        let wanted = FOLLOWERS as u64;
        (here >= wanted && below >= wanted).then_some(()).ok_or(format!("{here} here, {below} below"))
    });
    followers.iter_mut().for_each(Running::kill);
    until("none of them is left here or below", || {
        let (here, below) = open();
        (here < 3 && below < 3).then_some(()).ok_or(format!("{here} here, {below} below"))
    });
}

#[test]
fn what_cannot_be_shown_is_explained_as_by_a_kubelet() {
    let Some(world) = world() else { return };
    let ended = run(&mut world.kubectl(&["logs", "late"]), b"");
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.err.trim(),
        "Error from server (BadRequest): container \"main\" in pod \"late\" is waiting to start: ConfigMap \"settings\" not found"
    );
    let ended = run(&mut world.kubectl(&["logs", "gone"]), b"");
    assert!(ended.err.starts_with("Error from server (NotFound)"), "{}", ended.err);
    // What only the lower side knows: kubectl must see a sentence, not JSON.
    let ended = run(&mut world.kubectl(&["logs", "talk", "-c", "main", "--previous"]), b"");
    assert_eq!(
        ended.err.trim(),
        "Error from server (BadRequest): previous terminated container \"main\" in pod \"talk\" not found"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_are_none_are_refused_with_the_reason() {
    let Some(world) = world() else { return };
    let admin = world.upper.user_kubeconfig("reader-of-logs", &["system:masters"]).unwrap();
    let client = direct(world, world.port, Some(&admin)).await;
    // An upper API server refuses most of these itself; other callers come without one.
    for (query, code, reason) in [
        ("tailLines=-1", 422, "tailLines: Invalid value: -1"),
        ("tailLines=many", 400, "many"),
        ("limitBytes=0", 422, "limitBytes: Invalid value: 0: must be greater than 0"),
        ("sinceSeconds=0", 422, "sinceSeconds: Invalid value: 0: must be greater than 0"),
        ("sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z", 422, "at most one of `sinceTime` or `sinceSeconds`"),
        ("sinceTime=yesterday", 400, "yesterday"),
        // The lower cluster has the feature off, which is its default.
        ("stream=Stderr", 422, "stream: Forbidden: may not be specified"),
    ] {
        let (answered, text) = get(&client, &format!("/containerLogs/shop/talk/side?{query}")).await;
        assert_eq!(answered, code, "{query}: {text}");
        assert!(text.contains(reason) && !text.starts_with('{'), "{query}: {text}");
    }
    let (code, text) = get(&client, "/containerLogs/shop/talk/absent").await;
    assert_eq!((code, text.contains("container absent is not valid for pod talk")), (400, true), "{text}");
}
