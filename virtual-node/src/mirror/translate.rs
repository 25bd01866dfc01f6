//! What of an upper Service and its EndpointSlices stands below. Pure.
//!
//! The lower Service has no selector: nothing below fills it but us. Its EndpointSlices name addresses only; nodes and
//! zones of the upper cluster mean nothing there.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;
use tensile_proto::vocabulary::{DOMAIN, label};

use crate::{context::Settings, names::Key, owner::OwnerMark};

/// Names the Service that a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Names the controller that alone writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// kube-proxy leaves slices of headless Services alone.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The API server's own Service: each cluster has its own.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// Which endpoints can be reached from the lower cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// Pods of all clusters reach each other by their addresses.
    Flat,
    /// Pods reach those of their own cluster only.
    Isolated,
}

/// Namespace and name of an object.
pub fn key_of(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// The Service as it stands below; `None` for one that stays above.
pub fn service_down(upper: &Service, settings: &Settings) -> Option<Service> {
    let key = key_of(&upper.metadata);
    if (key.namespace.as_str(), key.name.as_str()) == API_SERVER || !travels(&upper.metadata) {
        return None;
    }
    let spec = upper.spec.as_ref()?;
    let spec = match spec.type_.as_deref() {
        Some("ExternalName") => ServiceSpec {
            type_: Some("ExternalName".into()),
            external_name: spec.external_name.clone(),
            ports: Some(ports_down(spec)),
            ..ServiceSpec::default()
        },
        // Node ports and load balancers stay the upper cluster's.
        _ => ServiceSpec {
            type_: Some("ClusterIP".into()),
            cluster_ip: spec.cluster_ip.clone().filter(|ip| ip == "None"),
            ports: Some(ports_down(spec)),
            session_affinity: spec.session_affinity.clone(),
            session_affinity_config: spec.session_affinity_config.clone(),
            publish_not_ready_addresses: spec.publish_not_ready_addresses,
            // Both families where the lower cluster has them; else its own one.
            ip_family_policy: (spec.ip_families.as_ref().is_some_and(|families| families.len() > 1))
                .then(|| "PreferDualStack".to_owned()),
            ..ServiceSpec::default()
        },
    };
    Some(Service { metadata: metadata_down(&upper.metadata, settings), spec: Some(spec), status: None })
}

/// Always a list: what is left out of a patch stays as it is.
fn ports_down(spec: &ServiceSpec) -> Vec<ServicePort> {
    spec.ports.iter().flatten().map(|port| ServicePort { node_port: None, ..port.clone() }).collect()
}

/// An EndpointSlice as far as it travels; endpoints keep their node's name until [`reachable`] has looked at it.
pub fn slice_down(upper: &EndpointSlice, settings: &Settings) -> Option<EndpointSlice> {
    let labels = upper.metadata.labels.as_ref()?;
    if !labels.contains_key(SERVICE_NAME)
        || !travels(&upper.metadata)
        || labels.get(MANAGED_BY).is_some_and(|manager| manager == DOMAIN)
    {
        return None;
    }
    let mut metadata = metadata_down(&upper.metadata, settings);
    let kept =
        [SERVICE_NAME, HEADLESS].into_iter().filter_map(|name| Some((name.to_owned(), labels.get(name)?.clone())));
    let marks = metadata.labels.take().unwrap_or_default();
    let ours = marks.into_iter().filter(|(name, _)| name.starts_with(DOMAIN));
    metadata.labels = Some(ours.chain(kept).chain([(MANAGED_BY.to_owned(), DOMAIN.to_owned())]).collect());
    Some(EndpointSlice {
        metadata,
        address_type: upper.address_type.clone(),
        endpoints: Some(upper.endpoints.iter().flatten().map(endpoint_down).collect()),
        ports: Some(upper.ports.clone().unwrap_or_default()),
    })
}

fn endpoint_down(endpoint: &Endpoint) -> Endpoint {
    Endpoint {
        addresses: endpoint.addresses.clone(),
        conditions: endpoint.conditions.clone(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        ..Endpoint::default()
    }
}

/// Leaves the endpoints that can be reached from below, without their upper nodes' names.
pub fn reachable(mut slice: EndpointSlice, network: Network, node_name: &str) -> EndpointSlice {
    let endpoints = slice.endpoints.get_or_insert_default();
    if network == Network::Isolated {
        endpoints.retain(|endpoint| endpoint.node_name.as_deref() == Some(node_name));
    }
    for endpoint in endpoints {
        endpoint.node_name = None;
    }
    slice
}

/// What stands below for another upper cluster, or came from here, does not travel on: two clusters that are each other's
/// lower cluster would hand it to and fro for ever.
fn travels(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_none() && !meta.labels.iter().flatten().any(|(name, _)| name == label::UPPER_CLUSTER)
}

fn metadata_down(upper: &ObjectMeta, settings: &Settings) -> ObjectMeta {
    let key = key_of(upper);
    let labels: BTreeMap<String, String> = upper
        .labels
        .iter()
        .flatten()
        .filter(|(name, _)| !name.starts_with(DOMAIN))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let mut meta = ObjectMeta {
        namespace: Some(settings.namespaces.lower(&key.namespace)),
        name: Some(key.name.clone()),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    let mark = OwnerMark {
        cluster: settings.upper_cluster_uid.clone(),
        uid: upper.uid.clone().unwrap_or_default(),
        virtual_node: settings.node_name.clone(),
        key,
    };
    mark.write(&mut meta);
    meta
}

/// Whether an object has all that is wanted of it; what an API server filled in beside that does not count. Lists are
/// equal only as a whole.
pub fn covers(actual: &Value, wanted: &Value) -> bool {
    match (actual, wanted) {
        (Value::Object(actual), Value::Object(wanted)) => wanted.iter().all(|(name, wanted)| {
            // Several virtual nodes of an upper cluster share what stands below; any of them may have made it.
            name == label::VIRTUAL_NODE
                || actual.get(name).is_some_and(|actual| covers(actual, wanted))
                || wanted.as_array().is_some_and(Vec::is_empty) && actual.get(name).is_none_or(Value::is_null)
        }),
        (Value::Array(actual), Value::Array(wanted)) => {
            actual.len() == wanted.len() && actual.iter().zip(wanted).all(|(actual, wanted)| covers(actual, wanted))
        }
        (actual, wanted) => actual == wanted,
    }
}

/// Whether a Service (or slice) must be made anew to become what is wanted: the API server changes none of these.
pub fn needs_another(actual: &Value, wanted: &Value) -> bool {
    let headless = |service: &Value| service.pointer("/spec/clusterIP").is_some_and(|ip| ip == "None");
    let kind = |service: &Value| service.pointer("/spec/type").cloned().unwrap_or_default();
    actual.get("addressType") != wanted.get("addressType")
        || headless(actual) != headless(wanted)
        || kind(actual) != kind(wanted)
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
