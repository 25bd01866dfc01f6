//! The way of one request: slot, turn, attempt, and the next attempt.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use jiff::Timestamp;
use kube::client::Body;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tower::{BoxError, Service};

#[cfg(feature = "fault-points")]
use super::fault::send;
use super::{
    ClientOptions, KubeMetrics, NoRetry,
    body::HeldBody,
    endpoint::{Endpoint, copy_of},
    fenced::fence_of,
    limit::TokenBucket,
    metrics::{Code, Method, resource_of},
    policy::{Failure, Verdict, judge, retry_after, stays_open},
};
use crate::retry::Backoff;

/// Waits between attempts when the server names none: 0.1, 0.2, 0.4, 0.8, 1.6 s.
const BACKOFF_INITIAL: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How deep an error's causes are searched; hyper nests about five.
const CAUSES_MAX: usize = 16;

/// Why a request has no answer, beyond what HTTP itself reports.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("no answer from the API server within {timeout:?}: {what}")]
    TimedOut { what: &'static str, timeout: Duration },
    #[error("the client is shut down")]
    Closed,
}

pub(super) struct Limits {
    bucket: Option<TokenBucket>,
    slots: Arc<Semaphore>,
    timeout: Duration,
    retries_max: u32,
    role: &'static str,
}

impl Limits {
    pub(super) fn new(options: &ClientOptions) -> Self {
        Self {
            bucket: TokenBucket::new(options.qps, options.burst),
            slots: Arc::new(Semaphore::new(options.concurrency_max.max(1))),
            timeout: options.timeout,
            retries_max: options.retries_max,
            role: options.role,
        }
    }
}

/// The service a [`kube::Client`] stands on. Clones share limits and connections.
#[derive(Clone)]
pub(super) struct Pipeline {
    inner: Arc<Inner>,
}

struct Inner {
    requests: Endpoint,
    /// Those that only a leader may make.
    leaders: Endpoint,
    streams: Endpoint,
    limits: Limits,
    metrics: KubeMetrics,
}

impl Pipeline {
    pub(super) fn new([requests, leaders, streams]: [Endpoint; 3], limits: Limits, metrics: &KubeMetrics) -> Self {
        Self { inner: Arc::new(Inner { requests, leaders, streams, limits, metrics: metrics.clone() }) }
    }
}

impl Service<Request<Body>> for Pipeline {
    type Response = Response<HeldBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<HeldBody>, BoxError>> + Send>>;

    /// Always ready: requests wait inside their own future, so one that waits holds up no other.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        if stays_open(request.uri()) {
            Box::pin(async move { inner.open(request).await })
        } else {
            Box::pin(async move { inner.ask(request).await })
        }
    }
}

impl Inner {
    /// A request that stays open: one attempt, and a time limit for its first line only.
    async fn open(&self, request: Request<Body>) -> Result<Response<HeldBody>, BoxError> {
        let (method, resource) = (Method::Watch, resource_of(request.uri().path()));
        let started = Instant::now();
        let sent = self.streams.send(request, || self.refused(&method, &resource, started));
        let answer = timeout_at(started + self.limits.timeout, sent).await;
        let code = code_of(answer.as_ref().ok());
        self.metrics.observe(self.limits.role, &method, &resource, code, started.elapsed());
        let response = answer.unwrap_or_else(|_| Err(self.timed_out("a watch was not begun")))?;
        Ok(response.map(HeldBody::open))
    }

