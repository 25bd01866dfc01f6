//! Logs: the lower API server's stream, handed on byte by byte.

use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header};
use tokio::time::timeout;

use super::{
    metrics::OpenStream,
    query::{follows, log_query},
    reply::{ErrorBody, Reply, refused, streamed, text, unreachable},
};
use crate::names::Key;

/// Time for the first byte of a log that is not followed. A kubelet that looks for the beginning of `sinceTime` reads all
/// of a log before it answers: some seconds, never minutes.
const ANSWER_MAX: Duration = Duration::from_mins(2);

/// Streams the log of one container.
///
/// A followed log has no time limit, not even for the first byte: that of a silent container answers with its first line.
/// The caller's going away drops this future, or the body, and with it the lower connection.
pub async fn open(lower: &kube::Client, pod: &Key, container: &str, query_of_caller: &str, place: OpenStream) -> Reply {
    let query = log_query(container, query_of_caller);
    let request = Request::get(format!("/api/v1/namespaces/{}/pods/{}/log?{query}", pod.namespace, pod.name))
        .body(kube::client::Body::empty());
    let Ok(request) = request else {
        return text(StatusCode::URI_TOO_LONG, "the query is too long: a request line holds at most 64 KiB");
    };
    let answer = lower.send(request);
    let answer = if follows(query_of_caller) {
        answer.await
    } else if let Ok(answer) = timeout(ANSWER_MAX, answer).await {
        answer
    } else {
        let seconds = ANSWER_MAX.as_secs();
        return text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the lower cluster's API server did not answer within {seconds} s"),
        );
    };
    match answer {
        Ok(response) if response.status() == StatusCode::OK => {
            let mut reply = Response::new(streamed(response.into_body(), place));
            reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            reply
        }
        Ok(response) => refused(response, ErrorBody::Message).await,
        Err(error) => unreachable("lower", &error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{convert::Infallible, future::pending};

    use http_body_util::BodyExt;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::kubelet::metrics::{KubeletMetrics, Streams};

    async fn of_a_server_that_hangs(query: &str) -> Reply {
        type Answer = Response<http_body_util::Empty<bytes::Bytes>>;
        let hangs = tower::service_fn(|_| pending::<Result<Answer, Infallible>>());
        let lower = kube::Client::new(hangs, "default");
        let streams = Streams::new(1, KubeletMetrics::register(&mut Registry::default()));
        open(&lower, &Key::new("shop", "web-0"), "nginx", query, streams.open("logs").unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_api_server_that_hangs_is_waited_for_only_by_followers() {
        let reply = of_a_server_that_hangs("tailLines=1").await;
        assert_eq!(reply.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let said = reply.into_body().collect().await.unwrap().to_bytes();
        assert!(said.starts_with(b"the lower cluster's API server did not answer within 120 s"), "{said:?}");
        timeout(10 * ANSWER_MAX, of_a_server_that_hangs("tailLines=1&follow=true")).await.unwrap_err();
    }
}
