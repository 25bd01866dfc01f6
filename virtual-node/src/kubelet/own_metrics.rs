//! `/metrics`: what this process tells of itself, so that whoever scrapes kubelets scrapes it, too.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tensile_chassis::admin::{Metrics, OPEN_METRICS};

use super::reply::{Reply, text, with_body};

/// The same text as on the admin port.
pub fn own_metrics(metrics: Option<&Metrics>) -> Reply {
    match metrics.map(Metrics::text) {
        Some(Ok(text)) => with_body(StatusCode::OK, HeaderValue::from_static(OPEN_METRICS), Bytes::from(text)),
        Some(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be encoded: {error}")),
        None => text(StatusCode::NOT_FOUND, "this process serves its metrics on its admin port only"),
    }
}
