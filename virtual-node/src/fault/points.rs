//! The table of all writes that a virtual-node makes.

use serde_json::Value;
use tensile_chassis::kube_client::fault::Write;
use tensile_proto::vocabulary::{annotation, condition, label};

use crate::translate::is_terminal;

/// One kind of write: a step between two states of the clusters.
#[derive(Debug)]
pub struct Point {
    /// Its name, in the file of faults.
    pub name: &'static str,
    /// `upper` or `lower`.
    role: &'static str,
    method: &'static str,
    /// The resource with its subresource.
    resource: &'static str,
    /// Tells writes apart that go to the same place.
    only: fn(&Sent<'_>) -> bool,
}

/// What of a write tells its kind.
struct Sent<'a> {
    path: &'a str,
    body: Value,
}

/// Requests that ask and change nothing, although they are POSTs.
const QUESTIONS: [&str; 2] = ["tokenreviews", "subjectaccessreviews"];

const fn upper(name: &'static str, method: &'static str, resource: &'static str, only: fn(&Sent<'_>) -> bool) -> Point {
    Point { name, role: "upper", method, resource, only }
}

const fn lower(name: &'static str, method: &'static str, resource: &'static str, only: fn(&Sent<'_>) -> bool) -> Point {
    Point { name, role: "lower", method, resource, only }
}

fn any(_: &Sent<'_>) -> bool {
    true
}

/// Every write. The first row that fits counts.
pub const POINTS: &[Point] = &[
    // The start: who we are, who leads, the Node.
    upper("node-key", "POST", "secrets", any),
    upper("node-certificate-request", "POST", "certificatesigningrequests", any),
    upper("node-certificate", "PUT", "secrets", any),
    upper("election-create", "POST", "leases", |sent| !is_node_lease(sent)),
    upper("election-renew", "PUT", "leases", |sent| !is_node_lease(sent)),
    upper("node-create", "POST", "nodes", any),
    upper("node-taints", "PATCH", "nodes", |sent| sent.body["spec"]["taints"].is_array()),
    upper("node-metadata", "PATCH", "nodes", any),
    upper("node-status", "PATCH", "nodes/status", any),
    upper("node-lease-create", "POST", "leases", any),
    upper("node-lease-renew", "PUT", "leases", any),
    // What a pod needs.
    lower("namespace", "POST", "namespaces", any),
    lower("config-map-create", "POST", "configmaps", any),
    lower("config-map-replace", "PUT", "configmaps", any),
    lower("config-map-delete", "DELETE", "configmaps", any),
    upper("token", "POST", "serviceaccounts/token", any),
    lower("token-secret-create", "POST", "secrets", is_token_secret),
    lower("token-secret-refresh", "PATCH", "secrets", any),
    lower("token-secret-replace", "PUT", "secrets", is_token_secret),
    lower("token-secret-delete", "DELETE", "secrets", |sent| last_segment(sent.path).starts_with("tensile-token-")),
    lower("secret-create", "POST", "secrets", any),
    lower("secret-replace", "PUT", "secrets", any),
    lower("secret-delete", "DELETE", "secrets", any),
    // Services.
    lower("service-create", "POST", "services", any),
    lower("service-update", "PATCH", "services", any),
    lower("service-delete", "DELETE", "services", any),
    lower("endpoints-create", "POST", "endpointslices", any),
    lower("endpoints-update", "PATCH", "endpointslices", any),
    lower("endpoints-delete", "DELETE", "endpointslices", any),
    // The lower pod.
    lower("pod-create", "POST", "pods", any),
    lower("pod-release", "PATCH", "pods", |sent| sent.body["metadata"]["finalizers"].is_array()),
    lower("pod-bookkeeping", "PATCH", "pods", is_bookkeeping),
    lower("pod-update", "PATCH", "pods", any),
    lower("pod-resize", "PATCH", "pods/resize", any),
    lower("pod-ephemeral-containers", "PATCH", "pods/ephemeralcontainers", any),
    lower("pod-gates", "PATCH", "pods/status", any),
    lower("pod-delete", "DELETE", "pods", any),
    // The upper pod.
    upper("upper-result", "PATCH", "pods/status", |sent| is_terminal(sent.body["status"]["phase"].as_str())),
    upper("upper-offloaded", "PATCH", "pods/status", is_offloaded),
    upper("upper-status", "PATCH", "pods/status", any),
    upper("upper-last-delete", "DELETE", "pods", |sent| sent.body["gracePeriodSeconds"] == 0),
    upper("upper-delete", "DELETE", "pods", any),
    upper("event", "POST", "events", any),
    upper("event-series", "PATCH", "events", any),
];

