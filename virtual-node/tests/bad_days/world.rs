//! A virtual node's pods part between two scripted clusters.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tensile_chassis::{
    kube_client::{self, ClientOptions, KubeMetrics},
    lease::Fence,
    queue::QueueMetrics,
    readiness::Readiness,
    watch::{WatchMetrics, WatchOptions},
};
use tensile_scheduling::Pool;
use tensile_virtual_node::{
    capacity::CapacityLedger,
    context::{LowerClients, Settings, UpperClients},
    contract::{ContractMetrics, Placements, Reservations},
    events::Recorder,
    names::NamespaceMapping,
    needs::NeedsKeeper,
    pods::{Pods, PodsInput},
    services::ServicesWatch,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, LIMIT};

/// From a request to its answer; short, so that a test of a hang is.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Pods that are worked on at once.
const WORKERS: usize = 8;

/// Between two looks at a condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Both clusters, and what runs between them. All ends when it is dropped.
pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
    stop: CancellationToken,
}

impl World {
    pub async fn start() -> Self {
        tensile_chassis::tls::install_crypto_provider();
        let (upper, lower) = tokio::join!(Cluster::start("upper"), Cluster::start("lower"));
        let stop = CancellationToken::new();
        run(&upper, &lower, &stop);
        let world = Self { upper, lower, stop };
        until("both clusters are watched", || {
            let open = (world.upper.watches_open(), world.lower.watches_open());
            if open == (1, 1) { Ok(()) } else { Err(open) }
        })
        .await;
        world
    }

