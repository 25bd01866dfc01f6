//! Services: those of the upper cluster stand below too, so that pods there reach them by name.
//!
//! ```text
//!  upper Services, EndpointSlices ──watch──▶ store ──▶ keeper ──▶ lower Services, EndpointSlices
//!                                             ▲ ▲
//!  namespaces with pods below ────────────────┘ └──watch── lower ones with our mark
//! ```
//!
//! Only namespaces with pods below are mirrored, and nothing that carries a mark of ours above: it came from a cluster for
//! which the upper one is a lower one.

mod feed;
mod keeper;
mod store;
mod translate;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::Api;
use parking_lot::Mutex;
use tensile_chassis::{
    queue::{QueueMetrics, WorkQueue},
    readiness::{Gate, Readiness},
    watch::{Watch, WatchMetrics, WatchOptions, watch},
};
use tensile_proto::vocabulary::label;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

pub use self::translate::Network;
use self::{
    keeper::Keeper,
    store::{Item, Store},
};
use crate::{
    context::{LowerClients, Settings, UpperClients},
    events::Recorder,
};

/// Requests under way at once.
const CONCURRENCY: usize = 4;

/// Keeps Services below. Cheap to clone.
#[derive(Clone)]
pub struct ServiceMirror {
    keeper: Arc<Keeper>,
    queue: WorkQueue<Item>,
}

/// What it is given.
pub struct ServiceMirrorInput {
    /// Settings.
    pub settings: Arc<Settings>,
    /// Which endpoints can be reached from below.
    pub network: Network,
    /// Clients to the upper cluster.
    pub upper: UpperClients,
    /// Clients to the lower cluster.
    pub lower: LowerClients,
    /// Events.
    pub recorder: Recorder,
    /// Metrics of the queue.
    pub queue_metrics: QueueMetrics,
}

/// The gates that tell whether its watches work.
pub struct MirrorGates {
    services: Gate,
    slices: Gate,
    lower_services: Gate,
    lower_slices: Gate,
}

impl MirrorGates {
    /// New ones.
    #[must_use]
    pub fn of(readiness: &Readiness) -> Self {
        Self {
            services: readiness.gate("mirrored-services"),
            slices: readiness.gate("mirrored-slices"),
            lower_services: readiness.gate("lower-services"),
            lower_slices: readiness.gate("lower-slices"),
        }
    }
}

impl ServiceMirror {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(input: ServiceMirrorInput) -> Self {
        let queue = WorkQueue::with("services", keeper::RETRY_MAX, &input.queue_metrics);
        let keeper = Keeper {
            settings: input.settings,
            network: input.network,
            upper: input.upper,
            lower: input.lower.api,
            recorder: input.recorder,
            store: Mutex::new(Store::default()),
            changed: signal::Sender::new(()),
            listed: std::array::from_fn(|_| signal::Sender::new(false)),
        };
        Self { keeper: Arc::new(keeper), queue }
    }

    /// Takes in what happens in both clusters, also while another replica leads. `used` tells which upper namespaces have
    /// pods below.
    pub async fn feed(
        &self,
        used: signal::Receiver<BTreeSet<String>>,
        gates: MirrorGates,
        metrics: &WatchMetrics,
        shutdown: CancellationToken,
    ) {
        let keeper = &self.keeper;
        let ours = Some(format!("{}={}", label::UPPER_CLUSTER, keeper.settings.upper_cluster_uid));
        let above = |name| WatchOptions { metrics: metrics.clone(), ..WatchOptions::new(name) };
        let below = |name| WatchOptions { label_selector: ours.clone(), ..above(name) };
        let services: Watch<Service> =
            watch(Api::all(keeper.upper.node.clone()), above("mirrored-services"), gates.services);
        let slices: Watch<EndpointSlice> =
            watch(Api::all(keeper.upper.account.clone()), above("mirrored-slices"), gates.slices);
        let lower_services: Watch<Service> =
            watch(Api::all(keeper.lower.clone()), below("lower-services"), gates.lower_services);
        let lower_slices: Watch<EndpointSlice> =
            watch(Api::all(keeper.lower.clone()), below("lower-slices"), gates.lower_slices);
        let feed = feed::Feed { keeper: keeper.clone(), queue: self.queue.clone() };
        let fed = async {
            tokio::join!(
                feed.namespaces(used),
                feed.above(services, 0),
                feed.above(slices, 1),
                feed.below(lower_services, 2),
                feed.below(lower_slices, 3),
            )
        };
        shutdown.run_until_cancelled(fed).await;
    }

    /// Waits until the Services of an upper namespace stand below, as far as they can; the caller sets the time limit.
    pub async fn settled(&self, namespace: &str) {
        self.keeper.listed().await;
        let mut changed = self.keeper.changed.subscribe();
        while self.keeper.store.lock().is_missing_any(namespace) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Cluster IPs in the lower cluster of an upper namespace's Services, by name.
    #[must_use]
    pub fn addresses(&self, namespace: &str) -> HashMap<String, String> {
        self.keeper.store.lock().addresses(namespace)
    }

    /// Brings the lower cluster to what it should be, until told to stop. Only the leader does.
    pub async fn work(&self, shutdown: CancellationToken) {
        let keeper = self.keeper.clone();
        if shutdown.run_until_cancelled(keeper.listed()).await.is_none() {
            return;
        }
        for item in keeper.store.lock().items() {
            self.queue.add(item);
        }
        self.queue
            .run(CONCURRENCY, shutdown, move |item| {
                let keeper = keeper.clone();
                async move { keeper.sync(item).await }
            })
            .await;
    }
}
