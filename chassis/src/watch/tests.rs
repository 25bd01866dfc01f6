//! The watch against a scripted API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{net::SocketAddr, sync::Arc};

use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::*;
use crate::{
    kube_client::{ClientOptions, KubeMetrics, build},
    readiness::Readiness,
    testing::{Asked, Chunk, Events, Reply, ScriptedServer},
};

/// No test's single step takes longer than this unless it fails.
const LIMIT: Duration = Duration::from_secs(20);

fn map(name: &str, version: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata":
        {"namespace": "ns", "name": name, "resourceVersion": version, "managedFields": [{"manager": "m"}]}})
}

fn bookmark(version: &str) -> Chunk {
    Chunk::event(
        "BOOKMARK",
        &json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": version}}),
    )
}

fn gone() -> Chunk {
    Chunk::event(
        "ERROR",
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410,
        "reason": "Expired", "message": "too old resource version: 1 (99)"}),
    )
}

struct Setup {
    watch: Watch<ConfigMap>,
    readiness: Readiness,
    gate: Gate,
}

fn setup_with(server: &ScriptedServer, options: WatchOptions) -> Setup {
    let client = build(server.config(), &ClientOptions::default(), &KubeMetrics::default()).unwrap();
    let readiness = Readiness::new();
    let gate = readiness.gate("maps");
    Setup { watch: watch(Api::all(client), options, gate.clone()), readiness, gate }
}

fn setup(server: &ScriptedServer) -> Setup {
    setup_with(server, WatchOptions::new("maps"))
}

impl Setup {
    async fn next(&mut self) -> String {
        let event = timeout(LIMIT, self.watch.next()).await.expect("no event came").expect("the watch ended");
        let name = |map: ConfigMap| {
            assert_eq!(map.metadata.managed_fields, None);
            format!("{}@{}", map.metadata.name.unwrap(), map.metadata.resource_version.unwrap_or_default())
        };
        match event {
            Event::Restarted { decides_until: u64::MAX } => "restarted from before".into(),
            Event::Restarted { .. } => "restarted".into(),
            Event::Listed(object) => format!("listed {}", name(object)),
            Event::ListDone => "list done".into(),
            Event::Applied(object) => format!("applied {}", name(object)),
            Event::Deleted(object) => format!("deleted {}", name(object)),
            Event::Malformed { namespace, name, .. } => format!("malformed {}/{name}", namespace.unwrap_or_default()),
        }
    }

    async fn take(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.next().await);
        }
        events
    }
}

/// Lists as `list` says, and watches as the given replies say, one after the other; then a watch that stays silent.
async fn scripted(
    list: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    watches: impl IntoIterator<Item = Reply>,
) -> ScriptedServer {
    let watches = Mutex::new(watches.into_iter().collect::<std::collections::VecDeque<_>>());
    ScriptedServer::start(move |asked| {
        if asked.is_watch() { watches.lock().pop_front().unwrap_or_else(Reply::watched_for_ever) } else { list(asked) }
    })
    .await
    .unwrap()
}

/// Whether this asks for the version alone.
fn compares(asked: &Asked) -> bool {
    !asked.is_watch() && asked.query.get("limit").is_some_and(|limit| limit == "1")
}

async fn nth_watch(server: &ScriptedServer, number: usize) -> Asked {
    let seen = server.wait_for(LIMIT, |seen| seen.iter().filter(|asked| asked.is_watch()).count() > number).await;
    let seen = seen.unwrap_or_else(|seen| panic!("watch {number} was never begun; seen: {seen:?}"));
    seen.into_iter().filter(Asked::is_watch).nth(number).unwrap()
}

