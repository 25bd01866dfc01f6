//! One namespace, in both clusters, and what scenes say often about it.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tensile_e2e::{Seen, eventually};
use tensile_proto::vocabulary::label;

use crate::world::{SOON, World};

/// An upper namespace whose pods go to one virtual node.
pub struct Space {
    pub world: &'static World,
    pub name: String,
    pub node: String,
}

impl Space {
    /// Objects of this namespace in the upper cluster.
    pub fn upper<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.world.upper.client(), &self.name)
    }

    /// Objects of this namespace in the lower cluster.
    pub fn lower<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.world.lower.client(), &self.name)
    }

    /// The spec of a pod for the virtual node. `change` is merged into it.
    #[allow(clippy::needless_pass_by_value)] // the scenes read better so
    pub fn spec(&self, change: Value) -> Value {
        let mut spec = json!({
            "containers": [{"name": "main", "image": "example.test/app:1"}],
            "terminationGracePeriodSeconds": 1,
            "nodeSelector": {"tensile.dev/cluster": self.node},
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        });
        json_patch::merge(&mut spec, &change);
        spec
    }

    /// Creates a pod named `pod`, and answers its UID.
    pub async fn pod(&self, change: Value) -> String {
        self.pod_with(json!({}), change).await
    }

    /// Creates it with annotations, too.
    pub async fn pod_with(&self, annotations: Value, change: Value) -> String {
        let pod = json!({"metadata": {"name": "pod", "annotations": annotations}, "spec": self.spec(change)});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.upper::<Pod>().create(&PostParams::default(), &pod).await.unwrap().uid().unwrap()
    }

    /// Makes a ConfigMap `settings` and a Secret `login` with this value.
    pub async fn config(&self, value: &str) {
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "settings"}, "data": {"key": value}})).unwrap();
        self.upper::<ConfigMap>().create(&PostParams::default(), &map).await.unwrap();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "login"}, "stringData": {"key": value}})).unwrap();
        self.upper::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    }

    /// The part of a pod's spec that needs both of them. (A token and the upper CA it has anyway.)
    pub fn with_config() -> Value {
        json!({"containers": [{"name": "main", "image": "example.test/app:1",
            "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "20m"}},
            "env": [{"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}}]}],
            "volumes": [{"name": "login", "secret": {"secretName": "login"}}]})
    }

    /// Deletes a pod; `force` does not wait for its containers.
    pub async fn delete(&self, name: &str, force: bool) {
        let params = DeleteParams { grace_period_seconds: force.then_some(0), ..DeleteParams::default() };
        self.upper::<Pod>().delete(name, &params).await.unwrap();
    }

    /// Waits until an upper pod fits a description.
    pub async fn until(&self, pod: &str, what: &str, fits: impl Fn(&Pod) -> bool) -> Pod {
        eventually(&format!("pod {}/{pod} {what}", self.name), SOON, || async {
            let seen = self.upper::<Pod>().get(pod).await?;
            Ok(if fits(&seen) { Seen::Done(seen) } else { Seen::NotYet(describe(&seen)) })
        })
        .await
        .unwrap()
    }

    /// Waits until no upper pod is left.
    pub async fn until_gone(&self) {
        eventually(&format!("the pods of {} are gone", self.name), SOON, || async {
            let left = self.upper::<Pod>().list(&ListParams::default()).await?.items;
            Ok(Seen::when(left.is_empty(), left.iter().map(describe).collect::<Vec<_>>()))
        })
        .await
        .unwrap();
    }

    /// Waits until neither pods nor their tokens are left below.
    pub async fn until_empty_below(&self) {
        eventually(&format!("the lower namespace {} has no pods and no tokens", self.name), SOON, || async {
            let pods = self.lower::<Pod>().list(&ListParams::default()).await?.items;
            let tokens = self.lower::<Secret>().list_metadata(&labelled("token")).await?.items;
            let left = (pods.iter().map(describe).collect::<Vec<_>>(), tokens.len());
            Ok(Seen::when(left.0.is_empty() && left.1 == 0, left))
        })
        .await
        .unwrap();
    }

    /// Waits until nothing of ours is left below, copies of ConfigMaps and Secrets included. Those are kept for 30 s.
    pub async fn until_nothing_below(&self) {
        self.until_empty_below().await;
        let all = ListParams::default().labels(label::NEED);
        eventually(&format!("the lower namespace {} has no copies", self.name), SOON, || async {
            let left = (
                self.lower::<ConfigMap>().list_metadata(&all).await?.items.len(),
                self.lower::<Secret>().list_metadata(&all).await?.items.len(),
            );
            Ok(Seen::when(left == (0, 0), left))
        })
        .await
        .unwrap();
    }
}

fn labelled(need: &str) -> ListParams {
    ListParams::default().labels(&format!("{}={need}", label::NEED))
}

pub fn condition(pod: &Pod, kind: &str) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.status.clone())
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").as_deref() == Some("True") && pod.metadata.deletion_timestamp.is_none()
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A pod in a line, for the message of a failed wait.
pub fn describe(pod: &Pod) -> String {
    let conditions: Vec<String> = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .map(|condition| format!("{}={}", condition.type_, condition.status))
        .collect();
    format!(
        "{} {} phase {} deleting {:?} grace {:?} finalizers {:?} {conditions:?}",
        pod.name_any(),
        pod.uid().unwrap_or_default(),
        phase(pod),
        pod.metadata.deletion_timestamp.as_ref().map(|at| at.0.to_string()),
        pod.metadata.deletion_grace_period_seconds,
        pod.metadata.finalizers,
    )
}
