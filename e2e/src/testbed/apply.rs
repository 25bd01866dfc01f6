//! Applying YAML, as `kubectl apply --server-side` does, without a process for each call.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
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
        apply_yaml(&self.client(), yaml).await
    }
}

/// [`Cluster::apply_yaml`] for any cluster.
pub(crate) async fn apply_yaml(client: &Client, yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut applied = Vec::new();
    for object in parse_yaml(yaml)? {
        applied.push(apply(client, object).await?);
    }
    Ok(applied)
}

/// The objects in `yaml`, in order; empty documents are left out.
pub(crate) fn parse_yaml(yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let value = serde_json::Value::deserialize(document).context("reading YAML to apply")?;
        if !value.is_null() {
            objects.push(serde_json::from_value(value).context("a YAML document is not a Kubernetes object")?);
        }
    }
    Ok(objects)
}

async fn apply(client: &Client, object: DynamicObject) -> Result<DynamicObject> {
    let (api, name) = api_of(client, &object).await?;
    api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object))
        .await
        .with_context(|| format!("applying {} {name}", kind_of(&object)))
}

fn kind_of(object: &DynamicObject) -> &str {
    object.types.as_ref().map_or("object", |types| types.kind.as_str())
}

/// Where an object lives, and its name there.
pub(crate) async fn api_of(client: &Client, object: &DynamicObject) -> Result<(Api<DynamicObject>, String)> {
    let types = object.types.as_ref().context("a YAML document has no apiVersion and kind")?;
    let name = object.metadata.name.clone().with_context(|| format!("a {} has no metadata.name", types.kind))?;
    let kind = GroupVersionKind::try_from(types).context("reading apiVersion")?;
    let (resource, capabilities) = eventually(&format!("{} is served", kind.kind), KIND_DEADLINE, || async {
        Ok(Seen::Done(discovery::pinned_kind(client, &kind).await?))
    })
    .await?;
    let api = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
    };
    Ok((api, name))
}
