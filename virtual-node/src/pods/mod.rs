//! Pods: from the upper cluster down, their status up, and their end.
//!
//! ```text
//!  feed (two watches) ──▶ index ──▶ plan (pure) ──▶ sync ──▶ down / up (requests)
//!                           ▲                                   │
//!                           └───────────── answers ─────────────┘
//! ```

mod down;
mod environment;
mod feed;
pub mod index;
mod lower_events;
mod moving;
pub mod plan;
mod reading;
mod record;
pub mod refusal;
mod requests;
mod running;
mod sync;
mod up;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tensile_chassis::{
    lease::Fence,
    queue::{QueueMetrics, WorkQueue},
    readiness::Gate,
    watch::{Watch, WatchMetrics},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use lower_events::LowerEvents;
pub use sync::Syncer;

use crate::{
    capacity::CapacityLedger,
    context::{LowerClients, Settings, UpperClients},
    contract::{Placements, Reservations, UpperPods},
    events::Recorder,
    kubelet::{Lookup, PodLookup, RunningPod},
    mirror::ServiceMirror,
    names::Key,
    needs::NeedsKeeper,
    node::Reach,
    services::Services,
};
use index::Index;

/// The longest pause between tries at one pod: long enough to be gentle to a cluster that refuses hundreds, short enough
/// that a pod starts soon after somebody has mended what was wrong.
const RETRY_MAX: Duration = Duration::from_mins(1);

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
    /// The upper cluster's Services, for the environment of containers.
    pub services: Services,
    /// Keeps Services below, for their addresses; without it containers are told of none.
    pub mirror: Option<ServiceMirror>,
    /// Events.
    pub recorder: Recorder,
    /// The contract's placements.
    pub placements: Placements,
    /// The contract's reservations.
    pub reservations: Reservations,
    /// Write fence.
    pub fence: Fence,
    /// Metrics of the queue.
    pub queue_metrics: QueueMetrics,
}

/// The watches that feed the index.
pub struct Watches {
    /// Pods bound to the virtual node.
    pub upper: Watch<Pod>,
    /// All pods of the lower cluster; its health tells whether that cluster answers.
    pub lower: Watch<Pod>,
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
            services: input.services,
            mirror: input.mirror,
            given_up_services: Mutex::default(),
            recorder: input.recorder,
            placements: input.placements,
            reservations: input.reservations,
            strays: moving::Strays::default(),
            fence: input.fence,
        };
        Self {
            syncer: Arc::new(syncer),
            queue: WorkQueue::with("pods", RETRY_MAX, &input.queue_metrics),
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

    /// Lists the upper pods of the virtual node from the API server.
    pub fn live_list(&self) -> UpperPods {
        let (client, settings) = (self.syncer.upper.node.clone(), self.syncer.settings.clone());
        Box::new(move || {
            let (client, settings) = (client.clone(), settings.clone());
            Box::pin(async move { requests::list_upper(&client, &settings.node_name).await })
        })
    }

    /// Opens the watches; they work only once [`Self::feed`] reads them.
    pub fn watches(&self, upper: Gate, lower: Gate, metrics: &WatchMetrics) -> Watches {
        Watches {
            upper: feed::watch_upper(&self.syncer, upper, metrics.clone()),
            lower: feed::watch_lower(&self.syncer, lower, metrics.clone()),
        }
    }

    /// Takes in what happens in both clusters. Also a standby does: its caches are warm when it takes over.
    pub async fn feed(&self, ledger: CapacityLedger, watches: Watches, shutdown: CancellationToken) {
        let (syncer, queue) = (self.syncer.clone(), self.queue.clone());
        let upper = feed::upper(syncer, queue, watches.upper, self.upper_synced.clone(), shutdown.clone());
        let (syncer, queue) = (self.syncer.clone(), self.queue.clone());
        let lower = feed::lower(syncer, queue, ledger, watches.lower, self.lower_synced.clone(), shutdown.clone());
        tokio::join!(upper, lower);
    }

    /// Tells lower events above until told to stop.
    pub async fn relay_events(
        &self,
        which: LowerEvents,
        gate: Gate,
        metrics: WatchMetrics,
        shutdown: CancellationToken,
    ) {
        lower_events::relay(self.syncer.clone(), which, gate, metrics, shutdown).await;
    }

    /// Looks at every pod again each time the lower API server comes back: tries that failed meanwhile would otherwise
    /// sit out their pauses.
    pub async fn wake_on_return(&self, mut reach: watch::Receiver<Reach>, shutdown: CancellationToken) {
        let watching = async {
            while reach.wait_for(|reach| *reach != Reach::Reachable).await.is_ok()
                && reach.wait_for(|reach| *reach == Reach::Reachable).await.is_ok()
            {
                for key in self.syncer.index.keys() {
                    self.queue.add(key);
                }
            }
        };
        shutdown.run_until_cancelled(watching).await;
        shutdown.cancelled().await;
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
        if shutdown.run_until_cancelled(self.synced()).await.is_none() {
            return;
        }
        // Those of an earlier term of ours, too, that were given up when it ended.
        for key in self.syncer.index.keys() {
            self.queue.add(key);
        }
        let syncer = self.syncer.clone();
        let work = self.queue.run(concurrency, shutdown.clone(), move |key| {
            let syncer = syncer.clone();
            async move { syncer.sync(key).await }
        });
        tokio::join!(work, moving::run(self.syncer.clone(), shutdown));
    }
}

struct IndexLookup {
    syncer: Arc<Syncer>,
}

impl PodLookup for IndexLookup {
    fn lower_of(&self, key: &Key) -> Lookup {
        match self.syncer.index.presence(key) {
            (_, true) => Lookup::Found { lower: self.syncer.lower_key(key) },
            (true, false) => {
                Lookup::NotYet { why: "it is not in the lower cluster yet; its events say why".to_owned() }
            }
            (false, false) => Lookup::Unknown,
        }
    }

    fn running(&self, lower: &Key, upper_uid: Option<&str>) -> Option<RunningPod> {
        let read = |uid: &str, status: &_| (uid.to_owned(), running::containers(status));
        let (key, (uid, containers)) = self.syncer.index.upper_status_of(lower, read)?;
        let meant = upper_uid.is_none_or(|meant| meant == uid) && !containers.is_empty();
        meant.then_some(RunningPod { key, uid, containers })
    }
}
