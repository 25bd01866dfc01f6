//! Pods: from the upper cluster down, their status up, and their end.
//!
//! ```text
//!  feed (two watches) ──▶ index ──▶ plan (pure) ──▶ sync ──▶ down / up (requests)
//!                           ▲                                   │
//!                           └───────────── answers ─────────────┘
//! ```

mod down;
mod feed;
pub mod index;
pub mod plan;
pub mod refusal;
mod requests;
mod sync;
mod up;

use std::{collections::BTreeSet, sync::Arc};

use tensile_chassis::{
    lease::Fence,
    queue::{QueueOptions, WorkQueue},
    readiness::Gate,
    watch::WatchHealth,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use sync::Syncer;

use crate::{
    capacity::CapacityLedger,
    context::{LowerClients, Settings, UpperClients},
    contract::Placements,
    events::Recorder,
    kubelet::{Lookup, PodLookup},
    names::Key,
    needs::NeedsKeeper,
};
use index::Index;

/// What the pods part is made of.
pub struct Pods {
    syncer: Arc<Syncer>,
    queue: WorkQueue<Key>,
    upper_synced: watch::Sender<bool>,
    lower_synced: watch::Sender<bool>,
}

/// What the pods part is given.
pub struct PodsInput {
    /// Settings.
    pub settings: Arc<Settings>,
    /// Clients to the upper cluster.
    pub upper: UpperClients,
    /// Clients to the lower cluster.
    pub lower: LowerClients,
    /// Keeps what pods need below.
    pub needs: NeedsKeeper,
    /// Events.
    pub recorder: Recorder,
    /// The contract's placements.
    pub placements: Placements,
    /// Write fence.
    pub fence: Fence,
}

/// The two gates and the health that the watches report to.
pub struct FeedReports {
    /// Readiness of the watch of upper pods.
    pub upper_gate: Gate,
    /// Readiness of the watch of lower pods.
    pub lower_gate: Gate,
    /// Health of the watch of lower pods.
    pub lower_health: WatchHealth,
}

impl Pods {
    /// Assembles it; nothing runs yet.
    pub fn new(input: PodsInput) -> Self {
        let syncer = Syncer {
            settings: input.settings,
            index: Arc::new(Index::default()),
            upper: input.upper,
            lower: input.lower,
            needs: input.needs,
            recorder: input.recorder,
            placements: input.placements,
            fence: input.fence,
        };
        Self {
            syncer: Arc::new(syncer),
            queue: WorkQueue::new(QueueOptions::default()),
            upper_synced: watch::Sender::new(false),
            lower_synced: watch::Sender::new(false),
        }
    }

    /// Looks a pod up for the kubelet API.
    pub fn lookup(&self) -> Arc<dyn PodLookup> {
        Arc::new(IndexLookup { syncer: self.syncer.clone() })
    }

    /// The queue: a key put in is looked at again.
    pub fn queue(&self) -> WorkQueue<Key> {
        self.queue.clone()
    }

    /// UIDs of the upper pods that are known.
    pub fn upper_uids(&self) -> BTreeSet<String> {
        self.syncer.index.upper_uids().into_iter().collect()
    }

    /// Watches both clusters. Also a standby does: its caches are warm when it takes over.
    pub async fn feed(&self, ledger: CapacityLedger, reports: FeedReports, shutdown: CancellationToken) {
        tokio::join!(
            feed::upper(
                self.syncer.clone(),
                self.queue.clone(),
                reports.upper_gate,
                self.upper_synced.clone(),
                shutdown.clone()
            ),
            feed::lower(
                self.syncer.clone(),
                self.queue.clone(),
                ledger,
                reports.lower_gate,
                reports.lower_health,
                self.lower_synced.clone(),
                shutdown.clone()
            ),
        );
    }

    /// Waits until both clusters were listed once: before that, nothing is known to be missing.
    pub async fn synced(&self) {
        for synced in [&self.upper_synced, &self.lower_synced] {
            // The senders live as long as `self`, so waiting cannot fail.
            let _ = synced.subscribe().wait_for(|synced| *synced).await;
        }
    }

    /// Works on pods until told to stop. Only the leader does.
    pub async fn work(&self, concurrency: usize, shutdown: CancellationToken) {
        self.synced().await;
        let syncer = self.syncer.clone();
        self.queue
            .run(concurrency, shutdown, move |key| {
                let syncer = syncer.clone();
                async move { syncer.sync(key).await }
            })
            .await;
    }
}

struct IndexLookup {
    syncer: Arc<Syncer>,
}

impl PodLookup for IndexLookup {
    fn lower_of(&self, key: &Key) -> Lookup {
        match self.syncer.index.presence(key) {
            (_, true) => Lookup::Found { lower: self.syncer.lower_key(key) },
            (true, false) => Lookup::NotYet("its pod in the lower cluster does not exist yet; see its events".to_owned()),
            (false, false) => Lookup::Unknown,
        }
    }
}