#[tokio::test]
async fn it_lists_page_by_page_and_then_watches_from_there() {
    let (reply, events) = Reply::watch();
    let list = |asked: &Asked| match asked.query.get("continue").map(String::as_str) {
        None => Reply::json(
            200,
            &json!({"metadata": {"resourceVersion": "5", "continue": "page2"},
            "items": [map("a", "1"), map("b", "2")]}),
        ),
        Some("page2") => Reply::list("5", &[map("c", "3")]),
        Some(other) => Reply::error(400, other),
    };
    let server = scripted(list, [reply]).await;
    let mut setup = setup_with(
        &server,
        WatchOptions {
            page_size: 2,
            label_selector: Some("x=y".into()),
            field_selector: Some("metadata.name=z".into()),
            ..WatchOptions::new("maps")
        },
    );
    assert_eq!(setup.take(5).await, ["restarted", "listed a@1", "listed b@2", "listed c@3", "list done"]);
    assert!(setup.gate.is_ready());
    events.send(Chunk::event("ADDED", &map("d", "6")));
    events.send(Chunk::event("MODIFIED", &map("d", "7")));
    events.send(Chunk::event("DELETED", &map("d", "8")));
    assert_eq!(setup.take(3).await, ["applied d@6", "applied d@7", "deleted d@8"]);
    let seen = server.seen();
    assert_eq!(seen[0].query["limit"], "2");
    for asked in &seen {
        assert_eq!(
            (asked.query["labelSelector"].as_str(), asked.query["fieldSelector"].as_str()),
            ("x=y", "metadata.name=z")
        );
    }
    assert_eq!(seen[2].query["resourceVersion"], "5");
    assert_eq!(seen[2].query["allowWatchBookmarks"], "true");
    let timeout: u32 = seen[2].query["timeoutSeconds"].parse().unwrap();
    assert!((180..=200).contains(&timeout), "{timeout}");
}

#[tokio::test]
async fn an_end_and_a_cut_in_the_middle_of_a_watch_go_on_from_the_last_version() {
    let server = scripted(
        // The newest version there is: that of the last event.
        |asked| Reply::list(if asked.number == 0 { "1" } else { "12" }, &[]),
        [
            // Ends orderly after an event and a bookmark.
            Reply::watched([Chunk::event("ADDED", &map("a", "2")), bookmark("9")]),
            // Is cut in the middle of an event.
            Reply::watched([Chunk::event("ADDED", &map("b", "10")), Chunk::Raw("{\"type\":\"ADD".into()), Chunk::Cut]),
            // Ends orderly in the middle of an event, as a proxy in between does.
            Reply::watched([Chunk::event("ADDED", &map("c", "11")), Chunk::Raw("{\"type\":\"ADD".into())]),
            Reply::watched([Chunk::event("ADDED", &map("d", "12"))]),
        ],
    )
    .await;
    let mut setup = setup(&server);
    let expected = ["restarted", "list done", "applied a@2", "applied b@10", "applied c@11", "applied d@12"];
    assert_eq!(setup.take(6).await, expected);
    // The stream works only while it is polled.
    let polled = tokio::spawn(async move { setup.next().await });
    let mut versions = Vec::new();
    for number in 0..5 {
        versions.push(nth_watch(&server, number).await.query["resourceVersion"].clone());
    }
    assert_eq!(versions, ["1", "9", "10", "11", "12"]);
    polled.abort();
    let listed = server.seen().into_iter().filter(|asked| !asked.is_watch() && !compares(asked)).count();
    assert_eq!(listed, 1, "it listed again");
}

#[tokio::test]
async fn a_410_lists_anew_whether_it_comes_as_event_status_or_on_a_page() {
    let list = |asked: &Asked| match (asked.number, asked.query.contains_key("continue")) {
        (0, _) => Reply::list("1", &[map("a", "1")]),
        (1, _) => Reply::list("99", &[map("b", "98")]),
        // The third list breaks off at its second page, and begins anew.
        (2, false) => Reply::json(200, &json!({"metadata": {"continue": "x"}, "items": [map("c", "1")]})),
        (3, true) => Reply::error(410, "the continue token is too old"),
        _ => Reply::list("200", &[map("d", "199")]),
    };
    let server = scripted(list, [Reply::watched([gone()]), Reply::error(410, "too old")]).await;
    let mut setup = setup(&server);
    assert_eq!(setup.take(3).await, ["restarted", "listed a@1", "list done"]);
    assert_eq!(setup.take(3).await, ["restarted", "listed b@98", "list done"]);
    assert_eq!(setup.take(2).await, ["restarted", "listed c@1"]);
    assert_eq!(setup.take(3).await, ["restarted", "listed d@199", "list done"]);
    assert_eq!(setup.watch.health().failing_since(), None, "a lost history is not an outage");
}

