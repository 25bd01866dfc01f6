//! The clusters that the tests share, and what tests say often.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Event, Namespace, Pod, PodCondition};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tensile_e2e::{
    Cluster, KwokNodes, Seen, VirtualNode, eventually,
    kept::{self, Kept, TestCluster},
};
use tensile_proto::vocabulary::label;
use tokio::sync::OnceCell;

/// The time limit for what takes a second or two on an idle machine.
pub const SOON: Duration = Duration::from_mins(1);

/// Marks the namespaces of tests.
const TEST_LABEL: &str = "tensile.test/program";

/// An upper cluster without nodes of its own, and two lower clusters behind virtual nodes `vn-a` and `vn-b`.
pub struct World {
    pub upper: TestCluster,
    pub a: TestCluster,
    pub b: TestCluster,
    /// Behind the names of namespaces: kept clusters hold those of earlier runs.
    suffix: String,
    pub nodes: [VirtualNode; 2],
}

/// The shared world, started by the first test that asks.
pub async fn world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    WORLD.get_or_init(World::start).await
}

impl World {
    async fn start() -> Self {
        let [upper, a, b] = if kept::wanted() { attached().await } else { started().await };
        // The virtual-nodes of the run before were killed: their leases are soon over with short times.
        let quick = ["--lease-duration=3", "--lease-renew-deadline=2", "--lease-retry=0.3"];
        let args = if kept::wanted() { &quick[..] } else { &[] };
        let node = |lower: &TestCluster, name| {
            VirtualNode::between(upper.site(), lower.site()).name(name).args(args.iter().copied()).start()
        };
        let (node_a, node_b) = tokio::try_join!(node(&a, "vn-a"), node(&b, "vn-b")).unwrap();
        let mut suffix = String::new();
        if kept::wanted() {
            suffix = format!("-{:x}", std::process::id());
            // What earlier runs left goes while this one works; only now are there virtual nodes that can end its pods.
            let namespaces: Api<Namespace> = Api::all(upper.client());
            for left in namespaces.list_metadata(&ListParams::default().labels(TEST_LABEL)).await.unwrap() {
                namespaces.delete(&left.name_any(), &DeleteParams::background()).await.unwrap();
            }
        }
        Self { upper, a, b, suffix, nodes: [node_a, node_b] }
    }

    /// Makes an upper namespace and waits until pods can be created in it.
    pub async fn namespace(&self, name: &str) -> Space<'_> {
        let name = &format!("{name}{}", self.suffix);
        let labels = json!({TEST_LABEL: "offload"});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.upper.apply_yaml(&namespace.to_string()).await.unwrap();
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(self.upper.client(), name);
        eventually("the namespace has its ServiceAccount", SOON, || async {
            Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
        })
        .await
        .unwrap();
        Space { world: self, name: name.to_owned() }
    }

    /// The lower clusters.
    pub fn lowers(&self) -> [&TestCluster; 2] {
        [&self.a, &self.b]
    }
}

async fn started() -> [TestCluster; 3] {
    let lower = |name: &'static str| Cluster::builder(name).nodes(KwokNodes::count(3)).start();
    let (upper, a, b) =
        tokio::try_join!(Cluster::builder("upper").start(), lower("lower-a"), lower("lower-b")).unwrap();
    [upper, a, b].map(TestCluster::from)
}

async fn attached() -> [TestCluster; 3] {
    let kept = Kept::read().unwrap();
    let (upper, a, b) =
        tokio::try_join!(kept.cluster("upper"), kept.cluster("lower-a"), kept.cluster("lower-b")).unwrap();
    [upper, a, b]
}

/// A test's namespace, in all three clusters.
pub struct Space<'a> {
    pub world: &'a World,
    pub name: String,
}

