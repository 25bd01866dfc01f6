//! Two replicas of one virtual node, and the leader dies: how long until the other one works, and what the pods notice.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{
    offload::{NAMESPACE, Subject, control_plane, deployment},
    rest::Figure,
    sightings::{Sightings, is_ready, millis, restarts},
};
use crate::{Cluster, KwokNodes, Seen, VirtualNode, eventually};

const NODE_NAME: &str = "bench-vn";
const LEASE: (&str, &str) = ("tensile-system", "virtual-node-bench-vn");
const DEADLINE: Duration = Duration::from_mins(5);

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct TakeoverArgs {
    /// Pods that run while the leader dies
    #[arg(long, default_value_t = 500, value_name = "COUNT")]
    pub pods: usize,

    /// How often the leader dies
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub runs: usize,

    /// Writes one JSON object for each figure, a line each
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Runs it and reports.
pub async fn takeover(args: &TakeoverArgs) -> Result<()> {
    eprintln!("starting an upper cluster, and a lower one with 20 simulated nodes");
    let (upper, lower) =
        tokio::try_join!(control_plane("upper").start(), control_plane("lower").nodes(KwokNodes::count(20)).start())?;
    let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
    for cluster in [&upper, &lower] {
        cluster.apply_yaml(&namespace).await?;
    }
    let replica = || {
        let args = ["--log-level=info", "--adopt-namespace", NAMESPACE];
        VirtualNode::builder(&upper, &lower).name(NODE_NAME).args(args).start()
    };
    let mut leader = replica().await?;
    upper.apply_yaml(&deployment(Subject::Ours, args.pods, false)).await?;
    let before = until_ready(&lower, args.pods).await?;
    let mut standby = replica().await?;
    let mut figures = [Vec::new(), Vec::new()];
    for run in 0..args.runs {
        let [led, told] = one(&upper, &lower, &leader, &before, run).await?;
        eprintln!("run {}: the lease is taken after {led:.0} ms, a change below is told after {told:.0} ms", run + 1);
        figures[0].push(led);
        figures[1].push(told);
        leader.restart().await?;
        std::mem::swap(&mut leader, &mut standby);
    }
    let after = lives(&lower).await?;
    let [led, told] = figures;
    let figures = [
        Figure::new("takeover", "kill -9 of the leader -> lease taken", led),
        Figure::new("takeover", "kill -9 of the leader -> a change below is seen above", told),
    ];
    Figure::print(&figures);
    println!(
        "\n{} pods ran meanwhile; made anew in the lower cluster: {}",
        args.pods,
        before.iter().filter(|(name, uid)| after.get(*name) != Some(uid)).count()
    );
    Figure::write(&figures, args.json.as_deref())?;
    drop((leader, standby));
    tokio::join!(upper.stop(), lower.stop());
    Ok(())
}

/// Kills the leader and gives the milliseconds until the lease has another holder, and until a status that changed below
/// right after the kill is seen above.
async fn one(
    upper: &Cluster,
    lower: &Cluster,
    leader: &VirtualNode,
    pods: &BTreeMap<String, String>,
    run: usize,
) -> Result<[f64; 2]> {
    let name = pods.keys().nth(run % pods.len().max(1)).context("no pods run")?;
    let below: Api<Pod> = Api::namespaced(lower.client(), NAMESPACE);
    let leases: Api<Lease> = Api::namespaced(upper.client(), LEASE.0);
    let holder = || async { anyhow::Ok(leases.get(LEASE.1).await?.spec.and_then(|spec| spec.holder_identity)) };
    let mut above = Sightings::start(upper.client()).await?;
    let (old, restarted) = (holder().await?, restarts(&below.get(name).await?) + 1);

    let killed = std::time::Instant::now();
    leader.kill9();
    let patch = json!({"status": {"containerStatuses": [{"name": "main", "restartCount": restarted}]}});
    below.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.context("changing a status")?;
    eventually("the lease has another holder", DEADLINE, || async {
        let now = holder().await?;
        Ok(Seen::when(now.is_some() && now != old, now))
    })
    .await?;
    let led = millis(killed.elapsed());
    let seen = above.until(name, "restarted", |pod| restarts(pod) == restarted).await?;
    Ok([led, millis(seen.saturating_duration_since(killed))])
}

/// UIDs of the lower pods, once all are Ready.
async fn until_ready(lower: &Cluster, count: usize) -> Result<BTreeMap<String, String>> {
    let pods: Api<Pod> = Api::namespaced(lower.client(), NAMESPACE);
    eventually("all pods are Ready", DEADLINE, || async {
        let ready = pods.list(&ListParams::default()).await?.items.iter().filter(|pod| is_ready(pod)).count();
        Ok(Seen::when(ready == count, ready))
    })
    .await?;
    lives(lower).await
}

async fn lives(lower: &Cluster) -> Result<BTreeMap<String, String>> {
    let pods: Api<Pod> = Api::namespaced(lower.client(), NAMESPACE);
    let all = pods.list_metadata(&ListParams::default()).await?.items;
    let uids: BTreeMap<String, String> =
        all.iter().map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect();
    ensure!(!uids.is_empty(), "the lower cluster has no pods");
    Ok(uids)
}
