//! Our own certificate and key, renewed while the process runs.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider;

/// How often the files are looked at. The kubelet itself brings a changed Secret into a volume within about a minute.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// A certificate that has not been renewed by now will probably not be.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(24);

/// A certificate chain and its key; new connections use the newest.
///
/// It is both a server's and a client's certificate resolver for rustls.
pub struct ReloadingIdentity {
    files: Option<Files>,
    current: ArcSwap<Current>,
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

struct Current {
    certified: Arc<CertifiedKey>,
    /// Of the PEM text it came from.
    digest: u64,
    not_after: Timestamp,
}

/// Why a certificate and key cannot be used. No text holds anything of the key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("the {what} file {} cannot be read: {source}; check the path, and that the Secret is mounted", path.display())]
    Read {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no certificate in the PEM text.
    #[error("{0} holds no PEM certificate (-----BEGIN CERTIFICATE-----)")]
    NoCertificate(String),
    /// There is no key in the PEM text.
    #[error("{0} holds no PEM private key (PKCS#8, PKCS#1 or SEC1, not encrypted)")]
    NoKey(String),
    /// The first certificate is not X.509.
    #[error("the certificate in {0} is not valid X.509")]
    Malformed(String),
    /// The key is of an unknown kind, or not that of the certificate.
    #[error("the key does not fit the certificate in {origin}: {source}")]
    Mismatch {
        /// Where they come from.
        origin: String,
        /// What rustls said.
        source: rustls::Error,
    },
}

impl ReloadingIdentity {
    /// Reads a certificate chain (leaf first) and its key from PEM files.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Arc<Self>, IdentityError> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let current = files.read()?;
        Ok(Arc::new(Self { files: Some(files), current: ArcSwap::from_pointee(current) }))
    }

    /// Takes a certificate chain (leaf first) and its key as PEM text.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Arc<Self>, IdentityError> {
        let current = Current::parse(certificate, key, "the given PEM text")?;
        Ok(Arc::new(Self { files: None, current: ArcSwap::from_pointee(current) }))
    }

    /// Replaces certificate and key; connections made from now on use them. On an error the old ones stay.
    pub fn replace_pem(&self, certificate: &[u8], key: &[u8]) -> Result<(), IdentityError> {
        self.current.store(Arc::new(Current::parse(certificate, key, "the given PEM text")?));
        Ok(())
    }

    /// Reads the files again; says whether they had changed. On an error the old ones stay.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let Some(files) = &self.files else { return Ok(false) };
        let newest = files.read()?;
        if newest.digest == self.current.load().digest {
            return Ok(false);
        }
        self.current.store(Arc::new(newest));
        Ok(true)
    }

    /// When the certificate runs out.
    pub fn not_after(&self) -> Timestamp {
        self.current.load().not_after
    }

    /// The certificate in use, leaf first.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().certified.cert.clone()
    }

    /// Looks every 30 s whether the files changed, by content (a Secret's files are swapped as links, with times that
    /// say little), and complains of a certificate that runs out. Ends when `stop` is cancelled.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let (mut last_error, mut last_complaint) = (String::new(), None);
        loop {
            match self.reload() {
                Ok(changed) => {
                    if changed {
                        tracing::info!(from = %self.origin(), not_after = %self.not_after(), "the certificate was renewed");
                    }
                    last_error.clear();
                }
                // Certificate and key are two files: half way through a renewal they do not fit each other.
                Err(error) if last_error != error.to_string() => {
                    tracing::warn!(%error, "the certificate is not renewed; the old one stays in use");
                    last_error = error.to_string();
                }
                Err(_) => {}
            }
            // By the wall clock: a machine that slept has not counted the time.
            let complaint = complaint(self.not_after(), Timestamp::now());
            if complaint != last_complaint
                && let Some(complaint) = complaint
            {
                tracing::error!(from = %self.origin(), not_after = %self.not_after(), "the certificate {complaint}: renew it");
            }
            last_complaint = complaint;
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn origin(&self) -> String {
        self.files.as_ref().map_or_else(|| "memory".to_owned(), |files| files.certificate.display().to_string())
    }
}

impl Files {
    fn read(&self) -> Result<Current, IdentityError> {
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|source| IdentityError::Read { what, path: path.to_owned(), source })
        };
        let (certificate, key) = (read("certificate", &self.certificate)?, read("key", &self.key)?);
        Current::parse(&certificate, &key, &format!("{} and {}", self.certificate.display(), self.key.display()))
    }
}

impl Current {
    fn parse(certificate: &[u8], key: &[u8], origin: &str) -> Result<Self, IdentityError> {
        let origin = || origin.to_owned();
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| IdentityError::NoCertificate(origin()))?;
        let leaf = chain.first().ok_or_else(|| IdentityError::NoCertificate(origin()))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Malformed(origin()))?;
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX);
        let key_der = PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::NoKey(origin()))?;
        let certified = CertifiedKey::from_der(chain, key_der, &provider())
            .map_err(|source| IdentityError::Mismatch { origin: origin(), source })?;
        let mut hasher = DefaultHasher::new();
        (certificate, key).hash(&mut hasher);
        Ok(Self { certified: Arc::new(certified), digest: hasher.finish(), not_after })
    }
}

fn complaint(not_after: Timestamp, now: Timestamp) -> Option<&'static str> {
    let left = not_after.duration_since(now);
    if left <= SignedDuration::ZERO {
        Some("has run out")
    } else if left <= EXPIRES_SOON {
        Some("runs out within a day")
    } else {
        None
    }
}

impl ResolvesServerCert for ReloadingIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certified.clone())
    }
}

impl ResolvesClientCert for ReloadingIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Shows nothing of the key.
impl fmt::Debug for ReloadingIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadingIdentity")
            .field("from", &self.origin())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn complaints_come_a_day_ahead() {
        let now: Timestamp = "2026-11-24T08:00:00Z".parse().unwrap();
        let at = |hours| complaint(now + SignedDuration::from_hours(hours), now);
        assert_eq!(
            [at(25), at(24), at(0), at(-1)],
            [None, Some("runs out within a day"), Some("has run out"), Some("has run out")]
        );
    }
}
