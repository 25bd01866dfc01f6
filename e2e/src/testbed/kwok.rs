//! Simulated nodes: KWOK with stages of our own that follow what a kubelet writes.
//!
//! Annotations that a test may set on a pod (all optional):
//! - `tensile.test/ready-after: 5s` - how long the containers take to start;
//! - `tensile.test/run-for: 2s` - when the containers end by themselves, if the pod's restart policy
//!   lets it end; `never` keeps a Job's pod running. Pods of a Job run for one second by default;
//! - `tensile.test/exit-code: "3"` - with which code they end; other than 0 only with restart policy
//!   `Never` (a kubelet would restart them under `OnFailure`);
//! - `tensile.test/terminate-after: 3s` - how long a deleted pod's containers take to end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};

use crate::eventually::{Seen, eventually};

/// The annotation by which KWOK knows its nodes. It touches no other node and no other pod.
pub const KWOK_ANNOTATION: (&str, &str) = ("kwok.x-k8s.io/node", "fake");

/// A kubelet's lifecycle as KWOK stages.
const STAGES: &str = include_str!("kwok-stages.yaml");

/// How many nodes are created at once: more only queue in the API server.
const CREATE_CONCURRENCY: usize = 32;

/// A thousand nodes took 18 and 28 s on 2 cores that others used too; some times that.
const READY_DEADLINE: Duration = Duration::from_mins(3);

/// A set of equal simulated nodes.
#[derive(Debug, Clone)]
pub struct KwokNodes {
    /// How many.
    pub count: usize,
    /// Their names are this and a number: `kwok-0`, `kwok-1`.
    pub prefix: String,
    /// Such as `32`.
    pub cpu: String,
    /// Such as `256Gi`.
    pub memory: String,
    /// How many pods fit.
    pub pods: u32,
    /// Other resources, such as `("nvidia.com/gpu", "8")`.
    pub extended: Vec<(String, String)>,
    /// Labels beside the usual ones (hostname, os, arch).
    pub labels: Vec<(String, String)>,
    /// Taints, as `(key, value, effect)`.
    pub taints: Vec<(String, String, String)>,
}

impl Default for KwokNodes {
    /// One node of 32 CPUs, 256 GiB and 110 pods named `kwok-0`.
    fn default() -> Self {
        Self {
            count: 1,
            prefix: "kwok".to_owned(),
            cpu: "32".to_owned(),
            memory: "256Gi".to_owned(),
            pods: 110,
            extended: Vec::new(),
            labels: Vec::new(),
            taints: Vec::new(),
        }
    }
}

impl KwokNodes {
    /// `count` nodes of the default size.
    pub fn count(count: usize) -> Self {
        Self { count, ..Self::default() }
    }

    /// The nodes' names.
    pub fn names(&self) -> Vec<String> {
        (0..self.count).map(|number| format!("{}-{number}", self.prefix)).collect()
    }

    /// The Node objects. `first_address` numbers their addresses, so that no two nodes share one.
    fn objects(&self, first_address: usize) -> Vec<Node> {
        self.names().into_iter().enumerate().map(|(number, name)| self.object(name, first_address + number)).collect()
    }

    fn object(&self, name: String, address: usize) -> Node {
        let mut labels: BTreeMap<String, String> = [
            ("kubernetes.io/hostname", name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
            ("tensile.test/simulated", "true"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        labels.extend(self.labels.iter().cloned());
        let resources: BTreeMap<String, Quantity> = [
            ("cpu".to_owned(), self.cpu.clone()),
            ("memory".to_owned(), self.memory.clone()),
            ("pods".to_owned(), self.pods.to_string()),
            ("ephemeral-storage".to_owned(), "1Ti".to_owned()),
        ]
        .into_iter()
        .chain(self.extended.iter().cloned())
        .map(|(key, value)| (key, Quantity(value)))
        .collect();
        let taints = self
            .taints
            .iter()
            .map(|(key, value, effect)| Taint {
                key: key.clone(),
                value: Some(value.clone()).filter(|value| !value.is_empty()),
                effect: effect.clone(),
                ..Taint::default()
            })
            .collect();
        // 198.19.0.0/16, one half of the range for tests that never leave a laboratory (RFC 2544).
        let internal_ip = format!("198.19.{}.{}", (address / 250) % 256, address % 250 + 1);
        let mut node = Node {
            spec: Some(NodeSpec { taints: Some(taints), ..NodeSpec::default() }),
            status: Some(NodeStatus {
                allocatable: Some(resources.clone()),
                capacity: Some(resources),
                addresses: Some(vec![
                    NodeAddress { type_: "InternalIP".to_owned(), address: internal_ip },
                    NodeAddress { type_: "Hostname".to_owned(), address: name.clone() },
                ]),
                ..NodeStatus::default()
            }),
            ..Node::default()
        };
        node.metadata.name = Some(name);
        node.metadata.labels = Some(labels);
        node.metadata.annotations = Some([(KWOK_ANNOTATION.0.to_owned(), KWOK_ANNOTATION.1.to_owned())].into());
        node
    }
}

/// Writes KWOK's configuration into `dir` and gives its command line.
pub(crate) fn command(program: &PathBuf, dir: &Path, kubeconfig: &Path, pod_cidr: &str) -> Result<Command> {
    let config = dir.join("kwok.yaml");
    std::fs::write(&config, STAGES).context("writing KWOK's configuration")?;
    let mut command = Command::new(program);
    command
        .arg(format!("--config={}", config.display()))
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--manage-nodes-with-annotation-selector={}={}", KWOK_ANNOTATION.0, KWOK_ANNOTATION.1))
        .arg(format!("--cidr={pod_cidr}"))
        .arg("--node-lease-duration-seconds=40")
        .arg("-v=WARN")
        // It reads a file of its own from the home folder otherwise.
        .env("HOME", dir);
    Ok(command)
}

/// Creates the nodes and waits until each is Ready and free of the not-ready taint.
pub(crate) async fn add_nodes(client: &Client, nodes: &KwokNodes, first_address: usize) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    stream::iter(nodes.objects(first_address))
        .map(|node| {
            let api = api.clone();
            async move {
                let name = node.metadata.name.clone().unwrap_or_default();
                api.create(&PostParams::default(), &node).await.with_context(|| format!("creating the node {name}"))
            }
        })
        .buffer_unordered(CREATE_CONCURRENCY)
        .try_collect::<Vec<_>>()
        .await?;

    let names: std::collections::BTreeSet<String> = nodes.names().into_iter().collect();
    eventually("all KWOK nodes are Ready", READY_DEADLINE, || async {
        let list = api.list(&ListParams::default().labels("tensile.test/simulated=true")).await?;
        let waiting: Vec<&str> = list
            .items
            .iter()
            .filter(|node| !node_is_usable(node))
            .filter_map(|node| node.metadata.name.as_deref())
            .filter(|name| names.contains(*name))
            .take(5)
            .collect();
        Ok(Seen::when(waiting.is_empty(), format!("not Ready yet, or tainted: {waiting:?} (5 at most shown)")))
    })
    .await
}

/// Whether pods can be scheduled to the node: Ready, and without the taint of a new node.
pub(crate) fn node_is_usable(node: &Node) -> bool {
    let ready = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let tainted = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten())
        .any(|taint| taint.key == "node.kubernetes.io/not-ready");
    ready && !tainted
}
