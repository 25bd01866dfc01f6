//! Tokens of an OpenID Connect issuer (`auth-provider: {name: oidc}`), refreshed while we run.
//!
//! Not kube's: that one takes no `idp-certificate-authority`, and wants a client secret where public clients have none.
//! A refresh token that the issuer exchanges is kept in memory only: a kubeconfig is mounted for reading.

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use kube::{Config, client::Body, config::AuthProviderConfig};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use tokio::{sync::Mutex, time::timeout};
use tower::ServiceExt;

use super::{
    connect::{Connector, HttpVersions, Pings},
    credential::{CredentialError, Obtained},
    proxy,
};

/// For one question to the issuer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Discovery documents and tokens are some KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// An issuer and who we are to it.
pub(super) struct OidcProvider {
    given: Given,
    present: Mutex<Present>,
}

/// What the kubeconfig says.
#[derive(Clone, PartialEq, Eq)]
struct Given {
    issuer: String,
    client_id: String,
    client_secret: Option<String>,
    id_token: Option<String>,
    refresh_token: Option<String>,
    /// PEM, or a file of it.
    authority: Option<Authority>,
}

#[derive(Clone, PartialEq, Eq)]
enum Authority {
    Pem(Vec<u8>),
    File(String),
}

/// What has been learnt since.
struct Present {
    id_token: Option<String>,
    refresh_token: Option<String>,
}

impl OidcProvider {
    /// Reads the section; the error is the reason why it cannot be used.
    pub(super) fn new(section: &AuthProviderConfig) -> Result<Self, String> {
        if section.name != "oidc" {
            return Err(format!(
                "its auth-provider {:?} is not one that Kubernetes still has: use the cloud's exec plugin, such as \
                 gke-gcloud-auth-plugin, kubelogin or aws-iam-authenticator",
                section.name
            ));
        }
        let get = |key: &str| section.config.get(key).filter(|value| !value.is_empty()).cloned();
        let wanted = |key: &str| get(key).ok_or_else(|| format!("its auth-provider oidc has no {key}"));
        let issuer = wanted("idp-issuer-url")?;
        if !issuer.starts_with("https://") {
            return Err("the idp-issuer-url of its auth-provider does not begin with https://".to_owned());
        }
        let authority = match (get("idp-certificate-authority-data"), get("idp-certificate-authority")) {
            (Some(data), _) => {
                let pem = STANDARD.decode(data.trim());
                Some(Authority::Pem(pem.map_err(|_| "its idp-certificate-authority-data is not base64".to_owned())?))
            }
            (None, file) => file.map(Authority::File),
        };
        let given = Given {
            issuer,
            client_id: wanted("client-id")?,
            client_secret: get("client-secret"),
            id_token: get("id-token"),
            refresh_token: get("refresh-token"),
            authority,
        };
        if given.id_token.is_none() && given.refresh_token.is_none() {
            return Err("its auth-provider oidc has neither a refresh-token nor an id-token".to_owned());
        }
        let present = Present { id_token: given.id_token.clone(), refresh_token: given.refresh_token.clone() };
        Ok(Self { given, present: Mutex::new(present) })
    }

    /// Whether the kubeconfig says the same of both.
    pub(super) fn is_as_given(&self, other: &Self) -> bool {
        self.given == other.given
    }

    /// The token at hand while it is good, else a new one.
    pub(super) async fn token(&self, refused: bool) -> Result<Obtained, CredentialError> {
        let mut present = self.present.lock().await;
        if let Some(token) = present.id_token.as_ref().filter(|_| !refused) {
            let expires = expiry(token);
            if expires.is_some_and(|at| at > Timestamp::now()) {
                // Without a refresh token there is nothing to be renewed.
                let expires = expires.filter(|_| present.refresh_token.is_some());
                return Ok(Obtained { token: Some(token.clone()), pair: None, expires });
            }
        }
        let refresh_token = present.refresh_token.clone().ok_or_else(|| {
            self.failed(
                "the id-token has expired and there is no refresh-token: log in anew, and replace the kubeconfig",
            )
        })?;
        let tokens = self.refresh(&refresh_token).await.map_err(|reason| self.failed(reason))?;
        if let Some(newer) = tokens.refresh_token.filter(|newer| *newer != refresh_token) {
            tracing::warn!(
                issuer = self.given.issuer,
                "the issuer has exchanged the refresh token, which cannot be written back: after a restart the \
                 kubeconfig's may be refused. Let the issuer give lasting refresh tokens to this client, or use an exec \
                 plugin"
            );
            present.refresh_token = Some(newer);
        }
        let token =
            tokens.id_token.ok_or_else(|| self.failed("its answer has no id_token: is the scope openid granted?"))?;
        present.id_token = Some(token.clone());
        Ok(Obtained { expires: expiry(&token), token: Some(token), pair: None })
    }

    fn failed(&self, reason: impl Into<String>) -> CredentialError {
        CredentialError::Issuer { issuer: self.given.issuer.clone(), reason: reason.into() }
    }

