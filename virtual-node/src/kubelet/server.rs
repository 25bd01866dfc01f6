//! The server: bound connections, each with TLS, time limits and an orderly end.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use rustls_pki_types::CertificateDer;
use tensile_chassis::{admin::Metrics, readiness::Gate};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    KubeletArgs, PodLookup,
    authentication::Authenticator,
    authorization::Authorizer,
    certificate::{CertificateError, ServingCertificate, Source},
    client_ca::ClientCa,
    metrics::{KubeletMetrics, Streams},
    review::Reviewer,
    service::Service,
    stream::Lives,
    tls::server_config,
    usage::Usage,
};
use crate::context::{LowerClients, Settings, UpperClients};

/// Connections beyond those that streams need: API servers keep some idle, health checks and refusals need some too.
const SPARE_CONNECTIONS: u32 = 256;

/// Time for a TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Time for a request's headers, which includes the time that a connection is idle. An API server keeps idle connections
/// for 90 s and asks again on a new one when an old one turns out closed.
const HEADERS_MAX: Duration = Duration::from_mins(1);

/// Bytes of a request's headers, as for a kubelet: a command travels in the request line.
const HEADERS_BYTES_MAX: usize = 1 << 20;

/// A peer that vanished without a word is noticed after this long without traffic, and this many probes so far apart.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// The wait after a failed accept: it fails when file descriptors or memory run out, and trying at once makes it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Time after the cut of streams for their tasks to end.
const CUT_MAX: Duration = Duration::from_secs(2);

/// Why the kubelet API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The address is taken, or not this machine's.
    #[error(
        "cannot listen on {address} for the kubelet API: {source}; choose another address or port with --kubelet-address"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No serving certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The TLS library refuses its configuration.
    #[error("cannot set TLS up for the kubelet API: {0}")]
    Tls(#[from] rustls::Error),
}

/// The kubelet API server, bound to its address.
pub struct KubeletServer {
    listener: TcpListener,
    local_address: SocketAddr,
    acceptor: TlsAcceptor,
    connections: Arc<Semaphore>,
    service: Arc<Service>,
    client_ca: Arc<ClientCa>,
    certificate: Arc<ServingCertificate>,
    account: kube::Client,
    gate: Gate,
    drain_max: Duration,
}

impl KubeletServer {
    /// Binds the address and loads the certificate. Connections are accepted once [`run`](Self::run) is called.
    ///
    /// `gate` opens when the authorities of client certificates are known: before that no API server is let in.
    pub async fn bind(
        args: &KubeletArgs,
        settings: &Settings,
        upper: UpperClients,
        lower: LowerClients,
        lookup: Arc<dyn PodLookup>,
        gate: Gate,
        registry: &mut Registry,
    ) -> Result<Self, KubeletError> {
        let source = match (&args.kubelet_tls_cert_file, &args.kubelet_tls_key_file) {
            (Some(certificate), Some(key)) => Source::Files { certificate: certificate.clone(), key: key.clone() },
            _ => Source::SelfSigned { node_name: settings.node_name.clone(), address: settings.node_address },
        };
        let certificate = Arc::new(ServingCertificate::load(source)?);
        let acceptor = TlsAcceptor::from(Arc::new(server_config(certificate.clone())?));
        let listen = |source| KubeletError::Listen { address: args.kubelet_address, source };
        let listener = TcpListener::bind(args.kubelet_address).await.map_err(listen)?;
        let local_address = listener.local_addr().map_err(listen)?;

        let metrics = KubeletMetrics::register(registry);
        let client_ca = Arc::new(ClientCa::default());
        let reviewer = Arc::new(Reviewer::new(upper.node.clone()));
        let service = Service {
            node_name: settings.node_name.clone(),
            authenticator: Authenticator::new(client_ca.clone(), reviewer.clone()),
            authorizer: Authorizer::new(settings.node_name.clone(), reviewer),
            usage: Usage::new(lower.api, lookup.clone(), settings),
            own_metrics: OnceLock::new(),
            lookup,
            upper: upper.node,
            lower: lower.streaming,
            streams: Streams::new(args.kubelet_streams_max, metrics.clone()),
            metrics,
            lives: Lives { tracker: TaskTracker::new(), cut: CancellationToken::new() },
        };
        Ok(Self {
            listener,
            local_address,
            acceptor,
            connections: Arc::new(Semaphore::new((args.kubelet_streams_max + SPARE_CONNECTIONS) as usize)),
            service: Arc::new(service),
            client_ca,
            certificate,
            account: upper.account,
            gate,
            drain_max: Duration::from_secs(args.kubelet_drain_seconds),
        })
    }

