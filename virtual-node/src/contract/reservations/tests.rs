#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use serde_json::json;
use tensile_chassis::lease::Leadership;
use tensile_scheduling::{PodFacts, Pool};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::contract::testing::{TTL_MAX, leader, node, settings, soon};

fn upper(uid: &str, cpu: u32, reserved: Option<&str>) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": uid, "namespace": "team", "uid": uid,
            "annotations": reserved.map(|node| json!({"tensile.dev/reserved-node": node})),
        },
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}]},
        "status": {"phase": "Pending"},
    }))
    .unwrap()
}

fn lower(uid: &str, node: Option<&str>, cpu: u32, owner: Option<&str>) -> PodFacts {
    let pod = json!({
        "metadata": {"uid": uid},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}],
        },
    });
    PodFacts::of(&serde_json::from_value(pod).unwrap(), owner)
}

/// Reservations on nodes of 4 CPUs, and their ledger.
fn closed(nodes: &[&str]) -> (Reservations, CapacityLedger) {
    let ledger = CapacityLedger::new(Pool::all());
    for name in nodes {
        ledger.upsert_node(&node(name, "4"));
    }
    ledger.nodes_listed();
    ledger.pods_listed();
    let metrics = ContractMetrics::default();
    (Reservations::new(Arc::new(settings()), ledger.clone(), TTL_MAX, metrics), ledger)
}

fn open(nodes: &[&str]) -> (Reservations, CapacityLedger) {
    let (reservations, ledger) = closed(nodes);
    reservations.inner.open.send_replace(Opening::Open);
    (reservations, ledger)
}

fn demand(cpu: u32) -> Arc<Demand> {
    demand_of_pod(&upper("", cpu, None), &settings()).unwrap()
}

fn reserve(reservations: &Reservations, uid: &str, cpu: u32) -> Result<Held, NotHeld> {
    reservations.reserve(uid, &demand(cpu), Wish::default(), Duration::from_secs(5), true)
}

fn free_cpus(ledger: &CapacityLedger) -> u32 {
    ledger.decide(|engine| engine.view::<String>(&[])).alone(&demand(1), 1_000).fits
}

