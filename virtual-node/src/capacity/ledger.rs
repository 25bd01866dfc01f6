//! The one snapshot of the lower cluster with its fit engine, and what is published of it.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tensile_scheduling::{FitEngine, PodFacts, Pool, Room, Snapshot};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::node::Shape;

/// Changes within this time become one: a burst of 5,000 pods is some tens of sums over the nodes, not 5,000.
const COALESCE: Duration = Duration::from_millis(50);

/// Collects what the watches of lower nodes and pods tell. Cheap to clone; clones are the same ledger.
#[derive(Clone)]
pub struct CapacityLedger {
    inner: Arc<Inner>,
}

/// What a ledger publishes. All are `None` until nodes and pods have been listed whole once: a sum over half a list
/// would be a Node that shrinks or overcommits for a moment.
#[derive(Clone)]
pub struct Published {
    /// Sums over the pool's nodes.
    pub room: watch::Receiver<Option<Arc<Room>>>,
    /// What of it the Node object shows. It does not change when pods of ours come and go.
    pub shape: watch::Receiver<Option<Arc<Shape>>>,
    /// The snapshot's revision: it changes also when the sums stay the same and only node classes differ.
    pub revision: watch::Receiver<Option<u64>>,
}

struct Inner {
    engine: Mutex<FitEngine>,
    changed: Notify,
    nodes_listed: AtomicBool,
    pods_listed: AtomicBool,
    room: watch::Sender<Option<Arc<Room>>>,
    shape: watch::Sender<Option<Arc<Shape>>>,
    revision: watch::Sender<Option<u64>>,
}

