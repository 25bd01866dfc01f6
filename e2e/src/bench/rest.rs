//! One pod at a time, on clusters at rest: what a virtual node adds to the time until a pod is Ready, and how soon a
//! change of the lower pod's status is seen above.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
    core::WatchEvent,
};
use serde::Serialize;
use serde_json::json;
use tokio::{sync::mpsc, task::JoinHandle};

use super::observe::quantile;
use super::offload::{NAMESPACE, Subject, control_plane};
use crate::{Cluster, KwokNodes, VirtualNode};

/// One pod takes a fraction of a second.
const POD_DEADLINE: Duration = Duration::from_mins(1);

/// Events that may wait to be looked at: a pod makes less than ten.
const EVENTS_MAX: usize = 1_000;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct RestArgs {
    /// Pods for each subject, one after the other, in turn
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    pub pods: usize,

    /// Nodes of the lower cluster
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub nodes: usize,

    /// Writes one JSON object for each figure, a line each
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Milliseconds that something took, over all pods.
#[derive(Debug, Serialize)]
struct Figure {
    case: &'static str,
    what: String,
    count: usize,
    min_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Figure {
    fn new(what: &str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            case: "rest",
            what: what.to_owned(),
            count: values.len(),
            min_ms: values.first().copied().unwrap_or_default(),
            p50_ms: quantile(&values, 50),
            p99_ms: quantile(&values, 99),
            max_ms: values.last().copied().unwrap_or_default(),
        }
    }
}

/// Runs it and reports.
pub async fn rest(args: &RestArgs) -> Result<()> {
    eprintln!("starting an upper cluster, and a lower one with {} simulated nodes", args.nodes);
    let (upper, lower) = tokio::try_join!(
        control_plane("upper").start(),
        control_plane("lower").nodes(KwokNodes::count(args.nodes)).start()
    )?;
    for cluster in [&upper, &lower] {
        let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
        cluster.apply_yaml(&namespace).await?;
    }
    // For vanilla the namespace is the bench's own; a pod from above shares it.
    let quiet = ["--log-level=warn", "--adopt-namespace", NAMESPACE];
    let node = VirtualNode::builder(&upper, &lower).name("bench-vn").args(quiet).start().await?;
    let figures = measure(args, &upper, &lower).await?;
    let (cpu, memory) = (node.cpu_seconds()?, node.rss_peak_mib()?);
    print(&figures);
    println!("\nthe virtual-node used {cpu:.2} CPU s in all, and {memory:.0} MiB at most");
    if let Some(path) = &args.json {
        let lines: Result<Vec<String>, _> = figures.iter().map(serde_json::to_string).collect();
        std::fs::write(path, lines?.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    drop(node);
    tokio::join!(upper.stop(), lower.stop());
    Ok(())
}

async fn measure(args: &RestArgs, upper: &Cluster, lower: &Cluster) -> Result<Vec<Figure>> {
    let mut above = Sightings::start(upper.client()).await?;
    let mut below = Sightings::start(lower.client()).await?;
    let (mut ours, mut vanilla, mut told) = (Vec::new(), Vec::new(), Vec::new());
    // The first pod pays for what is made once: connections, the namespace's root CA below.
    for round in 0..=args.pods {
        let name = format!("ours-{round}");
        create(upper.client(), &name, Subject::Ours).await?;
        let waited = above.ready_after(&name).await?;
        below.until(&name, "Ready", is_ready).await?;
        let seen = told_after(&lower.client(), &name, &mut below, &mut above).await?;
        remove(upper.client(), &name).await?;
        above.until_gone(&name).await?;
        below.until_gone(&name).await?;

        let name = format!("vanilla-{round}");
        create(lower.client(), &name, Subject::Vanilla).await?;
        let straight = below.ready_after(&name).await?;
        remove(lower.client(), &name).await?;
        below.until_gone(&name).await?;
        if round > 0 {
            ours.push(waited);
            told.push(seen);
            vanilla.push(straight);
        }
    }
    Ok(vec![
        Figure::new("created -> Ready, vanilla", vanilla),
        Figure::new("created -> Ready, ours", ours),
        Figure::new("status change below -> seen above", told),
    ])
}

fn print(figures: &[Figure]) {
    println!("\n| ms | pods | min | p50 | p99 | max |\n|---|---|---|---|---|---|");
    for Figure { what, count, min_ms, p50_ms, p99_ms, max_ms, .. } in figures {
        println!("| {what} | {count} | {min_ms:.1} | {p50_ms:.1} | {p99_ms:.1} | {max_ms:.1} |");
    }
    let [vanilla, ours, ..] = figures else { return };
    println!(
        "\noverhead of created -> Ready: p50 {:.1} ms, p99 {:.1} ms",
        ours.p50_ms - vanilla.p50_ms,
        ours.p99_ms - vanilla.p99_ms
    );
}

/// Changes the lower pod's status as a kubelet would, and gives the milliseconds from when a watcher of the lower
/// cluster sees it to when one of the upper cluster does.
async fn told_after(lower: &Client, name: &str, below: &mut Sightings, above: &mut Sightings) -> Result<f64> {
    let pods: Api<Pod> = Api::namespaced(lower.clone(), NAMESPACE);
    let restarted = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        statuses.map(|status| status.restart_count).sum::<i32>() == 1
    };
    let patch = json!({"status": {"containerStatuses": [{"name": "main", "restartCount": 1}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .context("changing a status below")?;
    let at_below = below.until(name, "restarted", restarted).await?;
    let at_above = above.until(name, "restarted", restarted).await?;
    Ok(millis(at_above.saturating_duration_since(at_below)))
}

async fn create(client: Client, name: &str, subject: Subject) -> Result<()> {
    let tolerations = match subject {
        Subject::Ours => json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]),
        Subject::Vanilla => json!([]),
    };
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "tolerations": tolerations,
            "containers": [{"name": "main", "image": "example.test/rest:1"}],
        },
    }))?;
    Api::namespaced(client, NAMESPACE).create(&PostParams::default(), &pod).await.context("creating a pod")?;
    Ok(())
}

