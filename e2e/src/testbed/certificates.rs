//! A cluster's certificates: its own CA, and leaves for servers and accounts.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::builder::ClusterBuilder;
use super::control_plane::Layout;

/// A certificate and its key, both PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key` (readable by this user alone) into `dir`.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let certificate = dir.join(format!("{name}.crt"));
        let key = dir.join(format!("{name}.key"));
        fs::write(&certificate, &self.certificate_pem).with_context(|| format!("writing {}", certificate.display()))?;
        write_private(&key, &self.key_pem)?;
        Ok((certificate, key))
    }
}

/// Writes a file that this user alone can read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

/// Signs certificates. Lives as long as the cluster.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pair: Pair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new self-signed CA.
    pub(crate) fn new(common_name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("making a CA key")?;
        let certificate = params.self_signed(&key).context("signing a CA certificate")?;
        let pair = Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() };
        Ok(Self { issuer: Issuer::new(params, key), pair })
    }

    /// The CA's own certificate and key.
    pub(crate) fn pair(&self) -> &Pair {
        &self.pair
    }

    /// A client certificate: Kubernetes reads the user from CN and the groups from O.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, groups)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, user)
    }

    /// A serving certificate for these names and addresses.
    pub(crate) fn server(&self, common_name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name, &[])?;
        for dns in names {
            params.subject_alt_names.push(SanType::DnsName((*dns).try_into().context("a DNS name")?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, common_name)
    }

    fn sign(&self, mut params: CertificateParams, subject: &str) -> Result<Pair> {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().with_context(|| format!("making a key for {subject}"))?;
        let certificate =
            params.signed_by(&key, &self.issuer).with_context(|| format!("signing a certificate for {subject}"))?;
        Ok(Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// Makes the cluster's CAs and certificates in `LAYOUT/pki` and gives the main CA.
pub(crate) fn write_all(layout: &Layout, wanted: &ClusterBuilder) -> Result<Authority> {
    let dir = &layout.pki_dir;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let authority = Authority::new(&format!("{}-ca", wanted.name))?;
    authority.pair().write(dir, "ca")?;
    let service_ip = first_service_ip(&wanted.service_cidr)?;
    authority
        .server(
            "kube-apiserver",
            &[
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ],
            &[layout.address, layout.advertise_address, IpAddr::V4(Ipv4Addr::LOCALHOST), service_ip],
        )?
        .write(dir, "apiserver")?;
    authority.client("kube-apiserver-kubelet-client", &["system:masters"])?.write(dir, "kubelet-client")?;
    let front_proxy = Authority::new(&format!("{}-front-proxy-ca", wanted.name))?;
    front_proxy.pair().write(dir, "front-proxy-ca")?;
    front_proxy.client("front-proxy-client", &[])?.write(dir, "front-proxy-client")?;
    write_token_key(dir)?;
    Ok(authority)
}

/// The first address of the range, which Kubernetes gives to the Service `kubernetes`.
fn first_service_ip(cidr: &str) -> Result<IpAddr> {
    let (base, _) = cidr.split_once('/').with_context(|| format!("the service range {cidr} has no prefix length"))?;
    let base: Ipv4Addr = base.parse().with_context(|| format!("the service range {cidr} is not IPv4"))?;
    Ok(IpAddr::V4(Ipv4Addr::from(u32::from(base) + 1)))
}

/// Makes the key that signs service account tokens: `tokens.key` (PKCS #8, P-256, which Kubernetes
/// uses as ES256), and `tokens.pub` to verify them.
fn write_token_key(dir: &Path) -> Result<()> {
    let key = KeyPair::generate().context("making the service account key")?;
    write_private(&dir.join("tokens.key"), &key.serialize_pem())?;
    fs::write(dir.join("tokens.pub"), key.public_key_pem()).context("writing the service accounts' public key")
}

/// At most two groups: rcgen keeps one value for each kind of name part, and the same object
/// identifier can be given as the named and as the custom kind.
fn name(common_name: &str, groups: &[&str]) -> Result<DistinguishedName> {
    anyhow::ensure!(
        groups.len() <= 2,
        "{common_name}: a client certificate made here holds at most 2 groups, not {}; bind the user's roles by name",
        groups.len()
    );
    let kinds = [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION_OID.to_vec())];
    let mut name = DistinguishedName::new();
    for (kind, group) in kinds.into_iter().zip(groups) {
        name.push(kind, *group);
    }
    name.push(DnType::CommonName, common_name);
    Ok(name)
}

/// X.520 organizationName.
const ORGANIZATION_OID: [u64; 4] = [2, 5, 4, 10];
