//! Writes that only a leader may make are looked at once more right before they are sent.
//!
//! Whoever decides on a write checks the fence, too, but then the request may wait: for its turn in a burst, between two
//! tries, or with the whole process (a machine that was suspended). Meanwhile another replica may have come to lead.
//!
//! The body is looked at, too, as it leaves: an API server that has the head of a request waits up to a minute for the
//! rest, and a pod would be created by a leader that woke up from a long sleep.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Frame, SizeHint};
use kube::{Client, client::Body};
use tower::{BoxError, Service};

use crate::lease::{Fence, NotLeader};

/// Marks a request as one that only the leader may send.
#[derive(Clone, Debug)]
struct OnlyLeader(Fence);

/// A client like the given one whose writes (all but GET, HEAD and OPTIONS) are sent only while `fence` lets through, at
/// each try anew. Else they fail with [`NotLeader`]. Both share limits, and connections for all but such writes.
///
/// The given client must stand on one that [`super::build`] made.
pub fn fenced(client: &Client, fence: Fence) -> Client {
    let namespace = client.default_namespace().to_owned();
    Client::new(Marking { client: client.clone(), fence }, namespace)
}

/// Whether a request may be sent now.
pub(super) fn check(request: &Request<Body>) -> Result<(), NotLeader> {
    fence_of(request).map_or(Ok(()), Fence::check)
}

/// The fence of a request that only the leader may send.
pub(super) fn fence_of(request: &Request<Body>) -> Option<&Fence> {
    request.extensions().get::<OnlyLeader>().map(|OnlyLeader(fence)| fence)
}

/// Has the fence checked as the body leaves.
pub(super) fn guard(request: Request<Body>) -> Request<FencedBody> {
    let fence = fence_of(&request).cloned();
    request.map(|inner| FencedBody { inner, fence })
}

/// The body of a request, which ends with an error once its fence is closed.
pub(super) struct FencedBody {
    inner: Body,
    fence: Option<Fence>,
}

impl http_body::Body for FencedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(fence) = &self.fence {
            fence.check()?;
        }
        Pin::new(&mut self.inner).poll_frame(cx).map_err(BoxError::from)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

#[derive(Clone)]
struct Marking {
    client: Client,
    fence: Fence,
}

impl Service<Request<Body>> for Marking {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            request.extensions_mut().insert(OnlyLeader(self.fence.clone()));
        }
        let client = self.client.clone();
        Box::pin(async move { client.send(request).await })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{
        Api,
        api::{DeleteParams, ListParams},
    };

    use super::*;
    use crate::{
        kube_client::{ClientOptions, KubeMetrics, build},
        lease::{LeaseArgs, LeaseElection},
        testing::{Reply, ScriptedServer},
    };

    #[tokio::test]
    async fn a_standby_reads_and_none_of_its_writes_is_sent() {
        let server = ScriptedServer::start(|_| Reply::list("1", &[])).await.unwrap();
        let client = build(server.config(), &ClientOptions::default(), &KubeMetrics::default()).unwrap();
        let election = LeaseElection::new(client.clone(), "ns", "lease", "me", LeaseArgs::default()).unwrap();
        let maps = |fence| Api::<ConfigMap>::namespaced(fenced(&client, fence), "ns");

        let standby = maps(election.fence());
        standby.list(&ListParams::default()).await.unwrap();
        let error = standby.delete("a", &DeleteParams::default()).await.unwrap_err();
        let told = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        assert!(told.contains("not the leader"), "{told}");
        assert_eq!(server.seen().iter().map(|asked| asked.method.clone()).collect::<Vec<_>>(), [Method::GET]);

        // The answer is no ConfigMap; that it came is what counts.
        let _ = maps(Fence::open()).delete("a", &DeleteParams::default()).await;
        assert_eq!(server.seen().last().unwrap().method, Method::DELETE);
    }
}