    /// A request with an end: within the limits, and again when that is safe.
    async fn ask(&self, request: Request<Body>) -> Result<Response<HeldBody>, BoxError> {
        let limits = &self.limits;
        let (method, resource) = (request.method().clone(), resource_of(request.uri().path()));
        let path = request.uri().path().to_owned();
        let mut backoff = Backoff::new(BACKOFF_INITIAL, BACKOFF_MAX);
        let tries_again = request.extensions().get::<NoRetry>().is_none();
        let mut next = Some(request);
        while let Some(request) = next.take() {
            let repeat = if tries_again && backoff.failures() < limits.retries_max { copy_of(&request) } else { None };
            let queued = Instant::now();
            let slot = limits.slots.clone().acquire_owned().await.map_err(|_| RequestError::Closed)?;
            if let Some(bucket) = &limits.bucket {
                bucket.turn().await;
            }
            let started = Instant::now();
            self.metrics.throttled(limits.role, started - queued);
            let deadline = started + limits.timeout;
            let label = Method::Http(method.clone());
            let endpoint = if fence_of(&request).is_some() { &self.leaders } else { &self.requests };
            let go = |request| endpoint.send(request, || self.refused(&label, &resource, started));
            let answer = timeout_at(deadline, send(go, limits.role, request)).await;
            let code = code_of(answer.as_ref().ok());
            self.metrics.observe(limits.role, &label, &resource, code, started.elapsed());
            // A request that ran into its time limit is not repeated: the caller has waited long enough.
            let answer = answer.map_err(|_| self.timed_out("it was sent and nothing came back"))?;
            let verdict = failure_of(&answer).map_or(Verdict::Surface, |failure| judge(&method, &path, failure));
            match (verdict, repeat) {
                (Verdict::Retry(asked, reason), Some(repeat)) => {
                    // The slot is for others while this one waits.
                    drop((slot, answer));
                    let wait = asked.unwrap_or_default().max(backoff.next_delay());
                    self.metrics.retried(limits.role, reason);
                    tracing::debug!(role = limits.role, %method, path, reason, ?wait, "trying again");
                    tokio::time::sleep(wait).await;
                    next = Some(repeat);
                }
                _ => return answer.map(|ok| ok.map(|body| HeldBody::held(body, slot, deadline, limits.timeout))),
            }
        }
        Err(RequestError::Closed.into())
    }

    /// Counts an attempt whose credentials were refused and that is made again with newer ones.
    fn refused(&self, method: &Method, resource: &str, started: Instant) {
        let code = Code::Status(StatusCode::UNAUTHORIZED.as_u16());
        self.metrics.observe(self.limits.role, method, resource, code, started.elapsed());
        self.metrics.retried(self.limits.role, "401");
    }

    fn timed_out(&self, what: &'static str) -> BoxError {
        RequestError::TimedOut { what, timeout: self.limits.timeout }.into()
    }
}

/// Sends a request, once. (With the feature `fault-points` tests may have it fail.)
#[cfg(not(feature = "fault-points"))]
async fn send<S, F>(go: S, _: &'static str, request: Request<Body>) -> Result<Response<Incoming>, BoxError>
where
    S: FnOnce(Request<Body>) -> F,
    F: Future<Output = Result<Response<Incoming>, BoxError>>,
{
    go(request).await
}

fn failure_of(answer: &Result<Response<Incoming>, BoxError>) -> Option<Failure> {
    match answer {
        Ok(response) if response.status().is_client_error() || response.status().is_server_error() => {
            Some(Failure::Status(response.status(), retry_after(response.headers(), Timestamp::now())))
        }
        Ok(_) => None,
        Err(error) => match transport_code(error) {
            Code::ConnectFailed => Some(Failure::Connect),
            _ => Some(Failure::Cut),
        },
    }
}

fn code_of(answer: Option<&Result<Response<Incoming>, BoxError>>) -> Code {
    match answer {
        None => Code::TimedOut,
        Some(Ok(response)) => Code::Status(response.status().as_u16()),
        Some(Err(error)) => transport_code(error),
    }
}

fn transport_code(error: &BoxError) -> Code {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    for _ in 0..CAUSES_MAX {
        let Some(error) = cause else { break };
        if error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect) {
            return Code::ConnectFailed;
        }
        cause = error.source();
    }
    Code::Cut
}
