//! One pod at a time, on clusters at rest: what a virtual node adds to the time until a pod is Ready, and how soon a
//! change of the lower pod's status is seen above.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::Serialize;
use serde_json::json;

use super::{
    observe::quantile,
    offload::{NAMESPACE, Subject, control_plane},
    sightings::{Sightings, is_ready, millis, restarts},
};
use crate::{Cluster, KwokNodes, VirtualNode};

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
pub(super) struct Figure {
    case: &'static str,
    what: String,
    count: usize,
    min_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Figure {
    /// Of these values.
    pub(super) fn new(case: &'static str, what: &str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            case,
            what: what.to_owned(),
            count: values.len(),
            min_ms: values.first().copied().unwrap_or_default(),
            p50_ms: quantile(&values, 50),
            p99_ms: quantile(&values, 99),
            max_ms: values.last().copied().unwrap_or_default(),
        }
    }

    /// Prints a table.
    pub(super) fn print(figures: &[Self]) {
        println!("\n| ms | count | min | p50 | p99 | max |\n|---|---|---|---|---|---|");
        for Self { what, count, min_ms, p50_ms, p99_ms, max_ms, .. } in figures {
            println!("| {what} | {count} | {min_ms:.1} | {p50_ms:.1} | {p99_ms:.1} | {max_ms:.1} |");
        }
    }

    /// Writes them to a file, if there is one, a JSON object for each.
    pub(super) fn write(figures: &[Self], file: Option<&Path>) -> Result<()> {
        let Some(path) = file else { return Ok(()) };
        let lines: Result<Vec<String>, _> = figures.iter().map(serde_json::to_string).collect();
        std::fs::write(path, lines?.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))
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
    Figure::write(&figures, args.json.as_deref())?;
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
        Figure::new("rest", "created -> Ready, vanilla", vanilla),
        Figure::new("rest", "created -> Ready, ours", ours),
        Figure::new("rest", "status change below -> seen above", told),
    ])
}

fn print(figures: &[Figure]) {
    Figure::print(figures);
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
    let restarted = |pod: &Pod| restarts(pod) == 1;
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
