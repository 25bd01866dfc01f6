//! The keeper against scripted API servers: what a real one does on a bad day.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
};

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tensile_chassis::testing::{Asked, Chunk, Reply, ScriptedServer};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::{
    names::NamespaceMapping,
    translate::{Need, Needs},
};

/// The longest that a test waits for what takes milliseconds to a few seconds (retries) on an idle machine.
const LIMIT: Duration = Duration::from_mins(1);

const LIST: &str = "/api/v1/namespaces/team/configmaps";
const OBJECT: &str = "/api/v1/namespaces/team/configmaps/settings";

fn upper_object(value: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"key": value}, "metadata": {
        "namespace": "team", "name": "settings", "uid": "u1", "resourceVersion": version.to_string()}})
}

/// An upper API server with one ConfigMap that nobody changes.
fn quiet_upper(asked: &Asked) -> Reply {
    if asked.is_watch() { Reply::watched_for_ever() } else { Reply::list("1", &[upper_object("1", 1)]) }
}

/// A lower cluster that holds at most one ConfigMap, and answers as an API server does.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<(Option<Value>, u32)>>);

impl Store {
    fn value(&self) -> Option<String> {
        Some(self.0.lock().0.as_ref()?["data"]["key"].as_str()?.to_owned())
    }

    fn answer(&self, asked: &Asked) -> Reply {
        let mut state = self.0.lock();
        match (&asked.method, asked.path.as_str()) {
            (_, _) if asked.is_watch() => Reply::watched_for_ever(),
            (&Method::GET, "/api/v1/namespaces/team") => Reply::json(
                200,
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team",
                    "labels": {"tensile.dev/upper-cluster": "upper-1"}}}),
            ),
            (&Method::GET, OBJECT) => {
                state.0.as_ref().map_or_else(|| Reply::error(404, "not found"), |object| Reply::json(200, object))
            }
            (&Method::GET, _) => Reply::list("1", &[]),
            (&Method::POST, LIST) | (&Method::PUT, OBJECT) => {
                state.1 += 1;
                let mut object = asked.json();
                object["metadata"]["uid"] = json!("lower-uid");
                object["metadata"]["resourceVersion"] = json!(state.1.to_string());
                state.0 = Some(object.clone());
                Reply::json(if asked.method == Method::POST { 201 } else { 200 }, &object)
            }
            other => panic!("not expected: {other:?}"),
        }
    }
}

struct World {
    upper: ScriptedServer,
    lower: ScriptedServer,
    keeper: NeedsKeeper,
    ready_again: UnboundedReceiver<Key>,
    may_write: Arc<AtomicBool>,
    shutdown: CancellationToken,
}

impl World {
    async fn new(
        upper: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
        lower: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::with_watches(upper, lower, 1).await
    }

    async fn with_watches(
        upper: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
        lower: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
        connections: usize,
    ) -> Self {
        tensile_chassis::tls::install_crypto_provider();
        let upper = ScriptedServer::start(upper).await.unwrap();
        let lower = ScriptedServer::start(lower).await.unwrap();
        let node = Client::try_from(upper.config()).unwrap();
        let api = Client::try_from(lower.config()).unwrap();
        let settings = Settings {
            node_name: "vn-east".into(),
            cluster_name: "east".into(),
            upper_cluster_uid: "upper-1".into(),
            lower_cluster_uid: "lower-1".into(),
            namespaces: NamespaceMapping::Same,
            adopt_namespaces: BTreeSet::new(),
            lower_scheduler_name: None,
            upper_api_for_pods: None,
            node_address: Ipv4Addr::new(192, 0, 2, 1).into(),
        };
        let (recorder, _writer) = Recorder::new(node.clone(), "test", "test");
        let (sender, ready_again) = unbounded_channel();
        let may_write = Arc::new(AtomicBool::new(true));
        let fence = may_write.clone();
        let keeper = NeedsKeeper::new(
            Arc::new(settings),
            UpperClients { node: node.clone(), account: node.clone() },
            vec![node; connections],
            &LowerClients { api: api.clone(), streaming: api },
            recorder,
            Arc::new(move || fence.load(Ordering::Relaxed)),
            sender,
        );
        let shutdown = CancellationToken::new();
        let (running, end) = (keeper.clone(), shutdown.clone());
        tokio::spawn(async move { running.run(end).await });
        Self { upper, lower, keeper, ready_again, may_write, shutdown }
    }

