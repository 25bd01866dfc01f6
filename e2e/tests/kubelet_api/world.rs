//! What all tests here share: an upper cluster with two hand-made nodes that lead to one kubelet server, and a lower
//! cluster with a real kubelet.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::Command,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use clap::Parser;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams},
};
use prometheus_client::registry::Registry;
use serde_json::json;
use tensile_chassis::{
    kube_client::{ClientOptions, KubeMetrics, build, build_streaming, load_config},
    readiness::Readiness,
};
use tensile_e2e::{Cluster, RealNodes, SHELL_IMAGE, Seen, Tool, Tools, eventually, install_crypto};
use tensile_virtual_node::{
    context::{LowerClients, Settings, UpperClients},
    kubelet::{KubeletArgs, KubeletServer, Lookup, PodLookup, RunningPod},
    names::{Key, NamespaceMapping},
};
use tokio_util::sync::CancellationToken;

use crate::command::SOON;

const UPPER_RBAC: &str = include_str!("../../../virtual-node/deploy/rbac-upper.yaml");
const LOWER_RBAC: &str = include_str!("../../../virtual-node/deploy/rbac-lower.yaml");

/// The node that gets SPDY, as every node did before Kubernetes 1.36.
pub const SPDY_NODE: &str = "virtual";
/// The node that declares `ExtendWebSocketsToKubelet`, so that the API server speaks WebSocket to it.
const WEBSOCKET_NODE: &str = "virtual-ws";

/// Where pods are above and below: the names must not meet by chance.
pub const UPPER_NAMESPACE: &str = "shop";
pub const LOWER_NAMESPACE: &str = "shop-below";

/// Pods that exist on both sides. `ws-` ones are bound to the node with WebSocket.
fn pods() -> Vec<(&'static str, &'static str, serde_json::Value)> {
    let container = |name: &str, script: &str| {
        json!({
            "name": name, "image": SHELL_IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        })
    };
    let sleeper = "trap 'exit 0' TERM; while :; do sleep 1; done";
    let talk = container("main", &format!("for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; {sleeper}"));
    let side = container("side", &format!("echo from the side; {sleeper}"));
    let crash = container(
        "main",
        &format!("echo x >>/data/lives; n=$(wc -l </data/lives); echo life $n; [ $n -gt 1 ] || exit 3; {sleeper}"),
    );
    // The pause at the end: containerd 1.6 at times loses a line that is written right before the exit, for good.
    let count =
        container("main", "echo begin; while [ ! -e /data/go ]; do sleep 0.1; done; seq 1 5000; echo end; sleep 2");
    let mute = container("main", sleeper);
    let mut reader = container("main", "while read line; do echo got $line; done");
    reader["stdin"] = true.into();
    let echo = container("main", "nc -ll -p 7000 -e cat");
    vec![
        ("talk", SPDY_NODE, json!([talk, side])),
        ("crash", SPDY_NODE, json!([crash])),
        ("count", SPDY_NODE, json!([count])),
        ("mute", SPDY_NODE, json!([mute])),
        ("shell", SPDY_NODE, json!([mute, side])),
        ("ws-shell", WEBSOCKET_NODE, json!([mute, side])),
        ("reader", SPDY_NODE, json!([reader.clone()])),
        ("ws-reader", WEBSOCKET_NODE, json!([reader])),
        ("echo", SPDY_NODE, json!([echo.clone()])),
        ("ws-echo", WEBSOCKET_NODE, json!([echo])),
    ]
}

/// The clusters and the server between them.
pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
    pub address: IpAddr,
    pub port: u16,
    registry: Registry,
}

/// The world, made once; `None`, with the reason said, where no real nodes can run.
pub fn world() -> Option<&'static World> {
    static WORLD: OnceLock<Option<World>> = OnceLock::new();
    WORLD
        .get_or_init(|| {
            if let Err(reason) = RealNodes::available() {
                eprintln!("skipped: {reason}");
                return None;
            }
            let (sender, receiver) = mpsc::channel();
            // The server outlives each test's runtime, so it has one of its own.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(async {
                    let (world, server) = Box::pin(create()).await;
                    sender.send(world).unwrap();
                    server.run(CancellationToken::new()).await;
                });
            });
            Some(receiver.recv().expect("the world could not be made; see above"))
        })
        .as_ref()
}

impl World {
    /// kubectl in the upper cluster, in the namespace of the pods.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.upper.kubectl();
        command.args(["--namespace", UPPER_NAMESPACE]).args(arguments);
        command
    }

    /// The value of one of the server's metrics, such as `tensile_kubelet_streams_open{kind="exec"}`; 0 when it is not there.
    pub fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0, |value| value.parse().unwrap())
    }
}

struct Fixed;

impl PodLookup for Fixed {
    fn lower_of(&self, key: &Key) -> Lookup {
        if key.namespace != UPPER_NAMESPACE {
            Lookup::Unknown
        } else if key.name == "late" {
            Lookup::NotYet { why: "ConfigMap \"settings\" not found".into() }
        } else if key.name == "gone" {
            Lookup::Unknown
        } else {
            Lookup::Found { lower: Key::new(LOWER_NAMESPACE, &key.name) }
        }
    }

    /// Not asked: the lower cluster of these tests has no metrics.
    fn running(&self, _: &Key, _: Option<&str>) -> Option<RunningPod> {
        None
    }
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    kubelet: KubeletArgs,
}