impl Space<'_> {
    pub fn upper_pods(&self) -> Api<Pod> {
        self.upper()
    }

    /// Objects of this namespace in the upper cluster.
    pub fn upper<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.world.upper.client(), &self.name)
    }

    /// Objects of this namespace in a lower cluster.
    pub fn lower<K>(&self, cluster: &TestCluster) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(cluster.client(), &self.name)
    }

    /// All lower pods of this namespace, with their cluster's name.
    pub async fn lower_pods(&self) -> Vec<(String, Pod)> {
        let mut all = Vec::new();
        for cluster in self.world.lowers() {
            let pods = self.lower::<Pod>(cluster).list(&ListParams::default()).await.unwrap();
            all.extend(pods.items.into_iter().map(|pod| (cluster.name().to_owned(), pod)));
        }
        all
    }

    /// Applies YAML; `NAMESPACE` stands for this namespace.
    pub async fn apply(&self, yaml: &str) {
        self.world.upper.apply_yaml(&yaml.replace("NAMESPACE", &self.name)).await.unwrap();
    }

    /// Creates a pod that tolerates virtual nodes. `change` is merged into its spec.
    pub async fn pod(&self, name: &str, change: serde_json::Value) -> Pod {
        let mut spec = json!({
            "containers": [{"name": "main", "image": "example.test/app:1"}],
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        });
        json_patch::merge(&mut spec, &change);
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        self.upper_pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    /// Waits until an upper pod fits a description.
    pub async fn until(&self, pod: &str, what: &str, fits: impl Fn(&Pod) -> bool) -> Pod {
        eventually(&format!("pod {pod} {what}"), SOON, || async {
            let seen = self.upper_pods().get(pod).await?;
            Ok(if fits(&seen) { Seen::Done(seen) } else { Seen::NotYet(describe(&seen)) })
        })
        .await
        .unwrap()
    }

    /// Waits until an upper pod is gone.
    pub async fn until_gone(&self, pod: &str) {
        eventually(&format!("pod {pod} is gone"), SOON, || async {
            Ok(match self.upper_pods().get_opt(pod).await? {
                None => Seen::Done(()),
                Some(seen) => Seen::NotYet(describe(&seen)),
            })
        })
        .await
        .unwrap();
    }

    /// Waits until no lower cluster has a pod of this namespace.
    pub async fn until_empty_below(&self) {
        eventually("the lower clusters have no pods of the namespace", SOON, || async {
            let left: Vec<String> = self.lower_pods().await.iter().map(|(_, pod)| describe(pod)).collect();
            Ok(Seen::when(left.is_empty(), left))
        })
        .await
        .unwrap();
    }

    /// Waits until an event with this reason is told of a pod, and answers its message.
    pub async fn until_event(&self, pod: &str, reason: &str) -> String {
        let selector = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        eventually(&format!("pod {pod} has an event {reason}"), SOON, || async {
            let events = self.upper::<Event>().list(&selector).await?.items;
            let found = events.iter().find(|event| event.reason.as_deref() == Some(reason));
            Ok(match found {
                Some(event) => Seen::Done(event.message.clone().unwrap_or_default()),
                None => Seen::NotYet(format!("{:?}", events.iter().map(|e| e.reason.clone()).collect::<Vec<_>>())),
            })
        })
        .await
        .unwrap()
    }
}

/// Whether a pod's condition says True.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The lower pods by the UID of the upper pod that they stand for.
pub fn by_owner(pods: &[(String, Pod)]) -> BTreeMap<String, Vec<String>> {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (cluster, pod) in pods {
        let owner = pod.labels().get(label::UPPER_UID).cloned().unwrap_or_default();
        owners.entry(owner).or_default().push(format!("{cluster}/{}", pod.name_any()));
    }
    owners
}

/// A pod in a line, for the message of a failed wait.
pub fn describe(pod: &Pod) -> String {
    let conditions: Vec<String> = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .map(|c| {
            format!(
                "{}={} {} {}",
                c.type_,
                c.status,
                c.reason.as_deref().unwrap_or(""),
                c.message.as_deref().unwrap_or("")
            )
        })
        .collect();
    format!(
        "{} on {:?} phase {} deleting {:?} finalizers {:?} [{}]",
        pod.name_any(),
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()),
        phase(pod),
        pod.metadata.deletion_timestamp.as_ref().map(|at| at.0.to_string()),
        pod.metadata.finalizers,
        conditions.join("; ")
    )
}

/// Namespaces of a cluster, to see what was made below.
pub async fn lower_namespace(cluster: &TestCluster, name: &str) -> Option<Namespace> {
    Api::<Namespace>::all(cluster.client()).get_opt(name).await.unwrap()
}
