//! The contract as its clients see it: a real client over loopback with mutual TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use futures::StreamExt;
use jiff::Timestamp;
use tensile_chassis::lease::Leadership;
use tensile_proto::v1::{self, ConditionStatus, Verdict, cluster_client::ClusterClient, placement_event::Event};
use tensile_scheduling::PodFacts;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

mod fit;
mod reserve;

use super::{
    PlacementVerdict,
    testing::{Served, leader, node, soon},
};
use crate::node::Reach;

async fn next<T>(what: &str, stream: &mut Streaming<T>) -> T {
    soon(what, stream.message()).await.unwrap().unwrap_or_else(|| panic!("{what}: the stream has ended"))
}

/// Reads states until one fits.
async fn state_where(
    what: &str,
    stream: &mut Streaming<v1::ClusterState>,
    fits: impl Fn(&v1::ClusterState) -> bool,
) -> v1::ClusterState {
    soon(what, async {
        loop {
            let state = stream.message().await.unwrap().expect("the stream has ended");
            if fits(&state) {
                return state;
            }
        }
    })
    .await
}

fn free_cpu(state: &v1::ClusterState) -> i64 {
    state.free.as_ref().unwrap().amounts.get("cpu").copied().unwrap_or(0)
}

fn pod(uid: &str, cpu_millis: i64) -> PodFacts {
    let requests = [("cpu", cpu_millis), ("pods", 1)].into_iter().collect();
    PodFacts { uid: uid.into(), node: Some("a".into()), requests, ..PodFacts::default() }
}

fn bound(node: &str) -> PlacementVerdict {
    PlacementVerdict::Bound { node: node.into() }
}

#[tokio::test]
async fn watch_tells_the_whole_first_and_then_each_change_under_a_higher_revision() {
    let served = Served::start().await;
    let mut stream = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let first = next("the first state", &mut stream).await;
    assert_eq!((first.virtual_node.as_str(), first.lower_cluster_uid.as_str()), ("vn", "lower-uid"));
    assert_eq!((free_cpu(&first), first.classes.len()), (4_000, 1));
    served.ledger.upsert_pod(pod("f", 1_500));
    let second = state_where("the pod", &mut stream, |state| free_cpu(state) == 2_500).await;
    let (before, after) = (first.revision.unwrap(), second.revision.unwrap());
    assert_eq!((before.epoch, after.epoch), (7, 7));
    assert!(after.number > before.number);
    served.reach.send_replace(Reach::Unreachable { since: Timestamp::UNIX_EPOCH, reason: "refused".into() });
    state_where("the lower API server away", &mut stream, |state| {
        let condition = |condition: &&v1::Condition| condition.r#type == "tensile.dev/LowerReachable";
        state.conditions.iter().find(condition).unwrap().status() == ConditionStatus::False
    })
    .await;
}

#[tokio::test]
async fn watch_waits_until_the_lower_cluster_is_listed_whole() {
    let served = Served::start_unlisted().await;
    let mut stream = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    served.ledger.upsert_node(&node("a", "4"));
    served.ledger.nodes_listed();
    served.ledger.upsert_pod(pod("f", 1_000));
    served.ledger.pods_listed();
    assert_eq!(free_cpu(&next("the first state", &mut stream).await), 3_000);
}

