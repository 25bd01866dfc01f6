//! The translation between an upper pod and its lower twin: pure functions, no client and no clock.
//!
//! ```text
//!  upper Pod ── pod_down ───▶ lower Pod to create      upper Pod ── needs ──▶ what must exist below first
//!  upper Pod ── pod_update ─▶ patches of the lower     lower Pod ── status_up ──▶ patch of the upper status
//! ```
//!
//! Every field that differs between the two pods stands in [`fields::FIELDS`]; what is not listed there passes as it is.

mod affinity;
mod carried;
mod containers;
mod down;
mod downward;
pub mod fields;
mod label_keys;
mod needs;
mod restore;
mod service_env;
mod status;
mod terminal;
mod update;
mod volumes;

#[cfg(test)]
mod generate;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod strategic;

use k8s_openapi::api::core::v1::{EnvVar, Pod};

pub use self::{
    carried::carried_digest,
    containers::{EnvFromKeys, wants_service_links},
    down::{pod_down, refuse_unsupported},
    needs::{Need, Needs, TokenNeed, UsedBy, needs},
    service_env::{ServiceFacts, ServicePortFacts, service_variables},
    status::{is_terminal, status_up},
    terminal::{Cause, terminal_status},
    update::{Subresource, Update, pod_update},
    volumes::{token_secret_key, token_secret_name},
};
use crate::context::Settings;

/// Name of the ConfigMap below that holds the *upper* cluster's CA bundle, in each lower namespace that needs it.
/// It takes the place of `kube-root-ca.crt`, which below holds the lower cluster's CA.
pub const ROOT_CA_CONFIG_MAP: &str = "tensile-root-ca";

/// Name of the ConfigMap that every cluster publishes its CA bundle in (`RootCAConfigMapName` of kube-controller-manager).
pub const KUBE_ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// The namespace whose pods are never taken: they belong to the upper control plane.
const KUBE_SYSTEM: &str = "kube-system";

/// Annotation of mirror pods (`K pkg/apis/core/annotation_key_constants.go`).
const MIRROR_POD_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Annotation that says where a kubelet read a pod from (`K pkg/kubelet/types/pod_update.go`).
const CONFIG_SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";

/// What a translation is made with.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Facts of the process: names, namespace mapping, addresses.
    pub settings: &'a Settings,
    /// Service variables of the upper pod's namespace, for pods that want them (enableServiceLinks).
    pub services_env: &'a [EnvVar],
    /// What the pod's `envFrom` sets, which given variables must not cover.
    pub env_from: &'a EnvFromKeys,
}

impl<'a> Context<'a> {
    /// Without Services: for all that has no environment.
    pub fn new(settings: &'a Settings) -> Self {
        static NONE: EnvFromKeys = EnvFromKeys::NONE;
        Self { settings, services_env: &[], env_from: &NONE }
    }
}

/// Why a pod is not sent down. Final for this spec: nothing but a change of the upper pod can cure it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Reason of the event and the condition, CamelCase.
    pub reason: &'static str,
    /// What is wrong, where, and how to mend it.
    pub message: String,
}

impl Refusal {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Whether a pod bound to the virtual node is taken at all.
///
/// # Errors
/// Reason `NotTaken` for pods of kube-system, pods of DaemonSets, and mirror or static pods. Their deletion is still
/// to be finished, so that no node's drain hangs on them.
pub fn admissible(upper: &Pod) -> Result<(), Refusal> {
    let meta = &upper.metadata;
    let refuse = |message: &str| Err(Refusal::new("NotTaken", message));
    if meta.namespace.as_deref() == Some(KUBE_SYSTEM) {
        return refuse(
            "pods of namespace kube-system serve the upper cluster's own nodes and are not sent to a lower cluster; \
             keep the pod off virtual nodes by removing its toleration of virtual-kubelet.io/provider",
        );
    }
    if meta
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.kind == "DaemonSet" && owner.api_version.starts_with("apps/"))
    {
        return refuse(
            "pods of DaemonSets serve one machine each and a virtual node is none; exclude virtual nodes in the \
             DaemonSet's node affinity (type NotIn virtual-kubelet) or remove its toleration of virtual-kubelet.io/provider",
        );
    }
    let annotations = meta.annotations.as_ref();
    let annotation = |key: &str| annotations.and_then(|all| all.get(key));
    let from_a_file = annotation(CONFIG_SOURCE_ANNOTATION).is_some_and(|source| source != "api");
    if annotation(MIRROR_POD_ANNOTATION).is_some() || from_a_file {
        return refuse(
            "mirror and static pods belong to the kubelet that made them and cannot run behind a virtual node",
        );
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn ordinary_pods_are_taken() {
        let owned = json!({"metadata": {"namespace": "team", "name": "a", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "1"}]}});
        assert_eq!(admissible(&pod(owned)), Ok(()));
    }

    #[test]
    fn pods_of_the_machine_are_not_taken() {
        for metadata in [
            json!({"namespace": "kube-system", "name": "a"}),
            json!({"namespace": "team", "name": "a", "annotations": {"kubernetes.io/config.mirror": "x"}}),
            json!({"namespace": "team", "name": "a", "annotations": {"kubernetes.io/config.source": "file"}}),
            json!({"namespace": "team", "name": "a", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "a", "uid": "1"}]}),
        ] {
            let refusal = admissible(&pod(json!({ "metadata": metadata }))).unwrap_err();
            assert_eq!(refusal.reason, "NotTaken");
        }
    }
}
