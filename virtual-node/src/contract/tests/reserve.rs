//! `Cluster.Reserve` and `Release`, as a client sees them.

use tensile_proto::v1::{RefusalReason, reserve_request::Kind, reserve_response::Outcome};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    fit::{cpus, template},
    *,
};

/// A caller's open stream.
struct Caller {
    requests: mpsc::Sender<v1::ReserveRequest>,
    answers: Streaming<v1::ReserveResponse>,
}

impl Caller {
    async fn open(served: &Served) -> Self {
        let (requests, queue) = mpsc::channel(64);
        let answers = served.client("multi-scheduler").reserve(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn ask(&mut self, request: v1::ReserveRequest) -> v1::ReserveResponse {
        self.requests.send(request).await.unwrap();
        next("an answer", &mut self.answers).await
    }
}

fn ask(uid: &str, cpu: u32) -> v1::ReserveRequest {
    let kind = Some(Kind::Template(template(&format!("{cpu} cpus"), &cpus(cpu))));
    v1::ReserveRequest { request_id: 1, upper_uid: uid.into(), kind, ..v1::ReserveRequest::default() }
}

fn reserved(answer: v1::ReserveResponse) -> v1::Reserved {
    match answer.outcome {
        Some(Outcome::Reserved(reserved)) => reserved,
        other => panic!("{other:?}"),
    }
}

fn refusal(answer: v1::ReserveResponse) -> v1::Refused {
    match answer.outcome {
        Some(Outcome::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

async fn opened(served: &Served) {
    let mut opening = served.reservations.opening();
    soon("the opening", opening.wait_for(|opening| *opening == crate::contract::reservations::Opening::Open))
        .await
        .unwrap();
}

#[tokio::test]
async fn of_two_callers_that_race_for_the_last_hole_one_gets_it() {
    let served = Served::start_first(&[node("a", "4")]).await;
    opened(&served).await;
    let (mut one, mut two) = (Caller::open(&served).await, Caller::open(&served).await);
    let (first, second) = tokio::join!(one.ask(ask("u1", 3)), two.ask(ask("u2", 3)));
    let is_reserved = |answer: &v1::ReserveResponse| matches!(answer.outcome, Some(Outcome::Reserved(_)));
    assert_ne!(is_reserved(&first), is_reserved(&second), "{first:?} {second:?}");
    let (winner, loser) = if is_reserved(&first) { (first, second) } else { (second, first) };
    assert_eq!(winner.revision.unwrap().epoch, 1);
    let refused = refusal(loser);
    assert_eq!(refused.reason(), RefusalReason::NoRoom);
    assert_eq!(refused.message, "0/1 nodes are available: 1 Insufficient cpu.");
    assert_eq!(refused.unfit[0].nodes, 1);

    // What is released is sold again, and what is not held is no error.
    let upper_uids = vec![winner.upper_uid.clone(), "nobody".into()];
    let release = v1::ReleaseRequest { upper_uids, ..v1::ReleaseRequest::default() };
    let released = served.client("multi-scheduler").release(release).await.unwrap().into_inner();
    assert_eq!(released.released_upper_uids, [winner.upper_uid]);
    assert_eq!(reserved(one.ask(ask("u3", 3)).await).lower_node, "a");
}

#[tokio::test]
async fn asking_again_is_the_same_reservation_and_shows_in_watch() {
    let served = Served::start_first(&[node("a", "4"), node("b", "4")]).await;
    opened(&served).await;
    let mut caller = Caller::open(&served).await;
    let first = reserved(caller.ask(ask("u", 3)).await);
    assert_eq!((first.existed, first.ttl.unwrap().seconds), (false, 30));
    let again = reserved(caller.ask(ask("u", 3)).await);
    assert_eq!((again.existed, &again.lower_node), (true, &first.lower_node));
    let mut states = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let state = state_where("the reservation", &mut states, |state| free_cpu(state) == 5_000).await;
    assert_eq!(state.requested.unwrap().amounts["cpu"], 3_000);
    assert_eq!(state.allocatable.unwrap().amounts["cpu"], 8_000);
    let reserving = state.conditions.iter().find(|condition| condition.r#type == "tensile.dev/Reserving").unwrap();
    assert_eq!(reserving.status(), ConditionStatus::True);
    // Where the pod failed before it does not go again.
    let elsewhere = v1::ReserveRequest { excluded_lower_nodes: vec![first.lower_node.clone()], ..ask("u", 3) };
    let other = reserved(caller.ask(elsewhere).await);
    assert_ne!(other.lower_node, first.lower_node);
}

#[tokio::test]
async fn templates_are_remembered_for_a_stream_and_requests_that_break_the_contract_end_nothing() {
    let served = Served::start_first(&[node("a", "4")]).await;
    opened(&served).await;
    let mut caller = Caller::open(&served).await;
    let by_id = |uid: &str| {
        let kind = Some(Kind::TemplateId("1 cpus".into()));
        v1::ReserveRequest { request_id: 9, upper_uid: uid.into(), kind, ..v1::ReserveRequest::default() }
    };
    assert_eq!(refusal(caller.ask(by_id("u")).await).reason(), RefusalReason::UnknownTemplate);
    for (wrong, word) in [
        (v1::ReserveRequest { upper_uid: String::new(), ..ask("u", 1) }, "upper_uid"),
        (v1::ReserveRequest { kind: None, ..ask("u", 1) }, "template"),
        (v1::ReserveRequest { ttl: Some(prost_types::Duration { seconds: 601, nanos: 0 }), ..ask("u", 1) }, "ttl"),
        (v1::ReserveRequest { excluded_lower_nodes: vec!["n".into(); 65], ..ask("u", 1) }, "at most 64"),
    ] {
        let refused = refusal(caller.ask(wrong).await);
        assert_eq!(refused.reason(), RefusalReason::Invalid);
        assert!(refused.message.contains(word), "{word}: {refused:?}");
    }
    reserved(caller.ask(ask("u", 1)).await);
    let answer = caller.ask(by_id("v")).await;
    assert_eq!(answer.request_id, 9);
    assert!(!reserved(answer).existed);
}

#[tokio::test]
async fn a_later_leader_is_not_open_and_a_standby_ends_the_stream() {
    let served = Served::start().await;
    let mut caller = Caller::open(&served).await;
    let refused = refusal(caller.ask(ask("u", 1)).await);
    assert_eq!(refused.reason(), RefusalReason::NotOpen);
    assert!(refused.retry_after.is_some());
    served.leadership.send_replace(Leadership::Standby { leader: Some("other".into()) });
    assert_eq!(end(&mut caller.answers).await.code(), Code::Unavailable);
}
