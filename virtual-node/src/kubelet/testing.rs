//! A client whose API server answers by a list, for the tests of this module.

use std::{collections::VecDeque, sync::Arc};

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;

/// Makes one answer. The last one asked for more than there are answers gets a 418, so that a test sees it.
pub type Answer = fn(&Request<Body>) -> Response<Body>;

/// The answers still to give, and the requests seen.
#[derive(Clone)]
pub struct Answers {
    left: Arc<Mutex<VecDeque<Answer>>>,
    seen: Arc<Mutex<Vec<Request<Body>>>>,
}

impl Answers {
    pub fn new(answers: Vec<Answer>) -> Self {
        Self { left: Arc::new(Mutex::new(answers.into())), seen: Arc::default() }
    }

    /// The paths with queries of the requests so far.
    pub fn paths(&self) -> Vec<String> {
        self.seen.lock().iter().map(|request| request.uri().to_string()).collect()
    }

    /// Takes the requests so far.
    pub fn take(&self) -> Vec<Request<Body>> {
        std::mem::take(&mut *self.seen.lock())
    }

    /// Takes the requests so far and reads their bodies.
    pub async fn bodies(&self) -> Vec<serde_json::Value> {
        let mut bodies = Vec::new();
        for request in self.take() {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            bodies.push(serde_json::from_slice(&body).unwrap());
        }
        bodies
    }
}

pub fn client_that_answers(answers: Answers) -> kube::Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answers.left.lock().pop_front();
        let response = answer
            .map_or_else(|| Response::builder().status(418).body(Body::empty()).unwrap(), |answer| answer(&request));
        answers.seen.lock().push(request);
        std::future::ready(Ok::<_, std::convert::Infallible>(response))
    });
    kube::Client::new(service, "default")
}
