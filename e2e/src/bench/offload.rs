//! A burst of pods through a virtual node, and the same burst straight in the lower cluster.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde::Serialize;

use super::{
    cost::{self, Requests},
    observe::Observer,
    report,
};
use crate::{Cluster, KwokNodes, Seen, Supervised, VirtualNode, eventually, run::Run};

/// Nothing that works takes longer, whatever its size.
const RUN_DEADLINE: Duration = Duration::from_mins(15);
pub(super) const NAMESPACE: &str = "bench";
const NODE_NAME: &str = "bench-vn";

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct OffloadArgs {
    /// Sizes of the burst
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000], value_name = "COUNT,...")]
    pub pods: Vec<usize>,

    /// Runs of each subject for each size, in turn
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    pub runs: usize,

    /// Nodes of the lower cluster (32 CPUs, 256 GiB, 110 pods each)
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    pub nodes: usize,

    /// Pods with the token of their ServiceAccount, which costs a TokenRequest and a Secret each
    #[arg(long)]
    pub token: bool,

    /// Which subjects to run
    #[arg(long, value_delimiter = ',', default_value = "ours,vanilla", value_name = "SUBJECT,...")]
    pub subjects: Vec<Subject>,

    /// Writes one JSON object for each run, a line each
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Draws the seconds until all pods are Ready
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// Another virtual-node to measure in place of ours: a shell command in which {upper_kubeconfig},
    /// {lower_kubeconfig} (of cluster administrators), {node_name} and {node_address} are filled in
    #[arg(long, value_name = "COMMAND")]
    pub agent: Option<String>,
}

/// Who runs the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// Created in the upper cluster, behind a virtual node.
    Ours,
    /// Created in the lower cluster itself.
    Vanilla,
}

/// One run, as it is written to JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Reading {
    pub case: &'static str,
    pub pods: usize,
    pub subject: Subject,
    pub all_created_s: f64,
    pub all_scheduled_s: f64,
    pub all_ready_s: f64,
    pub ready_p50_s: f64,
    pub ready_p99_s: f64,
    pub delete_s: f64,
    /// CPU of the virtual-node until all pods were Ready; 0 for vanilla.
    pub agent_cpu_s: f64,
    /// CPU of the virtual-node while the pods were deleted.
    pub agent_delete_cpu_s: f64,
    pub agent_rss_peak_mib: f64,
    pub machine_cpu_s: f64,
    /// Requests to both API servers until all pods were Ready, of everybody.
    pub requests: Requests,
}

/// Runs it all and reports.
pub async fn offload(args: &OffloadArgs) -> Result<()> {
    let biggest = args.pods.iter().max().copied().unwrap_or_default();
    let room = args.nodes * 110;
    if biggest > room {
        bail!("--pods {biggest} do not fit on --nodes {}: each takes 110 pods, {room} in all", args.nodes);
    }
    eprintln!("starting an upper cluster, and a lower one with {} simulated nodes", args.nodes);
    let (upper, lower) = tokio::try_join!(control_plane("upper").start(), async {
        control_plane("lower").nodes(KwokNodes::count(args.nodes)).start().await
    })?;
    for cluster in [&upper, &lower] {
        let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
        cluster.apply_yaml(&namespace).await?;
    }
    let bench = Bench { args, upper: &upper, lower: &lower };
    let mut readings = Vec::new();
    for &pods in &args.pods {
        for round in 0..args.runs {
            for &subject in &args.subjects {
                let reading =
                    bench.run(subject, pods).await.with_context(|| format!("{subject:?} with {pods} pods"))?;
                eprintln!("{pods} pods, round {}: {}", round + 1, report::line(&reading));
                readings.push(reading);
            }
        }
    }
    report::table(&readings);
    if let Some(path) = &args.json {
        report::write_json(path, &readings)?;
    }
    if let Some(path) = &args.svg {
        report::write_svg(path, &readings)?;
    }
    tokio::join!(upper.stop(), lower.stop());
    Ok(())
}

/// A control plane whose own limits are out of the way, the same for both subjects.
pub(super) fn control_plane(name: &str) -> crate::ClusterBuilder {
    Cluster::builder(name)
        .audit(false)
        .client_rate(5_000, 10_000)
        .apiserver_arg("--max-requests-inflight=3000")
        .apiserver_arg("--max-mutating-requests-inflight=1500")
}

struct Bench<'a> {
    args: &'a OffloadArgs,
    upper: &'a Cluster,
    lower: &'a Cluster,
}

/// The program that stands between the clusters.
enum Agent {
    Ours(Box<VirtualNode>),
    Given(Supervised),
    None,
}

