//! Publishes `ClusterState` when the snapshot or the reachability of the lower API server changes, and somebody listens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tensile_proto::v1;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{reservations::Opening, state::cluster_state};
use crate::{capacity::CapacityLedger, context::Settings, node::Reach};

/// Changes within this time become one: ten states a second are more than any scheduler's decision needs, for its own placements
/// it counts itself.
const COALESCE: Duration = Duration::from_millis(100);

/// The newest state, numbered; `None` until the lower nodes and pods are listed, or while nobody listened.
pub(super) type Newest = Option<Arc<v1::ClusterState>>;

/// Where states appear. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    newest: watch::Sender<Newest>,
    joined: Notify,
    /// States that differed from the one before in something else than the snapshot.
    others: AtomicU64,
}

/// Makes the states.
pub(super) struct Publisher {
    pub settings: Arc<Settings>,
    pub ledger: CapacityLedger,
    pub reach: watch::Receiver<Reach>,
    pub opening: watch::Receiver<Opening>,
    pub feed: Feed,
}

impl Feed {
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                newest: watch::Sender::new(None),
                joined: Notify::new(),
                others: AtomicU64::new(1),
            }),
        }
    }

    /// The newest state and those to come. Whoever holds the receiver makes the publisher work.
    pub fn subscribe(&self) -> watch::Receiver<Newest> {
        let mut newest = self.inner.newest.subscribe();
        newest.mark_changed();
        self.inner.joined.notify_one();
        newest
    }

    /// The number of the state at a revision of the snapshot.
    pub fn number(&self, snapshot: u64) -> u64 {
        snapshot + self.inner.others.load(Ordering::Acquire)
    }

    /// The same, above one that was given before.
    fn number_above(&self, last: u64, snapshot: u64) -> u64 {
        let number = self.number(snapshot);
        if number > last {
            return number;
        }
        self.inner.others.fetch_add(last + 1 - number, Ordering::AcqRel);
        last + 1
    }

    /// Publishes a state under a number.
    pub fn publish(&self, number: u64, mut state: v1::ClusterState) {
        state.revision = Some(v1::Revision { epoch: 0, number });
        self.inner.newest.send_replace(Some(Arc::new(state)));
    }

    /// Waits for a listener. While there is none the newest state is forgotten, so that none begins with an old one.
    async fn listened_to(&self) {
        while self.inner.newest.receiver_count() == 0 {
            self.inner.newest.send_replace(None);
            self.inner.joined.notified().await;
        }
    }
}

impl Publisher {
    /// Publishes until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.publish()).await;
    }

    async fn publish(mut self) {
        let mut revision = self.ledger.published().revision;
        let mut number = 0;
        loop {
            self.feed.listened_to().await;
            // The ledger lives as long as we do, so its channel never closes.
            if revision.wait_for(Option::is_some).await.is_err() {
                return;
            }
            revision.mark_unchanged();
            let reach = self.reach.borrow_and_update().clone();
            let opening = *self.opening.borrow_and_update();
            let (snapshot, room, classes) = self
                .ledger
                .read(|snapshot, pool| (snapshot.revision(), snapshot.room(pool), snapshot.node_classes(pool)));
            number = self.feed.number_above(number, snapshot);
            self.feed.publish(number, cluster_state(&self.settings, &room, &classes, &reach, opening));
            tokio::time::sleep(COALESCE).await;
            self.changed(&mut revision).await;
        }
    }

    /// Waits until there is another state to tell: something changed, or the first listener came after a time without any.
    async fn changed(&mut self, revision: &mut watch::Receiver<Option<u64>>) {
        if self.feed.inner.newest.receiver_count() == 0 {
            return;
        }
        tokio::select! {
            _ = revision.changed() => {}
            changed = self.reach.changed() => if changed.is_err() {
                // The probe has ended: so does the process.
                std::future::pending::<()>().await;
            },
            changed = self.opening.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
            () = self.feed.inner.newest.closed() => {}
        }
    }
}
