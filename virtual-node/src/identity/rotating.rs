//! A kube client whose credential can be exchanged while everybody holds clones of it.
//!
//! An API server reads the client certificate when a connection is made, so a new certificate needs new connections:
//! the whole inner client is exchanged. Requests and watches under way end on the old one; the next go over the new.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use http::{Request, Response};
use kube::client::Body;
use tower::Service;

/// Exchanges the client behind a [`rotating_client`].
#[derive(Clone)]
pub(super) struct Rotator(Arc<ArcSwap<kube::Client>>);

impl Rotator {
    /// Requests made from now on go through `client`.
    pub(super) fn replace(&self, client: kube::Client) {
        self.0.store(Arc::new(client));
    }
}

/// A client that passes each request to the newest client given to its [`Rotator`].
pub(super) fn rotating_client(first: kube::Client) -> (kube::Client, Rotator) {
    let namespace = first.default_namespace().to_owned();
    let current = Arc::new(ArcSwap::from_pointee(first));
    (kube::Client::new(Newest(current.clone()), namespace), Rotator(current))
}

struct Newest(Arc<ArcSwap<kube::Client>>);

impl Service<Request<Body>> for Newest {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // `send` waits for the inner client's own readiness: its limits apply to each request, not to the queue here.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = kube::Client::clone(&self.0.load());
        Box::pin(async move { client.send(request).await })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use k8s_openapi::api::core::v1::Node;
    use kube::Api;

    use super::*;

    /// A client whose API server knows one node, of the given name.
    fn client_of(name: &'static str) -> kube::Client {
        let answer = move |_request: Request<Body>| async move {
            let body = format!(r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}"}}}}"#);
            Ok::<_, std::convert::Infallible>(Response::new(Body::from(body.into_bytes())))
        };
        kube::Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn clones_handed_out_before_an_exchange_use_the_new_client_after_it() {
        let (client, rotator) = rotating_client(client_of("old"));
        let nodes: Api<Node> = Api::all(client.clone());
        assert_eq!(nodes.get("any").await.unwrap().metadata.name.as_deref(), Some("old"));
        rotator.replace(client_of("new"));
        assert_eq!(nodes.get("any").await.unwrap().metadata.name.as_deref(), Some("new"));
    }

    #[tokio::test]
    async fn errors_of_the_inner_client_keep_their_kind() {
        let refuse = |_request: Request<Body>| async move {
            let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#;
            let response = Response::builder().status(404).body(Body::from(body.as_bytes().to_vec())).unwrap();
            Ok::<_, std::convert::Infallible>(response)
        };
        let (client, _rotator) = rotating_client(kube::Client::new(tower::service_fn(refuse), "default"));
        assert!(Api::<Node>::all(client).get_opt("any").await.unwrap().is_none());
    }
}
