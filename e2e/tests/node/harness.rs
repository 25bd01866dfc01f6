//! Runs the node part of a virtual-node in this process, against two real clusters and with the rights of `deploy/`.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use clap::Parser;
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Namespace};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_chassis::{
    kube_client::{ClientOptions, KubeMetrics, build, build_streaming, load_config},
    readiness::Readiness,
    watch::WatchOptions,
};
use tensile_e2e::{Cluster, Seen, eventually};
use tensile_proto::vocabulary::label;
use tensile_scheduling::Pool;
use tensile_virtual_node::{
    capacity::{CapacityLedger, NodesWatch},
    context::{Settings, UpperClients},
    events::Recorder,
    identity::{self, IdentityArgs, IdentityContext, IdentityError},
    names::NamespaceMapping,
    node::{Advertised, ClaimError, NodeArgs, NodeKeeper, NodeKeeperInputs, NodeNameTaken, ReachProbe},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The time limit for what takes a second or two on an idle machine.
pub const SOON: Duration = Duration::from_mins(1);

const UPPER_RBAC: &str = include_str!("../../../virtual-node/deploy/rbac-upper.yaml");
const UPPER_RBAC_WIDE: &str = include_str!("../../../virtual-node/deploy/rbac-upper-service-account.yaml");
const LOWER_RBAC: &str = include_str!("../../../virtual-node/deploy/rbac-lower.yaml");

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    identity: IdentityArgs,
}

/// One virtual-node to be.
pub struct Plan<'a> {
    pub upper: &'a Cluster,
    pub lower: &'a Cluster,
    pub node_name: &'a str,
    pub args: &'a [&'a str],
    pub installation: &'a str,
}

/// One that runs; stopped when dropped.
pub struct Running {
    shutdown: CancellationToken,
    tasks: JoinSet<Result<(), NodeNameTaken>>,
}

/// Why one did not start.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// Installs rights on both sides, as an administrator does.
pub async fn install(upper: &Cluster, lower: &Cluster, node_name: &str) {
    upper.apply_yaml(&UPPER_RBAC.replace("{{NODE_NAME}}", node_name)).await.unwrap();
    lower.apply_yaml(LOWER_RBAC).await.unwrap();
}

/// Adds the rights of a virtual-node that has no node certificate.
pub async fn install_wide(upper: &Cluster, node_name: &str) {
    upper.apply_yaml(&UPPER_RBAC_WIDE.replace("{{NODE_NAME}}", node_name)).await.unwrap();
}

/// Denies the node's certificate request when it appears.
pub async fn deny(upper: &Cluster, node_name: &str) {
    let requests: Api<CertificateSigningRequest> = Api::all(upper.client());
    let ours = ListParams::default().labels(&format!("{}={node_name}", label::VIRTUAL_NODE));
    eventually("the node certificate is asked for and denied", SOON, || async {
        let Some(request) = requests.list(&ours).await?.items.into_iter().next() else {
            return Ok(Seen::NotYet("no request".into()));
        };
        let name = request.metadata.name.clone().unwrap_or_default();
        let denied = json!([{"type": "Denied", "status": "True", "reason": "Policy", "message": "not on a Tuesday"}]);
        let patch = Patch::Merge(json!({"status": {"conditions": denied}}));
        requests.patch_approval(&name, &PatchParams::default(), &patch).await?;
        Ok(Seen::Done(()))
    })
    .await
    .unwrap();
}

/// Approves the node's certificate request when it appears, as an administrator does.
pub async fn approve(upper: &Cluster, node_name: &str) -> Vec<String> {
    let of_node = |request: &CertificateSigningRequest| {
        request.metadata.labels.as_ref().and_then(|l| l.get(label::VIRTUAL_NODE)).is_some_and(|n| n == node_name)
    };
    eventually("the node certificate is asked for", SOON, || async {
        let approved = upper.approve_csrs(of_node).await?;
        Ok(if approved.is_empty() { Seen::NotYet("no open request".into()) } else { Seen::Done(approved) })
    })
    .await
    .unwrap()
}

async fn cluster_uid(cluster: &Cluster) -> String {
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    namespaces.get("kube-system").await.unwrap().metadata.uid.unwrap()
}

