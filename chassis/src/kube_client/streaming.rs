//! The service of clients whose connections are taken over: nothing between a request and its connection but credentials.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper::body::Incoming;
use kube::client::Body;
use tower::{BoxError, Service};

use super::endpoint::Endpoint;

#[derive(Clone)]
pub(super) struct Streaming {
    endpoint: Arc<Endpoint>,
}

impl Streaming {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint: Arc::new(endpoint) }
    }
}

impl Service<Request<Body>> for Streaming {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let endpoint = self.endpoint.clone();
        Box::pin(async move { endpoint.send(request, || {}).await })
    }
}
