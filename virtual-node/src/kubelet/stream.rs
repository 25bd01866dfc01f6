//! Exec, attach and port-forward: the request is repeated to the lower API server, and the two connections are joined.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    metrics::OpenStream,
    query::stream_query,
    reply::{ErrorBody, Reply, refused, text, unreachable},
    route::StreamKind,
    splice::splice,
};
use crate::names::Key;

/// Time for the lower API server to switch protocols: it dials the kubelet, which asks the container runtime.
const SWITCH_MAX: Duration = Duration::from_secs(30);

/// Time for both connections to be handed over once both ends have agreed.
const HANDOVER_MAX: Duration = Duration::from_secs(10);

/// Headers of the request that belong to the stream. Nothing else goes down; above all no credentials of the caller.
const REQUEST_HEADERS: [HeaderName; 6] = [
    header::UPGRADE,
    HeaderName::from_static("x-stream-protocol-version"),
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_PROTOCOL,
];

/// Headers of the 101 that belong to the stream.
const RESPONSE_HEADERS: [HeaderName; 6] = [
    header::UPGRADE,
    HeaderName::from_static("x-stream-protocol-version"),
    HeaderName::from_static("x-accepted-stream-protocol-versions"),
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_PROTOCOL,
];

/// A WebSocket subprotocol by which browsers send a bearer token, as they cannot set headers.
const TOKEN_SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Where streams live after the request that opened them.
#[derive(Clone, Debug)]
pub struct Lives {
    /// Counts the streams, so that a stop can wait for them.
    pub tracker: TaskTracker,
    /// Cuts them.
    pub cut: CancellationToken,
}

/// Opens the stream to the lower pod, and answers with what the lower API server answers.
pub async fn open<B>(
    request: &mut Request<B>,
    lower: &kube::Client,
    kind: StreamKind,
    pod: &Key,
    container: Option<&str>,
    place: OpenStream,
    lives: &Lives,
) -> Reply {
    if !is_upgrade(request.headers()) {
        return text(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let query = stream_query(kind, container, request.uri().query().unwrap_or_default());
    let Ok(lower_request) = lower_request(request.method(), request.headers(), kind, pod, &query) else {
        return text(StatusCode::URI_TOO_LONG, "the command is too long: a request line holds at most 64 KiB");
    };
    let caller = hyper::upgrade::on(request);
    let response = match timeout(SWITCH_MAX, lower.send(lower_request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return unreachable("lower", &error),
        Err(_) => {
            let seconds = SWITCH_MAX.as_secs();
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the lower cluster's API server did not open the stream within {seconds} s"),
            );
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return refused(response, ErrorBody::AsIs).await;
    }
    let reply = switching(response.headers());
    let lower = hyper::upgrade::on(response);
    let cut = lives.cut.clone();
    let pod = pod.clone();
    lives.tracker.spawn(async move {
        let _place = place;
        let joined = async {
            match timeout(HANDOVER_MAX, async { tokio::try_join!(caller, lower) }).await {
                Ok(Ok((caller, lower))) => {
                    let moved = splice(TokioIo::new(caller), TokioIo::new(lower)).await;
                    debug!(%pod, kind = kind.subresource(), moved.down, moved.up, "stream ended");
                }
                // The caller went away in the moment between.
                Ok(Err(error)) => debug!(%pod, kind = kind.subresource(), %error, "stream was not handed over"),
                Err(_) => debug!(%pod, kind = kind.subresource(), "stream was not handed over in time"),
            }
        };
        tokio::select! {
            () = joined => {}
            () = cut.cancelled() => debug!(%pod, kind = kind.subresource(), "stream cut by the stop of this process"),
        }
    });
    reply
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(header::UPGRADE)
        && connection.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

fn lower_request(
    method: &Method,
    headers: &HeaderMap,
    kind: StreamKind,
    pod: &Key,
    query: &str,
) -> Result<Request<kube::client::Body>, http::Error> {
    let subresource = kind.subresource();
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/api/v1/namespaces/{}/pods/{}/{subresource}?{query}", pod.namespace, pod.name))
        .body(kube::client::Body::empty())?;
    copy(headers, request.headers_mut(), &REQUEST_HEADERS);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(request)
}

fn switching(headers: &HeaderMap) -> Reply {
    let mut reply = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy(headers, reply.headers_mut(), &RESPONSE_HEADERS);
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    reply
}

fn copy(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            if *name == header::SEC_WEBSOCKET_PROTOCOL {
                if let Some(value) = without_tokens(value) {
                    to.append(name, value);
                }
            } else {
                to.append(name, value.clone());
            }
        }
    }
}

/// A list of subprotocols without those that carry a bearer token of the caller's.
fn without_tokens(value: &HeaderValue) -> Option<HeaderValue> {
    let kept: Vec<&str> = value
        .to_str()
        .ok()?
        .split(',')
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !protocol.starts_with(TOKEN_SUBPROTOCOL))
        .collect();
    if kept.is_empty() { None } else { HeaderValue::from_str(&kept.join(", ")).ok() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_spdy_request_goes_down_with_its_protocol_versions_and_no_credentials() {
        let headers = headers(&[
            ("authorization", "Bearer sesame"),
            ("impersonate-user", "root"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]);
        assert!(is_upgrade(&headers));
        let key = Key::new("shop", "web-0");
        let request = lower_request(&Method::POST, &headers, StreamKind::Exec, &key, "container=c").unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "/api/v1/namespaces/shop/pods/web-0/exec?container=c");
        let sent = request.headers();
        assert_eq!(sent["upgrade"], "SPDY/3.1");
        assert_eq!(sent["connection"], "Upgrade");
        assert_eq!(sent.get_all("x-stream-protocol-version").iter().count(), 2);
        assert_eq!(sent.len(), 4, "{sent:?}");
    }

    #[test]
    fn a_token_among_the_subprotocols_stays_here() {
        let headers = headers(&[
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VzYW1l, v5.channel.k8s.io"),
            ("sec-websocket-key", "a2V5"),
        ]);
        let key = Key::new("shop", "web-0");
        let request = lower_request(&Method::GET, &headers, StreamKind::Attach, &key, "").unwrap();
        assert_eq!(request.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(request.headers()["sec-websocket-key"], "a2V5");
    }

    #[test]
    fn a_plain_request_is_no_upgrade() {
        assert!(!is_upgrade(&headers(&[("upgrade", "SPDY/3.1")])));
        assert!(!is_upgrade(&headers(&[("connection", "Upgrade")])));
        assert!(!is_upgrade(&headers(&[("connection", "close"), ("upgrade", "websocket")])));
    }

    #[test]
    fn a_query_too_long_for_a_request_line_is_an_error() {
        let query = format!("command={}", "x".repeat(70_000));
        let key = Key::new("shop", "web-0");
        lower_request(&Method::POST, &HeaderMap::new(), StreamKind::Exec, &key, &query).unwrap_err();
    }
}
