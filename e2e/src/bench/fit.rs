//! How long the fit engine takes, without any cluster: nodes and pods are made up in memory.
//!
//! ```text
//!  fit      one Fit of N replicas on nodes that are half full, as a virtual-node answers it
//!  decide   one node for one more pod, held at once, over and over: what a scheduler could decide in a second
//! ```

use std::{sync::Arc, time::Instant};

use anyhow::{Result, ensure};
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tensile_scheduling::{Demand, FitEngine, PodFacts, Pool, Wish};

/// What to measure.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 1_000)]
    nodes: u32,

    /// Pods that run on each node already
    #[arg(long, default_value_t = 30)]
    pods_each: u32,

    /// Equal pods that one Fit asks for
    #[arg(long, default_value_t = 1_000)]
    replicas: u32,

    /// Times that each is measured
    #[arg(long, default_value_t = 200)]
    runs: usize,
}

/// Measures, and prints microseconds: minimum, median and 99th percentile.
pub fn fit(args: &FitArgs) -> Result<()> {
    let mut engine = cluster(args)?;
    let plain = demand(&json!({}))?;
    let picky = demand(&json!({
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    }))?;
    println!(
        "{} nodes, {} pods on each, Fit of {} replicas, {} runs",
        args.nodes, args.pods_each, args.replicas, args.runs
    );
    for (name, demand) in [("requests only", &plain), ("selector and toleration", &picky)] {
        let mut fits = 0;
        let times = measure(args.runs, || fits = engine.view::<String>(&[]).alone(demand, args.replicas).fits);
        print(&format!("fit, {name}: {fits} fit"), &times);
        let times = measure(args.runs, || fits = engine.view::<String>(&[]).alone(demand, u32::MAX).fits);
        print(&format!("fit, {name}, all that there is: {fits}"), &times);
    }
    let mut held = 0_u32;
    let began = Instant::now();
    while held < args.replicas * 10 && engine.reserve(&format!("{held}"), &plain, Wish::default()).is_ok() {
        held += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    ensure!(held > 0, "no pod found room");
    println!(
        "decide: {held} pods held one after the other, {:.2} µs each, {:.0} a second",
        seconds * 1e6 / f64::from(held),
        f64::from(held) / seconds
    );
    Ok(())
}

fn measure(runs: usize, mut work: impl FnMut()) -> Vec<f64> {
    let mut times: Vec<_> = (0..runs)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

fn print(what: &str, times: &[f64]) {
    let at = |percent: usize| {
        times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    println!("{what}: min {:.1} / median {:.1} / p99 {:.1} µs", at(0), at(50), at(99));
}

/// Nodes of 32 CPUs in two zones, some tainted, with pods of half a CPU.
fn cluster(args: &FitArgs) -> Result<FitEngine> {
    let mut engine = FitEngine::new(Pool::all());
    for number in 0..args.nodes {
        let name = format!("node-{number}");
        let taints = if number % 10 == 0 { json!([{"key": "gpu", "effect": "NoSchedule"}]) } else { json!([]) };
        let zone = if number % 2 == 0 { "a" } else { "b" };
        let size = json!({"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "100Gi"});
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": zone}},
            "spec": {"taints": taints},
            "status": {"capacity": size, "allocatable": size, "conditions": [{"type": "Ready", "status": "True"}]},
        }))?;
        engine.snapshot_mut().upsert_node(&node)?;
        for pod in 0..args.pods_each {
            let mut pod = object(&json!({"nodeName": name}), &format!("{name}-{pod}"))?;
            pod.metadata.name = None;
            engine.snapshot_mut().upsert_pod(PodFacts::of(&pod, None));
        }
    }
    Ok(engine)
}

fn object(spec: &Value, uid: &str) -> Result<Pod> {
    let requests = json!({"requests": {"cpu": "500m", "memory": "512Mi"}});
    let mut all = json!({"containers": [{"name": "c", "resources": requests}]});
    if let (Value::Object(all), Value::Object(spec)) = (&mut all, spec) {
        all.extend(spec.clone());
    }
    Ok(serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": all}))?)
}

fn demand(spec: &Value) -> Result<Arc<Demand>> {
    Ok(Arc::new(Demand::of(&object(spec, "")?)?))
}
