//! What the clients of a process do, for Prometheus.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Seconds: from a read out of an API server's memory to its own cut-off at 60 s.
const BUCKETS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

/// The metrics of all kube clients of a process. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct KubeMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram>,
    retries: Family<RetryLabels, Counter>,
    waited: Family<RoleLabels, Counter<f64, std::sync::atomic::AtomicU64>>,
    renewals: Family<RenewalLabels, Counter>,
    held_back: Family<RoleLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RenewalLabels {
    role: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    role: &'static str,
    method: Method,
    resource: String,
    code: Code,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    role: &'static str,
    method: Method,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    role: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabels {
    role: &'static str,
}

/// HTTP's method, and WATCH for a GET that stays open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Method {
    Watch,
    Http(http::Method),
}

/// How one attempt ended: the status, or what happened instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Code {
    Status(u16),
    ConnectFailed,
    Cut,
    TimedOut,
}

impl EncodeLabelValue for Method {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Watch => EncodeLabelValue::encode(&"WATCH", encoder),
            Self::Http(method) => EncodeLabelValue::encode(&method.as_str(), encoder),
        }
    }
}

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Status(code) => EncodeLabelValue::encode(code, encoder),
            Self::ConnectFailed => EncodeLabelValue::encode(&"connect", encoder),
            Self::Cut => EncodeLabelValue::encode(&"cut", encoder),
            Self::TimedOut => EncodeLabelValue::encode(&"timeout", encoder),
        }
    }
}

impl Default for KubeMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            retries: Family::default(),
            waited: Family::default(),
            renewals: Family::default(),
            held_back: Family::default(),
        }
    }
}

impl KubeMetrics {
    /// Adds them to the registry of the process; call once and pass clones to the clients.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "tensile_kube_requests",
            "Attempts of requests to an API server, by how they ended",
            metrics.requests.clone(),
        );
        registry.register(
            "tensile_kube_request_duration_seconds",
            "From sending a request to the first line of its answer",
            metrics.durations.clone(),
        );
        registry.register("tensile_kube_retries", "Attempts that were repeated, by why", metrics.retries.clone());
        registry.register(
            "tensile_kube_throttle_seconds",
            "Time requests waited for a slot or for their turn in the rate limit",
            metrics.waited.clone(),
        );
        registry.register(
            "tensile_kube_credential_renewals",
            "New credentials or addresses that were found, by what became of them",
            metrics.renewals.clone(),
        );
        registry.register(
            "tensile_kube_credentials_held_back",
            "1 while new credentials are not taken into use and those before stay, else 0",
            metrics.held_back.clone(),
        );
        metrics
    }

    pub(super) fn observe(&self, role: &'static str, method: &Method, resource: &str, code: Code, took: Duration) {
        let (method, resource) = (method.clone(), resource.to_owned());
        let durations = DurationLabels { role, method: method.clone(), resource: resource.clone() };
        self.durations.get_or_create(&durations).observe(took.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { role, method, resource, code }).inc();
    }

    pub(super) fn retried(&self, role: &'static str, reason: &'static str) {
        self.retries.get_or_create(&RetryLabels { role, reason }).inc();
    }

    pub(super) fn renewed(&self, role: &'static str, outcome: &'static str) {
        self.renewals.get_or_create(&RenewalLabels { role, outcome }).inc();
    }

    pub(super) fn held_back(&self, role: &'static str, held_back: bool) {
        self.held_back.get_or_create(&RoleLabels { role }).set(i64::from(held_back));
    }

    pub(super) fn throttled(&self, role: &'static str, waited: Duration) {
        self.waited.get_or_create(&RoleLabels { role }).inc_by(waited.as_secs_f64());
    }
}

/// The resource a path is about, with its subresource: `pods`, `pods/status`, `leases`. `other` for all else.
///
/// The names of objects and namespaces are left out: they would make a time series each.
pub(super) fn resource_of(path: &str) -> String {
    // /api/v1/... and /apis/GROUP/VERSION/..., perhaps below the path of a proxy.
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let version_segments = loop {
        match segments.next() {
            Some("api") => break 1,
            Some("apis") => break 2,
            Some(_) => {}
            None => return "other".to_owned(),
        }
    };
    let rest: Vec<&str> = segments.skip(version_segments).take(6).collect();
    let in_namespace = match rest.as_slice() {
        // /namespaces/NAME is the namespace itself; /namespaces/NAME/status its status, as no resource is called so.
        ["namespaces", _, "status" | "finalize"] | ["namespaces"] | ["namespaces", _] => rest.as_slice(),
        ["namespaces", _, namespaced @ ..] => namespaced,
        cluster_wide => cluster_wide,
    };
    match in_namespace {
        [] => "other".to_owned(),
        [resource] | [resource, _] => (*resource).to_owned(),
        [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_gives_its_resource_without_names() {
        let cases = [
            ("/api/v1/pods", "pods"),
            ("/api/v1/namespaces/a/pods", "pods"),
            ("/api/v1/namespaces/a/pods/b", "pods"),
            ("/api/v1/namespaces/a/pods/b/status", "pods/status"),
            ("/api/v1/namespaces/a/serviceaccounts/b/token", "serviceaccounts/token"),
            ("/api/v1/namespaces", "namespaces"),
            ("/api/v1/namespaces/a", "namespaces"),
            ("/api/v1/namespaces/a/finalize", "namespaces/finalize"),
            ("/api/v1/nodes/n/status", "nodes/status"),
            ("/api/v1/nodes/n/proxy/metrics", "nodes/proxy"),
            ("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n", "leases"),
            ("/apis/storage.k8s.io/v1/storageclasses", "storageclasses"),
            ("/k8s/clusters/c-1/api/v1/namespaces/a/pods/b", "pods"),
            ("/version", "other"),
            ("/apis", "other"),
            ("/api/v1", "other"),
        ];
        for (path, resource) in cases {
            assert_eq!(resource_of(path), resource, "{path}");
        }
    }
}
