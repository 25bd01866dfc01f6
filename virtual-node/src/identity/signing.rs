//! Asks for the node's client certificate and waits until it is approved and issued.
//!
//! The request is found again by polling its one object: to watch it we would need the right to list every request of
//! the cluster. A restart, or the second replica, goes on waiting for the same request, since its key is in the Secret.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{Api, api::PostParams};
use tensile_chassis::{readiness::Gate, retry::Backoff};
use tensile_proto::vocabulary::label;
use tokio::time::Instant;

use super::{
    certificate::{BadCredential, Credential, PendingKey, common_name},
    store::{CredentialStore, StoreError, Stored, Written},
};
use crate::node::said;

/// Signs client certificates of nodes; the API server's client CA trusts it.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// Time between two looks at the request: short at first, for an install step approves at once and waits for us; in the
/// long run one GET a second or two is nothing.
const POLL_FIRST: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(2);

/// Time between two log lines that say what is waited for, while the process cannot serve without it.
const REMINDER_FIRST: Duration = Duration::from_secs(30);

/// The same while the present certificate still serves.
const REMINDER_RENEWAL: Duration = Duration::from_mins(10);

/// Rounds of "the other replica wrote first" before something must be wrong.
const OVERTAKEN_MAX: u32 = 20;

/// Asks for certificates of one node and keeps them in one Secret.
#[derive(Clone)]
pub(super) struct Requester {
    store: CredentialStore,
    node_name: String,
    expiration_seconds: Option<i32>,
}

/// Why no certificate was had.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The Secret could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The request could not be made or read.
    #[error(
        "cannot {verb} CertificateSigningRequest {name}: {}. Our ServiceAccount needs create and get on \
         certificatesigningrequests (deploy/rbac-upper.yaml); where the signer {SIGNER} is not to be had use \
         --identity=service-account",
        said(source)
    )]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Name of the request.
        name: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody denied the request.
    #[error(
        "CertificateSigningRequest {name} was denied ({reason}: {message}). Ask who denied it; the next start makes \
         a new request"
    )]
    Denied {
        /// Name of the request.
        name: String,
        /// Reason of the Denied condition.
        reason: String,
        /// Message of the Denied condition.
        message: String,
    },
    /// The signer gave up.
    #[error(
        "the signer failed CertificateSigningRequest {name} ({reason}: {message}). The next start makes a new request"
    )]
    Failed {
        /// Name of the request.
        name: String,
        /// Reason of the Failed condition.
        reason: String,
        /// Message of the Failed condition.
        message: String,
    },
    /// The key could not be made, or the certificate issued is not what was asked for.
    #[error("CertificateSigningRequest {name}: {source}")]
    Bad {
        /// Name of the request, or what was being made.
        name: String,
        /// What is wrong.
        #[source]
        source: BadCredential,
    },
    /// The Secret was overwritten each time before we could write it.
    #[error(
        "the Secret of the node certificate changed {OVERTAKEN_MAX} times under our hands: more than two replicas?"
    )]
    Contended,
}

/// What an open request has come to. Pure reading of its status.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    WaitsForApproval,
    WaitsForSigner,
    Issued(String),
    Denied { reason: String, message: String },
    Failed { reason: String, message: String },
}

impl Requester {
    /// A requester for the node, with its Secret and the lifetime to ask for in seconds.
    pub(super) fn new(store: CredentialStore, node_name: String, expiration_seconds: Option<i32>) -> Self {
        Self { store, node_name, expiration_seconds }
    }

    /// Name of the node.
    pub(super) fn node_name(&self) -> &str {
        &self.node_name
    }

    /// A credential to start with: the stored one when it has life enough, else a new one.
    ///
    /// `gate` says what is waited for.
    pub(super) async fn first(&self, account: &kube::Client, gate: &Gate) -> Result<Credential, SigningError> {
        gate.set_unready("waiting for the node's certificate");
        self.obtain(account, Some(gate), REMINDER_FIRST, Credential::usable).await
    }

