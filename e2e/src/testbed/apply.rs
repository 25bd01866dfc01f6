//! Applying YAML, as `kubectl apply --server-side` does, without a process for each call.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use serde::Deserialize;

use super::cluster::Cluster;
use crate::eventually::{Seen, eventually};

/// Who the API server thinks wrote the fields.
const FIELD_MANAGER: &str = "tensile-e2e";

/// A kind whose CRD was applied a moment ago appears within about a second.
const KIND_DEADLINE: Duration = Duration::from_secs(15);

impl Cluster {
    /// Applies each document of `yaml`, in order. Objects without a namespace go to `default`.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        let mut applied = Vec::new();
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let value = serde_json::Value::deserialize(document).context("reading YAML to apply")?;
            if value.is_null() {
                continue;
            }
            let object: DynamicObject =
                serde_json::from_value(value).context("a YAML document is not a Kubernetes object")?;
            applied.push(self.apply(object).await?);
        }
        Ok(applied)
    }

    async fn apply(&self, object: DynamicObject) -> Result<DynamicObject> {
        let types = object.types.as_ref().context("a YAML document has no apiVersion and kind")?;
        let name = object.metadata.name.clone().with_context(|| format!("a {} has no metadata.name", types.kind))?;
        let kind = GroupVersionKind::try_from(types).context("reading apiVersion")?;
        let client = self.client();
        let (resource, capabilities) = eventually(&format!("{} is served", kind.kind), KIND_DEADLINE, || async {
            Ok(Seen::Done(discovery::pinned_kind(&client, &kind).await?))
        })
        .await?;
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client, &resource),
            Scope::Namespaced => {
                let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
                Api::namespaced_with(client, namespace, &resource)
            }
        };
        api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object))
            .await
            .with_context(|| format!("applying {} {name}", kind.kind))
    }
}
