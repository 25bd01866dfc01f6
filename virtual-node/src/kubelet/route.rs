//! What a request asks for, and as what it must be authorized: both read from its method and path alone.
//!
//! The paths and the attributes are those of a kubelet (`pkg/kubelet/server/{server,auth}.go` of Kubernetes 1.36).

use http::Method;

use crate::names::Key;

/// An object name is an RFC 1123 subdomain: at most 253 characters.
const NAME_LENGTH_MAX: usize = 253;

/// A stream that is upgraded and spliced to the lower API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Run a command in a container.
    Exec,
    /// Attach to a container's main process.
    Attach,
    /// Forward ports of a pod.
    PortForward,
}

impl StreamKind {
    /// The subresource of `pods` in the API that serves this stream; also its metric label.
    pub const fn subresource(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Is the server alive?
    Healthz,
    /// The pods bound to this node.
    Pods,
    /// The log of one container.
    Logs {
        /// The pod, by its upper name.
        pod: Key,
        /// The container.
        container: String,
    },
    /// A stream to a container, or to a pod for port-forward.
    Stream {
        /// Which stream.
        kind: StreamKind,
        /// The pod, by its upper name.
        pod: Key,
        /// The container; `None` for port-forward.
        container: Option<String>,
    },
    /// Metrics of this process.
    Metrics,
    /// CPU and memory of the node and its pods, for metrics-server.
    ResourceMetrics,
    /// The same as JSON.
    Summary,
    /// What cAdvisor and the probes of a kubelet tell of containers.
    ContainerMetrics,
    /// A path of a kubelet that a virtual node does not serve.
    NotServed,
    /// No path of a kubelet.
    Unknown,
}

impl Route {
    /// Reads a path.
    ///
    /// It is taken as written: nothing is decoded or normalised, so what was authorized is what is done. Names of
    /// namespaces, pods and containers need no encoding, so an encoded one is no name.
    pub fn of(path: &str) -> Self {
        let Some(path) = path.strip_prefix('/') else { return Self::Unknown };
        let segments: Vec<&str> = path.split('/').collect();
        match segments[..] {
            ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Self::Healthz,
            ["pods"] => Self::Pods,
            ["containerLogs", namespace, pod, container] if all_names(&[namespace, pod, container]) => {
                Self::Logs { pod: Key::new(namespace, pod), container: container.to_owned() }
            }
            ["exec", namespace, pod, container] if all_names(&[namespace, pod, container]) => {
                Self::stream(StreamKind::Exec, namespace, pod, Some(container))
            }
            ["attach", namespace, pod, container] if all_names(&[namespace, pod, container]) => {
                Self::stream(StreamKind::Attach, namespace, pod, Some(container))
            }
            ["portForward", namespace, pod] if all_names(&[namespace, pod]) => {
                Self::stream(StreamKind::PortForward, namespace, pod, None)
            }
            ["metrics"] => Self::Metrics,
            ["metrics", "resource"] => Self::ResourceMetrics,
            ["metrics", "cadvisor" | "probes"] => Self::ContainerMetrics,
            ["stats", "summary"] | ["stats", "summary", ""] => Self::Summary,
            // The forms of exec, attach and portForward with a pod UID: no API server uses them.
            ["exec" | "attach", _, _, _, _]
            | ["portForward", _, _, _]
            | [
                "metrics" | "stats" | "run" | "checkpoint" | "logs" | "runningpods" | "configz" | "statusz" | "flagz"
                | "debug",
                ..,
            ] => Self::NotServed,
            _ => Self::Unknown,
        }
    }

    /// The metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Pods => "pods",
            Self::Logs { .. } => "logs",
            Self::Stream { kind, .. } => kind.subresource(),
            Self::Metrics => "metrics",
            Self::ResourceMetrics => "resource",
            Self::Summary => "summary",
            Self::ContainerMetrics | Self::NotServed | Self::Unknown => "other",
        }
    }

    /// Whether the route answers this method. Streams come as GET (WebSocket) and as POST (SPDY).
    pub fn allows(&self, method: &Method) -> bool {
        match self {
            Self::Stream { .. } | Self::Summary => method == Method::GET || method == Method::POST,
            // Whatever the method, there is nothing.
            Self::ContainerMetrics | Self::NotServed | Self::Unknown => true,
            _ => method == Method::GET,
        }
    }

    fn stream(kind: StreamKind, namespace: &str, pod: &str, container: Option<&str>) -> Self {
        Self::Stream { kind, pod: Key::new(namespace, pod), container: container.map(str::to_owned) }
    }
}

fn all_names(segments: &[&str]) -> bool {
    segments.iter().all(|segment| is_name(segment))
}

/// Whether this can be an object's name. It keeps `..`, `%2f` and the like out of paths that we build.
fn is_name(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.len() <= NAME_LENGTH_MAX
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-' || *byte == b'.')
}

