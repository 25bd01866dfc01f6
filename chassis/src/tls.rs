//! TLS with certificates that change while the process runs.
//!
//! ```text
//! ReloadingIdentity (our certificate and key)      --+
//!                                                    +--> server_config / client_config --> rustls
//! TrustRoots        (the CAs we take peers from)   --+
//! ```
//! Both are read again from their files, and each new connection uses what is newest. Open connections stay.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig, client::Resumption, crypto::CryptoProvider, server::NoServerSessionStorage};

mod identity;
mod peer;
mod roots;

pub use identity::{IdentityError, ReloadingIdentity};
pub use peer::{PeerError, PeerIdentity};
pub use roots::{RootsError, TrustRoots};

use roots::{ClientVerifier, ServerVerifier};

/// Whether and how a server asks its clients for certificates.
#[derive(Clone, Debug, Default)]
pub enum ClientAuth {
    /// Not at all.
    #[default]
    None,
    /// A client may show a certificate; if it does, it must be signed by one of the roots. For a server that also takes
    /// tokens, as a kubelet does.
    Optional(Arc<TrustRoots>),
    /// A client must show a certificate signed by one of the roots.
    Required(Arc<TrustRoots>),
}

/// Makes `ring` the TLS provider of the process. Call it first in every `main` and every test that uses TLS: with two
/// providers compiled in, the first use of TLS would panic. More than one call does no harm.
pub fn install_crypto_provider() {
    // The error only says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The rustls configuration of a server. `alpn` in order of preference, for instance `["h2", "http/1.1"]`.
pub fn server_config(identity: Arc<ReloadingIdentity>, client_auth: ClientAuth, alpn: &[&str]) -> ServerConfig {
    install_crypto_provider();
    let builder = ServerConfig::builder();
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional(roots) => builder.with_client_cert_verifier(ClientVerifier::new(roots, false)),
        ClientAuth::Required(roots) => builder.with_client_cert_verifier(ClientVerifier::new(roots, true)),
    };
    let mut config = builder.with_cert_resolver(identity);
    config.alpn_protocols = protocols(alpn);
    // A resumed session skips the certificates: a CA that was taken out would go on being trusted.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// The rustls configuration of a client that takes servers signed by `roots`, and shows `identity` if it has one.
pub fn client_config(roots: Arc<TrustRoots>, identity: Option<Arc<ReloadingIdentity>>, alpn: &[&str]) -> ClientConfig {
    install_crypto_provider();
    // Not dangerous here: the verifier is webpki's, only looked up anew for each connection.
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(ServerVerifier::new(roots));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(alpn);
    // As for servers.
    config.resumption = Resumption::disabled();
    config
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests;
