//! Who a peer is, by the certificate it showed.

use rustls_pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

/// The names in a peer's certificate. For Kubernetes the common name is the user and the organizations are its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The subject's CN.
    pub common_name: Option<String>,
    /// The subject's O fields.
    pub organizations: Vec<String>,
    /// The DNS names among the subject alternative names.
    pub dns_names: Vec<String>,
    /// The URIs among the subject alternative names (SPIFFE).
    pub uris: Vec<String>,
}

/// A certificate that is not valid X.509, though its signature was.
#[derive(Debug, thiserror::Error)]
#[error("the peer's certificate cannot be read: {0}")]
pub struct PeerError(String);

impl PeerIdentity {
    /// Reads the names out of a certificate. It does not verify it: only use it on one that TLS has verified.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| PeerError(error.to_string()))?;
        let mut identity = Self {
            common_name: parsed.subject().iter_common_name().find_map(|name| name.as_str().ok()).map(str::to_owned),
            organizations: parsed
                .subject()
                .iter_organization()
                .filter_map(|name| name.as_str().ok())
                .map(str::to_owned)
                .collect(),
            ..Self::default()
        };
        let names = parsed.subject_alternative_name().map_err(|error| PeerError(error.to_string()))?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => identity.dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => identity.uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        Ok(identity)
    }

    /// Whether one of its names (CN, DNS name or URI) is `name`.
    pub fn is(&self, name: &str) -> bool {
        self.common_name.as_deref() == Some(name)
            || self.dns_names.iter().any(|dns_name| dns_name == name)
            || self.uris.iter().any(|uri| uri == name)
    }
}