#[tokio::test]
async fn a_malformed_object_stalls_nothing_but_itself() {
    let broken = json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"namespace": "ns", "name": "broken", "resourceVersion": "3"}, "data": [1]});
    let (reply, events) = Reply::watch();
    let in_list = broken.clone();
    let server = scripted(move |_| Reply::list("2", &[map("a", "1"), in_list.clone(), map("b", "2")]), [reply]).await;
    let mut setup = setup(&server);
    assert_eq!(setup.take(5).await, ["restarted", "listed a@1", "malformed ns/broken", "listed b@2", "list done"]);
    events.send(Chunk::event("MODIFIED", &broken));
    events.send(Chunk::event("ADDED", &map("c", "4")));
    assert_eq!(setup.take(2).await, ["malformed ns/broken", "applied c@4"]);
    assert_eq!(server.seen().len(), 2, "it began anew");
}

#[tokio::test]
async fn an_api_server_that_fails_is_tried_until_it_works_and_health_and_gate_tell() {
    let list = |asked: &Asked| match asked.number {
        0 => Reply::error(500, "bug"),
        1 => Reply::Cut,
        2 => Reply::error(403, "configmaps is forbidden"),
        3 => Reply::json(200, &json!("not a list")),
        _ => Reply::list("1", &[]),
    };
    let server = scripted(list, []).await;
    let mut setup = setup_with(&server, WatchOptions { unready_after: Duration::ZERO, ..WatchOptions::new("maps") });
    let health = setup.watch.health();
    let began = Instant::now();
    assert_eq!(health.failing_since(), None);
    assert_eq!(setup.take(2).await, ["restarted", "list done"]);
    assert!(began.elapsed() >= Duration::from_millis(100 + 200 + 400 + 800), "no backoff: {:?}", began.elapsed());
    assert_eq!(health.failing_since(), None);
    assert!(setup.gate.is_ready());
}

#[tokio::test]
async fn a_refusal_is_shown_with_its_reason() {
    let server = scripted(|_| Reply::error(403, "configmaps is forbidden: no list for you"), []).await;
    let mut setup = setup_with(&server, WatchOptions { unready_after: Duration::ZERO, ..WatchOptions::new("maps") });
    let (health, readiness) = (setup.watch.health(), setup.readiness.clone());
    let polled = tokio::spawn(async move { setup.next().await });
    server.wait_for(LIMIT, |seen| seen.len() >= 2).await.unwrap();
    let failing = health.failing().unwrap();
    assert_eq!((failing.reason, failing.reason.may_be_away()), (FailureReason::Refused, false));
    assert!(failing.detail.contains("no list for you (403)"), "{}", failing.detail);
    let closed = readiness.check().unwrap_err();
    assert!(closed[0].contains("maps: the watch has failed for 0 s (refused)"), "{closed:?}");
    polled.abort();
}

