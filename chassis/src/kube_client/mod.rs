//! The client of a Kubernetes API server, made for bursts and for bad days.
//!
//! ```text
//! Api<K> -> slot (requests in flight) -> token bucket -> timeout -> credentials of now -> HTTP/2 connection
//!              ^------------- wait, when the server or the network says so -----------'
//! ```
//!
//! Where the cluster is and who we are there may change while we run: see [`Access`].
//!
//! Watches and followed logs pass by slots, bucket and retries: they stay open, and their callers recover on their own
//! ([`crate::watch`]). They also have a connection of their own (as have the writes of a leader, see [`fenced`]): on a shared one, readers that are slow to take their
//! watch events would use up HTTP/2's flow control window, and every other request would wait for them.

use std::time::Duration;

use http::HeaderValue;
use kube::Client;

mod access;
mod body;
mod config;
mod connect;
mod credential;
mod endpoint;
mod exec;
#[cfg(feature = "fault-points")]
pub mod fault;
mod fenced;
mod guarded;
mod kept;
mod limit;
mod metrics;
mod oidc;
mod policy;
mod proof;
mod proxy;
mod sections;
mod service;
mod streaming;

pub(crate) use access::chain;
pub use access::{Access, IntoAccess};
pub use config::{ConfigError, load_config};
pub use credential::CredentialError;
pub use fenced::fenced;
pub use kept::AccessSource;
pub use metrics::KubeMetrics;

use connect::{HttpVersions, Pings};
use endpoint::Endpoint;
use service::{Limits, Pipeline};
use streaming::Streaming;

/// Requests each second: what an API server on two cores can answer, so that the server's own limits
/// (429 by priority and fairness) come first. Peers default to 5 to 100, and that is what made them slow.
const QPS: f32 = 2_000.0;
/// Two seconds' worth of requests at once.
const BURST: u32 = 4_000;
/// More at once only queue up: an API server has 400 + 200 seats for all of its clients.
const CONCURRENCY_MAX: usize = 256;
/// An API server cuts a request off at 60 s; half of that is where an answer stops being useful.
const TIMEOUT: Duration = Duration::from_secs(30);
/// With the waits between tries, about 6 s of trouble is bridged.
const RETRIES_MAX: u32 = 5;

/// How a client behaves. `Default` fits a virtual node; set `role` and `user_agent`.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Requests each second that may start; 0 or less means no limit.
    pub qps: f32,
    /// How many requests may start at once after a quiet time.
    pub burst: u32,
    /// How many requests may be under way; further ones wait in order.
    pub concurrency_max: usize,
    /// From sending a request to the last byte of its answer. For a watch: to the first line of the answer.
    pub timeout: Duration,
    /// How often one request is tried again, at most.
    pub retries_max: u32,
    /// Sent as `User-Agent`; an API server's audit log shows it.
    pub user_agent: String,
    /// Whether to offer HTTP/2 (falls back to HTTP/1.1 where the server does not speak it).
    pub http2: bool,
    /// Which side this is, `upper` or `lower`; a label of the metrics.
    pub role: &'static str,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            qps: QPS,
            burst: BURST,
            concurrency_max: CONCURRENCY_MAX,
            timeout: TIMEOUT,
            retries_max: RETRIES_MAX,
            user_agent: concat!("tensile/", env!("CARGO_PKG_VERSION")).to_owned(),
            http2: true,
            role: "upper",
        }
    }
}

/// A mark in a request's extensions: do not try again, the caller does that.
#[derive(Clone, Copy, Debug)]
pub struct NoRetry;

/// Why no client can be made from a configuration.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The user agent cannot be sent.
    #[error("the user agent {0:?} holds characters that HTTP does not allow")]
    UserAgent(String),
    /// The proxy of the kubeconfig or of HTTPS_PROXY is of an unknown kind.
    #[error("the proxy {0} cannot be used: its scheme must be http, https or socks5")]
    Proxy(String),
    /// A certificate, key, token or server name cannot be used.
    #[error("the kubeconfig's credentials cannot be used: {0}")]
    Credentials(#[source] kube::Error),
    /// There is no credential.
    #[error(transparent)]
    Credential(CredentialError),
    /// A configuration with a plugin or an issuer, where nobody would ask it again.
    #[error("a credential plugin or issuer is asked by Access::open only")]
    Asks,
    /// The access has no certificate of its own.
    #[error("only an access of Access::with_certificate has a certificate to replace")]
    NotDerived,
    /// `tls-server-name` is not a name.
    #[error("the kubeconfig's tls-server-name {0:?} is neither a DNS name nor an IP address")]
    ServerName(String),
}

/// Why a kubeconfig gives no access.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It cannot be used.
    #[error(transparent)]
    Config(ConfigError),
    /// No credential can be had, or no connection be made.
    #[error("{0}")]
    Unusable(String),
}

/// Makes the client for everything but upgraded connections and raw log streams.
///
/// It survives restarts of the API server: a connection that is cut, or does not answer pings for 20 s, is replaced.
/// Must be called inside a tokio runtime.
pub fn build(access: impl IntoAccess, options: &ClientOptions, metrics: &KubeMetrics) -> Result<Client, BuildError> {
    build_with(&access.into_access()?, options, metrics, Pings::default())
}

fn build_with(
    access: &Access,
    options: &ClientOptions,
    metrics: &KubeMetrics,
    pings: Pings,
) -> Result<Client, BuildError> {
    let user_agent = user_agent(&options.user_agent)?;
    let versions = if options.http2 { HttpVersions::Http2OrHttp1 } else { HttpVersions::Http1 };
    let endpoint = || Endpoint::new(access, versions, pings, &user_agent);
    let leaders = Endpoint::of_leader(access, versions, pings, &user_agent)?;
    let pipeline = Pipeline::new([endpoint()?, leaders, endpoint()?], Limits::new(options), metrics);
    Ok(Client::new(pipeline, access.default_namespace()))
}

/// Makes a client that only speaks HTTP/1.1 and has neither limits, timeouts (but for connecting) nor retries.
///
/// For requests whose connection is taken over (exec, attach, port-forward) and for followed logs.
pub fn build_streaming(access: impl IntoAccess, agent: &str) -> Result<Client, BuildError> {
    let access = access.into_access()?;
    let endpoint = Endpoint::new(&access, HttpVersions::Http1, Pings::default(), &user_agent(agent)?)?;
    Ok(Client::new(Streaming::new(endpoint), access.default_namespace()))
}

fn user_agent(text: &str) -> Result<HeaderValue, BuildError> {
    HeaderValue::from_str(text).map_err(|_| BuildError::UserAgent(text.to_owned()))
}

#[cfg(test)]
mod access_tests;
#[cfg(test)]
mod tests;
