//! The proof that new credentials are accepted, and that a new address leads to the same cluster.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::Namespace;
use kube::client::Body;
use tokio::time::timeout;
use tower::ServiceExt;

use super::{
    access::{Snapshot, Unusable, chain},
    config::ConfigError,
    connect::{HttpVersions, Pings},
};

/// Its UID is a cluster's identity: it exists in every cluster and is never made anew.
const IDENTITY_PATH: &str = "/api/v1/namespaces/kube-system";
/// For the question who the cluster is.
const PROOF_MAX: Duration = Duration::from_secs(10);
/// A namespace is some hundred bytes.
const PROOF_BYTES_MAX: usize = 1 << 20;

/// Why something new is not taken into use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("the cluster refuses the new credentials ({code}): {said}")]
    Refused { code: StatusCode, said: String },
    #[error("the cluster does not answer, so that nothing new is proven: {0}")]
    NoAnswer(String),
    #[error(
        "it leads to another cluster (kube-system UID {found}) than the one that is worked for ({expected}): restore it; \
         for the other cluster start another virtual node"
    )]
    OtherCluster { found: String, expected: String },
    #[error("whether it leads to the same cluster cannot be told, since namespace kube-system may not be read ({0})")]
    Unknown(StatusCode),
}

impl Trouble {
    /// Whether it is the cluster's doing, and no one has to mend anything.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::NoAnswer(_))
    }

    /// As a metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Config(_) | Self::Unusable(_) => "unusable",
            Self::Refused { .. } => "refused",
            Self::NoAnswer(_) => "unreachable",
            Self::OtherCluster { .. } | Self::Unknown(_) => "other-cluster",
        }
    }
}

/// Asks the cluster who it is, in the new way.
///
/// There must be an answer, also at the place as before: during an outage those credentials get as far as new ones, and
/// after it only one of them may be right. At another place it must be the same cluster.
pub(super) async fn prove(snapshot: &Snapshot, same_place: bool, expected: Option<String>) -> Result<(), Trouble> {
    let asked = timeout(PROOF_MAX, ask(snapshot)).await;
    let (code, body) = match asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PROOF_MAX.as_secs()))) {
        Ok(answer) => answer,
        Err(error) => return Err(Trouble::NoAnswer(error)),
    };
    let said = || serde_json::from_slice::<kube::core::Status>(&body).map(|status| status.message).unwrap_or_default();
    if code.is_success() {
        let namespace: Namespace = serde_json::from_slice(&body).unwrap_or_default();
        let found = namespace.metadata.uid.unwrap_or_default();
        return match expected {
            Some(expected) if expected != found => Err(Trouble::OtherCluster { found, expected }),
            _ => Ok(()),
        };
    }
    match code {
        StatusCode::UNAUTHORIZED => Err(Trouble::Refused { code, said: said() }),
        // Where the identity could be read before, an account that may not is not up to its work.
        StatusCode::FORBIDDEN if expected.is_some() => Err(Trouble::Refused { code, said: said() }),
        _ if same_place => Ok(()),
        StatusCode::FORBIDDEN => Err(Trouble::Unknown(code)),
        _ => Err(Trouble::NoAnswer(format!("{code} {}", said()))),
    }
}

async fn ask(snapshot: &Snapshot) -> Result<(StatusCode, Vec<u8>), String> {
    // Connections of its own: those in use show the certificate before.
    let transport = snapshot.connector.transport(HttpVersions::Http1, Pings::default()).map_err(|e| e.to_string())?;
    let mut request = Request::get(IDENTITY_PATH).body(Body::empty()).map_err(|error| error.to_string())?;
    request.headers_mut().extend(snapshot.headers.clone());
    let answer = transport.oneshot(request).await.map_err(|error| chain(error.as_ref()))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), PROOF_BYTES_MAX).collect().await;
    Ok((status, body.map_err(|error| error.to_string())?.to_bytes().to_vec()))
}