/// Whether a request changes nothing after all.
pub(super) fn is_question(write: &Write<'_>) -> bool {
    QUESTIONS.contains(&write.resource)
}

/// The point of a write, if one is listed.
pub(super) fn of(write: &Write<'_>) -> Option<&'static Point> {
    let sent = Sent { path: write.path, body: serde_json::from_slice(write.body).unwrap_or_default() };
    let fits = |point: &&Point| {
        point.role == write.role
            && point.method == write.method.as_str()
            && point.resource == write.resource
            && (point.only)(&sent)
    };
    POINTS.iter().find(fits)
}

fn is_node_lease(sent: &Sent<'_>) -> bool {
    sent.path.contains("/namespaces/kube-node-lease/")
}

fn is_token_secret(sent: &Sent<'_>) -> bool {
    sent.body["metadata"]["labels"][label::NEED] == "token"
}

/// Nothing but a note of what the lower pod carries.
fn is_bookkeeping(sent: &Sent<'_>) -> bool {
    let notes = [annotation::CARRIED, annotation::GENERATION];
    let metadata = sent.body["metadata"].as_object();
    let annotations = sent.body["metadata"]["annotations"].as_object();
    sent.body.get("spec").is_none()
        && metadata.is_some_and(|metadata| metadata.len() == 1)
        && annotations.is_some_and(|all| all.keys().all(|key| notes.contains(&key.as_str())))
}

/// Our condition and nothing else.
fn is_offloaded(sent: &Sent<'_>) -> bool {
    let status = sent.body["status"].as_object();
    status.is_some_and(|status| status.len() == 1)
        && sent.body["status"]["conditions"][0]["type"] == condition::OFFLOADED
}

fn last_segment(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn point(role: &'static str, method: &Method, resource: &str, path: &str, body: &str) -> Option<&'static str> {
        let write = Write { role, method, resource, path, body: body.as_bytes() };
        of(&write).map(|point| point.name)
    }

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let mut names: Vec<&str> = POINTS.iter().map(|point| point.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
    }

    #[test]
    fn writes_to_the_same_place_are_told_apart_by_what_they_send() {
        let patch = |body| point("lower", &Method::PATCH, "pods", "/api/v1/namespaces/a/pods/b", body);
        assert_eq!(patch(r#"{"metadata":{"finalizers":[]}}"#), Some("pod-release"));
        assert_eq!(patch(r#"{"metadata":{"annotations":{"tensile.dev/carried":"x"}}}"#), Some("pod-bookkeeping"));
        let labels = r#"{"metadata":{"labels":{"a":"b"},"annotations":{"tensile.dev/carried":"x"}}}"#;
        assert_eq!(patch(labels), Some("pod-update"));
        let delete = |body| point("upper", &Method::DELETE, "pods", "/api/v1/namespaces/a/pods/b", body);
        assert_eq!(delete(r#"{"gracePeriodSeconds":0}"#), Some("upper-last-delete"));
        assert_eq!(delete("{}"), Some("upper-delete"));
    }

    #[test]
    fn a_write_that_nobody_listed_has_no_point() {
        let write = |resource| Write { role: "lower", method: &Method::POST, resource, path: "", body: b"" };
        assert!(of(&write("gadgets")).is_none());
        assert!(is_question(&write("subjectaccessreviews")) && !is_question(&write("gadgets")));
    }
}