impl CapacityLedger {
    /// An empty ledger of the nodes in `pool`.
    pub fn new(pool: Pool) -> Self {
        let inner = Inner {
            engine: Mutex::new(FitEngine::new(pool)),
            changed: Notify::new(),
            nodes_listed: AtomicBool::new(false),
            pods_listed: AtomicBool::new(false),
            room: watch::Sender::new(None),
            shape: watch::Sender::new(None),
            revision: watch::Sender::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where the sums appear.
    pub fn published(&self) -> Published {
        Published {
            room: self.inner.room.subscribe(),
            shape: self.inner.shape.subscribe(),
            revision: self.inner.revision.subscribe(),
        }
    }

    /// A lower pod as it is now.
    pub fn upsert_pod(&self, pod: PodFacts) {
        self.change(|snapshot| snapshot.upsert_pod(pod));
    }

    /// A lower pod is gone.
    pub fn remove_pod(&self, uid: &str) {
        self.change(|snapshot| snapshot.remove_pod(uid));
    }

    /// Only pods with these UIDs are there: a new list after a gap in the watch.
    pub fn retain_pods(&self, listed: &HashSet<String>) {
        self.change(|snapshot| snapshot.retain_pods(listed));
    }

    /// All lower pods have been told of once.
    pub fn pods_listed(&self) {
        self.inner.pods_listed.store(true, Ordering::Release);
        self.inner.changed.notify_one();
    }

    /// A lower node as it is now. One whose quantities cannot be read offers nothing.
    pub(crate) fn upsert_node(&self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.change(|snapshot| {
            if let Err(error) = snapshot.upsert_node(node) {
                tracing::warn!(node = name, %error, "a lower node offers nothing: its status cannot be read");
            }
        });
    }

    /// A lower node is gone.
    pub(super) fn remove_node(&self, name: &str) {
        self.change(|snapshot| snapshot.remove_node(name));
    }

    /// All lower nodes have been told of once.
    pub(crate) fn nodes_listed(&self) {
        self.inner.nodes_listed.store(true, Ordering::Release);
        self.inner.changed.notify_one();
    }

    /// Whether nodes and pods have been listed whole once.
    pub fn synced(&self) -> bool {
        self.inner.nodes_listed.load(Ordering::Acquire) && self.inner.pods_listed.load(Ordering::Acquire)
    }

    /// Reads the snapshot, for what [`Room`] does not hold (node classes). Keep it short: watches wait meanwhile.
    pub fn read<T>(&self, read: impl FnOnce(&Snapshot, &Pool) -> T) -> T {
        let engine = self.inner.engine.lock();
        read(engine.snapshot(), engine.pool())
    }

    /// Asks the fit engine, or holds and releases room with it. Keep it short: watches wait meanwhile.
    pub fn decide<T>(&self, decide: impl FnOnce(&mut FitEngine) -> T) -> T {
        let mut engine = self.inner.engine.lock();
        let before = engine.snapshot().revision();
        let decided = decide(&mut engine);
        let changed = engine.snapshot().revision() != before;
        drop(engine);
        if changed {
            self.inner.changed.notify_one();
        }
        decided
    }

    /// Publishes sums while they change, until `shutdown`.
    pub async fn publish(&self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.publish_forever()).await;
    }

    async fn publish_forever(&self) {
        let mut published = None;
        loop {
            self.inner.changed.notified().await;
            tokio::time::sleep(COALESCE).await;
            if !self.synced() {
                continue;
            }
            let engine = self.inner.engine.lock();
            let snapshot = engine.snapshot();
            if published == Some(snapshot.revision()) {
                continue;
            }
            published = Some(snapshot.revision());
            let room = snapshot.room(engine.pool());
            drop(engine);
            replace_if_other(&self.inner.shape, Shape::from(&room));
            replace_if_other(&self.inner.room, room);
            self.inner.revision.send_replace(published);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.decide(|engine| change(engine.snapshot_mut()));
    }
}

fn replace_if_other<T: PartialEq>(published: &watch::Sender<Option<Arc<T>>>, now: T) {
    published.send_if_modified(|before| {
        if before.as_deref() == Some(&now) {
            return false;
        }
        *before = Some(Arc::new(now));
        true
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;

    fn node(name: &str, cpu: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            "status": {
                "capacity": {"cpu": cpu, "pods": "110"}, "allocatable": {"cpu": cpu, "pods": "110"},
                "conditions": [{"type": "Ready", "status": ready}],
            },
        }))
        .unwrap()
    }

    fn pod(uid: &str, node: &str, cpu_millis: i64, ours: bool) -> PodFacts {
        let requests = [("cpu", cpu_millis), ("pods", 1)].into_iter().collect();
        let owner = ours.then(|| format!("upper-{uid}"));
        PodFacts { uid: uid.into(), node: Some(node.into()), requests, owner, ..PodFacts::default() }
    }

    async fn next(shape: &mut watch::Receiver<Option<Arc<Shape>>>) -> Arc<Shape> {
        shape.changed().await.unwrap();
        shape.borrow_and_update().clone().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_published_before_nodes_and_pods_are_listed() {
        let ledger = CapacityLedger::new(Pool::all());
        let mut published = ledger.published();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let (ledger, shutdown) = (ledger.clone(), shutdown.clone());
            async move { ledger.publish(shutdown).await }
        });
        ledger.upsert_node(&node("a", "4", "True"));
        ledger.nodes_listed();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(published.shape.borrow_and_update().is_none());

        ledger.upsert_pod(pod("p", "a", 500, false));
        ledger.pods_listed();
        let shape = next(&mut published.shape).await;
        assert_eq!(shape.capacity["cpu"].0, "4");
        assert_eq!(shape.allocatable["cpu"].0, "3500m");
        assert_eq!(shape.allocatable["pods"].0, "109");
        assert_eq!(shape.os.as_deref(), Some("linux"));

        // Our own pods are counted by the upper scheduler: the Node does not change for them.
        ledger.upsert_pod(pod("ours", "a", 1000, true));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!published.shape.has_changed().unwrap());
        assert!(published.room.has_changed().unwrap());

        // The node goes NotReady: its room is gone, but for what our pod holds there, which the scheduler subtracts.
        ledger.upsert_node(&node("a", "4", "False"));
        let shape = next(&mut published.shape).await;
        assert_eq!(shape.allocatable["cpu"].0, "1");
        assert_eq!((shape.nodes_ready, shape.nodes_total), (0, 1));
        shutdown.cancel();
        task.await.unwrap();
    }
}