async fn remove(client: Client, name: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    pods.delete(name, &DeleteParams::default()).await.context("deleting a pod")?;
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True")
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// What a watcher of one cluster's pods sees, with the moment at which it did.
struct Sightings {
    events: mpsc::Receiver<(Instant, WatchEvent<Pod>)>,
    task: JoinHandle<()>,
}

impl Drop for Sightings {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sightings {
    /// Watches from now on.
    async fn start(client: Client) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let list = pods.list_metadata(&ListParams::default().limit(1)).await.context("listing pods")?;
        let mut version = list.metadata.resource_version.unwrap_or_default();
        let (send, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(async move {
            let ended = async {
                loop {
                    // The server ends each watch after some minutes; the next one goes on where it was.
                    let mut watch = std::pin::pin!(pods.watch(&WatchParams::default(), &version).await?);
                    while let Some(event) = watch.try_next().await? {
                        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) = &event {
                            version = pod.resource_version().unwrap_or_default();
                        }
                        send.send((Instant::now(), event)).await?;
                    }
                }
            };
            let ended: Result<()> = ended.await;
            if let Err(error) = ended {
                eprintln!("a watch of the bench ended: {error:#}");
            }
        });
        Ok(Self { events, task })
    }

    /// Milliseconds from when the pod appeared to when it was Ready.
    async fn ready_after(&mut self, name: &str) -> Result<f64> {
        let created = self.until(name, "there", |_| true).await?;
        let ready = self.until(name, "Ready", is_ready).await?;
        Ok(millis(ready - created))
    }

    /// The moment at which the pod first was as wanted, among events not looked at before.
    async fn until(&mut self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Result<Instant> {
        let found = |event: &WatchEvent<Pod>| match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod.name_any() == name && wanted(pod),
            _ => false,
        };
        self.until_event(name, what, found).await
    }

    async fn until_gone(&mut self, name: &str) -> Result<()> {
        let gone = |event: &WatchEvent<Pod>| matches!(event, WatchEvent::Deleted(pod) if pod.name_any() == name);
        self.until_event(name, "gone", gone).await.map(drop)
    }

    async fn until_event(
        &mut self,
        name: &str,
        what: &str,
        found: impl Fn(&WatchEvent<Pod>) -> bool,
    ) -> Result<Instant> {
        let look = async {
            while let Some((at, event)) = self.events.recv().await {
                if let WatchEvent::Error(error) = &event {
                    bail!("the watch failed: {error}");
                }
                if found(&event) {
                    return Ok(at);
                }
            }
            bail!("the watch has ended")
        };
        let seen = tokio::time::timeout(POD_DEADLINE, look).await;
        seen.with_context(|| format!("pod {name} was not seen to be {what} in {POD_DEADLINE:?}"))?
    }
}
