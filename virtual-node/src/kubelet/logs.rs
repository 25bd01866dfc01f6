//! Logs: the lower API server's stream, handed on byte by byte.

use http::{HeaderValue, Request, Response, StatusCode, header};

use super::{
    metrics::OpenStream,
    query::log_query,
    reply::{ErrorBody, Reply, refused, streamed, text, unreachable},
};
use crate::names::Key;

/// Streams the log of one container.
///
/// There is no time limit, not even for the first byte: a followed log of a silent container answers with its first line.
/// The caller's going away drops this future, or the body, and with it the lower connection.
pub async fn open(lower: &kube::Client, pod: &Key, container: &str, query: &str, place: OpenStream) -> Reply {
    let query = log_query(container, query);
    let request = Request::get(format!("/api/v1/namespaces/{}/pods/{}/log?{query}", pod.namespace, pod.name))
        .body(kube::client::Body::empty());
    let Ok(request) = request else {
        return text(StatusCode::URI_TOO_LONG, "the query is too long: a request line holds at most 64 KiB");
    };
    match lower.send(request).await {
        Ok(response) if response.status() == StatusCode::OK => {
            let mut reply = Response::new(streamed(response.into_body(), place));
            reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            reply
        }
        Ok(response) => refused(response, ErrorBody::Message).await,
        Err(error) => unreachable("lower", &error),
    }
}
