//! Answers, and what the lower API server's answers become for a caller in the upper cluster.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, SizeHint};

use super::metrics::OpenStream;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer: whole, or a stream.
pub type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// An answer.
pub type Reply = Response<ReplyBody>;

/// How much of an error's body is read. The upper API server reads 50,000 bytes of ours.
const ERROR_BYTES_MAX: usize = 48 * 1024;

/// Headers of an error that go through: `Retry-After` belongs to a 429, the other to a failed choice of protocol.
const ERROR_HEADERS: [HeaderName; 3] =
    [header::CONTENT_TYPE, header::RETRY_AFTER, HeaderName::from_static("x-accepted-stream-protocol-versions")];

/// Plain text, as a kubelet answers. It ends with a line break, so that curl's prompt starts on its own line.
pub fn text(status: StatusCode, text: impl Into<String>) -> Reply {
    let mut text = text.into();
    text.push('\n');
    with_body(status, HeaderValue::from_static("text/plain; charset=utf-8"), text.into())
}

/// An answer with this body.
pub fn with_body(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, content_type);
    // Never sniffed as HTML where somebody opens it in a browser through the API server's proxy.
    reply.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// A body whose place among the open streams is given back with its last byte, or when the caller goes away.
///
/// hyper drops it when the caller closes its connection, and with it the connection to the lower API server.
pub fn streamed(body: kube::client::Body, open: OpenStream) -> ReplyBody {
    Streamed { body: body.map_err(BoxError::from).boxed_unsync(), _open: open }.boxed_unsync()
}

struct Streamed {
    body: ReplyBody,
    _open: OpenStream,
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How an error's body is handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// As it is. Streams: the upper API server hands the body to kubectl, which understands a Status.
    AsIs,
    /// A Status becomes its message alone, as a kubelet answers. Logs: the upper API server puts the text of the body
    /// into a Status of its own, and a Status within a Status is no message for people.
    Message,
}

/// What a lower API server's refusal becomes.
pub async fn refused(response: Response<kube::client::Body>, form: ErrorBody) -> Reply {
    let (parts, body) = response.into_parts();
    let body = match Limited::new(body, ERROR_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => Bytes::from(format!("the lower API server's error could not be read: {error}")),
    };
    refused_with(parts.status, &parts.headers, body, form)
}

fn refused_with(status: StatusCode, headers: &HeaderMap, body: Bytes, form: ErrorBody) -> Reply {
    let message = status_message(&body);
    let said = message.clone().unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    // The lower cluster refuses *us*. Handed on as it is, the caller would look for rights of its own that are missing.
    // A 403 that is no Status is something else: the two ends found no common version of the stream's protocol.
    if status == StatusCode::UNAUTHORIZED || (status == StatusCode::FORBIDDEN && message.is_some()) {
        return text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!(
                "the lower cluster refuses the virtual node's account ({status}): {said}; it needs get on pods/log, and \
                 get and create on pods/exec, pods/attach and pods/portforward"
            ),
        );
    }
    // No success, and yet not what was asked for: nothing that a caller could do with it.
    if status.is_success() || status.is_redirection() || status.is_informational() {
        return text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the lower API server answered {status}, which is no answer to this request: {said}"),
        );
    }
    let mut reply = match (form, message) {
        (ErrorBody::Message, Some(message)) => text(status, message),
        _ => with_body(status, HeaderValue::from_static("text/plain; charset=utf-8"), body),
    };
    for name in ERROR_HEADERS {
        if let Some(value) = headers.get(&name)
            && (name != header::CONTENT_TYPE || form == ErrorBody::AsIs)
        {
            reply.headers_mut().insert(name, value.clone());
        }
    }
    reply
}

/// The API server of the `side` cluster (upper, lower) could not be asked. 500 as with a kubelet whose runtime is away: with any other code of that
/// range the upper API server leaves our text out of what it tells the user.
pub fn unreachable(side: &str, error: &kube::Error) -> Reply {
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("cannot reach the {side} cluster's API server: {}", with_causes(error)),
    )
}

/// An error with its causes: hyper's own text says no more than "client error (Connect)".
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said.push_str(": ");
            said.push_str(&text);
        }
        cause = error.source();
    }
    said
}

/// The message of a `v1.Status`; `None` when the body is something else.
fn status_message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Status {
        kind: String,
        #[serde(default)]
        message: String,
    }
    let status: Status = serde_json::from_slice(body).ok()?;
    (status.kind == "Status" && !status.message.is_empty()).then_some(status.message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const STATUS: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"container \"c\" in pod \"p\" is waiting to start: ContainerCreating","reason":"BadRequest","code":400}"#;

    async fn answer(status: u16, body: &str, form: ErrorBody) -> (u16, HeaderMap, String) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("3"));
        headers.insert("audit-id", HeaderValue::from_static("1"));
        let status = StatusCode::from_u16(status).unwrap();
        let (parts, body) = refused_with(status, &headers, Bytes::from(body.to_owned()), form).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_status_becomes_a_kubelets_text_for_logs() {
        let (code, headers, body) = answer(400, STATUS, ErrorBody::Message).await;
        assert_eq!(code, 400);
        assert_eq!(body, "container \"c\" in pod \"p\" is waiting to start: ContainerCreating\n");
        assert!(headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain"));
    }

    #[tokio::test]
    async fn a_status_goes_through_for_streams() {
        let (code, headers, body) = answer(404, STATUS, ErrorBody::AsIs).await;
        assert_eq!((code, body.as_str()), (404, STATUS));
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        assert!(!headers.contains_key("audit-id"));
    }

    #[tokio::test]
    async fn back_pressure_goes_through() {
        let (code, headers, _) = answer(429, "busy", ErrorBody::Message).await;
        assert_eq!(code, 429);
        assert_eq!(headers[header::RETRY_AFTER], "3");
    }

    #[tokio::test]
    async fn what_the_lower_cluster_refuses_us_is_not_the_callers_fault() {
        for code in [401, 403] {
            let (code, _, body) = answer(code, STATUS, ErrorBody::AsIs).await;
            assert_eq!(code, 500);
            assert!(body.contains("the virtual node's account") && body.contains("pods/exec"), "{body}");
        }
    }

    #[tokio::test]
    async fn a_failed_choice_of_protocol_goes_through() {
        let (code, _, body) = answer(403, "unable to negotiate protocol", ErrorBody::AsIs).await;
        assert_eq!((code, body.as_str()), (403, "unable to negotiate protocol"));
    }

    #[tokio::test]
    async fn a_success_that_is_no_stream_is_an_error() {
        let (code, _, body) = answer(200, "hello", ErrorBody::AsIs).await;
        assert_eq!(code, 500);
        assert!(body.contains("200 OK"), "{body}");
    }
}
