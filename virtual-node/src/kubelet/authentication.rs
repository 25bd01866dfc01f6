//! Who calls: by client certificate, else by bearer token. There are no anonymous callers.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    cache::{Digest, ExpiringCache},
    client_ca::{CertificateRefused, ClientCa},
    review::{ReviewError, Reviewer},
};

/// How long an accepted token is accepted without asking again. A kubelet's default is two minutes; a withdrawn token
/// shall not live that long here.
const ACCEPTED_LIFETIME: Duration = Duration::from_mins(1);

/// How long a refused token is refused without asking again: short, as a token may be sent a moment before the API server
/// can check it, but it keeps a caller that loops from causing a review per request.
const REFUSED_LIFETIME: Duration = Duration::from_secs(10);

/// A token longer than this is none: the API server's own tokens have about 1 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The group that Kubernetes puts every authenticated user in.
const GROUP_AUTHENTICATED: &str = "system:authenticated";

/// The extra field that names the certificate, as the API server's own certificate authenticator sets it.
const EXTRA_CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user's name.
    pub name: String,
    /// The user's UID; empty when there is none.
    pub uid: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why a caller is not known. The caller itself only learns `Unauthorized`.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// Neither a certificate nor a token.
    #[error("no client certificate and no bearer token")]
    Nothing,
    /// The certificate does not count.
    #[error(transparent)]
    Certificate(#[from] CertificateRefused),
    /// The certificate names nobody.
    #[error("the client certificate has no common name")]
    Nameless,
    /// The API server does not know the token.
    #[error("the upper API server does not accept the bearer token")]
    Token,
    /// The API server could not be asked.
    #[error(transparent)]
    Review(#[from] ReviewError),
}

/// Finds out who calls.
pub struct Authenticator {
    client_ca: Arc<ClientCa>,
    reviewer: Arc<Reviewer>,
    /// By the token's digest; `None` for refused ones.
    tokens: ExpiringCache<Option<Arc<Caller>>>,
}

impl Authenticator {
    /// Certificates are checked against `client_ca`, tokens by `reviewer`.
    pub fn new(client_ca: Arc<ClientCa>, reviewer: Arc<Reviewer>) -> Self {
        Self { client_ca, reviewer, tokens: ExpiringCache::new() }
    }

    /// Finds the caller by the chain of certificates that the connection came with, else by the token in the headers.
    ///
    /// A certificate that is not accepted does not rule a good token out: behind a proxy the two belong to different parties.
    pub async fn authenticate(
        &self,
        chain: &[CertificateDer<'static>],
        headers: &HeaderMap,
    ) -> Result<Arc<Caller>, Unauthenticated> {
        let refused = match self.by_certificate(chain) {
            Ok(caller) => return Ok(Arc::new(caller)),
            Err(refused) => refused,
        };
        match bearer_token(headers) {
            Some(token) => self.by_token(token).await,
            None if chain.is_empty() => Err(Unauthenticated::Nothing),
            None => Err(refused),
        }
    }

    fn by_certificate(&self, chain: &[CertificateDer<'static>]) -> Result<Caller, Unauthenticated> {
        self.client_ca.verify(chain)?;
        chain.first().and_then(certificate_caller).ok_or(Unauthenticated::Nameless)
    }

    async fn by_token(&self, token: &str) -> Result<Arc<Caller>, Unauthenticated> {
        let key: Digest = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key, Instant::now()) {
            return known.ok_or(Unauthenticated::Token);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let answer: TokenReview =
            self.reviewer.review("TokenReview", "/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        let caller = answer.status.filter(|status| status.authenticated == Some(true)).and_then(|status| status.user);
        let caller = caller.and_then(token_caller).map(Arc::new);
        let lifetime = if caller.is_some() { ACCEPTED_LIFETIME } else { REFUSED_LIFETIME };
        self.tokens.insert(key, caller.clone(), Instant::now(), lifetime);
        caller.ok_or(Unauthenticated::Token)
    }
}

/// The user that a certificate stands for: its common name, and its organizations as groups.
fn certificate_caller(certificate: &CertificateDer<'static>) -> Option<Caller> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> = parsed
        .subject()
        .iter_organization()
        .filter_map(|organization| organization.as_str().ok().map(str::to_owned))
        .collect();
    if !groups.iter().any(|group| group == GROUP_AUTHENTICATED) {
        groups.push(GROUP_AUTHENTICATED.to_owned());
    }
    let fingerprint = format!("X509SHA256={}", hex::encode(Sha256::digest(certificate)));
    Some(Caller {
        name,
        uid: String::new(),
        groups,
        extra: BTreeMap::from([(EXTRA_CREDENTIAL_ID.to_owned(), vec![fingerprint])]),
    })
}

fn token_caller(user: UserInfo) -> Option<Caller> {
    Some(Caller {
        name: user.username.filter(|name| !name.is_empty())?,
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    })
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_BYTES_MAX).then_some(token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use http::{HeaderValue, Request, Response};
    use kube::client::Body;
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::kubelet::testing::{Answers, client_that_answers};

    fn headers(authorization: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(authorization))])
    }

    fn authenticator(answers: Answers) -> Authenticator {
        let reviewer = Arc::new(Reviewer::new(client_that_answers(answers)));
        Authenticator::new(Arc::new(ClientCa::default()), reviewer)
    }

    fn accepted(_: &Request<Body>) -> Response<Body> {
        let answer = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "sesame"},
            "status": {"authenticated": true, "user": {
                "username": "system:serviceaccount:monitoring:prometheus", "uid": "u1",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            }},
        });
        Response::builder().status(201).body(Body::from(answer.to_string().into_bytes())).unwrap()
    }

    fn refused(_: &Request<Body>) -> Response<Body> {
        let answer = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{},"status":{}}"#;
        Response::builder().status(201).body(Body::from(answer.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn only_bearer_tokens_are_tokens() {
        assert_eq!(bearer_token(&headers("Bearer sesame")), Some("sesame"));
        assert_eq!(bearer_token(&headers("bearer  sesame ")), Some("sesame"));
        for none in ["Basic c2VzYW1l", "Bearer", "Bearer  ", "sesame"] {
            assert_eq!(bearer_token(&headers(none)), None, "{none}");
        }
        assert_eq!(bearer_token(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn without_credentials_nobody_is_let_in_and_nobody_is_asked() {
        let authenticator = authenticator(Answers::new(vec![]));
        let error = authenticator.authenticate(&[], &HeaderMap::new()).await.unwrap_err();
        assert!(matches!(error, Unauthenticated::Nothing), "{error}");
    }

    #[tokio::test]
    async fn an_accepted_token_is_asked_about_once() {
        let answers = Answers::new(vec![accepted]);
        let authenticator = authenticator(answers.clone());
        for _ in 0..3 {
            let caller = authenticator.authenticate(&[], &headers("Bearer sesame")).await.unwrap();
            assert_eq!(caller.name, "system:serviceaccount:monitoring:prometheus");
            assert_eq!(caller.groups, ["system:serviceaccounts", "system:authenticated"]);
        }
        assert_eq!(answers.paths(), ["/apis/authentication.k8s.io/v1/tokenreviews"]);
    }

    #[tokio::test]
    async fn a_refused_token_is_refused_and_asked_about_once() {
        let answers = Answers::new(vec![refused]);
        let authenticator = authenticator(answers.clone());
        for _ in 0..3 {
            let error = authenticator.authenticate(&[], &headers("Bearer guess")).await.unwrap_err();
            assert!(matches!(error, Unauthenticated::Token), "{error}");
        }
        assert_eq!(answers.paths().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_in_trouble_is_asked_again_and_no_failure_is_remembered() {
        fn busy(_: &Request<Body>) -> Response<Body> {
            Response::builder().status(429).body(Body::empty()).unwrap()
        }
        fn broken(_: &Request<Body>) -> Response<Body> {
            Response::builder().status(500).body(Body::empty()).unwrap()
        }
        let answers = Answers::new(vec![busy, broken, accepted]);
        authenticator(answers.clone()).authenticate(&[], &headers("Bearer sesame")).await.unwrap();
        assert_eq!(answers.paths().len(), 3);

        let answers = Answers::new(vec![broken, broken, broken, broken, accepted]);
        let authenticator = authenticator(answers.clone());
        let error = authenticator.authenticate(&[], &headers("Bearer sesame")).await.unwrap_err();
        assert!(matches!(error, Unauthenticated::Review(ReviewError::Status(..))), "{error}");
        authenticator.authenticate(&[], &headers("Bearer sesame")).await.unwrap();
    }

    #[tokio::test]
    async fn errors_never_hold_the_token() {
        fn nonsense(_: &Request<Body>) -> Response<Body> {
            Response::builder()
                .status(201)
                .body(Body::from(b"{\"spec\": {\"token\": \"sesame\"}, 1}".to_vec()))
                .unwrap()
        }
        let authenticator = authenticator(Answers::new(vec![nonsense; 4]));
        let error = authenticator.authenticate(&[], &headers("Bearer sesame")).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
    }

    #[tokio::test]
    async fn a_certificate_is_its_common_name_and_its_organizations() {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(vec![]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let client_ca = Arc::new(ClientCa::default());
        client_ca.replace(&authority.self_signed(&authority_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(DnType::OrganizationName, "kubeadm:cluster-admins");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();

        let reviewer = Arc::new(Reviewer::new(client_that_answers(Answers::new(vec![]))));
        let authenticator = Authenticator::new(client_ca, reviewer);
        let caller = authenticator.authenticate(&[certificate], &HeaderMap::new()).await.unwrap();
        assert_eq!(caller.name, "kube-apiserver-kubelet-client");
        assert_eq!(caller.groups, ["kubeadm:cluster-admins", "system:authenticated"]);
        assert!(caller.extra[EXTRA_CREDENTIAL_ID][0].starts_with("X509SHA256="));
    }
}
