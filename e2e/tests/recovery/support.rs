//! What these tests say often.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::ListParams};
use tensile_e2e::{Cluster, Seen, eventually};
use tensile_proto::vocabulary::label;

/// The time limit for what takes some seconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(90);

pub fn pods(cluster: &Cluster) -> Api<Pod> {
    Api::namespaced(cluster.client(), "work")
}

pub fn deployment(replicas: usize) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: work}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      nodeSelector: {{type: virtual-kubelet}}
      tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
      containers: [{{name: web, image: example.test/web:1}}]
"
    )
}

pub async fn make_namespace(cluster: &Cluster) {
    cluster.apply_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: work}}").await.unwrap();
}

pub fn is_ready(pod: &Pod) -> bool {
    has_condition(pod, "Ready", "True")
}

pub fn has_condition(pod: &Pod, kind: &str, status: &str) -> bool {
    pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == status)
}

pub async fn until_ready(cluster: &Cluster, count: usize, limit: Duration) {
    eventually(&format!("{count} pods are ready"), limit, || async {
        let all = pods(cluster).list(&ListParams::default()).await?.items;
        let ready = all.iter().filter(|pod| is_ready(pod)).count();
        Ok(Seen::when(ready == count && all.len() == count, format!("{ready} ready of {}", all.len())))
    })
    .await
    .unwrap();
}

/// UIDs of the upper pods, and of the lower pods by the upper UID in their mark.
pub async fn twins(upper: &Cluster, lower: &Cluster) -> (Vec<String>, BTreeMap<String, Vec<String>>) {
    let above = pods(upper).list_metadata(&ListParams::default()).await.unwrap().items;
    let mut below: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods(lower).list_metadata(&ListParams::default()).await.unwrap() {
        let owner = pod.labels().get(label::UPPER_UID).cloned().unwrap_or_default();
        below.entry(owner).or_default().push(pod.uid().unwrap_or_default());
    }
    (above.iter().filter_map(ResourceExt::uid).collect(), below)
}

/// Nothing lost, nothing doubled: each upper pod has one lower pod, and there is no other.
pub async fn assert_one_twin_each(upper: &Cluster, lower: &Cluster) {
    eventually("each upper pod has exactly one lower pod", SOON, || async {
        let (above, below) = twins(upper, lower).await;
        let fits =
            above.len() == below.len() && above.iter().all(|uid| below.get(uid).is_some_and(|pods| pods.len() == 1));
        Ok(Seen::when(fits, format!("{} above, {} below", above.len(), below.len())))
    })
    .await
    .unwrap();
}

pub async fn node(cluster: &Cluster, name: &str) -> Node {
    Api::<Node>::all(cluster.client()).get(name).await.unwrap()
}

pub fn node_condition(node: &Node, kind: &str) -> String {
    let found = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == kind);
    found.map_or_else(|| "absent".into(), |c| c.status.clone())
}

pub fn has_taint(node: &Node, key: &str) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == key)
}