#[tokio::test]
async fn classes_are_told_also_when_the_sums_stay_the_same() {
    let served = Served::start().await;
    let mut stream = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    next("the first state", &mut stream).await;
    let mut tainted = node("a", "4");
    let taint = serde_json::json!({"key": "gpu", "effect": "NoSchedule"});
    tainted.spec.get_or_insert_default().taints = Some(vec![serde_json::from_value(taint).unwrap()]);
    served.ledger.upsert_node(&tainted);
    let state = state_where("the taint", &mut stream, |state| !state.classes[0].taints.is_empty()).await;
    assert_eq!(state.classes[0].taints[0].key, "gpu");
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_state_and_no_queue() {
    const STATES: u64 = 3_000;
    let (served, feed) = Served::start_fed().await;
    let mut stream = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    // Without a pause, so that the reader cannot keep up, of states so large that the windows of both ends are full soon.
    for number in 1..=STATES {
        let message = "x".repeat(16 << 10);
        let conditions = vec![v1::Condition { message, ..v1::Condition::default() }];
        feed.publish(number, v1::ClusterState { conditions, ..v1::ClusterState::default() });
        tokio::task::yield_now().await;
    }
    let mut seen = Vec::new();
    soon("the newest state", async {
        while seen.last() != Some(&STATES) {
            let state = stream.message().await.unwrap().expect("the stream has ended");
            seen.push(state.revision.unwrap().number);
        }
    })
    .await;
    assert!(seen.is_sorted());
    println!("{} of {STATES} states were told", seen.len());
    assert!(seen.len() < 300, "{} of {STATES} states were queued", seen.len());
}

/// What a client of WatchPlacements knows.
#[derive(Default)]
struct Known {
    placements: HashMap<String, v1::Placement>,
    begun: usize,
    synced: bool,
    number: u64,
}

impl Known {
    fn apply(&mut self, event: v1::PlacementEvent) {
        let revision = event.revision.unwrap();
        assert!(revision.number >= self.number, "{} came after {}", revision.number, self.number);
        self.number = revision.number;
        match event.event.unwrap() {
            Event::Begin(_) => {
                self.begun += 1;
                self.placements.clear();
                self.synced = false;
            }
            Event::Placement(placement) => {
                self.placements.insert(placement.upper_uid.clone(), placement);
            }
            Event::ForgottenUpperUid(uid) => {
                self.placements.remove(&uid);
            }
            Event::Synced(_) => self.synced = true,
        }
    }

    async fn until(&mut self, what: &str, stream: &mut Streaming<v1::PlacementEvent>, fits: impl Fn(&Self) -> bool) {
        while !fits(self) {
            self.apply(next(what, stream).await);
        }
    }
}

async fn placements_of(served: &Served) -> Streaming<v1::PlacementEvent> {
    let request = v1::WatchPlacementsRequest::default();
    served.client("descheduler").watch_placements(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn placements_are_told_whole_and_then_as_they_change() {
    let served = Served::start().await;
    served.placements.record("a", bound("n1"));
    let since = Timestamp::from_second(99).unwrap();
    let message = "0/1 nodes are available: 1 Insufficient cpu.".to_owned();
    served.placements.record("b", PlacementVerdict::Unschedulable { message, since: Some(since) });
    let mut stream = placements_of(&served).await;
    let Some(Event::Begin(begin)) = next("the begin", &mut stream).await.event else { panic!("no begin") };
    assert_eq!(begin.count, 2);
    let mut known = Known::default();
    known.until("the whole", &mut stream, |known| known.synced).await;
    assert_eq!(known.placements["a"].lower_node, "n1");
    let b = &known.placements["b"];
    assert_eq!((b.verdict(), b.since.unwrap().seconds), (Verdict::Unschedulable, 99));
    assert!(b.message.contains("Insufficient cpu"));
    served.placements.record("b", bound("n2"));
    served.placements.record("c", PlacementVerdict::Preempted);
    served.placements.forget("a");
    known.until("the changes", &mut stream, |known| !known.placements.contains_key("a")).await;
    assert_eq!(known.placements["b"].verdict(), Verdict::Bound);
    assert_eq!(known.placements["c"].verdict(), Verdict::Preempted);
}

#[tokio::test]
async fn a_reader_of_placements_that_lags_is_told_the_whole_again() {
    let served = Served::start().await;
    for uid in 0..2_000 {
        served.placements.record(&uid.to_string(), bound("n0"));
    }
    let mut stream = placements_of(&served).await;
    let mut known = Known::default();
    known.until("the first whole", &mut stream, |known| known.synced).await;
    // Not read meanwhile: far more changes than the log and the windows hold.
    for round in 1..=20 {
        for uid in 0..2_000 {
            served.placements.record(&uid.to_string(), bound(&format!("node-{round}")));
        }
    }
    served.placements.forget("0");
    let all_new = |known: &Known| {
        known.placements.len() == 1_999 && known.placements.values().all(|placement| placement.lower_node == "node-20")
    };
    known.until("the newest placements", &mut stream, |known| known.synced && all_new(known)).await;
    assert!(known.begun >= 2, "the whole was told {} times", known.begun);
}

async fn watch_error(client: &mut ClusterClient<tonic::transport::Channel>) -> Status {
    client.watch(v1::WatchRequest::default()).await.expect_err("a stream was opened")
}

#[tokio::test]
async fn a_standby_is_unavailable_and_says_who_leads() {
    let served = Served::start().await;
    served.leadership.send_replace(Leadership::Standby { leader: Some("vn-2".into()) });
    let status = watch_error(&mut served.client("multi-scheduler")).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("\"vn-2\" leads") && status.message().contains("tensile.dev/endpoint"),
        "{status}"
    );
    // A leader whose renewals hang is no better.
    let now = tokio::time::Instant::now();
    served.leadership.send_replace(Leadership::Leader { since: now, valid_until: now, term: 8 });
    assert_eq!(watch_error(&mut served.client("multi-scheduler")).await.code(), Code::Unavailable);
}

/// Reads until the stream ends with an error.
async fn end<T>(stream: &mut Streaming<T>) -> Status {
    soon("the end of a stream", async {
        loop {
            if let Err(status) = stream.message().await {
                return status;
            }
        }
    })
    .await
}

#[tokio::test]
async fn streams_end_when_leadership_or_the_process_does() {
    let served = Served::start().await;
    let mut states = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let mut placements = placements_of(&served).await;
    next("a state", &mut states).await;
    next("a placement event", &mut placements).await;
    served.leadership.send_replace(Leadership::Standby { leader: None });
    assert_eq!(end(&mut states).await.code(), Code::Unavailable);
    assert_eq!(end(&mut placements).await.code(), Code::Unavailable);
    served.leadership.send_replace(leader(9));
    let mut states = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    assert_eq!(next("a state", &mut states).await.revision.unwrap().epoch, 9);
    served.stop.cancel();
    assert_eq!(end(&mut states).await.code(), Code::Unavailable);
    soon("the end of the server", served.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn each_rpc_has_its_own_callers() {
    let served = Served::start().await;
    let fit = v1::FitRequest::default;
    let status = served.client("stranger").fit(fit()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // It got through to the judge of the request.
    assert_eq!(served.client("multi-scheduler").fit(fit()).await.unwrap_err().code(), Code::InvalidArgument);
    let request = || v1::ReleaseRequest::default();
    assert_eq!(served.client("descheduler").release(request()).await.unwrap_err().code(), Code::PermissionDenied);
    served.client("multi-scheduler").release(request()).await.unwrap();
    let reserve = || futures::stream::iter([v1::ReserveRequest::default()]);
    assert_eq!(served.client("descheduler").reserve(reserve()).await.unwrap_err().code(), Code::PermissionDenied);
    served.client("multi-scheduler").reserve(reserve()).await.unwrap();
    let request = v1::WatchPlacementsRequest::default();
    let status = served.client("multi-scheduler").watch_placements(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_in() {
    let served = Served::start().await;
    let status = watch_error(&mut ClusterClient::new(served.channel(None))).await;
    assert_ne!(status.code(), Code::Ok);
    assert_ne!(status.code(), Code::PermissionDenied, "TLS should have refused it before");
}

#[tokio::test]
async fn another_virtual_node_is_not_found_here() {
    let served = Served::start().await;
    let target = |name: &str| Some(v1::Target { virtual_node: name.into() });
    let mut client = served.client("multi-scheduler");
    let status = client.watch(v1::WatchRequest { target: target("other") }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    client.watch(v1::WatchRequest { target: target("vn") }).await.unwrap();
}

#[tokio::test]
async fn streams_are_limited_and_given_back() {
    let served = Served::start().await;
    let mut client = served.client("multi-scheduler");
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(client.watch(v1::WatchRequest::default()).await.unwrap());
    }
    assert_eq!(watch_error(&mut client).await.code(), Code::ResourceExhausted);
    streams.clear();
    soon("a free place", async {
        while client.watch(v1::WatchRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn health_follows_leadership_and_reflection_shows_the_services() {
    let served = Served::start().await;
    let mut health = HealthClient::new(served.channel(Some("anybody")));
    for (leadership, expected) in
        [(leader(8), ServingStatus::Serving), (Leadership::Standby { leader: None }, ServingStatus::NotServing)]
    {
        served.leadership.send_replace(leadership);
        let request = || HealthCheckRequest { service: "tensile.v1.Cluster".into() };
        soon("the health", async {
            while health.check(request()).await.unwrap().into_inner().status() != expected {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut reflection = ServerReflectionClient::new(served.channel(Some("anybody")));
    let answers = reflection.server_reflection_info(futures::stream::iter([list])).await.unwrap().into_inner();
    let answers: Vec<_> = soon("the services", answers.collect()).await;
    let Some(MessageResponse::ListServicesResponse(services)) = answers[0].as_ref().unwrap().message_response.clone()
    else {
        panic!("{answers:?}")
    };
    assert!(services.service.iter().any(|service| service.name == "tensile.v1.Cluster"), "{services:?}");
}
