//! May the caller do it: asked of the upper API server by SubjectAccessReview on `nodes`, as a kubelet asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use sha2::{Digest as _, Sha256};

use super::{
    authentication::Caller,
    cache::{Digest, ExpiringCache},
    review::{ReviewError, Reviewer},
    route::{subresources, verb},
};

/// How long an allowance counts (a kubelet's default).
const ALLOWED_LIFETIME: Duration = Duration::from_mins(5);

/// How long a denial counts (a kubelet's default).
const DENIED_LIFETIME: Duration = Duration::from_secs(30);

/// Why a caller may not. The texts are a kubelet's, as people search for them.
#[derive(Debug, thiserror::Error)]
pub enum Unauthorized {
    /// None of the subresources is allowed.
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])")]
    Forbidden {
        /// The user's name.
        user: String,
        /// The verb of the method.
        verb: &'static str,
        /// The subresources asked for, separated by spaces.
        subresources: String,
    },
    /// The API server could not be asked.
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    Review {
        /// The user's name.
        user: String,
        /// The verb of the method.
        verb: &'static str,
        /// The subresource asked for.
        subresource: &'static str,
        /// What went wrong.
        #[source]
        source: ReviewError,
    },
}

/// Finds out what callers may do.
pub struct Authorizer {
    node_name: String,
    reviewer: Arc<Reviewer>,
    decisions: ExpiringCache<bool>,
}

impl Authorizer {
    /// For the node of this name.
    pub fn new(node_name: String, reviewer: Arc<Reviewer>) -> Self {
        Self { node_name, reviewer, decisions: ExpiringCache::new() }
    }

    /// Ok when the caller may use this method on this path.
    pub async fn authorize(&self, caller: &Caller, method: &Method, path: &str) -> Result<(), Unauthorized> {
        let verb = verb(method);
        let subresources = subresources(path);
        for subresource in subresources {
            match self.allowed(caller, verb, subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(source) => {
                    return Err(Unauthorized::Review { user: caller.name.clone(), verb, subresource, source });
                }
            }
        }
        Err(Unauthorized::Forbidden { user: caller.name.clone(), verb, subresources: subresources.join(" ") })
    }

    async fn allowed(
        &self,
        caller: &Caller,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, ReviewError> {
        let spec = self.spec(caller, verb, subresource);
        let key = digest(&spec)?;
        if let Some(known) = self.decisions.get(&key, Instant::now()) {
            return Ok(known);
        }
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer: SubjectAccessReview = self
            .reviewer
            .review("SubjectAccessReview", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)
            .await?;
        let allowed = answer.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        let lifetime = if allowed { ALLOWED_LIFETIME } else { DENIED_LIFETIME };
        self.decisions.insert(key, allowed, Instant::now(), lifetime);
        Ok(allowed)
    }

    fn spec(&self, caller: &Caller, verb: &str, subresource: &str) -> SubjectAccessReviewSpec {
        SubjectAccessReviewSpec {
            user: Some(caller.name.clone()),
            uid: Some(caller.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(caller.groups.clone()),
            extra: Some(caller.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(self.node_name.clone()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        }
    }
}

/// Everything that the decision depends on.
fn digest(spec: &SubjectAccessReviewSpec) -> Result<Digest, ReviewError> {
    let bytes =
        serde_json::to_vec(spec).map_err(|error| ReviewError::Failed(error.to_string(), "SubjectAccessReview"))?;
    Ok(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::collections::BTreeMap;

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;
    use crate::kubelet::testing::{Answers, client_that_answers};

    fn caller(name: &str) -> Caller {
        Caller { name: name.into(), uid: String::new(), groups: vec!["g".into()], extra: BTreeMap::new() }
    }

    fn answer(allowed: bool) -> Response<Body> {
        let answer = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {},
            "status": {"allowed": allowed},
        });
        Response::builder().status(201).body(Body::from(answer.to_string().into_bytes())).unwrap()
    }

    fn yes(_: &Request<Body>) -> Response<Body> {
        answer(true)
    }

    fn no(_: &Request<Body>) -> Response<Body> {
        answer(false)
    }

    fn authorizer(answers: &Answers) -> Authorizer {
        Authorizer::new("edge".into(), Arc::new(Reviewer::new(client_that_answers(answers.clone()))))
    }

    #[tokio::test]
    async fn the_fine_subresource_comes_first_and_proxy_suffices() {
        let answers = Answers::new(vec![no, yes]);
        let authorizer = authorizer(&answers);
        authorizer.authorize(&caller("ann"), &Method::GET, "/pods").await.unwrap();
        let asked: Vec<_> = answers
            .bodies()
            .await
            .iter()
            .map(|body| {
                let attributes = &body["spec"]["resourceAttributes"];
                assert_eq!(attributes["name"], "edge");
                assert_eq!(attributes["verb"], "get");
                assert_eq!(attributes["resource"], "nodes");
                attributes["subresource"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(asked, ["pods", "proxy"]);
    }

    #[tokio::test]
    async fn a_refusal_has_the_words_of_a_kubelet() {
        let answers = Answers::new(vec![no, no]);
        let error = authorizer(&answers).authorize(&caller("ann"), &Method::GET, "/pods").await.unwrap_err();
        assert_eq!(error.to_string(), "Forbidden (user=ann, verb=get, resource=nodes, subresource(s)=[pods proxy])");
    }

    #[tokio::test]
    async fn decisions_are_remembered_for_each_user_and_verb() {
        let answers = Answers::new(vec![yes, no, yes]);
        let authorizer = authorizer(&answers);
        for _ in 0..2 {
            authorizer.authorize(&caller("ann"), &Method::POST, "/exec/a/b/c").await.unwrap();
            authorizer.authorize(&caller("bob"), &Method::POST, "/exec/a/b/c").await.unwrap_err();
            authorizer.authorize(&caller("ann"), &Method::GET, "/exec/a/b/c").await.unwrap();
        }
        assert_eq!(answers.paths().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_neither_a_yes_nor_remembered() {
        fn broken(_: &Request<Body>) -> Response<Body> {
            Response::builder().status(503).body(Body::empty()).unwrap()
        }
        let answers = Answers::new(vec![broken, broken, broken, broken, yes]);
        let authorizer = authorizer(&answers);
        let error = authorizer.authorize(&caller("ann"), &Method::GET, "/exec/a/b/c").await.unwrap_err();
        assert!(matches!(error, Unauthorized::Review { .. }), "{error}");
        authorizer.authorize(&caller("ann"), &Method::GET, "/exec/a/b/c").await.unwrap();
    }
}
