//! Fault points: where a test has the process die, or an answer go lost, at a chosen write.
//!
//! Only with the feature `fault-points`, which no released binary has. Every request of a client passes here, so a write
//! that somebody adds later cannot be forgotten: the hook sees it, and may refuse one that it does not know.

use std::{future::Future, io, sync::OnceLock};

use http::{Method, Request, Response};
use hyper::body::Incoming;
use kube::client::Body;
use tower::BoxError;

use super::metrics::resource_of;

/// A request that may change something: everything but GET, HEAD and OPTIONS.
#[derive(Debug)]
pub struct Write<'a> {
    /// [`super::ClientOptions::role`] of the client.
    pub role: &'static str,
    /// The method.
    pub method: &'a Method,
    /// The resource with its subresource: `pods`, `pods/status`.
    pub resource: &'a str,
    /// The path, without its query.
    pub path: &'a str,
    /// What is sent.
    pub body: &'a [u8],
}

/// When the hook is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing was sent yet.
    Before,
    /// The server has answered, and the caller does not know yet.
    After,
}

/// What becomes of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The caller gets it.
    Given,
    /// The caller is told that the connection was cut.
    Lost,
}

/// Decides about a write; it may end the process and not return. What it answers to [`Moment::Before`] is not looked at.
pub type Hook = fn(&Write<'_>, Moment) -> Answer;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Has all clients of the process ask this hook. The first call counts.
pub fn install(hook: Hook) {
    // An error means that there is one already.
    let _ = HOOK.set(hook);
}

/// Sends a request past the hook; `go` is what sends it.
pub(super) async fn send<S, F>(
    go: S,
    role: &'static str,
    request: Request<Body>,
) -> Result<Response<Incoming>, BoxError>
where
    S: FnOnce(Request<Body>) -> F,
    F: Future<Output = Result<Response<Incoming>, BoxError>>,
{
    let hook = HOOK.get().filter(|_| !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS));
    let Some(hook) = hook else { return go(request).await };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = match request.body().try_clone() {
        Some(body) => body.collect_bytes().await?,
        None => return Err("a write whose body is a stream has no fault point".into()),
    };
    let write = Write { role, method: &method, resource: &resource_of(&path), path: &path, body: &body };
    hook(&write, Moment::Before);
    let answer = go(request).await;
    match hook(&write, Moment::After) {
        Answer::Given => answer,
        Answer::Lost => {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "the answer was lost at a fault point").into())
        }
    }
}
