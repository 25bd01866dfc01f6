//! Puts the parts together, in the order in which they come to need each other.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;
use rand::Rng;
use tensile_chassis::{
    admin::{self, Metrics, ProcessMetrics},
    kube_client::{KubeMetrics, fenced},
    lease::LeaseElection,
    queue::QueueMetrics,
    readiness::Readiness,
    shutdown::Shutdown,
    watch::{WatchMetrics, WatchOptions},
};
use tensile_scheduling::Pool;
use tokio::sync::{mpsc, watch};

use crate::{
    args::{Args, NamespaceMode},
    bootstrap,
    capacity::{CapacityLedger, NodesWatch},
    context::{LowerClients, Settings, UpperClients},
    contract::{ContractInputs, ContractMetrics, ContractServer, Placements, Reservations},
    events::Recorder,
    identity,
    kubelet::{KubeletServer, PodLookup},
    lead::Leader,
    mirror::{MirrorGates, ServiceMirror, ServiceMirrorInput},
    names::{NamespaceMapping, short_id},
    needs::NeedsKeeper,
    node::{Advertised, NodeKeeper, NodeKeeperInputs, ReachProbe, said},
    pods::{Pods, PodsInput},
    services::ServicesWatch,
};

/// Time that parts get to end after a request to stop. Below Kubernetes' default grace of 30 s.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// Connections for watches of single ConfigMaps and Secrets: at 50 watches each, 400 objects are followed and further
/// ones are read once a minute. They are opened when needed.
const WATCH_CONNECTIONS: usize = 8;

