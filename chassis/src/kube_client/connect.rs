//! From a kube configuration to a connection pool that speaks to its API server, with its client certificate.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            self,
            connect::{
                Connection, HttpConnector,
                proxy::{SocksV5, Tunnel},
            },
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Config,
    client::{Body, ConfigExt},
};
use rustls::ClientConfig;
use tower::{BoxError, Layer, Service, ServiceExt, util::BoxCloneSyncService};

use super::{
    BuildError,
    fenced::{self, FencedBody},
    guarded::{Guarded, PoolFence},
};

/// TCP and TLS together; beyond that an address is as good as dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For HTTP/1.1, which has no pings: the kernel asks whether the peer's machine is still there.
const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const TCP_KEEPALIVE_RETRIES: u32 = 2;
/// Unused connections are closed before a load balancer forgets them (Azure's do so after 240 s).
const POOL_IDLE: Duration = Duration::from_secs(90);
/// What one answer may have on the way unread: a page of 500 pods passes in a few rounds.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What all answers of a connection may have on the way unread: room for 64 readers that do not read at all.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// Sends a request relative to the API server; no headers of its own, no limits, no retries.
pub(super) type Transport = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// HTTP/2 pings. A peer that hangs or vanished is seen after interval + timeout = 20 s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pings {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

impl Default for Pings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(10) }
    }
}

/// Which versions of HTTP are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpVersions {
    Http1,
    Http2OrHttp1,
}

/// What all connections of one configuration share: address, trust, client certificate, proxy.
pub(super) struct Connector {
    config: Config,
    tls: ClientConfig,
}

impl Connector {
    /// The configuration's own credentials are used as far as they are a client certificate.
    pub(super) fn new(config: Config) -> Result<Self, BuildError> {
        crate::tls::install_crypto_provider();
        let tls = config.rustls_client_config().map_err(BuildError::Credentials)?;
        Ok(Self { config, tls })
    }

    /// The address, and how it is trusted.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether both lead to one place: the same address, reached and trusted in the same way.
    pub(super) fn same_place(&self, other: &Config) -> bool {
        let mine = &self.config;
        mine.cluster_url == other.cluster_url
            && mine.proxy_url == other.proxy_url
            && mine.tls_server_name == other.tls_server_name
            && mine.accept_invalid_certs == other.accept_invalid_certs
            && mine.root_cert == other.root_cert
    }

    /// A new pool of connections.
    pub(super) fn transport(&self, versions: HttpVersions, pings: Pings) -> Result<Transport, BuildError> {
        self.guarded_transport(versions, pings, None)
    }

    /// A new pool of connections, by which nothing leaves while the fence is closed.
    pub(super) fn guarded_transport(
        &self,
        versions: HttpVersions,
        pings: Pings,
        fence: Option<PoolFence>,
    ) -> Result<Transport, BuildError> {
        let tcp = tcp_connector();
        let Some(proxy) = &self.config.proxy_url else { return self.over(tcp, versions, pings, fence) };
        let refused = || BuildError::Proxy(without_credentials(proxy));
        // The matcher separates the proxy's address from the user and password in it.
        let matcher = Matcher::builder().all(proxy.to_string()).build();
        let proxied = matcher.intercept(&self.config.cluster_url).ok_or_else(refused)?;
        match proxy.scheme_str() {
            Some("http") => {
                let mut tunnel = Tunnel::new(proxied.uri().clone(), tcp);
                if let Some(auth) = proxied.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                self.over(tunnel, versions, pings, fence)
            }
            Some("https") => {
                let to_proxy = HttpsConnectorBuilder::new()
                    .with_tls_config(self.tls.clone())
                    .https_or_http()
                    .enable_http1()
                    .wrap_connector(tcp);
                let mut tunnel = Tunnel::new(proxied.uri().clone(), to_proxy);
                if let Some(auth) = proxied.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                self.over(tunnel, versions, pings, fence)
            }
            Some("socks5" | "socks5h") => {
                let mut socks = SocksV5::new(proxied.uri().clone(), tcp);
                if let Some((user, password)) = proxied.raw_auth() {
                    socks = socks.with_auth(user.to_owned(), password.to_owned());
                }
                self.over(socks, versions, pings, fence)
            }
            _ => Err(refused()),
        }
    }

    fn over<C>(
        &self,
        connector: C,
        versions: HttpVersions,
        pings: Pings,
        fence: Option<PoolFence>,
    ) -> Result<Transport, BuildError>
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Connection + Read + Write + Send + Unpin + 'static,
        C::Future: Send + 'static,
        C::Error: Into<BoxError>,
    {
        let mut builder = HttpsConnectorBuilder::new().with_tls_config(self.tls.clone()).https_or_http();
        if let Some(name) = &self.config.tls_server_name {
            let name = name.clone().try_into().map_err(|_| BuildError::ServerName(name.clone()))?;
            builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let https = match versions {
            HttpVersions::Http1 => builder.enable_http1().wrap_connector(connector),
            HttpVersions::Http2OrHttp1 => builder.enable_all_versions().wrap_connector(connector),
        };
        let pool: legacy::Client<_, FencedBody> = pool_builder(pings).build(ConnectTimeout { inner: https, fence });
        let pool = pool.map_err(BoxError::from).map_request(fenced::guard);
        Ok(BoxCloneSyncService::new(self.config.base_uri_layer().layer(pool)))
    }
}

fn tcp_connector() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(TCP_KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(TCP_KEEPALIVE_RETRIES));
    tcp
}

fn pool_builder(pings: Pings) -> legacy::Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http2_keep_alive_interval(pings.interval)
        .http2_keep_alive_timeout(pings.timeout)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

/// Bounds TCP, proxy and TLS together: `HttpConnector`'s own limit ends with TCP, and a server that hangs in the TLS
/// handshake would otherwise hold a request for ever.
#[derive(Clone)]
struct ConnectTimeout<C> {
    inner: C,
    fence: Option<PoolFence>,
}

impl<C> Service<Uri> for ConnectTimeout<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
    C::Response: Send,
{
    type Response = Guarded<C::Response>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Guarded<C::Response>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let authority = destination.authority().map(ToString::to_string).unwrap_or_default();
        let connecting = self.inner.call(destination);
        let fence = self.fence.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(connected) => connected.map(|connection| Guarded::new(connection, fence)),
                Err(_) => Err(format!("no connection to {authority} within {} s", CONNECT_TIMEOUT.as_secs()).into()),
            }
        })
    }
}

fn without_credentials(proxy: &Uri) -> String {
    format!("{}://{}", proxy.scheme_str().unwrap_or("?"), proxy.host().unwrap_or("?"))
}