    async fn refresh(&self, refresh_token: &str) -> Result<Tokens, String> {
        let discovery = format!("{}/.well-known/openid-configuration", self.given.issuer.trim_end_matches('/'));
        let (status, body) = self.ask(&discovery, None).await?;
        if !status.is_success() {
            return Err(format!("{discovery} answers {status}"));
        }
        let found: Discovery =
            serde_json::from_slice(&body).map_err(|_| format!("{discovery} is not a discovery document"))?;
        if !found.token_endpoint.starts_with("https://") {
            return Err("its token_endpoint does not begin with https://".to_owned());
        }
        // Issuers take the client's secret as a header or in the form, and some refuse the other way.
        let mut last = String::new();
        for in_header in [true, false] {
            let form = self.form(refresh_token, in_header);
            let (status, body) = self.ask(&found.token_endpoint, Some(form)).await?;
            if status.is_success() {
                return serde_json::from_slice(&body)
                    .map_err(|_| "its answer is not one of a token endpoint".to_owned());
            }
            let said = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.error).unwrap_or_default();
            last = format!("{} answers {status} {}", found.token_endpoint, plain(&said));
        }
        Err(format!("{last}: has the refresh token expired or been revoked?"))
    }

    fn form(&self, refresh_token: &str, in_header: bool) -> Form {
        let mut pairs = vec![("grant_type", "refresh_token"), ("refresh_token", refresh_token)];
        let secret = self.given.client_secret.as_deref();
        let authorization = secret.filter(|_| in_header).map(|secret| {
            let both = format!("{}:{}", encoded(&self.given.client_id), encoded(secret));
            format!("Basic {}", STANDARD.encode(both))
        });
        if authorization.is_none() {
            pairs.push(("client_id", &self.given.client_id));
            pairs.extend(secret.map(|secret| ("client_secret", secret)));
        }
        let body: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
        Form { body: body.join("&"), authorization }
    }

    /// One question over a connection of its own: there is one in an hour.
    async fn ask(&self, url: &str, form: Option<Form>) -> Result<(StatusCode, Vec<u8>), String> {
        let url: Uri = url.parse().map_err(|_| format!("{url} is not a URL"))?;
        let path = url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let origin = format!("https://{}", url.authority().map_or("", |authority| authority.as_str()));
        let mut config = Config::new(origin.parse().map_err(|_| format!("{origin} is not a URL"))?);
        config.proxy_url = proxy::of(&config.cluster_url, None)?;
        config.root_cert = self.roots()?;
        let connector = Connector::new(config).map_err(|error| error.to_string())?;
        let transport =
            connector.transport(HttpVersions::Http1, Pings::default()).map_err(|error| error.to_string())?;
        let mut request = Request::builder().uri(path).header(header::ACCEPT, "application/json");
        let body = match form {
            None => Body::empty(),
            Some(form) => {
                request = request.method("POST").header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                if let Some(value) = form.authorization {
                    request = request.header(header::AUTHORIZATION, value);
                }
                Body::from(form.body.into_bytes())
            }
        };
        let request = request.body(body).map_err(|error| error.to_string())?;
        let asked = async {
            let answer = transport.oneshot(request).await.map_err(|error| super::access::chain(error.as_ref()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes().to_vec()))
        };
        timeout(ANSWER_MAX, asked).await.map_err(|_| format!("no answer within {} s", ANSWER_MAX.as_secs()))?
    }

    fn roots(&self) -> Result<Option<Vec<Vec<u8>>>, String> {
        let pem = match &self.given.authority {
            None => return Ok(None),
            Some(Authority::Pem(pem)) => pem.clone(),
            Some(Authority::File(path)) => std::fs::read(path)
                .map_err(|error| format!("the idp-certificate-authority file {path} cannot be read: {error}"))?,
        };
        let roots: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&pem).map(|der| der.map(|der| der.to_vec())).collect();
        match roots {
            Ok(roots) if !roots.is_empty() => Ok(Some(roots)),
            _ => Err("its idp-certificate-authority holds no PEM certificate".to_owned()),
        }
    }
}

/// Shows nothing secret.
impl fmt::Debug for OidcProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OidcProvider").field("issuer", &self.given.issuer).finish_non_exhaustive()
    }
}

struct Form {
    body: String,
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct Discovery {
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: Option<String>,
    refresh_token: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// When a JSON Web Token expires, RFC 7519 4.1.4. It is the API server that checks the token.
fn expiry(token: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    #[allow(clippy::cast_possible_truncation)] // out of range becomes no time at all
    Timestamp::from_second(claims.exp as i64).ok()
}

/// A form's encoding of a value.
fn encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// An issuer's error code, RFC 6749 5.2; nothing else it says is shown.
fn plain(code: &str) -> String {
    code.chars().filter(|c| c.is_ascii_lowercase() || *c == '_').take(40).collect()
}

#[cfg(test)]
mod tests;
