//! Asking the upper API server for a review (TokenReview, SubjectAccessReview).
//!
//! A review writes nothing, so unlike other POSTs it may be sent again after any failure.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::{Serialize, de::DeserializeOwned};
use tensile_chassis::{kube_client::NoRetry, retry::Backoff};
use tokio::{sync::Semaphore, time::Instant};

/// Tries per review. With the backoff below a restart of an API server's replica is ridden out, and a caller does not
/// wait for an answer that will not come.
const TRIES_MAX: u32 = 4;

/// The wait after the first failed try, and the longest one.
const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Time for all tries of one review, the wait for a turn included: well below the 60 s an API server grants a request.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Reviews in flight. Strangers can cause a review with each request; they shall not take the node's share of the API
/// server's priority level.
const IN_FLIGHT_MAX: usize = 16;

/// Size of an answer: a user in some thousand groups fits.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why there is no answer. Bodies are not part of it: they may hold a token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server refuses, or cannot answer.
    #[error(
        "the upper API server answered {0} to a {1}: the node's identity needs the ClusterRole system:node or rights to create it"
    )]
    Status(StatusCode, &'static str),
    /// It was not reached, or its answer is no review.
    #[error("no answer from the upper API server to a {1}: {0}")]
    Failed(String, &'static str),
    /// The time is over.
    #[error("no answer from the upper API server to a {0} within {seconds} s", seconds = TIME_MAX.as_secs())]
    Late(&'static str),
}

/// Sends reviews, bounded in number and time.
pub struct Reviewer {
    client: kube::Client,
    turns: Semaphore,
}

impl Reviewer {
    /// Sends as `client`, the node's own identity: the ClusterRole system:node grants both kinds of review.
    pub fn new(client: kube::Client) -> Self {
        Self { client, turns: Semaphore::new(IN_FLIGHT_MAX) }
    }

    /// Posts `review` to the collection at `path` and returns the answer. `kind` names it in errors.
    pub async fn review<R: Serialize, A: DeserializeOwned>(
        &self,
        kind: &'static str,
        path: &'static str,
        review: &R,
    ) -> Result<A, ReviewError> {
        let body = serde_json::to_vec(review).map_err(|error| ReviewError::Failed(error.to_string(), kind))?;
        let deadline = Instant::now() + TIME_MAX;
        let answer = async {
            // The semaphore is never closed, so this only ever waits.
            let _turn = self.turns.acquire().await.map_err(|_| ReviewError::Late(kind))?;
            let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
            for _ in 1..TRIES_MAX {
                match self.once(kind, path, body.clone()).await {
                    Err(error) if error.is_transient() => tokio::time::sleep(backoff.next_delay()).await,
                    answer => return answer,
                }
            }
            self.once(kind, path, body).await
        };
        tokio::time::timeout_at(deadline, answer).await.map_err(|_| ReviewError::Late(kind))?
    }

    async fn once<A: DeserializeOwned>(
        &self,
        kind: &'static str,
        path: &'static str,
        body: Vec<u8>,
    ) -> Result<A, ReviewError> {
        let failed = |error: String| ReviewError::Failed(error, kind);
        let request = Request::builder()
            .extension(NoRetry)
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(kube::client::Body::from(body))
            .map_err(|error| failed(error.to_string()))?;
        // Not `Client::request`: it logs an answer that it cannot read, and a TokenReview's answer repeats the token.
        let response = self.client.send(request).await.map_err(|error| failed(error.to_string()))?;
        if !response.status().is_success() {
            return Err(ReviewError::Status(response.status(), kind));
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| failed(error.to_string()))?
            .to_bytes();
        // The parser's own message may quote the body.
        serde_json::from_slice(&body)
            .map_err(|error| failed(format!("it is not a {kind} (at line {} column {})", error.line(), error.column())))
    }
}

impl ReviewError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Status(status, _) => *status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error(),
            Self::Failed(..) => true,
            Self::Late(_) => false,
        }
    }
}