/// A server between the two clusters.
pub async fn server(upper: &Cluster, lower: &Cluster, extra: &[&str], registry: &mut Registry) -> KubeletServer {
    let address = upper.host_address();
    let listen = format!("{address}:0");
    let arguments = ["virtual-node", "--kubelet-address", &listen].into_iter().chain(extra.iter().copied());
    let arguments = Arguments::try_parse_from(arguments).unwrap().kubelet;
    let settings = Settings {
        node_name: SPDY_NODE.into(),
        cluster_name: "lower".into(),
        upper_cluster_uid: String::new(),
        lower_cluster_uid: String::new(),
        namespaces: NamespaceMapping::Same,
        adopt_namespaces: BTreeSet::new(),
        lower_scheduler_name: None,
        upper_api_for_pods: None,
        node_address: address,
    };
    let node = upper.user_kubeconfig(&format!("system:node:{SPDY_NODE}"), &["system:nodes"]).unwrap();
    let upper_clients = UpperClients {
        node: client(load_config(Some(&node), None).await.unwrap()),
        account: client(account(upper).await),
    };
    let below = account(lower).await;
    let lower_clients =
        LowerClients { api: client(below.clone()), streaming: build_streaming(below, "tensile-e2e").unwrap() };
    let gate = Readiness::new().gate("kubelet-api");
    KubeletServer::bind(&arguments, &settings, upper_clients, lower_clients, Arc::new(Fixed), gate, registry)
        .await
        .unwrap()
}

fn client(config: Config) -> Client {
    let metrics = KubeMetrics::register(&mut Registry::default());
    build(config, &ClientOptions::default(), &metrics).unwrap()
}

async fn account(cluster: &Cluster) -> Config {
    let path = cluster.service_account_kubeconfig("tensile-system", "virtual-node").await.unwrap();
    load_config(Some(&path), None).await.unwrap()
}

async fn create() -> (World, KubeletServer) {
    install_crypto();
    for tool in Tool::ALL {
        Tools::get(tool).await.unwrap();
    }
    // Nobody renews the leases of hand-made nodes.
    let upper = Cluster::builder("upper").on_bridge(true).scheduler(false).node_monitor_grace(Duration::from_hours(1));
    let lower = Cluster::builder("lower").real_nodes(1).scheduler(false);
    let (upper, lower) = tokio::join!(upper.start(), lower.start());
    let (upper, lower) = (upper.unwrap(), lower.unwrap());
    upper.apply_yaml(&UPPER_RBAC.replace("{{NODE_NAME}}", SPDY_NODE)).await.unwrap();
    lower.apply_yaml(LOWER_RBAC).await.unwrap();

    let mut registry = Registry::default();
    let server = server(&upper, &lower, &[], &mut registry).await;
    let world = World { address: upper.host_address(), port: server.port(), upper, lower, registry };
    register(&world, SPDY_NODE, json!([])).await;
    register(&world, WEBSOCKET_NODE, json!(["ExtendWebSocketsToKubelet"])).await;
    for (cluster, namespace) in [(&world.upper, UPPER_NAMESPACE), (&world.lower, LOWER_NAMESPACE)] {
        let yaml = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
        cluster.apply_yaml(&yaml).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), namespace);
        eventually("the namespace has its default service account", SOON, || async {
            Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
        })
        .await
        .unwrap();
    }
    let real = world.lower.real_node_names().remove(0);
    for (name, node, containers) in pods() {
        pod(&world.upper, UPPER_NAMESPACE, name, node, &containers).await;
        pod(&world.lower, LOWER_NAMESPACE, name, &real, &containers).await;
        run(&world.upper, name).await;
    }
    for name in ["late", "gone"] {
        pod(&world.upper, UPPER_NAMESPACE, name, SPDY_NODE, &json!([{"name": "main", "image": SHELL_IMAGE}])).await;
    }
    let below: Api<Pod> = Api::namespaced(world.lower.client(), LOWER_NAMESPACE);
    eventually("all lower pods run", SOON, || async {
        let listed = below.list(&ListParams::default()).await?.items;
        let waiting: Vec<_> = listed.iter().filter(|pod| !runs(pod)).map(|pod| &pod.status).collect();
        Ok(Seen::when(waiting.is_empty(), waiting))
    })
    .await
    .unwrap();
    (world, server)
}

fn runs(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()).is_some_and(|all| {
        all.iter().all(|one| {
            let running = one.state.as_ref().is_some_and(|state| state.running.is_some());
            // The one that crashes shall have done so.
            running && (pod.metadata.name.as_deref() != Some("crash") || one.restart_count > 0)
        })
    })
}

async fn register(world: &World, name: &str, features: serde_json::Value) {
    let nodes: Api<Node> = Api::all(world.upper.client());
    world.upper.apply_yaml(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}")).await.unwrap();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": world.address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": world.port}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Test"}],
        "declaredFeatures": features,
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn pod(cluster: &Cluster, namespace: &str, name: &str, node: &str, containers: &serde_json::Value) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node, "containers": containers, "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": if name == "crash" { "Always" } else { "Never" },
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    });
    cluster.apply_yaml(&pod.to_string()).await.unwrap();
}

/// Says above what is true below; kubectl forwards no ports to a pod that does not run.
async fn run(upper: &Cluster, name: &str) {
    let pods: Api<Pod> = Api::namespaced(upper.client(), UPPER_NAMESPACE);
    let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
    pods.patch_status(name, &PatchParams::default(), &status).await.unwrap();
}
