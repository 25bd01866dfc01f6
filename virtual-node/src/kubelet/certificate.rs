//! The serving certificate: from files that are read again when they change, or self-signed and renewed in time.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often files are looked at. A renewed Secret takes up to a minute to appear in a volume, so more often is no use.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Life of a self-signed certificate, and when it is replaced. Nobody pins it: only its key's possession counts.
const SELF_SIGNED_LIFE: Duration = Duration::from_hours(365 * 24);
const SELF_SIGNED_RENEW_AFTER: Duration = Duration::from_hours(300 * 24);

const DAY: Duration = Duration::from_hours(24);

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file that cannot be read.
    #[error("cannot read {}: {source}; check --kubelet-tls-cert-file and --kubelet-tls-key-file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file that holds something else.
    #[error("{} holds no PEM {what}; check --kubelet-tls-cert-file and --kubelet-tls-key-file", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Key and certificate do not belong together, or their kind is not supported.
    #[error("the serving certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// No certificate could be made.
    #[error("cannot make a self-signed serving certificate: {0}")]
    SelfSigned(#[from] rcgen::Error),
}

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// PEM files.
    Files {
        /// The certificate, its intermediates after it.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Made here.
    SelfSigned {
        /// The node's name: the common name `system:node:NAME` and a DNS name.
        node_name: String,
        /// The node's address.
        address: IpAddr,
    },
}

/// The certificate of now. Each new connection takes the newest.
pub struct ServingCertificate {
    source: Source,
    current: ArcSwap<CertifiedKey>,
}

impl ServingCertificate {
    /// Loads or makes the first certificate.
    pub fn load(source: Source) -> Result<Self, CertificateError> {
        let current = ArcSwap::new(Arc::new(source.load()?));
        Ok(Self { source, current })
    }

    /// Keeps the certificate fresh until shutdown. Files that cannot be used change nothing: what was served is served on.
    pub async fn keep_fresh(&self, shutdown: CancellationToken) {
        let mut made = tokio::time::Instant::now();
        let mut complaint = String::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            if matches!(self.source, Source::SelfSigned { .. }) && made.elapsed() < SELF_SIGNED_RENEW_AFTER {
                continue;
            }
            match self.source.load() {
                Ok(fresh) => {
                    complaint.clear();
                    if fresh.cert != self.current.load().cert {
                        info!("serving with a new kubelet certificate");
                        self.current.store(Arc::new(fresh));
                        made = tokio::time::Instant::now();
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != complaint {
                        warn!(error = text, "the kubelet certificate was not renewed; the one before stays in use");
                        complaint = text;
                    }
                }
            }
        }
    }
}

impl Source {
    fn load(&self) -> Result<CertifiedKey, CertificateError> {
        let (chain, key) = match self {
            Self::Files { certificate, key } => from_files(certificate, key)?,
            Self::SelfSigned { node_name, address } => self_signed(node_name, *address)?,
        };
        Ok(CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?)
    }
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCertificate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn from_files(certificate: &Path, key: &Path) -> Result<ChainAndKey, CertificateError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source });
    let not_pem = |path: &Path, what| CertificateError::NotPem { path: path.to_owned(), what };
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| not_pem(certificate, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| not_pem(key, "private key"))?;
    Ok((chain, key))
}

fn self_signed(node_name: &str, address: IpAddr) -> Result<ChainAndKey, CertificateError> {
    let mut params = CertificateParams::new(vec![node_name.to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(address));
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node_name}"));
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Whole days, which is all that rcgen's constructor takes. They are rounded down, so clocks that are behind by some
    // hours are no trouble on most days; the day before makes that all days.
    let midnight = |time: jiff::Timestamp| {
        let day = time.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs())
    };
    let now = jiff::Timestamp::now();
    params.not_before = midnight(now - DAY);
    params.not_after = midnight(now + SELF_SIGNED_LIFE);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    fn source() -> Source {
        Source::SelfSigned { node_name: "edge".into(), address: "10.1.2.3".parse().unwrap() }
    }

    #[test]
    fn a_self_signed_certificate_names_the_node_and_its_address_and_is_valid_now() {
        let certificate = ServingCertificate::load(source()).unwrap();
        let current = certificate.current.load();
        let (_, parsed) = X509Certificate::from_der(&current.cert[0]).unwrap();
        assert!(parsed.validity().is_valid());
        let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value.general_names);
        assert!(names.contains("edge") && names.contains("[10, 1, 2, 3]"), "{names}");
    }

    #[test]
    fn files_that_are_missing_or_hold_something_else_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let load = || {
            ServingCertificate::load(Source::Files { certificate: certificate.clone(), key: key.clone() })
                .unwrap_err()
                .to_string()
        };
        assert!(load().contains("tls.crt"), "{}", load());
        std::fs::write(&certificate, "hello").unwrap();
        assert!(load().contains("tls.crt holds no PEM certificate"), "{}", load());
    }

    #[test]
    fn files_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["edge".to_owned()]).unwrap();
        std::fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        ServingCertificate::load(Source::Files { certificate, key }).unwrap();
    }
}
