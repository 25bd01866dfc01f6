//! `/stats/summary`: the shape of `k8s.io/kubelet/pkg/apis/stats/v1alpha1`, with what the lower cluster tells: CPU and
//! memory. Network, file systems and volumes are left out, as a kubelet leaves out what it does not know.

use jiff::Timestamp;
use serde::Serialize;

use super::book::{Figures, PodFigures, Report};

#[derive(Serialize)]
struct Summary<'a> {
    node: Node<'a>,
    pods: Vec<Pod<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node<'a> {
    node_name: &'a str,
    start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod<'a> {
    pod_ref: PodRef<'a>,
    start_time: String,
    containers: Vec<Container<'a>>,
    cpu: Cpu,
    memory: Memory,
}

#[derive(Serialize)]
struct PodRef<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Container<'a> {
    name: &'a str,
    start_time: String,
    cpu: Cpu,
    memory: Memory,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: String,
    usage_nano_cores: u64,
    usage_core_nano_seconds: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    time: String,
    working_set_bytes: u64,
}

/// The summary as JSON. `since` is when this process began to count.
pub fn json(node_name: &str, since: Timestamp, report: &Report) -> Result<Vec<u8>, serde_json::Error> {
    let summary = Summary {
        node: Node {
            node_name,
            start_time: time(report.node.map_or(since, |node| node.began)),
            cpu: report.node.as_ref().map(cpu),
            memory: report.node.as_ref().map(memory),
        },
        pods: report.pods.iter().map(pod).collect(),
    };
    serde_json::to_vec(&summary)
}

fn pod(pod: &PodFigures) -> Pod<'_> {
    Pod {
        pod_ref: PodRef { name: &pod.key.name, namespace: &pod.key.namespace, uid: &pod.uid },
        start_time: time(pod.whole.began),
        containers: pod
            .containers
            .iter()
            .map(|(name, figures)| Container {
                name,
                start_time: time(figures.began),
                cpu: cpu(figures),
                memory: memory(figures),
            })
            .collect(),
        cpu: cpu(&pod.whole),
        memory: memory(&pod.whole),
    }
}

fn cpu(figures: &Figures) -> Cpu {
    Cpu {
        time: time(figures.at),
        usage_nano_cores: figures.used.nanocores,
        usage_core_nano_seconds: figures.core_nanos,
    }
}

fn memory(figures: &Figures) -> Memory {
    Memory { time: time(figures.at), working_set_bytes: figures.used.memory_bytes }
}

/// Whole seconds, as Kubernetes writes times.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