    /// Tries as the pod engine does, whenever it is called again, and returns what was told out loud on the way.
    async fn until_ready(&mut self) -> Vec<Missing> {
        let mut told = Vec::new();
        let work = async {
            loop {
                match self.keeper.ensure(&pod()).await {
                    Ok(()) => return,
                    Err(missing) if missing.quiet => {}
                    Err(missing) => told.push(missing),
                }
                self.ready_again.recv().await.expect("the keeper is gone");
            }
        };
        let in_time = tokio::time::timeout(LIMIT, work).await.is_ok();
        assert!(in_time, "not ready; told: {told:?}, lower requests: {:?}", summary(&self.lower.seen()));
        told
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn pod() -> PodNeed {
    let need = Need { optional: false, used_by: UsedBy::Volume("config".into()) };
    PodNeed {
        key: Key::new("team", "web"),
        uid: "pod-uid".into(),
        service_account: "default".into(),
        needs: Needs { config_maps: BTreeMap::from([("settings".into(), need)]), ..Needs::default() },
    }
}

fn summary(asked: &[Asked]) -> Vec<String> {
    asked.iter().map(|asked| format!("{} {}", asked.method, asked.path)).collect()
}

fn writes(asked: &[Asked]) -> usize {
    asked.iter().filter(|asked| asked.method != Method::GET).count()
}

#[tokio::test]
async fn a_lower_api_server_in_trouble_delays_a_copy_and_nothing_is_doubled() {
    let store = Store::default();
    let lower = store.clone();
    let mut world = World::new(quiet_upper, move |asked| match (&asked.method, asked.number) {
        (&Method::POST, 0) => Reply::error(500, "etcd is away"),
        (&Method::POST, 1) => Reply::error(429, "slow down"),
        (&Method::POST, 2) => Reply::Cut,
        _ => lower.answer(asked),
    })
    .await;
    assert!(world.until_ready().await.iter().all(|missing| missing.reason == "FailedToCopy"));
    assert_eq!(store.value().as_deref(), Some("1"));
    assert_eq!(writes(&world.lower.seen()), 4, "{:?}", summary(&world.lower.seen()));
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_second_object() {
    let store = Store::default();
    let lower = store.clone();
    let mut world = World::new(quiet_upper, move |asked| match (&asked.method, asked.number) {
        (&Method::POST, 0) => {
            let _taken = lower.answer(asked);
            Reply::Cut
        }
        (&Method::POST, _) => Reply::error(409, "it exists"),
        _ => lower.answer(asked),
    })
    .await;
    world.until_ready().await;
    assert_eq!(writes(&world.lower.seen()), 1);
}

#[tokio::test]
async fn the_lag_of_the_node_authorizer_is_not_told() {
    let store = Store::default();
    let lower = store.clone();
    let forbidden =
        "configmaps \"settings\" is forbidden: no relationship found between node 'vn-east' and this object";
    let upper = move |asked: &Asked| {
        if !asked.is_watch() && asked.number < 3 { Reply::error(403, forbidden) } else { quiet_upper(asked) }
    };
    let mut world = World::new(upper, move |asked| lower.answer(asked)).await;
    assert_eq!(world.until_ready().await, Vec::new());
}

#[tokio::test]
async fn what_the_lower_cluster_refuses_is_told_and_tried_again() {
    let store = Store::default();
    let lower = store.clone();
    let mut world = World::new(quiet_upper, move |asked| {
        let refused = asked.method == Method::POST && asked.number < 6;
        if refused { Reply::error(403, "exceeded quota: small") } else { lower.answer(asked) }
    })
    .await;
    let told = world.until_ready().await;
    assert!(told[0].message.contains("refuses configmap team/settings: exceeded quota: small"), "{told:?}");
    assert_eq!((told[0].reason, told[0].retry), ("FailedToCopy", Retry::Waits));
    assert_eq!(store.value().as_deref(), Some("1"));
}

#[tokio::test]
async fn a_cut_and_then_an_expired_watch_lose_no_change() {
    let store = Store::default();
    let lower = store.clone();
    let upper = |asked: &Asked| match (asked.is_watch(), asked.number) {
        (false, 0) => Reply::list("1", &[upper_object("1", 1)]),
        (true, 0) => Reply::watched([Chunk::event("MODIFIED", &upper_object("2", 2)), Chunk::Cut]),
        (true, 1) => {
            let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": 410, "reason": "Expired", "message": "too old resource version"});
            Reply::watched([Chunk::event("ERROR", &gone)])
        }
        (false, _) => Reply::list("3", &[upper_object("3", 3)]),
        (true, _) => Reply::watched_for_ever(),
    };
    let mut world = World::new(upper, move |asked| lower.answer(asked)).await;
    world.until_ready().await;
    let is_third =
        |asked: &[Asked]| asked.iter().any(|asked| asked.method == Method::PUT && asked.json()["data"]["key"] == "3");
    if let Err(seen) = world.lower.wait_for(LIMIT, is_third).await {
        panic!("the third value did not come: {:?}", summary(&seen));
    }
}

#[tokio::test]
async fn an_object_without_room_for_a_watch_is_read() {
    let store = Store::default();
    let lower = store.clone();
    let upper = |asked: &Asked| match asked.path.as_str() {
        OBJECT => Reply::json(200, &upper_object("1", 1)),
        _ => quiet_upper(asked),
    };
    let mut world = World::with_watches(upper, move |asked| lower.answer(asked), 0).await;
    world.until_ready().await;
    assert_eq!(store.value().as_deref(), Some("1"));
    assert!(!world.upper.seen().iter().any(Asked::is_watch));
}

#[tokio::test]
async fn who_does_not_lead_watches_and_writes_nothing() {
    let store = Store::default();
    let lower = store.clone();
    let mut world = World::new(quiet_upper, move |asked| lower.answer(asked)).await;
    world.may_write.store(false, Ordering::Relaxed);
    assert!(world.keeper.ensure(&pod()).await.unwrap_err().quiet);
    let watched = world.upper.wait_for(LIMIT, |asked| asked.iter().any(Asked::is_watch)).await;
    assert!(watched.is_ok(), "the standby's view is not warm");
    assert_eq!(writes(&world.lower.seen()), 0);
    world.may_write.store(true, Ordering::Relaxed);
    world.until_ready().await;
    assert_eq!(writes(&world.lower.seen()), 1);
}
