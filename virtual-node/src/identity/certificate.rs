//! The key, the request for a certificate, and what a certificate at hand is still good for. No I/O and no clock.

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use sha2::{Digest, Sha256};
use x509_parser::pem::parse_x509_pem;

/// Group of every node: `O` of the subject, wanted by the signer `kubernetes.io/kube-apiserver-client-kubelet`
/// (kubernetes `pkg/apis/certificates/helpers.go`).
pub const ORGANIZATION: &str = "system:nodes";

/// A stored certificate is used at the start while more than this part of its life is left; otherwise a new one is
/// asked for at once, since the renewal in the background (70 to 90 %) has evidently not come through.
const REMAINING_FRACTION_MIN: f64 = 0.2;

/// The signer of kube-controller-manager dates certificates back by this much, for clocks that are behind (kubernetes
/// `pkg/controller/certificates/signer`). It is no part of the life: a certificate of some minutes would else be near
/// its end from the start.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// Name of the request: at most 253 characters; the node's name is cut so that prefix and digest fit.
const NODE_PART_LENGTH_MAX: usize = 200;

/// Hex digits of the key's digest in the name of its request: a new key gets a new request.
const KEY_DIGEST_DIGITS: usize = 10;

/// User name of a node.
pub fn common_name(node_name: &str) -> String {
    format!("system:node:{node_name}")
}

/// A private key for which a certificate is asked. Its Debug form shows nothing.
pub struct PendingKey(KeyPair);

impl PendingKey {
    /// A new key: ECDSA P-256, which the signer takes with the usages `digital signature` and `client auth`.
    pub fn generate() -> Result<Self, BadCredential> {
        KeyPair::generate().map(Self).map_err(|_| BadCredential::KeyUnreadable)
    }

    /// Reads a PKCS#8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, BadCredential> {
        KeyPair::from_pem(pem).map(Self).map_err(|_| BadCredential::KeyUnreadable)
    }

    /// Writes a PKCS#8 PEM.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The certification request of this key for the node: PEM of PKCS#10.
    pub fn request_pem(&self, node_name: &str) -> Result<String, BadCredential> {
        let request = params(node_name).serialize_request(&self.0).map_err(|_| BadCredential::KeyUnreadable)?;
        request.pem().map_err(|_| BadCredential::KeyUnreadable)
    }

    /// Name of the CertificateSigningRequest of this key. The same key gives the same name, so that a restart finds
    /// the request it made before, and two replicas with one stored key share one.
    pub fn request_name(&self, node_name: &str) -> String {
        let digest = hex::encode(Sha256::digest(self.0.subject_public_key_info()));
        let node = &node_name[..node_name.len().min(NODE_PART_LENGTH_MAX)];
        format!("virtual-node-{}-{}", node.trim_end_matches(['.', '-']), &digest[..KEY_DIGEST_DIGITS])
    }
}

impl std::fmt::Debug for PendingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PendingKey(..)")
    }
}

fn params(node_name: &str) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANIZATION);
    name.push(DnType::CommonName, common_name(node_name));
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params
}

/// A client certificate with its key, checked to belong together and to the node.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    certificate_pem: String,
    key_pem: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// Why a certificate and key are not usable as the node's credential. No variant carries key material.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCredential {
    /// The key does not parse.
    #[error("the private key is not a readable PKCS#8 PEM")]
    KeyUnreadable,
    /// The certificate does not parse.
    #[error("the certificate is not a readable PEM")]
    CertificateUnreadable,
    /// The certificate is of another key.
    #[error("the certificate was not issued for the private key beside it")]
    KeyMismatch,
    /// The certificate is somebody else's.
    #[error("the certificate is of `{found}`, wanted `{wanted}` in group `system:nodes`")]
    WrongSubject {
        /// Common name in the certificate.
        found: String,
        /// Common name of our node.
        wanted: String,
    },
}

