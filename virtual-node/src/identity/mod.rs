//! Who we are towards the upper API server: a node, with a `system:node:NAME` client certificate.
//!
//! The Node authorizer and the NodeRestriction admission plugin then bound what this process can ever see or touch,
//! as they do for a kubelet. The certificate comes from a CertificateSigningRequest that a person, or the install
//! step, approves once; it is kept in a Secret, so that restarts and the second replica need no new approval.
//!
//! ```text
//!  certificate  (pure) what a stored credential is good for
//!  store        the Secret that holds it
//!  signing      ask for a certificate and wait for it
//!  renewal      ask for the next one in time
//! ```

pub mod certificate;
mod renewal;
mod signing;
mod store;

use std::{path::PathBuf, sync::Arc};

use tensile_chassis::{
    kube_client::{Access, AccessError, AccessSource, BuildError, KubeMetrics},
    readiness::Gate,
};
use tokio_util::sync::CancellationToken;

pub use self::{renewal::Renewal, signing::SigningError, store::StoreError};
use self::{signing::Requester, store::CredentialStore};

/// How the process proves that it is the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IdentityMode {
    /// A client certificate of `system:node:NAME`, requested by a CertificateSigningRequest.
    Csr,
    /// The ServiceAccount alone. For clusters whose signer `kubernetes.io/kube-apiserver-client-kubelet` is not to be
    /// had. Needs the wider rights of `deploy/rbac-upper-service-account.yaml`: among them reading Secrets of all
    /// namespaces, where the Node authorizer would only show those of our own pods.
    ServiceAccount,
    /// The identity of the kubeconfig that `--identity-kubeconfig` names.
    Kubeconfig,
}

/// Arguments of the node identity.
#[derive(Clone, Debug, clap::Args)]
pub struct IdentityArgs {
    /// How to act as the node in the upper cluster
    #[arg(long = "identity", value_enum, default_value = "csr", env = "TENSILE_IDENTITY")]
    pub mode: IdentityMode,

    /// Namespace of the Secret that keeps the node certificate (csr)
    #[arg(long = "identity-secret-namespace", default_value = "tensile-system", env = "TENSILE_NAMESPACE")]
    pub secret_namespace: String,

    /// Name of the Secret that keeps the node certificate (csr); the default is NODE-NAME-identity
    #[arg(long = "identity-secret-name")]
    pub secret_name: Option<String>,

    /// Lifetime to ask for, in seconds, at least 600 (csr); the signer decides when it is not given
    #[arg(long = "identity-expiration-seconds", value_parser = clap::value_parser!(i32).range(600..))]
    pub expiration_seconds: Option<i32>,

    /// Kubeconfig with the node's identity (kubeconfig)
    #[arg(long = "identity-kubeconfig", required_if_eq("mode", "kubeconfig"))]
    pub kubeconfig: Option<PathBuf>,
}

/// Builds a client of an access, with the service's rate limits, retries and metrics.
pub type ClientBuilder = Arc<dyn Fn(&Access) -> Result<kube::Client, BuildError> + Send + Sync>;

/// What [`obtain`] needs.
pub struct IdentityContext {
    /// Name of the Node.
    pub node_name: String,
    /// How to reach the upper API server as our ServiceAccount. Address, CA and proxy hold for the node identity too.
    pub account_access: Access,
    /// Acts as our ServiceAccount.
    pub account: kube::Client,
    /// Makes the node identity's clients.
    pub build: ClientBuilder,
    /// How many clients with a connection of their own are wanted besides.
    pub watch_clients: usize,
    /// Closed; says what is waited for.
    pub gate: Gate,
    /// Of the kube clients.
    pub metrics: KubeMetrics,
}

impl IdentityContext {
    fn clients(&self, access: &Access) -> Result<Vec<kube::Client>, IdentityError> {
        (0..self.watch_clients).map(|_| (self.build)(access)).collect::<Result<_, _>>().map_err(IdentityError::Client)
    }
}

