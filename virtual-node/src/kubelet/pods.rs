//! `/pods`: the pods bound to this node, as the upper API server lists them.
//!
//! They are asked for when somebody asks us, and streamed: nothing in this process holds whole pods.

use http::{HeaderValue, Request, Response, StatusCode, header};

use super::{
    metrics::OpenStream,
    reply::{Reply, streamed, text, unreachable},
};

/// Streams the list.
pub async fn list(upper: &kube::Client, node_name: &str, place: OpenStream) -> Reply {
    // A node's name is an RFC 1123 subdomain: nothing in it needs encoding.
    let request = Request::get(format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node_name}"))
        .header(header::ACCEPT, "application/json")
        .body(kube::client::Body::empty());
    let Ok(request) = request else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("the node's name {node_name:?} fits in no address"));
    };
    match upper.send(request).await {
        Ok(response) if response.status() == StatusCode::OK => {
            let mut reply = Response::new(streamed(response.into_body(), place));
            reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            reply
        }
        Ok(response) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the upper API server answered {} to the list of this node's pods", response.status()),
        ),
        Err(error) => unreachable("upper", &error),
    }
}