    /// The one that follows `present`: the other replica's, if it was quicker, else a new one.
    pub(super) async fn next(&self, asker: &kube::Client, present: &Credential) -> Result<Credential, SigningError> {
        let newer = |stored: &Credential, now| stored.usable(now) && stored.not_after > present.not_after;
        self.obtain(asker, None, REMINDER_RENEWAL, newer).await
    }

    async fn obtain(
        &self,
        asker: &kube::Client,
        gate: Option<&Gate>,
        reminder: Duration,
        will_do: impl Fn(&Credential, Timestamp) -> bool,
    ) -> Result<Credential, SigningError> {
        for _ in 0..OVERTAKEN_MAX {
            let stored = self.store.read().await?;
            if let Some(credential) = stored.credential.as_ref().filter(|c| will_do(c, Timestamp::now())) {
                return Ok(credential.clone());
            }
            let Some(key) = stored.pending.as_ref() else {
                let key = PendingKey::generate()
                    .map_err(|source| SigningError::Bad { name: "a new key".to_owned(), source })?;
                self.store.write_pending(stored, &key).await?;
                // Read again: if the other replica was first, its key is the one to use.
                continue;
            };
            let issued = self.wait(asker, key, gate, reminder).await;
            // The Secret may have changed during the wait, which can last for days.
            let stored = self.store.read().await?;
            match issued {
                Ok(credential) => {
                    if self.store.write_credential(stored, &credential).await? == Written::Done {
                        return Ok(credential);
                    }
                }
                Err(error) => {
                    self.drop_refused(stored, &error).await?;
                    return Err(error);
                }
            }
        }
        Err(SigningError::Contended)
    }

    /// After a final refusal the key goes, for the name of its request is taken.
    async fn drop_refused(&self, stored: Stored, error: &SigningError) -> Result<(), SigningError> {
        let refused =
            matches!(error, SigningError::Denied { .. } | SigningError::Failed { .. } | SigningError::Bad { .. });
        if refused {
            self.store.forget_pending(stored).await?;
        }
        Ok(())
    }

    /// Makes the request of `key`, if it is not there, and waits for its certificate.
    async fn wait(
        &self,
        asker: &kube::Client,
        key: &PendingKey,
        gate: Option<&Gate>,
        reminder: Duration,
    ) -> Result<Credential, SigningError> {
        let requests: Api<CertificateSigningRequest> = Api::all(asker.clone());
        let name = key.request_name(&self.node_name);
        let bad = |source| SigningError::Bad { name: name.clone(), source };
        let mut next_reminder = Instant::now();
        let mut poll = Backoff::new(POLL_FIRST, POLL_MAX);
        loop {
            match requests.get_opt(&name).await {
                Ok(None) => self.create(&requests, &name, key).await?,
                Ok(Some(request)) => match progress(&request) {
                    Progress::Issued(pem) => {
                        tracing::info!(request = %name, "node certificate issued");
                        return Credential::new(&pem, &key.to_pem(), &self.node_name).map_err(bad);
                    }
                    Progress::Denied { reason, message } => {
                        return Err(SigningError::Denied { name, reason, message });
                    }
                    Progress::Failed { reason, message } => {
                        return Err(SigningError::Failed { name, reason, message });
                    }
                    waits => {
                        if let Some(gate) = gate {
                            gate.set_unready(waits.words(&name));
                        }
                        if Instant::now() >= next_reminder {
                            remind(&name, &waits);
                            next_reminder = Instant::now() + reminder;
                        }
                    }
                },
                Err(error) if transient(&error) => {
                    tracing::warn!(request = %name, error = said(&error), "cannot read the request for the node certificate; trying again");
                }
                Err(source) => return Err(SigningError::Api { verb: "get", name, source: Box::new(source) }),
            }
            tokio::time::sleep(poll.next_delay()).await;
        }
    }