    /// Ends the process, as it were, and starts it anew: it knows nothing but what the clusters say.
    pub fn restart(&mut self) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        run(&self.upper, &self.lower, &self.stop);
    }

    /// Creates upper pods bound to the virtual node.
    pub fn create(&self, names: &[&str]) {
        for name in names {
            self.upper.put(name, upper_pod());
        }
    }

    /// Waits until these pods and no others are there below.
    pub async fn until_below(&self, names: &[&str]) {
        until("the pods are there below", || {
            let found = self.lower.pod_names();
            if found == names { Ok(()) } else { Err((found, self.lower.requests("POST"))) }
        })
        .await;
    }

    /// Waits until an upper pod's phase is this.
    pub async fn until_phase(&self, name: &str, phase: &str) {
        until(&format!("pod {name} is {phase} above"), || {
            let pod = self.upper.pod(name).unwrap_or_default();
            if pod["status"]["phase"] == phase { Ok(()) } else { Err(pod["status"].clone()) }
        })
        .await;
    }

    /// Pods that run in both clusters.
    pub async fn running(&self, names: &[&str]) {
        self.create(names);
        self.until_below(names).await;
        for name in names {
            self.lower.patch(name, &running());
            self.until_phase(name, "Running").await;
        }
    }

    /// Nothing was deleted in either cluster, each pod was created below once, and nobody was told of trouble.
    pub fn assert_nothing_lost_nor_doubled(&self, names: &[&str]) {
        assert!(self.lower.requests("DELETE").is_empty(), "{:?}", self.lower.requests("DELETE"));
        assert!(self.upper.requests("DELETE").is_empty(), "{:?}", self.upper.requests("DELETE"));
        assert_eq!((self.upper.pod_names(), self.lower.pod_names()), (owned(names), owned(names)));
        for name in names {
            let (above, below) = (self.upper.pod(name).unwrap(), self.lower.pod(name).unwrap());
            assert_eq!(below["metadata"]["labels"]["tensile.dev/upper-uid"], above["metadata"]["uid"], "{name}");
            assert_eq!(self.lower.times_created(name), 1, "{name}");
            let told = above["status"]["conditions"].as_array().into_iter().flatten();
            let stuck: Vec<&Value> = told.filter(|c| c["type"] == "tensile.dev/Offloaded").collect();
            assert!(stuck.is_empty(), "{name} was told to be stuck: {stuck:?}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn run(upper: &Cluster, lower: &Cluster, stop: &CancellationToken) {
    let mut registry = Registry::default();
    let (metrics, watch_metrics) = (KubeMetrics::register(&mut registry), WatchMetrics::register(&mut registry));
    let client = |cluster: &Cluster, role| {
        let options = ClientOptions { timeout: TIMEOUT, role, ..ClientOptions::default() };
        kube_client::build(cluster.config(), &options, &metrics).unwrap()
    };
    let node = client(upper, "upper");
    let upper_clients = UpperClients { node: node.clone(), account: node.clone() };
    let lower_clients = LowerClients {
        api: client(lower, "lower"),
        streaming: kube_client::build_streaming(lower.config(), "test").unwrap(),
    };
    let settings = Arc::new(settings());
    let fence = Fence::open();
    let (recorder, event_writer) = Recorder::new(node.clone(), "test", "test");
    let (ready_again, mut ready_keys) = mpsc::unbounded_channel();
    let needs = NeedsKeeper::new(
        settings.clone(),
        upper_clients.clone(),
        vec![node],
        &lower_clients,
        recorder.clone(),
        Arc::new(|| true),
        ready_again,
    );
    let readiness = Readiness::new();
    let services =
        ServicesWatch::new(upper_clients.node.clone(), WatchOptions::new("upper-services"), readiness.gate("services"));
    let ledger = CapacityLedger::new(Pool::all());
    let contract_metrics = ContractMetrics::register(&mut registry);
    let reservations = Reservations::new(settings.clone(), ledger.clone(), TIMEOUT, contract_metrics);
    let pods = Arc::new(Pods::new(PodsInput {
        settings,
        upper: upper_clients,
        lower: lower_clients,
        needs: needs.clone(),
        services: services.services(),
        mirror: None,
        recorder,
        placements: Placements::new(),
        reservations,
        fence,
        queue_metrics: QueueMetrics::register(&mut registry),
    }));
    let watches = pods.watches(readiness.gate("upper"), readiness.gate("lower"), &watch_metrics);
    let queue = pods.queue();
    tokio::spawn(services.run(stop.clone()));
    tokio::spawn({
        let stop = stop.clone();
        async move { event_writer.run(stop).await }
    });
    tokio::spawn({
        let stop = stop.clone();
        async move { needs.run(stop).await }
    });
    tokio::spawn(async move {
        while let Some(key) = ready_keys.recv().await {
            queue.add(key);
        }
    });
    tokio::spawn({
        let (pods, stop) = (pods.clone(), stop.clone());
        async move { pods.feed(ledger, watches, stop).await }
    });
    tokio::spawn({
        let stop = stop.clone();
        async move { pods.work(WORKERS, stop).await }
    });
}

fn settings() -> Settings {
    Settings {
        node_name: "vn-east".into(),
        cluster_name: "east".into(),
        upper_cluster_uid: "upper-1".into(),
        lower_cluster_uid: "lower-1".into(),
        namespaces: NamespaceMapping::Same,
        adopt_namespaces: BTreeSet::new(),
        lower_scheduler_name: None,
        upper_api_for_pods: None,
        node_address: Ipv4Addr::new(192, 0, 2, 1).into(),
    }
}

/// A pod that needs nothing.
pub fn upper_pod() -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {
        "nodeName": "vn-east",
        "automountServiceAccountToken": false,
        "containers": [{"name": "main", "image": "example.test/app:1"}],
    }})
}

/// What a lower scheduler and kubelet make of a pod.
pub fn running() -> Value {
    json!({"spec": {"nodeName": "lower-node"}, "status": {
        "phase": "Running",
        "hostIP": "198.51.100.7",
        "startTime": "2026-11-24T08:00:01Z",
        "conditions": [{"type": "Ready", "status": "True"}],
    }})
}

/// Waits until `look` answers Ok, and fails with what it answered last.
pub async fn until<T, E: Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(begun.elapsed() < LIMIT, "waited {LIMIT:?} in vain until {what}; last seen: {seen:?}"),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

pub fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
