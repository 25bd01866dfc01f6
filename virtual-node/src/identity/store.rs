//! The Secret that keeps the node's certificate and, while a request is open, the key it was made for.
//!
//! Both replicas read and write it. Writes carry the resourceVersion that was read, so that of two replicas that start
//! at once one writes its key and the other takes that key over.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, api::PostParams};
use tensile_proto::vocabulary::label;

use super::certificate::{Credential, PendingKey};
use crate::node::said;

/// Keys of the Secret's data.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const PENDING_KEY: &str = "pending.key";

/// Reads and writes the Secret.
#[derive(Clone)]
pub(super) struct CredentialStore {
    secrets: Api<Secret>,
    namespace: String,
    name: String,
    node_name: String,
}

/// What the Secret holds.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// The Secret as read; `None` when there is none.
    secret: Option<Secret>,
    /// The certificate and key; `None` when absent or not ours.
    pub(super) credential: Option<Credential>,
    /// The key of an open request.
    pub(super) pending: Option<PendingKey>,
}

/// Why the Secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server refused or did not answer.
    #[error(
        "cannot {verb} Secret {namespace}/{name}, which keeps the node certificate: {}. \
         The namespace must exist and our ServiceAccount needs the Role of deploy/rbac-upper.yaml there",
        said(source)
    )]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Secret exists and is not one that we made.
    #[error(
        "Secret {namespace}/{name} exists and does not carry the label {}={node_name}: \
         it is not ours to overwrite; delete it or choose another by --identity-secret-name",
        label::VIRTUAL_NODE
    )]
    Foreign {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
        /// Our node.
        node_name: String,
    },
}

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It holds.
    Done,
    /// Somebody else (the other replica) wrote first: read again.
    Overtaken,
}

impl CredentialStore {
    /// A store on the named Secret.
    pub(super) fn new(account: kube::Client, namespace: &str, name: String, node_name: &str) -> Self {
        Self {
            secrets: Api::namespaced(account, namespace),
            namespace: namespace.to_owned(),
            name,
            node_name: node_name.to_owned(),
        }
    }

    /// Reads what is stored. A certificate that does not parse or is another node's counts as absent, with a warning.
    pub(super) async fn read(&self) -> Result<Stored, StoreError> {
        let Some(secret) = self.secrets.get_opt(&self.name).await.map_err(|e| self.failed("get", e))? else {
            return Ok(Stored::default());
        };
        let ours = secret.metadata.labels.as_ref().and_then(|l| l.get(label::VIRTUAL_NODE));
        if ours != Some(&self.node_name) {
            let (namespace, name) = (self.namespace.clone(), self.name.clone());
            return Err(StoreError::Foreign { namespace, name, node_name: self.node_name.clone() });
        }
        let text = |key| {
            let bytes = secret.data.as_ref().and_then(|d| d.get(key))?;
            std::str::from_utf8(&bytes.0).ok()
        };
        let credential = match (text(CERTIFICATE), text(KEY)) {
            (Some(certificate), Some(key)) => Credential::new(certificate, key, &self.node_name)
                .inspect_err(|reason| {
                    tracing::warn!(secret = %format!("{}/{}", self.namespace, self.name), %reason,
                        "the stored node certificate is not usable; asking for a new one");
                })
                .ok(),
            _ => None,
        };
        let pending = text(PENDING_KEY).and_then(|pem| PendingKey::from_pem(pem).ok());
        Ok(Stored { credential, pending, secret: Some(secret) })
    }

    /// Notes the key of a request about to be made. A credential that is stored stays.
    pub(super) async fn write_pending(&self, stored: Stored, key: &PendingKey) -> Result<Written, StoreError> {
        self.write(stored, |data| {
            data.insert(PENDING_KEY.to_owned(), ByteString(key.to_pem().into_bytes()));
        })
        .await
    }

    /// Notes a certificate that was issued; the pending key has become its key.
    pub(super) async fn write_credential(&self, stored: Stored, new: &Credential) -> Result<Written, StoreError> {
        self.write(stored, |data| {
            data.insert(CERTIFICATE.to_owned(), ByteString(new.certificate_pem().as_bytes().to_vec()));
            data.insert(KEY.to_owned(), ByteString(new.key_pem().as_bytes().to_vec()));
            data.remove(PENDING_KEY);
        })
        .await
    }

    /// Forgets the key of a request that was denied, so that the next try makes a new request.
    pub(super) async fn forget_pending(&self, stored: Stored) -> Result<Written, StoreError> {
        self.write(stored, |data| {
            data.remove(PENDING_KEY);
        })
        .await
    }

    async fn write(
        &self,
        stored: Stored,
        edit: impl FnOnce(&mut BTreeMap<String, ByteString>),
    ) -> Result<Written, StoreError> {
        let params = PostParams::default();
        let is_there = stored.secret.is_some();
        let mut secret = stored.secret.unwrap_or_else(|| self.empty());
        edit(secret.data.get_or_insert_default());
        let (verb, result) = if is_there {
            ("update", self.secrets.replace(&self.name, &params, &secret).await)
        } else {
            ("create", self.secrets.create(&params, &secret).await)
        };
        match result {
            Ok(_) => Ok(Written::Done),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(Written::Overtaken)
            }
            Err(error) => Err(self.failed(verb, error)),
        }
    }

    fn empty(&self) -> Secret {
        let labels = BTreeMap::from([
            (label::VIRTUAL_NODE.to_owned(), self.node_name.clone()),
            ("app.kubernetes.io/managed-by".to_owned(), "tensile".to_owned()),
        ]);
        let mut secret = Secret { type_: Some("Opaque".to_owned()), ..Secret::default() };
        secret.metadata.name = Some(self.name.clone());
        secret.metadata.labels = Some(labels);
        secret
    }

    fn failed(&self, verb: &'static str, source: kube::Error) -> StoreError {
        StoreError::Api { verb, namespace: self.namespace.clone(), name: self.name.clone(), source: Box::new(source) }
    }
}
