//! The client: a channel that connects when it is first used, and again whenever it must.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Uri, uri::Scheme};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::tls::{ReloadingIdentity, TrustRoots, client_config};

/// Until a call's first answer; as the server's.
const TIMEOUT: Duration = Duration::from_secs(30);
/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that vanished is seen after interval + timeout = 20 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once on one channel; further ones wait.
const CONCURRENCY_MAX: usize = 256;

/// How to trust and be trusted.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// Who may have signed the server's certificate.
    pub roots: Arc<TrustRoots>,
    /// Our certificate.
    pub identity: Option<Arc<ReloadingIdentity>>,
    /// The name the server's certificate must have; `None` for the host of the address. A virtual node's is the node's
    /// name, whatever its address.
    pub server_name: Option<String>,
}

/// Time limits of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelOptions {
    /// Until a call's first answer.
    pub timeout: Duration,
    /// Until a connection stands.
    pub connect_timeout: Duration,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self { timeout: TIMEOUT, connect_timeout: CONNECT_TIMEOUT }
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The address is not one.
    #[error("{0:?} is not an address for gRPC: give https://HOST:PORT, or http://HOST:PORT without TLS")]
    Address(String),
    /// The scheme and the TLS settings contradict each other.
    #[error("{0} asks for TLS and no CA is given to check it with")]
    NoTls(Uri),
    /// The name to check is not one.
    #[error("{0:?} is neither a DNS name nor an IP address, so no certificate can have it")]
    ServerName(String),
}

/// A channel to `address`, `https://HOST:PORT` (with `tls`) or `http://HOST:PORT` (without). It does not connect yet.
pub fn channel(address: &str, tls: Option<&ClientTls>, options: ChannelOptions) -> Result<Channel, ChannelError> {
    let refused = || ChannelError::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| refused())?;
    let host = uri.host().ok_or_else(refused)?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(refused()),
    };
    let endpoint = Endpoint::from(as_plain(&uri).ok_or_else(refused)?)
        .origin(uri.clone())
        .timeout(options.timeout)
        .concurrency_limit(CONCURRENCY_MAX)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if !secure {
        return Ok(endpoint.connect_timeout(options.connect_timeout).connect_lazy());
    }
    let tls = tls.ok_or_else(|| ChannelError::NoTls(uri.clone()))?;
    let name = tls.server_name.clone().unwrap_or_else(|| host.clone());
    let connector = Connector {
        tls: Arc::new(client_config(tls.roots.clone(), tls.identity.clone(), &["h2"])),
        name: ServerName::try_from(name.clone()).map_err(|_| ChannelError::ServerName(name))?,
        host,
        port: uri.port_u16().unwrap_or(443),
        timeout: options.connect_timeout,
    };
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// tonic refuses `https` unless its own TLS is used, which cannot reload certificates; ours hides behind `http`.
fn as_plain(uri: &Uri) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.path_and_query.get_or_insert_with(|| http::uri::PathAndQuery::from_static("/"));
    Uri::from_parts(parts).ok()
}

#[derive(Clone)]
struct Connector {
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
    host: String,
    port: u16,
    timeout: Duration,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let connecting = async {
                let stream = TcpStream::connect((this.host.as_str(), this.port)).await?;
                stream.set_nodelay(true)?;
                TlsConnector::from(this.tls).connect(this.name, stream).await
            };
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {:?}", this.timeout));
            Ok(TokioIo::new(tokio::time::timeout(this.timeout, connecting).await.map_err(late)??))
        })
    }
}
