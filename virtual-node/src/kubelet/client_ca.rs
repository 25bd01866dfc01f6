//! Who signs the client certificates that we accept: the upper API server's own `client-ca-file`.
//!
//! The API server publishes it in the ConfigMap `kube-system/extension-apiserver-authentication` for servers like this
//! one. It is watched, so that a rotated authority is known at once, and so is one that was withdrawn: certificates are
//! checked at each request, not only when the connection opens.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use rustls::{RootCertStore, server::WebPkiClientVerifier, server::danger::ClientCertVerifier};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use tensile_chassis::{
    readiness::{Gate, Readiness},
    watch::{Event, WatchOptions, watch},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The ConfigMap in `kube-system`, and its key that holds the authorities as PEM.
const CONFIG_MAP_NAMESPACE: &str = "kube-system";
const CONFIG_MAP_NAME: &str = "extension-apiserver-authentication";
const CONFIG_MAP_KEY: &str = "client-ca-file";

/// What is done about a missing authority, said wherever it is missed.
const CURE: &str = "the upper API server must run with --client-ca-file, and our account must be bound to the Role \
                    extension-apiserver-authentication-reader in kube-system";

/// Why a bundle of authorities is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// No PEM block of a certificate, or none that can be an authority.
    #[error("no usable certificate in {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME} key {CONFIG_MAP_KEY}: {CURE}")]
    Empty,
    /// The TLS library refuses the authorities.
    #[error("the authorities in {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME} cannot be used: {0}")]
    Refused(#[from] rustls::server::VerifierBuilderError),
}

/// Why a client certificate is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CertificateRefused {
    /// No authority is known yet.
    #[error("no client certificate authority is known yet: {CURE}")]
    NoAuthority,
    /// Not signed by the authority, expired, or not meant for clients.
    #[error("the client certificate is not accepted: {0}")]
    Invalid(#[from] rustls::Error),
    /// No certificate was sent.
    #[error("no client certificate was sent")]
    Missing,
}

/// The authorities of now. Replaced whole; readers never wait.
#[derive(Default)]
pub struct ClientCa {
    verifier: ArcSwapOption<Verifier>,
}

struct Verifier(Arc<dyn ClientCertVerifier>);

impl ClientCa {
    /// Takes a PEM bundle in place of the one before, and says how many authorities it holds. Certificates in it that
    /// cannot be read are left out, so that one bad entry does not lock everybody out.
    pub fn replace(&self, pem: &str) -> Result<usize, ClientCaError> {
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(ClientCaError::Empty);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        self.verifier.store(Some(Arc::new(Verifier(verifier))));
        Ok(added)
    }

    /// Nobody is accepted any longer.
    pub fn clear(&self) {
        self.verifier.store(None);
    }

    /// Checks a chain as the client sent it, its own certificate first, against the authorities and the clock of now.
    pub fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<(), CertificateRefused> {
        let (own, intermediates) = chain.split_first().ok_or(CertificateRefused::Missing)?;
        let verifier = self.verifier.load();
        let Some(verifier) = verifier.as_ref() else { return Err(CertificateRefused::NoAuthority) };
        verifier.0.verify_client_cert(own, intermediates, UnixTime::now())?;
        Ok(())
    }

    /// Follows the ConfigMap until shutdown. `gate` is open while an authority is known: what is known stays in force
    /// while the API server is away, so the watch's own troubles (it logs them) do not close it.
    pub async fn follow(&self, account: kube::Client, gate: Gate, shutdown: CancellationToken) {
        gate.set_unready(format!("{CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME} has not been read; {CURE}"));
        let api: Api<ConfigMap> = Api::namespaced(account, CONFIG_MAP_NAMESPACE);
        let options = WatchOptions {
            field_selector: Some(format!("metadata.name={CONFIG_MAP_NAME}")),
            ..WatchOptions::new("kubelet-client-ca")
        };
        let of_watch = Readiness::new().gate("kubelet-client-ca");
        let mut events = watch(api, options, of_watch);
        let mut listed = None;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Event::Restarted { .. }) => listed = None,
                Some(Event::Listed(config_map)) => listed = Some(config_map),
                Some(Event::ListDone) => self.take(listed.take().as_ref(), &gate),
                Some(Event::Applied(config_map)) => self.take(Some(&config_map), &gate),
                Some(Event::Deleted(_)) => self.take(None, &gate),
                Some(Event::Malformed { error, .. }) => warn!(error, "{CONFIG_MAP_NAME} cannot be read"),
            }
        }
    }

    fn take(&self, config_map: Option<&ConfigMap>, gate: &Gate) {
        let pem = config_map.and_then(|map| map.data.as_ref()?.get(CONFIG_MAP_KEY)).map_or("", String::as_str);
        match self.replace(pem) {
            Ok(count) => {
                info!(count, "client certificates are checked against the upper cluster's authorities");
                gate.set_ready();
            }
            Err(error) => {
                self.clear();
                warn!(%error, "client certificates cannot be checked: callers get 401");
                gate.set_unready(error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;

    fn authority() -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn client(issuer: &Issuer<'static, KeyPair>, usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.extended_key_usages = vec![usage];
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
    }

    #[test]
    fn only_client_certificates_of_the_authority_are_accepted() {
        let (pem, issuer) = authority();
        let (_, stranger) = authority();
        let ca = ClientCa::default();
        let good = client(&issuer, ExtendedKeyUsagePurpose::ClientAuth);
        assert!(matches!(ca.verify(std::slice::from_ref(&good)), Err(CertificateRefused::NoAuthority)));
        assert_eq!(ca.replace(&pem).unwrap(), 1);
        ca.verify(&[good]).unwrap();
        assert!(matches!(ca.verify(&[]), Err(CertificateRefused::Missing)));
        for bad in [
            client(&stranger, ExtendedKeyUsagePurpose::ClientAuth),
            client(&issuer, ExtendedKeyUsagePurpose::ServerAuth),
        ] {
            assert!(matches!(ca.verify(&[bad]), Err(CertificateRefused::Invalid(_))));
        }
    }

    #[test]
    fn a_withdrawn_authority_counts_no_longer() {
        let (old, old_issuer) = authority();
        let (new, new_issuer) = authority();
        let ca = ClientCa::default();
        let of_old = client(&old_issuer, ExtendedKeyUsagePurpose::ClientAuth);
        let of_new = client(&new_issuer, ExtendedKeyUsagePurpose::ClientAuth);
        assert_eq!(ca.replace(&format!("{old}{new}")).unwrap(), 2);
        ca.verify(std::slice::from_ref(&of_old)).unwrap();
        ca.verify(std::slice::from_ref(&of_new)).unwrap();
        ca.replace(&new).unwrap();
        ca.verify(&[of_old]).unwrap_err();
        ca.verify(&[of_new]).unwrap();
    }

    #[test]
    fn a_bundle_without_certificates_is_refused_with_the_cure() {
        let error = ClientCa::default().replace("not PEM").unwrap_err();
        assert!(error.to_string().contains("--client-ca-file"), "{error}");
    }
}