impl Agent {
    fn cpu_seconds(&self) -> Result<f64> {
        match self {
            Self::Ours(node) => node.cpu_seconds(),
            Self::Given(process) => process.cpu_seconds(),
            Self::None => Ok(0.0),
        }
    }

    fn rss_peak_mib(&self) -> Result<f64> {
        match self {
            Self::Ours(node) => node.rss_peak_mib(),
            Self::Given(process) => process.rss_peak_mib(),
            Self::None => Ok(0.0),
        }
    }
}

impl Bench<'_> {
    async fn run(&self, subject: Subject, pods: usize) -> Result<Reading> {
        let (agent, stage) = match subject {
            Subject::Ours => (self.start_agent().await?, self.upper),
            Subject::Vanilla => (Agent::None, self.lower),
        };
        let clusters = [self.upper, self.lower];
        let observer = Observer::start(stage.client(), NAMESPACE).await?;
        let requests = cost::requests(&clusters).await?;
        let (machine, own) = (cost::machine_cpu_seconds()?, agent.cpu_seconds()?);
        let start = Instant::now();
        stage.apply_yaml(&deployment(subject, pods, self.args.token)).await?;
        let burst = observer.until_ready(pods, start, RUN_DEADLINE).await?;
        let (machine, own) = (cost::machine_cpu_seconds()? - machine, agent.cpu_seconds()? - own);
        let requests = cost::difference(&requests, &cost::requests(&clusters).await?);

        let before_delete = agent.cpu_seconds()?;
        let start = Instant::now();
        let deployments: Api<Deployment> = Api::namespaced(stage.client(), NAMESPACE);
        deployments.delete("burst", &DeleteParams::background()).await?;
        observer.until_deleted(pods, RUN_DEADLINE).await?;
        self.until_empty(self.lower).await?;
        let delete_s = start.elapsed().as_secs_f64();
        Ok(Reading {
            case: if self.args.token { "token" } else { "plain" },
            pods,
            subject,
            all_created_s: burst.all_created_s,
            all_scheduled_s: burst.all_scheduled_s,
            all_ready_s: burst.all_ready_s,
            ready_p50_s: burst.ready_p50_s,
            ready_p99_s: burst.ready_p99_s,
            delete_s,
            agent_cpu_s: own,
            agent_delete_cpu_s: agent.cpu_seconds()? - before_delete,
            agent_rss_peak_mib: agent.rss_peak_mib()?,
            machine_cpu_s: machine,
            requests,
        })
    }

    async fn start_agent(&self) -> Result<Agent> {
        let Some(command) = &self.args.agent else {
            let quiet = ["--log-level=warn".to_owned(), format!("--adopt-namespace={NAMESPACE}")];
            let node = VirtualNode::builder(self.upper, self.lower).name(NODE_NAME).args(quiet).start().await?;
            return Ok(Agent::Ours(Box::new(node)));
        };
        let fill: BTreeMap<&str, String> = [
            ("{upper_kubeconfig}", self.upper.admin_kubeconfig().display().to_string()),
            ("{lower_kubeconfig}", self.lower.admin_kubeconfig().display().to_string()),
            ("{node_name}", NODE_NAME.to_owned()),
            ("{node_address}", self.upper.host_address().to_string()),
        ]
        .into();
        let filled = fill.iter().fold(command.clone(), |command, (what, with)| command.replace(what, with));
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {filled}")]);
        let process = Supervised::spawn("agent", &shell, &Run::current()?.new_dir("agent")?)?;
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.upper.client());
        eventually("the agent's Node is Ready", Duration::from_mins(1), || async {
            let status = nodes.get(NODE_NAME).await?.status.unwrap_or_default();
            Ok(Seen::when(status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"), status))
        })
        .await
        .with_context(|| process.log_tail(20))?;
        Ok(Agent::Given(process))
    }

    async fn until_empty(&self, cluster: &Cluster) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(cluster.client(), NAMESPACE);
        eventually("no pods are left", RUN_DEADLINE, || async {
            let left = pods.list_metadata(&ListParams::default().limit(1)).await?.items.len();
            Ok(Seen::when(left == 0, left))
        })
        .await
    }
}

pub(super) fn deployment(subject: Subject, pods: usize, token: bool) -> String {
    let placement = match subject {
        Subject::Ours => "tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]",
        Subject::Vanilla => "tolerations: []",
    };
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: burst, namespace: {NAMESPACE}}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: burst}}}}
  template:
    metadata: {{labels: {{app: burst}}}}
    spec:
      automountServiceAccountToken: {token}
      enableServiceLinks: false
      terminationGracePeriodSeconds: 1
      {placement}
      containers:
        - name: main
          image: example.test/burst:1
          resources: {{requests: {{cpu: 100m, memory: 100Mi}}}}
"
    )
}
