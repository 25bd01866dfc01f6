//! The clusters that the tests share. Each test has lower nodes of its own, told apart by the label `pool`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};
use tensile_proto::{
    v1::{self, cluster_client::ClusterClient},
    vocabulary::annotation,
};
use tokio::sync::OnceCell;
use tonic::transport::Channel;

use crate::caller::Authority;

/// The time limit for what takes a second or two on an idle machine.
pub const SOON: Duration = Duration::from_secs(90);

/// Long enough to last for a test.
pub const LONG: Duration = Duration::from_secs(30);

/// An upper cluster without a scheduler, for the tests bind pods themselves, and a lower one behind the virtual node `vn`.
pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
    pub authority: Authority,
    pub node: VirtualNode,
}

/// The shared world, started by the first test that asks.
pub async fn world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    WORLD.get_or_init(World::start).await
}

/// Nodes of a pool.
fn pool(name: &str, count: usize, cpu: u32) -> KwokNodes {
    let labels = vec![("pool".to_owned(), name.to_owned())];
    KwokNodes { prefix: name.to_owned(), cpu: cpu.to_string(), labels, ..KwokNodes::count(count) }
}

impl World {
    async fn start() -> Self {
        tensile_e2e::install_crypto();
        let tainted =
            KwokNodes { taints: vec![("gpu".into(), "yes".into(), "NoSchedule".into())], ..pool("fill", 1, 64) };
        let tainted = KwokNodes { prefix: "tainted".into(), ..tainted };
        let lower = Cluster::builder("lower")
            .nodes(pool("fill", 3, 3))
            .nodes(tainted)
            .nodes(pool("race", 2, 4))
            .nodes(pool("ttl", 1, 2))
            .nodes(pool("foreign", 2, 4))
            .nodes(pool("stray", 2, 4))
            .nodes(pool("leader", 1, 4));
        let (upper, lower) =
            tokio::try_join!(Cluster::builder("upper").scheduler(false).start(), lower.start()).unwrap();
        let authority = Authority::new();
        let node = VirtualNode::builder(&upper, &lower).args(authority.args("vn")).start().await.unwrap();
        Self { upper, lower, authority, node }
    }

    /// A channel to the leader of `vn`, as the owner of a certificate.
    pub async fn channel(&self, name: &str) -> Channel {
        self.authority.channel(&endpoint(self.upper.client(), "vn").await, "vn", name)
    }

    pub async fn client(&self, name: &str) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel(name).await)
    }

    /// Makes an upper namespace, and waits until pods can be created in it.
    pub async fn namespace(&self, name: &str) -> Space {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.upper.apply_yaml(&namespace.to_string()).await.unwrap();
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(self.upper.client(), name);
        eventually("the namespace has its ServiceAccount", SOON, || async {
            Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
        })
        .await
        .unwrap();
        Space {
            name: name.into(),
            upper: Api::namespaced(self.upper.client(), name),
            lower: Api::namespaced(self.lower.client(), name),
            client: self.upper.client(),
        }
    }
}

/// Where the leader of a virtual node serves the contract, as its Node tells.
pub async fn endpoint(upper: Client, node: &str) -> String {
    let node = Api::<Node>::all(upper).get(node).await.unwrap();
    node.annotations()[annotation::ENDPOINT].clone()
}

/// A spec of pods for the nodes of a pool.
pub fn spec(pool: &str, cpu: u32) -> Value {
    json!({
        "nodeSelector": {"pool": pool},
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "example.test/c:1", "resources": {"requests": {"cpu": cpu.to_string()}}}],
    })
}

/// The template of such pods.
pub fn template(namespace: &str, spec: &Value) -> v1::Template {
    let pod_template = serde_json::to_vec(&json!({ "spec": spec })).unwrap();
    v1::Template { id: "t".into(), namespace: namespace.into(), pod_template: pod_template.into(), priority: 0 }
}

/// Asks how many pods of a template fit.
pub async fn fit(client: &mut ClusterClient<Channel>, template: v1::Template, replicas: u32) -> v1::TemplateFit {
    let request = v1::FitRequest {
        templates: vec![v1::TemplateCount { template: Some(template), replicas }],
        counting: v1::Counting::Alone.into(),
        ..v1::FitRequest::default()
    };
    client.fit(request).await.unwrap().into_inner().fits.remove(0)
}

/// Creates a pod in the lower cluster that stands for none of ours, and waits until it has a node.
pub async fn foreign_pod(world: &World, name: &str, spec: Value) -> Api<Pod> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strangers"}});
    world.lower.apply_yaml(&namespace.to_string()).await.unwrap();
    let strangers: Api<Pod> = Api::namespaced(world.lower.client(), "strangers");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    eventually("the stranger's pod has a node", SOON, || async {
        let Some(found) = strangers.get_opt(name).await? else {
            // Refused until the namespace has its ServiceAccount.
            let refused = strangers.create(&PostParams::default(), &pod).await.err();
            return Ok(Seen::NotYet(format!("created: {refused:?}")));
        };
        let placed = found.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        Ok(Seen::when(placed, found.status))
    })
    .await
    .unwrap();
    strangers
}

/// A test's namespace, in both clusters.
pub struct Space {
    pub name: String,
    pub upper: Api<Pod>,
    pub lower: Api<Pod>,
    client: Client,
}

impl Space {
    /// Creates an upper pod that nobody has bound yet, with a label `app` of its namespace's name. Answers its UID.
    pub async fn create(&self, name: &str, spec: &Value) -> String {
        let mut spec = spec.clone();
        spec["schedulerName"] = json!("the-test");
        let metadata = json!({"name": name, "labels": {"app": self.name}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        let pod = self.upper.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        pod.uid().unwrap()
    }

    /// Binds an upper pod to a virtual node as a scheduler does, with the lower node that was reserved for it.
    pub async fn bind(&self, name: &str, virtual_node: &str, reserved: Option<&str>) {
        let annotations = reserved.map(|node| json!({annotation::RESERVED_NODE: node}));
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": name, "annotations": annotations},
            "target": {"apiVersion": "v1", "kind": "Node", "name": virtual_node},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{name}/binding", self.name);
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&binding).unwrap())
            .unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }

    /// Waits until a lower pod is on a node, and gives the node's name.
    pub async fn lower_node_of(&self, name: &str) -> String {
        eventually(&format!("the lower pod of {name} is on a node"), SOON, || async {
            let pod = self.lower.get_opt(name).await?;
            let node = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
            Ok(node.map_or_else(|| Seen::NotYet(format!("{:?}", pod.and_then(|pod| pod.status))), Seen::Done))
        })
        .await
        .unwrap()
    }

    /// Waits until each of `count` lower pods has the lower scheduler's verdict. Answers how many have a node, and what is said of one
    /// that has none.
    pub async fn judged(&self, count: usize) -> (usize, Option<String>) {
        eventually("the lower scheduler has judged all pods", SOON, || async {
            let pods = self.lower.list(&ListParams::default()).await?.items;
            let placed =
                pods.iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())).count();
            let refused: Vec<_> = pods.iter().filter_map(refusal).collect();
            Ok(if placed + refused.len() == count {
                Seen::Done((placed, refused.into_iter().next()))
            } else {
                Seen::NotYet(format!("{} pods, {placed} placed, {} refused", pods.len(), refused.len()))
            })
        })
        .await
        .unwrap()
    }
}

/// What the lower scheduler says of a pod that it found no node for.
pub fn refusal(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|each| each.type_ == "PodScheduled" && each.status == "False")?;
    scheduled.message.clone()
}