#[tokio::test(start_paused = true)]
async fn a_reservation_runs_out_by_itself_and_asking_again_extends_it() {
    let (reservations, ledger) = open(&["a"]);
    let held = reserve(&reservations, "u", 3).unwrap();
    assert_eq!((held.existed, held.ttl), (false, Some(Duration::from_secs(5))));
    tokio::time::advance(Duration::from_secs(4)).await;
    let again = reserve(&reservations, "u", 3).unwrap();
    assert_eq!((again.existed, &again.place), (true, &held.place));
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(reservations.look_after(Instant::now()), Some(Instant::now() + Duration::from_secs(1)));
    assert_eq!(free_cpus(&ledger), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(reservations.look_after(Instant::now()), None);
    assert_eq!(free_cpus(&ledger), 4);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_held_longer_than_the_operator_allows() {
    let (reservations, _) = open(&["a"]);
    let wish = Wish::default();
    let held = reservations.reserve("u", &demand(1), wish, Duration::from_mins(10), true).unwrap();
    assert_eq!(held.ttl, Some(TTL_MAX));
}

#[tokio::test(start_paused = true)]
async fn a_bound_pod_keeps_its_room_until_its_lower_pod_has_it() {
    let (reservations, ledger) = open(&["a"]);
    reserve(&reservations, "u", 3).unwrap();
    reservations.upper_pod(&upper("u", 3, Some("a")));
    tokio::time::advance(Duration::from_mins(10)).await;
    reservations.look_after(Instant::now());
    assert_eq!(free_cpus(&ledger), 1);
    let held = reserve(&reservations, "u", 3).unwrap();
    assert_eq!((held.existed, held.ttl), (true, None));
    assert!(reservations.release(&["u".to_owned()]).is_empty(), "the room of a bound pod was given back");
    ledger.upsert_pod(lower("l", Some("a"), 3, Some("u")));
    reservations.look_after(Instant::now());
    assert!(reservations.inner.book.lock().entries.is_empty());
    assert_eq!(free_cpus(&ledger), 1);
    assert_eq!(reserve(&reservations, "u", 3).unwrap().place.node, "a");
    ledger.remove_pod("l");
    reservations.upper_gone("u");
    assert_eq!(free_cpus(&ledger), 4);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_no_reservation_was_made_for_takes_room_on_its_way_down() {
    let (reservations, ledger) = open(&["a"]);
    reservations.upper_pod(&upper("u", 3, None));
    assert_eq!(free_cpus(&ledger), 1);
    let mut finished = upper("u", 3, None);
    finished.status.as_mut().unwrap().phase = Some("Succeeded".into());
    reservations.upper_pod(&finished);
    assert_eq!(free_cpus(&ledger), 4);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_place_a_foreign_pod_took_is_sent_to_another() {
    let (reservations, ledger) = open(&["a", "b"]);
    let held = reserve(&reservations, "u", 3).unwrap();
    let bound = upper("u", 3, Some(&held.place.node));
    reservations.upper_pod(&bound);
    assert!(matches!(reservations.pinned(&bound), Cow::Borrowed(_)));
    ledger.upsert_pod(lower("f", Some(&held.place.node), 2, None));
    reservations.look_after(Instant::now());
    let pinned = reservations.pinned(&bound);
    let other = if held.place.node == "a" { "b" } else { "a" };
    assert_eq!(reserved_node(&pinned), Some(other));
    // A pod whose Binding names no node goes to the one that is held, too.
    reserve(&reservations, "v", 1).unwrap();
    assert!(reserved_node(&reservations.pinned(&upper("v", 1, None))).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lost_reservation_is_refused_when_there_is_no_other_place() {
    let (reservations, ledger) = open(&["a"]);
    reserve(&reservations, "u", 3).unwrap();
    ledger.upsert_pod(lower("f", Some("a"), 2, None));
    reservations.look_after(Instant::now());
    let Err(NotHeld::NoRoom(fit)) = reserve(&reservations, "u", 3) else { panic!("it was promised again") };
    assert_eq!(fit.message, "0/1 nodes are available: 1 Insufficient cpu.");
    assert_eq!(free_cpus(&ledger), 2, "the lost reservation still holds room");
}

#[tokio::test(start_paused = true)]
async fn while_the_lower_api_server_is_away_what_is_held_goes_on_and_nothing_new_is() {
    let (reservations, _) = open(&["a"]);
    reserve(&reservations, "u", 1).unwrap();
    let away = |uid: &str| reservations.reserve(uid, &demand(1), Wish::default(), TTL_MAX, false);
    assert!(away("u").unwrap().existed);
    assert_eq!(away("v"), Err(NotHeld::Unreachable));
}

#[tokio::test(start_paused = true)]
async fn a_later_leader_waits_out_what_earlier_ones_promised_and_reads_what_became_of_it() {
    let (reservations, ledger) = closed(&["a"]);
    let leadership = watch::Sender::new(Leadership::Standby { leader: None });
    let upper_pods: UpperPods = Box::new(|| Box::pin(async { Ok(vec![upper("u", 3, Some("a"))]) }));
    let stop = CancellationToken::new();
    let publishing = tokio::spawn({
        let (ledger, stop) = (ledger.clone(), stop.clone());
        async move { ledger.publish(stop).await }
    });
    let opening = tokio::spawn({
        let (reservations, leadership, stop) = (reservations.clone(), leadership.subscribe(), stop.clone());
        async move { reservations.open(leadership, &upper_pods, &stop).await }
    });
    let began = Instant::now();
    leadership.send_replace(leader(2));
    let mut opened = reservations.opening();
    soon("the time", opened.wait_for(|opening| *opening == Opening::Learning(Some(began + TTL_MAX)))).await.unwrap();
    let Err(NotHeld::NotOpen { after }) = reserve(&reservations, "v", 1) else { panic!("it promised at once") };
    assert_eq!(after, TTL_MAX);
    opened.wait_for(|opening| *opening == Opening::Open).await.unwrap();
    assert!(began.elapsed() >= TTL_MAX, "it opened after {:?}", began.elapsed());
    assert_eq!(free_cpus(&ledger), 1);
    // The watch never told of the pod: it is gone, and its room comes back.
    tokio::time::advance(TTL_MAX).await;
    reservations.look_after(Instant::now());
    assert_eq!(free_cpus(&ledger), 4);
    stop.cancel();
    opening.await.unwrap();
    publishing.await.unwrap();
}
