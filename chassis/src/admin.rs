//! The plain-HTTP port for probes and metrics: `/live`, `/ready` and `/metrics` (Kubernetes' own `/livez`, `/readyz`
//! and `/healthz` answer too).

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use clap::Args;
use parking_lot::RwLock;
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    registry::Registry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::readiness::Readiness;

mod process;

pub use process::ProcessMetrics;

/// What Prometheus expects of OpenMetrics text.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The admin flags of a service; flatten it into the service's own arguments.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// Where probes and metrics are served, in plain HTTP
    #[arg(long, env = "TENSILE_ADMIN_ADDRESS", default_value = "0.0.0.0:9990", value_name = "IP:PORT")]
    pub admin_address: SocketAddr,
}

/// Why the admin port is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The port cannot be had.
    #[error("cannot listen on {address} for probes and metrics: {source}; choose another with --admin-address")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server stopped.
    #[error("the probe and metrics server failed: {0}")]
    Serve(io::Error),
}

impl AdminArgs {
    /// Takes the port. Do it early, so that a port that is in use is an error at once.
    pub async fn bind(&self) -> Result<TcpListener, AdminError> {
        let address = self.admin_address;
        TcpListener::bind(address).await.map_err(|source| AdminError::Bind { address, source })
    }
}

/// What `/metrics` shows. Probes are served before most parts of a process exist, so a part that comes up later adds its
/// metrics later. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub struct Metrics {
    registries: Arc<RwLock<Vec<Registry>>>,
}

impl Metrics {
    /// Nothing to show yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows a further registry. A family belongs into one registry only.
    pub fn add(&self, registry: Registry) {
        self.registries.write().push(registry);
    }

    /// All of them in the OpenMetrics text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        for registry in self.registries.read().iter() {
            encode_registry(&mut text, registry)?;
        }
        encode_eof(&mut text)?;
        Ok(text)
    }
}

#[derive(Clone)]
struct Shared {
    metrics: Metrics,
    readiness: Readiness,
}

/// Serves probes and metrics until `shutdown` is cancelled. Start it first: a process that waits (for a cluster, for an
/// approval) must be seen to live, and must say what it waits for.
///
/// Register [`ProcessMetrics`] in a registry for CPU, memory and start time.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    axum::serve(listener, router(metrics, readiness))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(AdminError::Serve)
}

/// The routes of [`serve`], for a test or a service that drives them in-process.
pub fn router(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/live", get(live))
        .route("/livez", get(live))
        .route("/healthz", get(live))
        .route("/ready", get(ready))
        .route("/readyz", get(ready))
        .route("/metrics", get(show))
        .with_state(Shared { metrics, readiness })
}

/// Alive means: the runtime still runs tasks. Anything more would restart a process that waits for an API server.
async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(shared): State<Shared>) -> Response {
    match shared.readiness.check() {
        Ok(()) => "ready\n".into_response(),
        Err(closed) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", closed.join("\n"))).into_response(),
    }
}

async fn show(State(shared): State<Shared>) -> Response {
    match shared.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be encoded: {error}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: Router, path: &str) -> (StatusCode, String) {
        let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_names_the_closed_gates_and_live_does_not_depend_on_them() {
        let readiness = Readiness::new();
        let gate = readiness.gate("upper-pods");
        let router = router(Metrics::new(), readiness);
        assert_eq!(
            ask(router.clone(), "/ready").await,
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\nupper-pods: has not started\n".into())
        );
        assert_eq!(ask(router.clone(), "/live").await.0, StatusCode::OK);
        gate.set_ready();
        assert_eq!(ask(router, "/readyz").await, (StatusCode::OK, "ready\n".into()));
    }

    #[tokio::test]
    async fn metrics_show_the_process() {
        let mut registry = Registry::default();
        ProcessMetrics::register(&mut registry);
        let metrics = Metrics::new();
        metrics.add(registry);
        let router = router(metrics.clone(), Readiness::new());
        let mut later = Registry::default();
        later.register("later", "Of a part that came up later", Counter::<u64>::default());
        metrics.add(later);
        let (status, text) = ask(router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("later_total 0") && text.matches("# EOF").count() == 1, "{text}");
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| unreachable!("{text}"));
            let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(value >= 0.0, "{line}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_refused_with_the_cure() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let args = AdminArgs { admin_address: taken.local_addr().unwrap() };
        let error = args.bind().await.unwrap_err().to_string();
        assert!(error.contains("--admin-address"), "{error}");
    }

    #[tokio::test]
    async fn the_server_stops_when_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, Metrics::new(), Readiness::new(), stop.clone()));
        stop.cancel();
        served.await.unwrap().unwrap();
    }
}