/// Runs the virtual-node until it is told to stop, or until a part fails that it cannot do without.
pub async fn run(args: Args) -> Result<()> {
    let cluster_name = args.cluster_name.clone().unwrap_or_else(|| args.node_name.clone());
    let profile = args.node.profile(&args.node_name, &cluster_name)?;
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    let stop = shutdown.token();

    let readiness = Readiness::new();
    let mut registry = Registry::default();
    ProcessMetrics::register(&mut registry);
    let kube_metrics = KubeMetrics::register(&mut registry);
    let watch_metrics = WatchMetrics::register(&mut registry);
    let queue_metrics = QueueMetrics::register(&mut registry);
    let admin = args.admin.bind().await?;
    // Probes come first: what follows may wait for a cluster or for a person, and must not be restarted meanwhile.
    let metrics = Metrics::new();
    metrics.add(registry);
    let mut registry = Registry::default();
    let starting = readiness.gate("start");
    shutdown.spawn_last("admin", |last| admin::serve(admin, metrics.clone(), readiness.clone(), last));

    // Who we are, and who they are.
    let me = format!("{}-{:08x}", args.node_name, rand::rng().random::<u32>());
    let clusters = bootstrap::connect(&args, &me, &kube_metrics).await?;
    for (name, access) in [("upper-access", &clusters.upper), ("lower-access", &clusters.lower_access)] {
        shutdown.spawn(name, access.clone().keep_fresh(stop.clone()));
    }
    let asked = bootstrap::upper_identity(&clusters.account, &starting, &stop);
    let Some(upper_uid) = asked.await? else { return end(&shutdown).await };
    clusters.upper.expect_cluster(&upper_uid);
    let identity = identity::obtain(
        &args.identity,
        identity::IdentityContext {
            node_name: args.node_name.clone(),
            account_access: clusters.upper,
            account: clusters.account.clone(),
            build: clusters.upper_builder,
            watch_clients: WATCH_CONNECTIONS,
            gate: starting.clone(),
            metrics: kube_metrics,
        },
    );
    let Some(identity) = Box::pin(stop.run_until_cancelled(identity)).await.transpose()? else {
        return end(&shutdown).await;
    };
    let upper = UpperClients { node: identity.client.clone(), account: clusters.account };
    let lower = clusters.lower;
    let asked = bootstrap::lower_identity(&lower.api, &upper.node, &args.node_name, &upper_uid, &starting, &stop);
    let Some(lower_identity) = asked.await? else { return end(&shutdown).await };
    // From here on another cluster is not followed, whatever the kubeconfig comes to say.
    clusters.lower_access.expect_cluster(&lower_identity.uid);
    let settings = Arc::new(Settings {
        node_name: args.node_name.clone(),
        cluster_name,
        namespaces: match args.pods.namespaces {
            NamespaceMode::Same => NamespaceMapping::Same,
            NamespaceMode::Suffixed => NamespaceMapping::Suffixed { short_id: short_id(&upper_uid) },
        },
        upper_cluster_uid: upper_uid,
        lower_cluster_uid: lower_identity.uid,
        adopt_namespaces: args.pods.adopt_namespaces.iter().cloned().collect(),
        lower_scheduler_name: args.pods.lower_scheduler_name.clone(),
        upper_api_for_pods: args.pods.upper_api_for_pods.clone(),
        node_address: args.node_address,
    });

    // The name is checked before the election: a replica for another cluster must fail now, not when it comes to lead.
    let home = args.identity.secret_namespace.clone();
    let lease_name = format!("virtual-node-{}", settings.node_name);
    let installation = format!("{home}/{lease_name}");
    NodeKeeper::check_name(&upper.node, &settings, &installation).await?;
    let election = LeaseElection::new(upper.account.clone(), &home, &lease_name, &me, args.lease.clone())?;
    let fence = election.fence();
    let may_write: Arc<dyn Fn() -> bool + Send + Sync> = {
        let fence = fence.clone();
        Arc::new(move || fence.check().is_ok())
    };

    // Asks and answers kubectl also while another replica leads.
    let (kubelet_upper, kubelet_lower) = (upper.clone(), lower.clone());
    // All other writes are the leader's alone.
    let upper =
        UpperClients { node: fenced(&upper.node, fence.clone()), account: fenced(&upper.account, fence.clone()) };
    let lower = LowerClients { api: fenced(&lower.api, fence.clone()), ..lower };

    let (recorder, event_writer) = Recorder::new(upper.node.clone(), "tensile-virtual-node", &me);
    let (ready_again, mut ready_keys) = mpsc::unbounded_channel();
    let needs = NeedsKeeper::new(
        settings.clone(),
        upper.clone(),
        identity.watch_clients.clone(),
        &lower,
        recorder.clone(),
        may_write.clone(),
        ready_again,
    );
    // As the node, for every node may read Services.
    let services = ServicesWatch::new(
        upper.node.clone(),
        WatchOptions { metrics: watch_metrics.clone(), ..WatchOptions::new("upper-services") },
        readiness.gate("upper-services"),
    );
    let mirror = ServiceMirror::new(ServiceMirrorInput {
        settings: settings.clone(),
        network: args.lower.network,
        upper: upper.clone(),
        lower: lower.clone(),
        recorder: recorder.clone(),
        queue_metrics: queue_metrics.clone(),
    });
    let placements = Placements::new();
    let ledger = CapacityLedger::new(Pool::all());
    let contract_metrics = ContractMetrics::register(&mut registry);
    let ttl_max = args.contract.reservation_ttl_max;
    let reservations = Reservations::new(settings.clone(), ledger.clone(), ttl_max, contract_metrics.clone());
    let pods = Arc::new(Pods::new(PodsInput {
        settings: settings.clone(),
        upper: upper.clone(),
        lower: lower.clone(),
        needs: needs.clone(),
        services: services.services(),
        mirror: Some(mirror.clone()),
        recorder: recorder.clone(),
        placements: placements.clone(),
        reservations: reservations.clone(),
        fence,
        queue_metrics,
    }));
    let lookup: Arc<dyn PodLookup> = pods.lookup();
    let kubelet = KubeletServer::bind(
        &args.kubelet,
        &settings,
        kubelet_upper,
        kubelet_lower,
        lookup,
        readiness.gate("kubelet-api"),
        &mut registry,
    )
    .await?;

    let watches = pods.watches(readiness.gate("upper-pods"), readiness.gate("lower-pods"), &watch_metrics);
    let nodes = NodesWatch::new(
        lower.api.clone(),
        ledger.clone(),
        WatchOptions { metrics: watch_metrics.clone(), ..WatchOptions::new("lower-nodes") },
        readiness.gate("lower-nodes"),
    );
    // A client of its own: behind a burst on the other one it would take a busy API server for one that is away.
    let (probe, reach) = ReachProbe::new(lower.streaming.clone(), vec![watches.lower.health(), nodes.health()]);
    let published = ledger.published();
    let grpc = ContractServer::bind(&args.grpc, &args.contract).await?;
    let grpc_port = grpc.local_addr().context("the gRPC listener")?.port();
    let keeper = NodeKeeperInputs {
        settings: settings.clone(),
        profile,
        upper: upper.clone(),
        shape: published.shape.clone(),
        reach: reach.clone(),
        lower_version: lower_identity.version,
        advertised: Advertised {
            address: settings.node_address,
            kubelet_port: kubelet.port(),
            endpoint: SocketAddr::new(settings.node_address, grpc_port).to_string(),
        },
        installation,
        may_write,
        recorder,
        gate: readiness.gate("node"),
    };

    // From here on everything runs.
    metrics.add(registry);
    let kubelet = kubelet.with_metrics(metrics);
    let leadership = election.run(&shutdown);
    shutdown.spawn("identity", identity.run(stop.clone()));
    shutdown.spawn("events", event_writer.run(stop.clone()));
    shutdown.spawn("reach", probe.run(stop.clone()));
    shutdown.spawn("lower-nodes", nodes.run(stop.clone()));
    shutdown.spawn("upper-services", services.run(stop.clone()));
    shutdown.spawn("kubelet-api", kubelet.run(stop.clone()));
    shutdown.spawn("needs", {
        let (needs, stop) = (needs.clone(), stop.clone());
        async move { needs.run(stop).await }
    });
    shutdown.spawn("capacity", {
        let (ledger, stop) = (ledger.clone(), stop.clone());
        async move { ledger.publish(stop).await }
    });
    shutdown.spawn("ready-again", {
        let (queue, stop) = (pods.queue(), stop.clone());
        async move {
            while let Some(Some(key)) = stop.run_until_cancelled(ready_keys.recv()).await {
                queue.add(key);
            }
        }
    });
    let inputs = ContractInputs {
        settings: settings.clone(),
        ledger: ledger.clone(),
        reach,
        placements,
        leadership: leadership.clone(),
        reservations,
        metrics: contract_metrics,
        upper_pods: pods.live_list(),
    };
    shutdown.spawn("wake-on-return", {
        let (pods, reach, stop) = (pods.clone(), inputs.reach.clone(), stop.clone());
        async move { pods.wake_on_return(reach, stop).await }
    });
    shutdown.spawn("contract", grpc.run(inputs, stop.clone()));
    shutdown.spawn("lower-events", {
        let (pods, watch_metrics, stop) = (pods.clone(), watch_metrics.clone(), stop.clone());
        let gate = readiness.gate("lower-events");
        let which = args.lower.lower_events;
        async move { pods.relay_events(which, gate, watch_metrics, stop).await }
    });
    shutdown.spawn("service-mirror", {
        let (mirror, used, stop) = (mirror.clone(), needs.used_namespaces(), stop.clone());
        let gates = MirrorGates::of(&readiness);
        let metrics = watch_metrics.clone();
        async move { mirror.feed(used, gates, &metrics, stop).await }
    });
    let confirmed = watch::Sender::new(lower_identity.confirmed);
    let workable = confirmed.subscribe();
    shutdown.spawn("feed", {
        let (pods, needs, stop) = (pods.clone(), needs.clone(), stop.clone());
        let (lower, uid) = (lower.api.clone(), settings.lower_cluster_uid.clone());
        async move {
            if !lower_identity.confirmed {
                bootstrap::confirm_lower(&lower, &uid, &stop).await?;
                confirmed.send_replace(true);
            }
            if stop.run_until_cancelled(adopt(&needs)).await.is_some() {
                pods.feed(ledger, watches, stop).await;
            }
            anyhow::Ok(())
        }
    });
    let workers = usize::from(args.pods.pod_workers);
    let leader = Leader { leadership, workable, keeper, pods, needs, mirror, workers };
    shutdown.spawn("lead", leader.run(stop.clone()));

    // All gates are there.
    starting.set_ready();
    end(&shutdown).await
}

/// Waits for the request to stop, and for what is under way then.
async fn end(shutdown: &Shutdown) -> Result<()> {
    shutdown.drain(DRAIN_MAX).await?;
    Ok(())
}

/// Finds what an earlier run left below; asked again until the lower cluster answers.
async fn adopt(needs: &NeedsKeeper) {
    let mut backoff = tensile_chassis::retry::Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    while let Err(error) = needs.adopt_existing().await {
        tracing::warn!(
            error = said(&error),
            "could not look for what an earlier run left in the lower cluster; trying again. Our rights there stand in \
             deploy/rbac-lower.yaml"
        );
        tokio::time::sleep(backoff.next_delay()).await;
    }
}
