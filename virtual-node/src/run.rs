//! Puts the parts together, in the order in which they come to need each other.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;
use rand::Rng;
use tensile_chassis::{
    admin::{self, ProcessMetrics},
    kube_client::KubeMetrics,
    lease::{Leadership, LeaseElection},
    queue::QueueMetrics,
    readiness::Readiness,
    shutdown::Shutdown,
    watch::{WatchMetrics, WatchOptions},
};
use tensile_scheduling::Pool;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    args::{Args, NamespaceMode},
    bootstrap,
    capacity::{CapacityLedger, NodesWatch},
    context::{Settings, UpperClients},
    contract::{ContractInputs, ContractServer, Placements},
    events::Recorder,
    identity,
    kubelet::{KubeletServer, PodLookup},
    names::{NamespaceMapping, short_id},
    needs::NeedsKeeper,
    node::{Advertised, NodeKeeper, NodeKeeperInputs, ReachProbe, said},
    pods::{Pods, PodsInput},
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

    // Who we are, and who they are.
    let clusters = bootstrap::connect(&args, &kube_metrics).await?;
    let Some(upper_uid) = bootstrap::upper_identity(&clusters.account, &stop).await? else { return Ok(()) };
    let identity = identity::obtain(
        &args.identity,
        identity::IdentityContext {
            node_name: args.node_name.clone(),
            account_config: clusters.upper_config,
            account: clusters.account.clone(),
            build: clusters.upper_builder,
            watch_clients: WATCH_CONNECTIONS,
        },
    );
    let Some(identity) = Box::pin(stop.run_until_cancelled(identity)).await.transpose()? else { return Ok(()) };
    let upper = UpperClients { node: identity.client.clone(), account: clusters.account };
    let lower = clusters.lower;
    let asked = bootstrap::lower_identity(&lower.api, &upper.node, &args.node_name, &upper_uid, &stop);
    let Some(lower_identity) = asked.await? else { return Ok(()) };
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
    let me = format!("{}-{:08x}", settings.node_name, rand::rng().random::<u32>());
    let election = LeaseElection::new(upper.account.clone(), &home, &lease_name, &me, args.lease.clone())?;
    let fence = election.fence();
    let may_write: Arc<dyn Fn() -> bool + Send + Sync> = {
        let fence = fence.clone();
        Arc::new(move || fence.check().is_ok())
    };

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
    let placements = Placements::new();
    let pods = Arc::new(Pods::new(PodsInput {
        settings: settings.clone(),
        upper: upper.clone(),
        lower: lower.clone(),
        needs: needs.clone(),
        recorder: recorder.clone(),
        placements: placements.clone(),
        fence,
        queue_metrics,
    }));
    let lookup: Arc<dyn PodLookup> = pods.lookup();
    let kubelet = KubeletServer::bind(
        &args.kubelet,
        &settings,
        upper.clone(),
        lower.clone(),
        lookup,
        readiness.gate("kubelet-api"),
        &mut registry,
    )
    .await?;

    let ledger = CapacityLedger::new(Pool::all());
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
    let keeper = NodeKeeper::new(NodeKeeperInputs {
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
    });

    // From here on everything runs.
    let registry = Arc::new(registry);
    shutdown.spawn_last("admin", |last| admin::serve(admin, registry, readiness.clone(), last));
    let leadership = election.run(&shutdown);
    shutdown.spawn("identity", identity.run(stop.clone()));
    shutdown.spawn("events", event_writer.run(stop.clone()));
    shutdown.spawn("reach", probe.run(stop.clone()));
    shutdown.spawn("lower-nodes", nodes.run(stop.clone()));
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
    };
    shutdown.spawn("wake-on-return", {
        let (pods, reach, stop) = (pods.clone(), inputs.reach.clone(), stop.clone());
        async move { pods.wake_on_return(reach, stop).await }
    });
    shutdown.spawn("contract", grpc.run(inputs, stop.clone()));
    shutdown.spawn("lower-events", {
        let (pods, stop) = (pods.clone(), stop.clone());
        let gate = readiness.gate("lower-events");
        let which = args.lower.lower_events;
        async move { pods.relay_events(which, gate, watch_metrics, stop).await }
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
    shutdown.spawn("lead", lead(leadership, workable, keeper, pods, needs, workers, stop.clone()));

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

/// Waits until this replica leads, then does what only the leader does, for as long as it leads.
///
/// A leader that lost its lease ends the process: its caches are in order, but what it was in the middle of is not
/// worth untangling when a restart takes a second.
async fn lead(
    mut leadership: watch::Receiver<Leadership>,
    mut workable: watch::Receiver<bool>,
    keeper: NodeKeeper,
    pods: Arc<Pods>,
    needs: NeedsKeeper,
    workers: usize,
    stop: CancellationToken,
) -> Result<()> {
    let leads = leadership.wait_for(Leadership::is_leader);
    if stop.run_until_cancelled(leads).await.is_none() {
        return Ok(());
    }
    info!("this replica leads");
    let working = stop.child_token();
    let work = async {
        tokio::select! {
            // Nobody drops the sender before the work ends.
            _ = workable.wait_for(|workable| *workable) => {}
            () = stop.cancelled() => return,
        }
        let collect = async {
            if working.run_until_cancelled(pods.synced()).await.is_some() {
                needs.collect_leftovers();
            }
        };
        tokio::join!(collect, pods.work(workers, working.clone()));
    };
    tokio::select! {
        taken = keeper.run(working.clone()) => {
            taken?;
            Ok(())
        }
        // Ends at the request to stop, with what was begun.
        () = work => Ok(()),
        lost = leadership.wait_for(|leadership| !leadership.is_leader()) => {
            lost.context("the election ended")?;
            anyhow::bail!("this replica leads no more: another has taken the lease, or it could not be renewed in time")
        }
    }
}