    async fn create(
        &self,
        requests: &Api<CertificateSigningRequest>,
        name: &str,
        key: &PendingKey,
    ) -> Result<(), SigningError> {
        let pem =
            key.request_pem(&self.node_name).map_err(|source| SigningError::Bad { name: name.to_owned(), source })?;
        let mut request = CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: SIGNER.to_owned(),
                usages: Some(vec!["digital signature".to_owned(), "client auth".to_owned()]),
                expiration_seconds: self.expiration_seconds,
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        request.metadata.name = Some(name.to_owned());
        // For the install step, which approves the requests of the nodes it knows.
        request.metadata.labels = Some([(label::VIRTUAL_NODE.to_owned(), self.node_name.clone())].into());
        match requests.create(&PostParams::default(), &request).await {
            Ok(_) => {
                tracing::info!(request = %name, user = %common_name(&self.node_name),
                    "asked for the node certificate; unless something approves it by itself, run: \
                     kubectl certificate approve {name}");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) if transient(&error) => {
                tracing::warn!(request = %name, error = said(&error), "cannot make the request for the node certificate; trying again");
                Ok(())
            }
            Err(source) => Err(SigningError::Api { verb: "create", name: name.to_owned(), source: Box::new(source) }),
        }
    }
}

fn remind(name: &str, waits: &Progress) {
    tracing::warn!(request = %name, "{}", waits.words(name));
}

impl Progress {
    /// What is waited for, with the cure.
    fn words(&self, name: &str) -> String {
        if *self == Self::WaitsForSigner {
            format!(
                "certificate request {name} is approved but not issued: kube-controller-manager signs it when it runs \
                 with --cluster-signing-cert-file and --cluster-signing-key-file (signer {SIGNER})"
            )
        } else {
            format!("waiting for the approval of certificate request {name}; run: kubectl certificate approve {name}")
        }
    }
}

fn progress(request: &CertificateSigningRequest) -> Progress {
    let Some(status) = &request.status else { return Progress::WaitsForApproval };
    let condition = |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind);
    let words = |c: &k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition| {
        (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())
    };
    if let Some(denied) = condition("Denied") {
        let (reason, message) = words(denied);
        return Progress::Denied { reason, message };
    }
    if let Some(failed) = condition("Failed") {
        let (reason, message) = words(failed);
        return Progress::Failed { reason, message };
    }
    if let Some(pem) = status.certificate.as_ref().and_then(|c| String::from_utf8(c.0.clone()).ok()) {
        return Progress::Issued(pem);
    }
    if condition("Approved").is_some() { Progress::WaitsForSigner } else { Progress::WaitsForApproval }
}

/// Whether the same request may well succeed later: the server is away or overloaded, rather than refusing us.
fn transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::Service(_) | kube::Error::HyperError(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn request(status: &serde_json::Value) -> CertificateSigningRequest {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": "r"},
            "spec": {"request": "", "signerName": SIGNER},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_request_waits_for_approval_then_for_the_signer_then_holds_the_certificate() {
        assert_eq!(progress(&request(&serde_json::json!({}))), Progress::WaitsForApproval);
        let approved = serde_json::json!({"conditions": [{"type": "Approved", "status": "True"}]});
        assert_eq!(progress(&request(&approved)), Progress::WaitsForSigner);
        let issued = serde_json::json!({
            "conditions": [{"type": "Approved", "status": "True"}],
            "certificate": "UEVN",
        });
        assert_eq!(progress(&request(&issued)), Progress::Issued("PEM".into()));
    }

    #[test]
    fn a_denial_wins_over_everything_else() {
        let denied = serde_json::json!({
            "conditions": [
                {"type": "Approved", "status": "True"},
                {"type": "Denied", "status": "True", "reason": "Policy", "message": "not here"},
            ],
            "certificate": "UEVN",
        });
        assert_eq!(
            progress(&request(&denied)),
            Progress::Denied { reason: "Policy".into(), message: "not here".into() }
        );
    }
}
