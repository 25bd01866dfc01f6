//! What there is to see, read from the API servers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tensile_proto::vocabulary::{annotation, condition, label};

use super::stage::{Joined, NAMESPACE, Stage, WORKLOAD};
use crate::Site;

/// A view that hangs with a cluster would not show that the cluster hangs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// The view shows a screenful; a cluster of the user's may have any number.
const PODS_MAX: u32 = 200;

/// One look at everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub age: Duration,
    pub clusters: Vec<ClusterSeen>,
    pub nodes: Vec<NodeSeen>,
    pub pods: Vec<PodSeen>,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClusterSeen {
    pub name: String,
    pub role: &'static str,
    pub server_url: String,
    /// How many nodes it has, or why that is not known.
    pub nodes: Result<usize, String>,
    pub about: &'static str,
}

/// A virtual node, and the process behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeSeen {
    pub name: String,
    pub ready: String,
    pub lower_reachable: String,
    pub cpu: String,
    pub memory: String,
    pub pods_max: String,
    pub pods: usize,
    pub process: String,
}

/// A pod of the upper cluster, and what is known of its twin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodSeen {
    pub namespace: String,
    pub name: String,
    pub status: String,
    pub ready: bool,
    pub node: String,
    pub lower_node: String,
    pub address: String,
    pub age: Duration,
}

impl Snapshot {
    /// Looks at everything that is up. What does not answer is shown so.
    pub(super) async fn look(stage: &Stage) -> Self {
        let Some(upper) = &stage.upper else { return Self::default() };
        let (above, joined) = tokio::join!(
            cluster(upper, "upper", ""),
            join_all(stage.joined.iter().map(|joined| look_at(upper, joined)))
        );
        let mut snapshot = Self { age: stage.begun.elapsed(), clusters: vec![above], ..Self::default() };
        for Part { cluster, node, pods } in joined {
            snapshot.clusters.push(cluster);
            snapshot.nodes.push(node);
            snapshot.pods.extend(pods);
        }
        let bound_nowhere = within(waiting(upper)).await.unwrap_or_default();
        snapshot.pods.extend(bound_nowhere);
        snapshot.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        snapshot
    }
}

struct Part {
    cluster: ClusterSeen,
    node: NodeSeen,
    pods: Vec<PodSeen>,
}

async fn look_at(upper: &Site, joined: &Joined) -> Part {
    let name = joined.node.node_name();
    let (cluster, node, above, below) = tokio::join!(
        cluster(&joined.lower, "lower", joined.about),
        within(async { Ok(Api::<Node>::all(upper.client()).get_opt(name).await?) }),
        within(bound_to(upper, name)),
        within(twins(&joined.lower, name)),
    );
    let below = below.unwrap_or_default();
    let mut pods = above.unwrap_or_default();
    for pod in &mut pods {
        if let Some(node) = below.get(&(pod.namespace.clone(), pod.name.clone())) {
            pod.lower_node.clone_from(node);
        }
    }
    let node = node.map_or_else(
        |why| NodeSeen { name: name.to_owned(), ready: why, ..NodeSeen::default() },
        |node| node.map_or_else(|| NodeSeen { ready: "not there".into(), ..NodeSeen::default() }, node_seen),
    );
    let process = match (joined.node.cpu_seconds(), joined.node.rss_peak_mib()) {
        (Ok(cpu), Ok(memory)) => format!("{cpu:.1} CPU s, {memory:.0} MiB at most"),
        _ => "has ended".to_owned(),
    };
    Part { cluster, node: NodeSeen { name: name.to_owned(), pods: pods.len(), process, ..node }, pods }
}

async fn cluster(site: &Site, role: &'static str, about: &'static str) -> ClusterSeen {
    let count = async {
        let page = Api::<Node>::all(site.client()).list_metadata(&ListParams::default().limit(1)).await?;
        // One item, and how many more there would be: no list of a large cluster's nodes.
        let more = page.metadata.remaining_item_count.unwrap_or_default();
        Ok(page.items.len() + usize::try_from(more).unwrap_or_default())
    };
    ClusterSeen {
        name: site.name().to_owned(),
        role,
        server_url: site.server_url().to_owned(),
        nodes: within(count).await,
        about,
    }
}

