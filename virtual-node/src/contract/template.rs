//! Pod templates of callers, as the lower scheduler would see their pods.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use tensile_proto::{v1, vocabulary::annotation};
use tensile_scheduling::Demand;

use crate::{context::Settings, translate};

/// Limits of the contract.
const ID_BYTES_MAX: usize = 128;
const TEMPLATE_BYTES_MAX: usize = 256 << 10;

/// What a pod of a template stands for while it has no name of its own.
const NAMELESS: &str = "template";

/// Why a template gives no demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TemplateError {
    /// The request breaks the contract.
    Malformed(String),
    /// Pods like this never go to a lower cluster.
    Refused(String),
}

impl TemplateError {
    pub fn message(&self) -> &str {
        match self {
            Self::Malformed(message) | Self::Refused(message) => message,
        }
    }
}

/// What pods of a template ask of a lower node.
pub(super) fn demand_of_template(template: &v1::Template, settings: &Settings) -> Result<Arc<Demand>, TemplateError> {
    let malformed = |message: String| Err(TemplateError::Malformed(message));
    let id = &template.id;
    if id.len() > ID_BYTES_MAX {
        return malformed(format!("a template's id has {} bytes; at most {ID_BYTES_MAX} are allowed", id.len()));
    }
    if template.namespace.is_empty() {
        return malformed(format!("template {id:?}: namespace is empty; name the upper namespace of its pods"));
    }
    let bytes = template.pod_template.len();
    if bytes > TEMPLATE_BYTES_MAX {
        return malformed(format!(
            "template {id:?}: pod_template has {bytes} bytes; at most {TEMPLATE_BYTES_MAX} are allowed"
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(&template.pod_template);
    let read: PodTemplateSpec = match serde_path_to_error::deserialize(&mut json) {
        Ok(read) => read,
        Err(error) => {
            let (path, error) = (error.path().to_string(), error.inner());
            return malformed(format!(
                "template {id:?}: pod_template is no core/v1 PodTemplateSpec in JSON: {path}: {error}"
            ));
        }
    };
    let mut pod = Pod { metadata: read.metadata.unwrap_or_default(), spec: read.spec, status: None };
    if pod.spec.is_none() {
        return malformed(format!("template {id:?}: pod_template.spec is missing"));
    }
    pod.metadata.name = Some(NAMELESS.to_owned());
    pod.metadata.uid = Some(NAMELESS.to_owned());
    pod.metadata.namespace = Some(template.namespace.clone());
    demand_of_pod(&pod, settings)
}

/// What an upper pod asks of any lower node, the one that may be reserved for it aside.
pub(super) fn demand_of_pod(upper: &Pod, settings: &Settings) -> Result<Arc<Demand>, TemplateError> {
    let mut upper = Cow::Borrowed(upper);
    if upper.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(annotation::RESERVED_NODE)) {
        upper.to_mut().metadata.annotations.get_or_insert_default().remove(annotation::RESERVED_NODE);
    }
    let upper = upper.as_ref();
    let refused = |refusal: translate::Refusal| TemplateError::Refused(refusal.message);
    translate::admissible(upper).map_err(refused)?;
    let lower = translate::pod_down(upper, &translate::Context::new(settings)).map_err(refused)?;
    Demand::of(&lower).map(Arc::new).map_err(|error| TemplateError::Malformed(format!("the pod's requests: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::contract::testing::settings;

    fn read(template: &serde_json::Value, namespace: &str) -> Result<Arc<Demand>, TemplateError> {
        let pod_template = serde_json::to_vec(template).unwrap();
        let template = v1::Template {
            id: "t".into(),
            namespace: namespace.into(),
            pod_template: pod_template.into(),
            priority: 0,
        };
        demand_of_template(&template, &settings())
    }

    #[test]
    fn a_template_asks_for_what_its_pods_would_below() {
        let plain = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}});
        let demand = read(&plain, "team").unwrap();
        assert_eq!(demand.requests().cpu_millis(), 2_000);
        // What says that the pod wants the virtual node is not asked of lower nodes.
        let mut upper = plain;
        upper["spec"]["nodeSelector"] = json!({"type": "virtual-kubelet"});
        upper["spec"]["tolerations"] = json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
        upper["spec"]["priority"] = json!(1_000);
        assert_eq!(read(&upper, "team").unwrap(), demand);
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_path() {
        let error = read(&json!({"spec": {"containers": [{"name": "c", "ports": "none"}]}}), "team").unwrap_err();
        assert!(error.message().contains("spec.containers[0].ports"), "{error:?}");
        assert!(read(&json!({}), "team").unwrap_err().message().contains("pod_template.spec"));
        assert!(read(&json!({"spec": {"containers": []}}), "").unwrap_err().message().contains("namespace"));
    }

    #[test]
    fn pods_that_are_never_taken_are_refused_with_the_reason() {
        let error = read(&json!({"spec": {"containers": []}}), "kube-system").unwrap_err();
        assert!(matches!(&error, TemplateError::Refused(message) if message.contains("kube-system")), "{error:?}");
    }
}