/// The node's identity, ready to use.
pub struct NodeIdentity {
    /// Acts as the node. Stays valid across renewals: clone it freely.
    pub client: kube::Client,
    /// The same identity, each on a connection of its own, for the many watches of single objects.
    pub watch_clients: Vec<kube::Client>,
    kept: KeptFresh,
}

/// What has to be done to go on being the node.
enum KeptFresh {
    /// Nothing that is not done for the account already.
    WithTheAccount,
    /// A certificate to be renewed.
    Certificate(Box<Renewal>),
    /// A kubeconfig to be followed.
    Kubeconfig(Access),
}

impl NodeIdentity {
    /// Renews the identity in time, until `shutdown`. Returns at `shutdown` only, whatever the mode.
    pub async fn run(self, shutdown: CancellationToken) {
        match self.kept {
            KeptFresh::WithTheAccount => shutdown.cancelled().await,
            KeptFresh::Certificate(renewal) => renewal.run(shutdown).await,
            KeptFresh::Kubeconfig(access) => access.keep_fresh(shutdown).await,
        }
    }
}

/// Why there is no node identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The certificate could not be had.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The Secret with the certificate could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kubeconfig is missing or wrong.
    #[error("--identity-kubeconfig: {0}")]
    Kubeconfig(#[source] AccessError),
    /// Mode `kubeconfig` without a file.
    #[error("--identity=kubeconfig needs --identity-kubeconfig FILE")]
    NoKubeconfig,
    /// The client could not be made of the configuration.
    #[error("cannot build the client of the node identity: {0}")]
    Client(#[source] BuildError),
}

/// Obtains the identity. In mode `csr` this waits, without limit, until the request is approved, and says so in the
/// log every 30 seconds; cancel it at shutdown by dropping the future.
pub async fn obtain(args: &IdentityArgs, context: IdentityContext) -> Result<NodeIdentity, IdentityError> {
    match args.mode {
        IdentityMode::ServiceAccount => {
            tracing::warn!(
                "acting with the ServiceAccount alone: the Node authorizer does not bound what this process may see"
            );
            let watch_clients = context.clients(&context.account_access)?;
            Ok(NodeIdentity { client: context.account, watch_clients, kept: KeptFresh::WithTheAccount })
        }
        IdentityMode::Kubeconfig => {
            let path = args.kubeconfig.clone().ok_or(IdentityError::NoKubeconfig)?;
            let source =
                AccessSource { path: Some(path), context: None, flag: "--identity-kubeconfig", role: "upper-node" };
            let access = Access::open(source, &context.metrics).await.map_err(IdentityError::Kubeconfig)?;
            let watch_clients = context.clients(&access)?;
            let client = (context.build)(&access).map_err(IdentityError::Client)?;
            Ok(NodeIdentity { client, watch_clients, kept: KeptFresh::Kubeconfig(access) })
        }
        IdentityMode::Csr => by_certificate(args, context).await,
    }
}

async fn by_certificate(args: &IdentityArgs, context: IdentityContext) -> Result<NodeIdentity, IdentityError> {
    let secret_name = args.secret_name.clone().unwrap_or_else(|| format!("{}-identity", context.node_name));
    let store = CredentialStore::new(context.account.clone(), &args.secret_namespace, secret_name, &context.node_name);
    let requester = Requester::new(store, context.node_name.clone(), args.expiration_seconds);
    let credential = requester.first(&context.account, &context.gate).await?;
    let access = context
        .account_access
        .with_certificate(credential.certificate_pem(), credential.key_pem())
        .map_err(IdentityError::Client)?;
    let watch_clients = context.clients(&access)?;
    let client = (context.build)(&access).map_err(IdentityError::Client)?;
    let renewal = Renewal::new(requester, context.account, client.clone(), access, credential);
    Ok(NodeIdentity { client, watch_clients, kept: KeptFresh::Certificate(Box::new(renewal)) })
}