async fn account_config(cluster: &Cluster) -> kube::Config {
    let path = cluster.service_account_kubeconfig("tensile-system", "virtual-node").await.unwrap();
    load_config(Some(&path), None).await.unwrap()
}

fn client(config: kube::Config, role: &'static str) -> kube::Client {
    build(config, &ClientOptions { role, ..ClientOptions::default() }, &metrics()).unwrap()
}

fn metrics() -> KubeMetrics {
    KubeMetrics::register(&mut prometheus_client::registry::Registry::default())
}

impl Plan<'_> {
    /// Obtains the identity, claims the name and runs, in the order of the real process.
    pub async fn start(&self) -> Result<Running, NotStarted> {
        let command =
            Command::try_parse_from(std::iter::once("virtual-node").chain(self.args.iter().copied())).unwrap();
        let settings = Arc::new(self.settings().await);
        let upper_config = account_config(self.upper).await;
        let account = client(upper_config.clone(), "upper");
        let context = IdentityContext {
            node_name: self.node_name.to_owned(),
            account_config: upper_config,
            account: account.clone(),
            build: Arc::new(|config| build(config, &ClientOptions::default(), &metrics())),
            watch_clients: 1,
        };
        let identity = identity::obtain(&command.identity, context).await?;
        let upper = UpperClients { node: identity.client.clone(), account };
        NodeKeeper::check_name(&upper.node, &settings, self.installation).await?;

        let lower_config = account_config(self.lower).await;
        let readiness = Readiness::new();
        let ledger = CapacityLedger::new(Pool::all());
        let options = WatchOptions::new("lower-nodes");
        let lower = client(lower_config.clone(), "lower");
        let nodes = NodesWatch::new(lower, ledger.clone(), options, readiness.gate("lower-nodes"));
        let streaming = build_streaming(lower_config, "tensile-e2e").unwrap();
        let (probe, reach) = ReachProbe::new(streaming, vec![nodes.health()]);
        let (recorder, events) = Recorder::new(upper.node.clone(), "tensile-virtual-node", "test");
        // No pods run in these clusters.
        ledger.pods_listed();
        let keeper = NodeKeeper::new(NodeKeeperInputs {
            profile: command.node.profile(self.node_name, &settings.cluster_name).unwrap(),
            advertised: Advertised {
                address: settings.node_address,
                kubelet_port: 10250,
                endpoint: format!("{}:9443", settings.node_address),
            },
            settings,
            upper,
            shape: ledger.published().shape,
            reach,
            lower_version: "v1.36.3".to_owned(),
            installation: self.installation.to_owned(),
            may_write: Arc::new(|| true),
            recorder,
            gate: readiness.gate("node"),
        });
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let token = || shutdown.clone();
        tasks.spawn(ok(identity.run(token())));
        tasks.spawn(ok(nodes.run(token())));
        tasks.spawn(ok(probe.run(token())));
        tasks.spawn(ok(events.run(token())));
        tasks.spawn({
            let token = token();
            async move { ok(ledger.publish(token)).await }
        });
        tasks.spawn(keeper.run(token()));
        Ok(Running { shutdown, tasks })
    }

    async fn settings(&self) -> Settings {
        let node_address: IpAddr = self.upper.host_address();
        Settings {
            node_name: self.node_name.to_owned(),
            cluster_name: self.lower.name().to_owned(),
            upper_cluster_uid: cluster_uid(self.upper).await,
            lower_cluster_uid: cluster_uid(self.lower).await,
            namespaces: NamespaceMapping::Same,
            adopt_namespaces: BTreeSet::new(),
            lower_scheduler_name: None,
            upper_api_for_pods: None,
            node_address,
        }
    }
}

async fn ok(task: impl Future<Output = ()>) -> Result<(), NodeNameTaken> {
    task.await;
    Ok(())
}

impl Running {
    /// Stops it as SIGTERM would.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }

    /// Waits until a part of it ends by itself.
    pub async fn ended(&mut self) -> Result<(), NodeNameTaken> {
        self.tasks.join_next().await.unwrap().unwrap()
    }
}
