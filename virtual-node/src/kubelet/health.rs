//! `/healthz` and the checks below it, in a kubelet's words.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::reply::{Reply, with_body};

/// Well, for the server answers. Whether the virtual node works is told by its Node's conditions: a probe here would only
/// restart a process that waits for a cluster.
pub fn healthy(path: &str, query: Option<&str>) -> Reply {
    let verbose = query.unwrap_or_default().split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    let text = if verbose && path == "/healthz" {
        "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n"
    } else {
        // Without a line break, for there are probes that compare it.
        "ok"
    };
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    with_body(StatusCode::OK, content_type, Bytes::from_static(text.as_bytes()))
}
