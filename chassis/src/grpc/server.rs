//! The server: health, reflection, TLS, callers and limits around a service's own gRPC services.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use http::Request;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_health::server::HealthReporter;
use tower::Service;

use super::{
    callers::{Callers, CallersLayer},
    listener::accept,
};
use crate::tls::{ClientAuth, IdentityError, ReloadingIdentity, RootsError, TrustRoots, server_config};

/// Until a call's first answer; streams go on after it.
const DEADLINE: Duration = Duration::from_secs(30);
/// Calls at once on one connection.
const CONCURRENCY_MAX: usize = 256;
/// A client that vanished is seen after interval + timeout = 20 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls may go on after the request to stop; streams that do not end are cut off then.
const GRACE: Duration = Duration::from_secs(5);
/// Connections that wait to be served after their handshake.
const ACCEPTED_MAX: usize = 16;

/// The gRPC flags of a service; flatten them into the service's own arguments.
#[derive(Args, Clone, Debug)]
pub struct GrpcArgs {
    /// Where gRPC is served
    #[arg(long, env = "TENSILE_GRPC_ADDRESS", default_value = "0.0.0.0:9443", value_name = "IP:PORT")]
    pub grpc_address: SocketAddr,

    /// Certificate chain of the gRPC server, PEM; without it gRPC is served in plain text
    #[arg(long, requires = "grpc_key_file", value_name = "FILE")]
    pub grpc_cert_file: Option<PathBuf>,

    /// Private key of the gRPC server, PEM
    #[arg(long, requires = "grpc_cert_file", value_name = "FILE")]
    pub grpc_key_file: Option<PathBuf>,

    /// CA whose clients may call, PEM; without it clients need no certificate
    #[arg(long, requires = "grpc_cert_file", value_name = "FILE")]
    pub grpc_client_ca_file: Option<PathBuf>,
}

/// Why gRPC is not served.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// The port cannot be had.
    #[error("cannot listen on {address} for gRPC: {source}; choose another with --grpc-address")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server's certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The clients' CA cannot be used.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// A file descriptor set for reflection is broken.
    #[error("the description of the gRPC services cannot be used: {0}")]
    Descriptors(#[from] tonic_reflection::server::Error),
    /// The server stopped.
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

impl GrpcArgs {
    /// Takes the port. Do it early, so that a port that is in use is an error at once.
    pub async fn bind(&self) -> Result<TcpListener, GrpcError> {
        let address = self.grpc_address;
        TcpListener::bind(address).await.map_err(|source| GrpcError::Bind { address, source })
    }

    /// Reads the certificate files, if there are any.
    pub fn identity(&self) -> Result<Option<Arc<ReloadingIdentity>>, GrpcError> {
        match (&self.grpc_cert_file, &self.grpc_key_file) {
            (Some(certificate), Some(key)) => Ok(Some(ReloadingIdentity::from_files(certificate, key)?)),
            _ => Ok(None),
        }
    }

    /// Reads the CA file, if there is one.
    pub fn client_auth(&self) -> Result<ClientAuth, GrpcError> {
        match &self.grpc_client_ca_file {
            Some(file) => Ok(ClientAuth::Required(TrustRoots::from_file(file)?)),
            None => Ok(ClientAuth::None),
        }
    }
}

/// A gRPC server in the making.
pub struct GrpcServer {
    routes: RoutesBuilder,
    health: HealthReporter,
    descriptors: Vec<&'static [u8]>,
    tls: Option<(Arc<ReloadingIdentity>, ClientAuth)>,
    callers: Callers,
    deadline: Duration,
}

impl Default for GrpcServer {
    fn default() -> Self {
        Self::new()
    }
}

impl GrpcServer {
    /// A server with the standard health service.
    pub fn new() -> Self {
        let (health, service) = tonic_health::server::health_reporter();
        let mut routes = RoutesBuilder::default();
        routes.add_service(service);
        Self { routes, health, descriptors: Vec::new(), tls: None, callers: Callers::any(), deadline: DEADLINE }
    }

    /// Adds a service.
    #[must_use]
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self
    }

    /// Adds an encoded file descriptor set to what reflection shows.
    #[must_use]
    pub fn descriptors(mut self, encoded: &'static [u8]) -> Self {
        self.descriptors.push(encoded);
        self
    }

    /// Serves over TLS; see [`ReloadingIdentity::keep_fresh`] for renewal.
    #[must_use]
    pub fn tls(mut self, identity: Arc<ReloadingIdentity>, client_auth: ClientAuth) -> Self {
        self.tls = Some((identity, client_auth));
        self
    }

    /// Limits who may call what. A handler finds the caller as [`crate::tls::PeerIdentity`] in the request's extensions.
    #[must_use]
    pub fn callers(mut self, callers: Callers) -> Self {
        self.callers = callers;
        self
    }

    /// How long a call may take to its first answer (a caller's shorter `grpc-timeout` counts).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets what the health service says; it says `SERVING` for the server as a whole from the start.
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Serves until `stop` is cancelled, then gives calls 5 s to end. Streams should end by themselves on the same token.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<(), GrpcError> {
        let routes = self.routes.routes();
        let routes = if self.descriptors.is_empty() { routes } else { with_reflection(routes, &self.descriptors)? };
        let tls = self.tls.map(|(identity, client_auth)| Arc::new(server_config(identity, client_auth, &["h2"])));
        let (accepted, peers) = mpsc::channel(ACCEPTED_MAX);
        let accepting = tokio::spawn(accept(listener, tls, accepted, stop.clone()));
        let serving = Server::builder()
            .timeout(self.deadline)
            .concurrency_limit_per_connection(CONCURRENCY_MAX)
            .max_concurrent_streams(u32::try_from(CONCURRENCY_MAX).ok())
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(CallersLayer { callers: Arc::new(self.callers) })
            .add_routes(routes)
            .serve_with_incoming_shutdown(ReceiverStream::new(peers), stop.clone().cancelled_owned());
        let grace_over = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        let served = tokio::select! {
            served = serving => served,
            () = grace_over => {
                tracing::debug!("gRPC streams did not end in time and are cut off");
                Ok(())
            }
        };
        accepting.abort();
        Ok(served?)
    }
}

fn with_reflection(routes: Routes, descriptors: &[&'static [u8]]) -> Result<Routes, GrpcError> {
    let mut builder = tonic_reflection::server::Builder::configure();
    for encoded in descriptors {
        builder = builder.register_encoded_file_descriptor_set(encoded);
    }
    Ok(routes.add_service(builder.build_v1()?))
}
