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
//!  rotating     a kube client whose certificate can be exchanged while it is in use
//!  renewal      ask for the next one in time
//! ```

pub mod certificate;
mod renewal;
mod rotating;
mod signing;
mod store;

use std::{path::PathBuf, sync::Arc};

use tensile_chassis::kube_client::{BuildError, ConfigError, load_config};
use tokio_util::sync::CancellationToken;

use self::{certificate::Credential, rotating::rotating_client, signing::Requester, store::CredentialStore};
pub use self::{renewal::Renewal, signing::SigningError, store::StoreError};

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

/// Builds a client of a configuration, with the service's rate limits, retries and metrics.
pub type ClientBuilder = Arc<dyn Fn(kube::Config) -> Result<kube::Client, BuildError> + Send + Sync>;

/// What [`obtain`] needs.
pub struct IdentityContext {
    /// Name of the Node.
    pub node_name: String,
    /// How to reach the upper API server as our ServiceAccount. Address, CA and proxy hold for the node identity too.
    pub account_config: kube::Config,
    /// Acts as our ServiceAccount.
    pub account: kube::Client,
    /// Makes the node identity's client, at the start and after each renewal.
    pub build: ClientBuilder,
    /// How many clients with a connection of their own are wanted besides.
    pub watch_clients: usize,
}

impl IdentityContext {
    fn extra_clients(&self, config: &kube::Config) -> Result<Vec<kube::Client>, BuildError> {
        (0..self.watch_clients).map(|_| (self.build)(config.clone())).collect()
    }
}

/// The node's identity, ready to use.
pub struct NodeIdentity {
    /// Acts as the node. Stays valid across renewals: clone it freely.
    pub client: kube::Client,
    /// The same identity, each on a connection of its own, for the many watches of single objects.
    pub watch_clients: Vec<kube::Client>,
    renewal: Option<Renewal>,
}

impl NodeIdentity {
    /// Renews the certificate in time, until `shutdown`. Returns at `shutdown` only, whatever the mode.
    pub async fn run(self, shutdown: CancellationToken) {
        match self.renewal {
            Some(renewal) => renewal.run(shutdown).await,
            None => shutdown.cancelled().await,
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
    Kubeconfig(#[source] ConfigError),
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
            let watch_clients = context.extra_clients(&context.account_config).map_err(IdentityError::Client)?;
            Ok(NodeIdentity { client: context.account, watch_clients, renewal: None })
        }
        IdentityMode::Kubeconfig => {
            let path = args.kubeconfig.as_deref().ok_or(IdentityError::NoKubeconfig)?;
            let config = load_config(Some(path), None).await.map_err(IdentityError::Kubeconfig)?;
            let watch_clients = context.extra_clients(&config).map_err(IdentityError::Client)?;
            let client = (context.build)(config).map_err(IdentityError::Client)?;
            Ok(NodeIdentity { client, watch_clients, renewal: None })
        }
        IdentityMode::Csr => by_certificate(args, context).await,
    }
}

async fn by_certificate(args: &IdentityArgs, context: IdentityContext) -> Result<NodeIdentity, IdentityError> {
    let secret_name = args.secret_name.clone().unwrap_or_else(|| format!("{}-identity", context.node_name));
    let store = CredentialStore::new(context.account.clone(), &args.secret_namespace, secret_name, &context.node_name);
    let requester = Requester::new(store, context.node_name.clone(), args.expiration_seconds);
    let credential = requester.first(&context.account).await?;
    let config = config_with(&context.account_config, &credential);
    let (watch_clients, mut rotators): (Vec<_>, Vec<_>) =
        context.extra_clients(&config).map_err(IdentityError::Client)?.into_iter().map(rotating_client).unzip();
    let (client, rotator) = rotating_client((context.build)(config).map_err(IdentityError::Client)?);
    rotators.push(rotator);
    let renewal = Renewal::new(requester, context, credential, rotators);
    Ok(NodeIdentity { client, watch_clients, renewal: Some(renewal) })
}

/// The account's way to the API server with the node's certificate in place of the account's own credential.
fn config_with(account: &kube::Config, credential: &Credential) -> kube::Config {
    let mut config = account.clone();
    config.auth_info = credential.auth_info();
    config
}