fn node_seen(node: Node) -> NodeSeen {
    let status = node.status.unwrap_or_default();
    let condition = |kind: &str| {
        let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        found.map_or_else(|| "?".to_owned(), |condition| condition.status.clone())
    };
    let room = |resource: &str| {
        let quantity = status.allocatable.as_ref().and_then(|all| all.get(resource));
        quantity.map(|quantity| quantity.0.clone()).unwrap_or_default()
    };
    NodeSeen {
        ready: condition("Ready"),
        lower_reachable: condition(condition::LOWER_REACHABLE),
        cpu: room("cpu"),
        memory: gibibytes(&room("memory")),
        pods_max: room("pods"),
        ..NodeSeen::default()
    }
}

/// A node's memory as people say it; anything unexpected as it is.
fn gibibytes(quantity: &str) -> String {
    let units = [("Ki", 20), ("Mi", 10), ("Gi", 0), ("", 30)];
    let read = units.iter().find_map(|(unit, shift)| Some(quantity.strip_suffix(unit)?.parse::<u64>().ok()? >> shift));
    read.map_or_else(|| quantity.to_owned(), |count| format!("{count} GiB"))
}

/// Pods on a virtual node.
async fn bound_to(upper: &Site, node: &str) -> Result<Vec<PodSeen>> {
    let bound = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PODS_MAX);
    let pods = Api::<Pod>::all(upper.client()).list(&bound).await?;
    Ok(pods.items.iter().map(pod_seen).collect())
}

/// Our Deployment's pods that no scheduler has placed yet.
async fn waiting(upper: &Site) -> Result<Vec<PodSeen>> {
    let unbound = ListParams::default().labels(&format!("app={WORKLOAD}")).fields("spec.nodeName=").limit(PODS_MAX);
    let pods = Api::<Pod>::namespaced(upper.client(), NAMESPACE).list(&unbound).await?;
    Ok(pods.items.iter().map(pod_seen).collect())
}

/// By namespace and name of the upper pod: the lower node that its twin is on.
async fn twins(lower: &Site, node: &str) -> Result<BTreeMap<(String, String), String>> {
    let ours = ListParams::default().labels(&format!("{}={node}", label::VIRTUAL_NODE)).limit(PODS_MAX);
    let pods = Api::<Pod>::all(lower.client()).list(&ours).await?;
    let twin = |pod: Pod| {
        let note = |key: &str| pod.annotations().get(key).cloned();
        let upper =
            (note(annotation::UPPER_NAMESPACE)?, note(annotation::UPPER_NAME).unwrap_or_else(|| pod.name_any()));
        Some((upper, pod.spec?.node_name?))
    };
    Ok(pods.items.into_iter().filter_map(twin).collect())
}

fn pod_seen(pod: &Pod) -> PodSeen {
    let status = pod.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let waits = status
        .container_statuses
        .iter()
        .flatten()
        .find_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let phase = status.phase.clone().unwrap_or_default();
    let created = pod.metadata.creation_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
    PodSeen {
        status: if pod.metadata.deletion_timestamp.is_some() {
            "Terminating".to_owned()
        } else {
            waits.unwrap_or(phase)
        },
        ready,
        address: status.pod_ip.unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        age: Duration::try_from(Timestamp::now().duration_since(created)).unwrap_or_default(),
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        lower_node: String::new(),
    }
}

/// The result, or what to show in its place.
async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T, String> {
    let answer = tokio::time::timeout(ANSWER_DEADLINE, work).await.context("no answer");
    answer.and_then(|answer| answer).map_err(|error| match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.reason.clone(),
        _ => "no answer".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::gibibytes;

    #[test]
    fn memory_is_shown_in_gibibytes() {
        assert_eq!(gibibytes("24683060Ki"), "23 GiB");
        assert_eq!(gibibytes("768Gi"), "768 GiB");
        assert_eq!(gibibytes("1073741824"), "1 GiB");
        assert_eq!(gibibytes("1500m"), "1500m");
    }
}