    /// The port for the node's `status.daemonEndpoints.kubeletEndpoint`.
    pub fn port(&self) -> u16 {
        self.local_address.port()
    }

    /// Has `/metrics` serve these.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        // Only the first ones count.
        let _ = self.service.own_metrics.set(metrics);
        self
    }

    /// Serves until `shutdown`, then lets open streams end for the time of `--kubelet-drain-seconds`, then cuts them.
    pub async fn run(self, shutdown: CancellationToken) {
        info!(address = %self.local_address, "serving the kubelet API");
        let lives = self.service.lives.clone();
        let side_jobs = async {
            tokio::join!(
                self.client_ca.follow(self.account.clone(), self.gate.clone(), shutdown.clone()),
                self.certificate.keep_fresh(shutdown.clone()),
            );
        };
        tokio::join!(side_jobs, self.accept(&shutdown));
        // Closed before waiting, so that callers are refused at once and go to the other replica.
        drop(self.listener);
        lives.tracker.close();
        if timeout(self.drain_max, lives.tracker.wait()).await.is_err() {
            warn!(
                connections = lives.tracker.len(),
                seconds = self.drain_max.as_secs(),
                "kubelet API streams did not end in time and are cut"
            );
        }
        lives.cut.cancel();
        if timeout(CUT_MAX, lives.tracker.wait()).await.is_err() {
            warn!(tasks = lives.tracker.len(), "some kubelet API streams did not end when cut");
        }
    }

    async fn accept(&self, shutdown: &CancellationToken) {
        loop {
            let accepted = async {
                // A place first: connections that find none wait in the kernel's queue, which is bounded too.
                let place = self.connections.clone().acquire_owned().await.map_err(io::Error::other)?;
                let (stream, peer) = self.listener.accept().await?;
                Ok::<_, io::Error>((place, stream, peer))
            };
            let (place, stream, peer) = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = accepted => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        warn!(%error, "cannot accept a connection to the kubelet API");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (acceptor, service, shutdown) = (self.acceptor.clone(), self.service.clone(), shutdown.clone());
            self.service.lives.tracker.spawn(async move {
                let _place = place;
                let cut = service.lives.cut.clone();
                tokio::select! {
                    () = serve(acceptor, service, stream, peer, shutdown) => {}
                    () = cut.cancelled() => {}
                }
            });
        }
    }
}

/// Serves one connection until it ends, or is upgraded: then its stream lives on by itself.
async fn serve(
    acceptor: TlsAcceptor,
    service: Arc<Service>,
    stream: TcpStream,
    peer: SocketAddr,
    shutdown: CancellationToken,
) {
    if let Err(error) = prepare(&stream) {
        debug!(%peer, %error, "cannot set a kubelet API connection's options");
    }
    let stream = match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return debug!(%peer, "TLS handshake took too long"),
    };
    let chain = client_chain(&stream);
    let answer = service_fn(|request| {
        let (service, chain) = (service.clone(), chain.clone());
        async move { service.answer(&chain, request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "kubelet API connection ended");
    }
}

/// Keystrokes go out at once, and peers that vanished are noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn client_chain(stream: &TlsStream<TcpStream>) -> Arc<[CertificateDer<'static>]> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap_or_default().iter().map(|certificate| certificate.clone().into_owned()).collect()
}
