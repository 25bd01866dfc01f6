//! Who may call what, by the names in the caller's certificate.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::PeerInfo;
use crate::tls::PeerIdentity;

/// Open to every caller: they say nothing that a caller could not find out otherwise.
const OPEN: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"];

/// For each RPC the callers that may use it. Without any entry every caller that TLS let in may call everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// By path prefix: `/tensile.v1.Cluster/Fit`, or `/tensile.v1.Cluster/` for a whole service.
    allowed: BTreeMap<String, Vec<String>>,
}

impl Callers {
    /// Every caller may call everything.
    pub fn any() -> Self {
        Self::default()
    }

    /// Lets `names` (CN, DNS name or URI of the certificate) call what lies under `path`, and all others no longer.
    #[must_use]
    pub fn allow<N: Into<String>>(mut self, path: impl Into<String>, names: impl IntoIterator<Item = N>) -> Self {
        self.allowed.entry(path.into()).or_default().extend(names.into_iter().map(Into::into));
        self
    }

    /// Ok, or why the caller is refused. The longest entry that fits the path decides; a path with no entry is refused
    /// once there are any: a new RPC must not be open by accident.
    pub fn check(&self, path: &str, caller: Option<&PeerIdentity>) -> Result<(), String> {
        if self.allowed.is_empty() || OPEN.iter().any(|open| path.starts_with(open)) {
            return Ok(());
        }
        let entry =
            self.allowed.iter().filter(|(prefix, _)| covers(prefix, path)).max_by_key(|(prefix, _)| prefix.len());
        let Some((_, names)) = entry else {
            return Err(format!("{path} has no list of callers, so nobody may call it"));
        };
        let Some(caller) = caller else { return Err(format!("{path} needs a client certificate")) };
        if names.iter().any(|name| caller.is(name)) {
            return Ok(());
        }
        let who =
            caller.common_name.as_deref().or(caller.dns_names.first().map(String::as_str)).unwrap_or("(nameless)");
        Err(format!("{who:?} may not call {path}; add it to the server's list of callers if it should"))
    }
}

/// A prefix covers whole services (it ends in a slash) or exactly one RPC.
fn covers(prefix: &str, path: &str) -> bool {
    path == prefix || (prefix.ends_with('/') && path.starts_with(prefix))
}

/// Refuses callers before their request is read.
#[derive(Clone, Debug)]
pub(super) struct CallersLayer {
    pub(super) callers: Arc<Callers>,
}

impl<S> Layer<S> for CallersLayer {
    type Service = CallersCheck<S>;

    fn layer(&self, inner: S) -> CallersCheck<S> {
        CallersCheck { inner, callers: self.callers.clone() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct CallersCheck<S> {
    inner: S,
    callers: Arc<Callers>,
}

impl<S> Service<Request<Body>> for CallersCheck<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let caller = request.extensions().get::<PeerInfo>().and_then(|info| info.identity.clone());
        if let Err(refusal) = self.callers.check(request.uri().path(), caller.as_deref()) {
            tracing::warn!(refusal, "a gRPC call is refused");
            let answer = Status::permission_denied(refusal).into_http();
            return Box::pin(async move { Ok(answer) });
        }
        if let Some(caller) = caller {
            request.extensions_mut().insert(PeerIdentity::clone(&caller));
        }
        Box::pin(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn peer(name: &str) -> PeerIdentity {
        PeerIdentity { common_name: Some(name.to_owned()), ..PeerIdentity::default() }
    }

    #[test]
    fn the_longest_entry_decides_and_the_unlisted_is_refused() {
        let callers = Callers::any()
            .allow("/tensile.v1.Cluster/", ["multi-scheduler", "descheduler"])
            .allow("/tensile.v1.Cluster/Reserve", ["multi-scheduler"]);
        assert_eq!(callers.check("/tensile.v1.Cluster/Fit", Some(&peer("descheduler"))), Ok(()));
        assert_eq!(callers.check("/tensile.v1.Cluster/Reserve", Some(&peer("multi-scheduler"))), Ok(()));
        let error = callers.check("/tensile.v1.Cluster/Reserve", Some(&peer("descheduler"))).unwrap_err();
        assert!(error.contains("\"descheduler\" may not call /tensile.v1.Cluster/Reserve"), "{error}");
        assert!(callers.check("/tensile.v1.Cluster/Fit", None).unwrap_err().contains("client certificate"));
        assert!(callers.check("/other.Service/Call", Some(&peer("descheduler"))).is_err());
    }

    #[test]
    fn health_and_reflection_are_open_and_no_entries_mean_no_limits() {
        let callers = Callers::any().allow("/tensile.v1.Cluster/", ["x"]);
        assert_eq!(callers.check("/grpc.health.v1.Health/Check", None), Ok(()));
        assert_eq!(Callers::any().check("/tensile.v1.Cluster/Fit", None), Ok(()));
    }
}