#[tokio::test]
async fn a_server_that_is_stopped_and_comes_back_on_its_port_is_watched_on() {
    let first = scripted(|_| Reply::list("1", &[]), []).await;
    let address = first.address();
    let mut setup = setup(&first);
    setup.take(2).await;
    let health = setup.watch.health();
    let polled = tokio::spawn(async move { (setup.next().await, setup) });
    nth_watch(&first, 0).await;
    first.stop();
    let deadline = Instant::now() + LIMIT;
    while health.failing().is_none_or(|failing| failing.reason != FailureReason::Unreachable) {
        assert!(Instant::now() < deadline, "the outage was not seen: {:?}", health.failing());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (reply, events) = Reply::watch();
    events.send(Chunk::event("ADDED", &map("back", "2")));
    let second = at(address, reply, events).await;
    let (event, setup) = timeout(LIMIT, polled).await.expect("it never came back").unwrap();
    assert_eq!(event, "applied back@2");
    assert_eq!(health.failing_since(), None);
    assert!(setup.gate.is_ready());
    assert_eq!(nth_watch(&second, 0).await.query["resourceVersion"], "1");
}

async fn at(address: SocketAddr, reply: Reply, events: Events) -> ScriptedServer {
    let (reply, events) = (Arc::new(Mutex::new(Some(reply))), Arc::new(events));
    let deadline = Instant::now() + LIMIT;
    loop {
        let (reply, events) = (reply.clone(), events.clone());
        let script = move |asked: &Asked| {
            assert!(!events.is_closed());
            if compares(asked) {
                return Reply::list("1", &[]);
            }
            reply.lock().take().unwrap_or(Reply::Hang)
        };
        match ScriptedServer::start_at(address, None, script).await {
            Ok(server) => return server,
            Err(error) => assert!(Instant::now() < deadline, "the port does not come free: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_watch_that_hangs_past_its_time_is_begun_anew() {
    let server = scripted(|_| Reply::list("1", &[]), []).await;
    let mut setup = setup_with(
        &server,
        WatchOptions { timeout_secs: 1, hung_after: Duration::from_millis(200), ..WatchOptions::new("maps") },
    );
    setup.take(2).await;
    let health = setup.watch.health();
    let polled = tokio::spawn(async move { setup.next().await });
    nth_watch(&server, 0).await;
    nth_watch(&server, 1).await;
    let deadline = Instant::now() + LIMIT;
    while let Some(failing) = health.failing() {
        assert!(Instant::now() < deadline, "the new watch does not work: {failing:?}");
        assert_eq!(failing.reason, FailureReason::Hung);
        tokio::task::yield_now().await;
    }
    polled.abort();
}

#[tokio::test]
async fn a_watch_that_is_refused_again_and_again_is_listed_anew() {
    let refused = || Reply::error(400, "resourceVersion: Invalid value");
    let server = scripted(|_| Reply::list("1", &[]), [refused(), refused(), refused()]).await;
    let mut setup = setup(&server);
    assert_eq!(setup.take(4).await, ["restarted", "list done", "restarted", "list done"]);
}

#[tokio::test]
async fn an_api_server_whose_history_went_back_is_listed_anew() {
    // As after a restore of its etcd from a backup: a watch from the version heard last would be taken, and be silent.
    let list = |asked: &Asked| match (asked.number, compares(asked), asked.query.contains_key("continue")) {
        (0, ..) => Reply::list("90", &[map("a", "80"), map("b", "90")]),
        (_, true, _) => Reply::list("70", &[map("a", "60")]),
        // The first try breaks off at its second page.
        (2, ..) => Reply::json(200, &json!({"metadata": {"resourceVersion": "71", "continue": "x"}, "items": []})),
        (_, _, true) => Reply::error(410, "the continue token is too old"),
        (_, false, _) => Reply::list("71", &[map("a", "60"), map("c", "70")]),
    };
    let server = scripted(list, [Reply::watched([Chunk::event("MODIFIED", &map("b", "95")), Chunk::Cut])]).await;
    let mut setup = setup(&server);
    assert_eq!(setup.take(5).await, ["restarted", "listed a@80", "listed b@90", "list done", "applied b@95"]);
    assert_eq!(setup.take(1).await, ["restarted from before"]);
    assert_eq!(setup.take(4).await, ["restarted from before", "listed a@60", "listed c@70", "list done"]);
    let polled = tokio::spawn(async move { setup.next().await });
    assert_eq!(nth_watch(&server, 1).await.query["resourceVersion"], "71");
    polled.abort();
}

#[tokio::test]
async fn watches_that_end_at_once_are_not_begun_in_a_tight_loop() {
    let server = scripted(|_| Reply::list("1", &[]), (0..1000).map(|_| Reply::watched([]))).await;
    let mut setup = setup(&server);
    setup.take(2).await;
    let polled = tokio::spawn(async move { setup.next().await });
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let begun = server.seen().iter().filter(|asked| asked.is_watch()).count();
    assert!((2..=6).contains(&begun), "{begun} watches in 1.5 s");
    polled.abort();
}

#[tokio::test]
async fn events_and_restarts_are_counted() {
    let mut registry = Registry::default();
    let metrics = WatchMetrics::register(&mut registry);
    let server = scripted(
        |_| Reply::list("1", &[map("a", "1")]),
        [Reply::watched([bookmark("2"), Chunk::event("ADDED", &map("b", "3")), gone()])],
    )
    .await;
    let mut setup = setup_with(&server, WatchOptions { metrics, ..WatchOptions::new("maps") });
    setup.take(7).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"tensile_watch_events_total{watch="maps",kind="listed"} 2"#,
        r#"tensile_watch_events_total{watch="maps",kind="applied"} 1"#,
        r#"tensile_watch_events_total{watch="maps",kind="bookmark"} 1"#,
        r#"tensile_watch_restarts_total{watch="maps",reason="gone"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
