//! The clusters that the tests share, one test at a time.

use std::{process::Command, time::Duration};

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tensile_e2e::{Cluster, RealNodes, SHELL_IMAGE, Seen, VirtualNode, eventually};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// The time limit for what takes some seconds on an idle machine.
pub const SOON: Duration = Duration::from_mins(3);

/// Does nothing until it is told to end, and then ends at once.
pub const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// The namespace of all pods.
const NAMESPACE: &str = "streams";

/// An upper cluster, a lower one with a real node, and the virtual-node between them.
pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
    pub node: VirtualNode,
}

/// The shared world, for one test alone; `None`, with the reason said, where no real nodes can run.
pub async fn world() -> Option<(&'static World, MutexGuard<'static, ()>)> {
    static WORLD: OnceCell<Option<World>> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let start = async || {
        if let Err(reason) = RealNodes::available() {
            eprintln!("skipped: {reason}");
            return None;
        }
        Some(Box::pin(World::start()).await)
    };
    Some((WORLD.get_or_init(start).await.as_ref()?, turn))
}

impl World {
    async fn start() -> Self {
        tensile_e2e::install_crypto();
        // KEP-3288: the two streams of a log apart.
        let gate = "PodLogsQuerySplitStreams";
        let (upper, lower) = tokio::try_join!(
            Cluster::builder("upper").on_bridge(true).feature_gate(gate).start(),
            Cluster::builder("lower").real_nodes(1).feature_gate(gate).start(),
        )
        .unwrap();
        let node = VirtualNode::builder(&upper, &lower).start().await.unwrap();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        upper.apply_yaml(&namespace.to_string()).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(upper.client(), NAMESPACE);
        eventually("the namespace has its ServiceAccount", SOON, || async {
            Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
        })
        .await
        .unwrap();
        Self { upper, lower, node }
    }

    /// The pods, seen from above.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.upper.client(), NAMESPACE)
    }

    /// Creates a pod on the virtual node with these containers, `/data` shared among them, and waits until it is Ready.
    pub async fn pod(&self, name: &str, containers: &[(&str, &str)]) {
        let container = |(name, script): &(&str, &str)| {
            json!({
                "name": name, "image": SHELL_IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
                "stdin": *name == "reader", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            })
        };
        let pod = json!({"metadata": {"name": name}, "spec": {
            "containers": containers.iter().map(container).collect::<Vec<_>>(),
            "volumes": [{"name": "data", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        }});
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        eventually(&format!("pod {name} is ready"), SOON, || async {
            let status = serde_json::to_value(self.pods().get(name).await?.status)?;
            let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            Ok(Seen::when(status["conditions"].as_array().is_some_and(|all| all.iter().any(is_ready)), status))
        })
        .await
        .unwrap();
    }

    /// kubectl in the upper cluster and the pods' namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        with(self.upper.kubectl(), arguments)
    }

    /// kubectl in the lower cluster and the pods' namespace, for comparison.
    pub fn kubectl_below(&self, arguments: &[&str]) -> Command {
        with(self.lower.kubectl(), arguments)
    }

    /// How many streams of this kind the virtual-node says are open.
    pub async fn open_streams(&self, kind: &str) -> anyhow::Result<usize> {
        let name = format!("tensile_kubelet_streams_open{{kind=\"{kind}\"}} ");
        let metrics = self.node.metrics().await?;
        Ok(metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(Ok(0), str::parse)?)
    }

    /// Waits until the virtual-node says that no stream is open.
    pub async fn until_no_stream_is_left(&self) {
        eventually("no stream is left", SOON, || async {
            let mut open = Vec::new();
            for kind in ["exec", "attach", "portforward", "logs"] {
                open.push((kind, self.open_streams(kind).await?));
            }
            Ok(Seen::when(open.iter().all(|(_, count)| *count == 0), open))
        })
        .await
        .unwrap();
    }
}

fn with(mut kubectl: Command, arguments: &[&str]) -> Command {
    kubectl.args(["--namespace", NAMESPACE]).args(arguments);
    kubectl
}
