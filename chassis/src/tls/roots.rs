//! The certificate authorities that peers are taken from, renewed while the process runs.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use tokio_util::sync::CancellationToken;

use super::provider;

/// As for our own certificate.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// A set of certificate authorities; new connections use the newest.
pub struct TrustRoots {
    file: Option<PathBuf>,
    current: ArcSwap<Current>,
}

struct Current {
    pem: Vec<u8>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<dyn ServerCertVerifier>,
}

/// Why certificate authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read.
    #[error("the CA file {} cannot be read: {source}; check the path, and that it is mounted", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is none.
    #[error("{0} holds no PEM certificate of a CA (-----BEGIN CERTIFICATE-----)")]
    Empty(String),
    /// One of them is not usable.
    #[error("a CA certificate in {origin} cannot be used: {reason}")]
    Invalid {
        /// Where it comes from.
        origin: String,
        /// What rustls said.
        reason: String,
    },
}

impl TrustRoots {
    /// Reads a file of PEM certificates.
    pub fn from_file(path: &Path) -> Result<Arc<Self>, RootsError> {
        let current = read(path)?;
        Ok(Arc::new(Self { file: Some(path.to_owned()), current: ArcSwap::from_pointee(current) }))
    }

    /// Takes PEM certificates as text.
    pub fn from_pem(pem: &[u8]) -> Result<Arc<Self>, RootsError> {
        Ok(Arc::new(Self { file: None, current: ArcSwap::from_pointee(Current::parse(pem, "the given PEM text")?) }))
    }

    /// Replaces them for connections made from now on. On an error the old ones stay.
    pub fn replace_pem(&self, pem: &[u8]) -> Result<(), RootsError> {
        self.current.store(Arc::new(Current::parse(pem, "the given PEM text")?));
        Ok(())
    }

    /// Reads the file again; says whether it had changed. On an error the old ones stay.
    pub fn reload(&self) -> Result<bool, RootsError> {
        let Some(path) = &self.file else { return Ok(false) };
        let newest = read(path)?;
        if newest.pem == self.current.load().pem {
            return Ok(false);
        }
        self.current.store(Arc::new(newest));
        Ok(true)
    }

    /// Looks every 30 s whether the file changed. Ends when `stop` is cancelled.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut last_error = String::new();
        loop {
            match self.reload() {
                Ok(true) => tracing::info!(file = ?self.file, "the CA certificates were renewed"),
                Ok(false) => last_error.clear(),
                Err(error) if last_error != error.to_string() => {
                    tracing::warn!(%error, "the CA certificates are not renewed; the old ones stay in use");
                    last_error = error.to_string();
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

impl fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustRoots").field("file", &self.file).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Current, RootsError> {
    let pem = std::fs::read(path).map_err(|source| RootsError::Read { path: path.to_owned(), source })?;
    Current::parse(&pem, &path.display().to_string())
}

impl Current {
    fn parse(pem: &[u8], origin: &str) -> Result<Self, RootsError> {
        let invalid = |reason: String| RootsError::Invalid { origin: origin.to_owned(), reason };
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
            store.add(certificate).map_err(|error| invalid(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(RootsError::Empty(origin.to_owned()));
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider())
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(store, provider())
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Self { pem: pem.to_vec(), clients, servers })
    }
}

/// A server's check of its clients, against the newest roots.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    roots: Arc<TrustRoots>,
    mandatory: bool,
}

impl ClientVerifier {
    pub(super) fn new(roots: Arc<TrustRoots>, mandatory: bool) -> Arc<Self> {
        Arc::new(Self { roots, mandatory })
    }

    fn newest(&self) -> Arc<dyn ClientCertVerifier> {
        self.roots.current.load().clients.clone()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: the list would have to outlive a change of the roots, and clients then send what they have.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.newest().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.newest().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.newest().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.newest().supported_verify_schemes()
    }
}

/// A client's check of its servers, against the newest roots.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Arc<TrustRoots>,
}

impl ServerVerifier {
    pub(super) fn new(roots: Arc<TrustRoots>) -> Arc<Self> {
        Arc::new(Self { roots })
    }

    fn newest(&self) -> Arc<dyn ServerCertVerifier> {
        self.roots.current.load().servers.clone()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.newest().verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.newest().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.newest().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.newest().supported_verify_schemes()
    }
}