/// The verb that a method is authorized as; empty, as with a kubelet, for methods without one.
pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The subresources of `nodes` that allow a path, each sufficient, to be tried in this order.
///
/// Logs of containers, exec, attach and port-forward are `proxy`, as with a kubelet; `log` is for the machine's own logs.
pub fn subresources(path: &str) -> &'static [&'static str] {
    let under = |base: &str| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if under("/pods") || under("/runningpods") {
        &["pods", "proxy"]
    } else if under("/healthz") {
        &["healthz", "proxy"]
    } else if under("/configz") {
        &["configz", "proxy"]
    } else if under("/stats") {
        &["stats"]
    } else if under("/metrics") {
        &["metrics"]
    } else if under("/logs") {
        &["log"]
    } else if under("/checkpoint") {
        &["checkpoint"]
    } else if under("/statusz") {
        &["statusz"]
    } else if under("/flagz") {
        &["configz"]
    } else {
        &["proxy"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_an_api_server_are_understood() {
        assert_eq!(
            Route::of("/containerLogs/shop/web-0/nginx"),
            Route::Logs { pod: Key::new("shop", "web-0"), container: "nginx".into() }
        );
        assert_eq!(
            Route::of("/exec/shop/web-0/nginx"),
            Route::Stream { kind: StreamKind::Exec, pod: Key::new("shop", "web-0"), container: Some("nginx".into()) }
        );
        assert_eq!(
            Route::of("/portForward/shop/web-0"),
            Route::Stream { kind: StreamKind::PortForward, pod: Key::new("shop", "web-0"), container: None }
        );
        assert_eq!(Route::of("/healthz"), Route::Healthz);
        assert_eq!(Route::of("/pods"), Route::Pods);
        assert_eq!(Route::of("/metrics"), Route::Metrics);
        assert_eq!(Route::of("/metrics/resource"), Route::ResourceMetrics);
        assert_eq!(Route::of("/metrics/cadvisor"), Route::ContainerMetrics);
        assert_eq!(Route::of("/stats/summary"), Route::Summary);
        assert_eq!(Route::of("/stats/container"), Route::NotServed);
        assert_eq!(Route::of("/run/shop/web-0/nginx"), Route::NotServed);
    }

    #[test]
    fn what_is_no_name_is_never_put_into_a_path() {
        for path in [
            "/exec/../web/nginx",
            "/exec/shop/web%2f..%2f/nginx",
            "/exec/shop//nginx",
            "/containerLogs/shop/web/Nginx",
            "/containerLogs/shop/web/a?b",
            "//exec/shop/web/nginx",
            "exec/shop/web/nginx",
            "",
        ] {
            assert_eq!(Route::of(path), Route::Unknown, "{path}");
        }
        assert_eq!(Route::of(&format!("/exec/shop/{}/nginx", "a".repeat(254))), Route::Unknown);
    }

    #[test]
    fn attributes_are_those_of_a_kubelet() {
        let cases: &[(&str, &[&str])] = &[
            ("/pods", &["pods", "proxy"]),
            ("/pods/", &["pods", "proxy"]),
            ("/podsandmore", &["proxy"]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/healthz/ping", &["healthz", "proxy"]),
            ("/configz", &["configz", "proxy"]),
            ("/stats/summary", &["stats"]),
            ("/metrics", &["metrics"]),
            ("/metrics/cadvisor", &["metrics"]),
            ("/logs/", &["log"]),
            ("/checkpoint/a/b/c", &["checkpoint"]),
            ("/statusz", &["statusz"]),
            ("/flagz", &["configz"]),
            ("/containerLogs/a/b/c", &["proxy"]),
            ("/exec/a/b/c", &["proxy"]),
            ("/run/a/b/c", &["proxy"]),
            ("/", &["proxy"]),
        ];
        for (path, expected) in cases {
            assert_eq!(subresources(path), *expected, "{path}");
        }
        assert_eq!(verb(&Method::GET), "get");
        assert_eq!(verb(&Method::POST), "create");
        assert_eq!(verb(&Method::HEAD), "");
    }

    #[test]
    fn nothing_that_reaches_a_container_is_authorized_as_less_than_proxy() {
        for path in ["/exec/a/b/c", "/attach/a/b/c", "/portForward/a/b", "/containerLogs/a/b/c"] {
            assert!(matches!(Route::of(path), Route::Logs { .. } | Route::Stream { .. }));
            assert_eq!(subresources(path), ["proxy"], "{path}");
        }
        for path in ["/metrics/../exec/a/b/c", "/healthz/../exec/a/b/c", "/pods/exec/a/b/c"] {
            assert!(!matches!(Route::of(path), Route::Logs { .. } | Route::Stream { .. }), "{path}");
        }
    }
}