impl Credential {
    /// Checks that certificate and key belong together and to the node. Expiry is [`Credential::usable`]'s business.
    pub fn new(certificate_pem: &str, key_pem: &str, node_name: &str) -> Result<Self, BadCredential> {
        let key = KeyPair::from_pem(key_pem).map_err(|_| BadCredential::KeyUnreadable)?;
        let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).map_err(|_| BadCredential::CertificateUnreadable)?;
        let certificate = pem.parse_x509().map_err(|_| BadCredential::CertificateUnreadable)?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(BadCredential::KeyMismatch);
        }
        let wanted = common_name(node_name);
        let found = certificate.subject().iter_common_name().find_map(|n| n.as_str().ok()).unwrap_or_default();
        let in_group = certificate.subject().iter_organization().any(|o| o.as_str() == Ok(ORGANIZATION));
        if found != wanted || !in_group {
            return Err(BadCredential::WrongSubject { found: found.to_owned(), wanted });
        }
        let at = |seconds| Timestamp::from_second(seconds).map_err(|_| BadCredential::CertificateUnreadable);
        Ok(Self {
            not_before: at(certificate.validity().not_before.timestamp())?,
            not_after: at(certificate.validity().not_after.timestamp())?,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// The certificate chain as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key as PKCS#8 PEM. For the Secret only.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Whether it may serve a process that starts now: valid, with more than a fifth of its life left.
    pub fn usable(&self, now: Timestamp) -> bool {
        now < self.not_after && self.remaining(now) > REMAINING_FRACTION_MIN
    }

    /// Whether the API server still takes it.
    pub fn valid(&self, now: Timestamp) -> bool {
        now < self.not_after
    }

    /// When to renew it: at the given part of its life, 0 at its start and 1 at its end.
    pub fn renew_at(&self, fraction: f64) -> Timestamp {
        let life = self.not_after.duration_since(self.issued());
        self.issued().checked_add(life.mul_f64(fraction)).unwrap_or(self.not_after)
    }

    fn remaining(&self, now: Timestamp) -> f64 {
        let life = self.not_after.duration_since(self.issued()).as_secs_f64();
        if life <= 0.0 { 0.0 } else { self.not_after.duration_since(now).as_secs_f64() / life }
    }

    /// When it was issued, as far as can be told.
    fn issued(&self) -> Timestamp {
        let issued = self.not_before.checked_add(BACKDATE).unwrap_or(self.not_before);
        if issued < self.not_after { issued } else { self.not_before }
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use jiff::ToSpan;
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    use super::*;

    /// A certificate of the key for the node, as the cluster's CA would issue it at `issued`, for one hour.
    fn sign(key: &PendingKey, node_name: &str, issued: Timestamp) -> String {
        let mut params = params(node_name);
        let at = |t: Timestamp| std::time::SystemTime::from(t).into();
        params.not_before = at(issued.checked_sub(BACKDATE).unwrap());
        params.not_after = at(issued.checked_add(1.hour()).unwrap());
        let ca = KeyPair::generate().unwrap();
        params.signed_by(&key.0, &rcgen::Issuer::new(CertificateParams::default(), ca)).unwrap().pem()
    }

    fn start() -> Timestamp {
        "2026-11-24T08:00:00Z".parse().unwrap()
    }

    fn credential() -> Credential {
        let key = PendingKey::generate().unwrap();
        let certificate = sign(&key, "vn-a", start());
        Credential::new(&certificate, &key.to_pem(), "vn-a").unwrap()
    }

    #[test]
    fn the_request_names_the_node_and_nothing_else() {
        let key = PendingKey::generate().unwrap();
        let (_, pem) = parse_x509_pem(key.request_pem("vn-a").unwrap().as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        assert_eq!(request.certification_request_info.subject.to_string(), "O=system:nodes, CN=system:node:vn-a");
        assert!(request.requested_extensions().is_none(), "the signer refuses subjectAltNames");
    }

    #[test]
    fn a_certificate_of_our_request_is_taken_with_its_validity() {
        let credential = credential();
        assert_eq!(credential.issued(), start());
        assert_eq!(credential.not_after.duration_since(start()), SignedDuration::from_hours(1));
    }

    #[test]
    fn a_certificate_of_another_node_or_key_is_refused() {
        let key = PendingKey::generate().unwrap();
        let certificate = sign(&key, "vn-a", start());
        let refusal = Credential::new(&certificate, &key.to_pem(), "vn-b").unwrap_err();
        assert_eq!(
            refusal,
            BadCredential::WrongSubject { found: "system:node:vn-a".into(), wanted: "system:node:vn-b".into() }
        );
        let other = PendingKey::generate().unwrap();
        assert_eq!(Credential::new(&certificate, &other.to_pem(), "vn-a").unwrap_err(), BadCredential::KeyMismatch);
    }

    #[test]
    fn garbage_is_refused_without_showing_it() {
        let key = PendingKey::generate().unwrap();
        assert_eq!(
            Credential::new("nonsense", &key.to_pem(), "vn-a").unwrap_err(),
            BadCredential::CertificateUnreadable
        );
        let refusal = Credential::new("nonsense", "SECRET", "vn-a").unwrap_err();
        assert!(!refusal.to_string().contains("SECRET"));
        assert!(!format!("{:?}", credential()).contains("PRIVATE"));
    }

    #[test]
    fn it_is_usable_until_a_fifth_of_its_life_is_left() {
        let credential = credential();
        let minute = |m: i64| start().checked_add(m.minutes()).unwrap();
        assert!(credential.usable(minute(0)));
        assert!(credential.usable(minute(47)));
        assert!(!credential.usable(minute(49)));
        assert!(credential.valid(minute(59)));
        assert!(!credential.valid(minute(60)));
        assert_eq!(credential.renew_at(0.75), minute(45));
    }

    #[test]
    fn one_key_gives_one_request_name_that_is_a_valid_object_name() {
        let key = PendingKey::generate().unwrap();
        let again = PendingKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.request_name("vn-a"), again.request_name("vn-a"));
        assert_ne!(key.request_name("vn-a"), PendingKey::generate().unwrap().request_name("vn-a"));
        assert!(key.request_name(&"a".repeat(253)).len() <= 253);
    }
}
