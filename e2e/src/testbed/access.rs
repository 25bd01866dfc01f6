//! Accounts of a cluster: kubeconfigs for users and service accounts, certificate requests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::certificates::{Pair, write_private};
use super::cluster::Cluster;

/// How long a service account's token is good, in seconds: longer than any test.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// A kubeconfig (JSON, which is YAML) with everything inside, so that it may be moved.
pub(crate) fn kubeconfig(cluster: &str, server: &str, ca_pem: &str, user: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(ca_pem),
        }}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": "user"}}],
        "current-context": cluster,
    })
    .to_string()
}

/// The user part for a client certificate.
pub(crate) fn certificate_user(pair: &Pair) -> Value {
    json!({
        "client-certificate-data": STANDARD.encode(&pair.certificate_pem),
        "client-key-data": STANDARD.encode(&pair.key_pem),
    })
}

impl Cluster {
    /// A kubeconfig for any user with a client certificate of the cluster's CA. At most two
    /// groups. The file lies in the cluster's folder and goes with it.
    pub fn user_kubeconfig(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let pair = self.authority().client(user, groups)?;
        self.write_kubeconfig(user, &certificate_user(&pair))
    }

    /// A kubeconfig for a service account, with a token of one day. The account must exist.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = account_token(&self.client(), namespace, name).await?;
        self.write_kubeconfig(&format!("{namespace}-{name}"), &json!({ "token": token }))
    }

    /// Approves one CertificateSigningRequest, as an administrator would.
    pub async fn approve_csr(&self, name: &str) -> Result<()> {
        let api: Api<CertificateSigningRequest> = Api::all(self.client());
        let request = api.get(name).await.with_context(|| format!("reading the certificate request {name}"))?;
        approve(&api, request).await
    }

    /// Approves every CertificateSigningRequest that is undecided and `wanted`; gives their names.
    pub async fn approve_csrs(&self, wanted: impl Fn(&CertificateSigningRequest) -> bool) -> Result<Vec<String>> {
        approve_requests(&self.client(), wanted).await
    }

    fn write_kubeconfig(&self, name: &str, user: &Value) -> Result<PathBuf> {
        let file: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let path = self.dir().join(format!("{file}.kubeconfig"));
        write_private(&path, &kubeconfig(self.name(), self.server_url(), self.ca_pem(), user))?;
        Ok(path)
    }
}

/// A token of one day for a service account, which must exist.
pub(crate) async fn account_token(client: &kube::Client, namespace: &str, name: &str) -> Result<String> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() }),
        ..TokenRequest::default()
    };
    let answered = api
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .with_context(|| format!("asking for a token of the service account {namespace}/{name}"))?;
    answered.status.and_then(|status| status.token).context("the token request came back without a token")
}

/// [`Cluster::approve_csrs`] for any cluster.
pub(crate) async fn approve_requests(
    client: &kube::Client,
    wanted: impl Fn(&CertificateSigningRequest) -> bool,
) -> Result<Vec<String>> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let mut approved = Vec::new();
    for request in api.list(&ListParams::default()).await.context("listing certificate requests")?.items {
        let decided = request.status.as_ref().is_some_and(|status| status.conditions.is_some());
        if !decided && wanted(&request) {
            approved.push(request.metadata.name.clone().unwrap_or_default());
            approve(&api, request).await?;
        }
    }
    Ok(approved)
}

async fn approve(api: &Api<CertificateSigningRequest>, mut request: CertificateSigningRequest) -> Result<()> {
    let name = request.metadata.name.clone().unwrap_or_default();
    let now = Some(Time(Timestamp::now()));
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("TestbedApproval".to_owned()),
            message: Some("approved by the testbed".to_owned()),
            last_update_time: now.clone(),
            last_transition_time: now,
        },
    );
    api.replace_subresource("approval", &name, &PostParams::default(), &request)
        .await
        .with_context(|| format!("approving the certificate request {name}"))?;
    Ok(())
}

/// Clients of one account, one for each tokio runtime.
///
/// A kube client's worker task lives in the runtime that made it, and each `#[tokio::test]` has its
/// own: a client that outlives its test answers "buffer's worker closed unexpectedly" to the next.
/// With this, tests share a cluster.
pub(crate) struct Clients {
    config: kube::Config,
    by_runtime: Mutex<HashMap<tokio::runtime::Id, kube::Client>>,
}

impl Clients {
    /// For a kubeconfig file.
    pub(crate) async fn new(path: &Path) -> Result<Self> {
        crate::install_crypto();
        let read = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
        let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("using {}", path.display()))?;
        let clients = Self { config, by_runtime: Mutex::default() };
        clients.get()?;
        Ok(clients)
    }

    /// This runtime's client.
    pub(crate) fn get(&self) -> Result<kube::Client> {
        let runtime = tokio::runtime::Handle::try_current().context("a Kubernetes client needs a tokio runtime")?.id();
        let mut clients = self.by_runtime.lock();
        if let Some(client) = clients.get(&runtime) {
            return Ok(client.clone());
        }
        let client = kube::Client::try_from(self.config.clone()).context("making a Kubernetes client")?;
        clients.insert(runtime, client.clone());
        Ok(client)
    }
}
