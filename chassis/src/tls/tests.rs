//! Handshakes with certificates that change.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{io, path::Path};

use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::test_certs::{Issued, TestCa};

fn identity(issued: &Issued) -> Arc<ReloadingIdentity> {
    ReloadingIdentity::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap()
}

fn roots(ca: &TestCa) -> Arc<TrustRoots> {
    TrustRoots::from_pem(ca.pem().as_bytes()).unwrap()
}

/// Shakes hands over a pipe; returns what each end learned of the other: (server's names, client's names).
async fn shake(
    server: ServerConfig,
    client: ClientConfig,
    name: &str,
) -> io::Result<(PeerIdentity, Option<PeerIdentity>)> {
    let (near, far) = duplex(16 << 10);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let serve = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(near).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        Ok::<_, io::Error>(stream)
    };
    let call = async {
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, far).await?;
        // In TLS 1.3 a client learns only from the first byte whether its certificate was taken.
        stream.read_u8().await?;
        Ok::<_, io::Error>(stream)
    };
    let (served, called) = tokio::join!(serve, call);
    let (served, called) = (served?, called?);
    let of_client = served.get_ref().1.peer_certificates().and_then(<[_]>::first).map(read);
    Ok((read(&called.get_ref().1.peer_certificates().unwrap()[0]), of_client))
}

fn read(certificate: &CertificateDer<'_>) -> PeerIdentity {
    PeerIdentity::from_certificate(certificate).unwrap()
}

#[tokio::test]
async fn both_ends_learn_each_others_names() {
    let ca = TestCa::new("ca");
    let server = identity(&ca.issue("server", &[], &["node-1.test"]));
    let client = identity(&ca.issue("system:node:n", &["system:nodes", "others"], &["client.test"]));
    let server = server_config(server, ClientAuth::Required(roots(&ca)), &["h2"]);
    let (of_server, of_client) =
        shake(server, client_config(roots(&ca), Some(client), &["h2"]), "node-1.test").await.unwrap();
    assert_eq!(
        (of_server.common_name.as_deref(), of_server.dns_names.as_slice()),
        (Some("server"), &["node-1.test".to_owned()][..])
    );
    let of_client = of_client.unwrap();
    assert_eq!(of_client.common_name.as_deref(), Some("system:node:n"));
    assert_eq!(of_client.organizations, ["system:nodes", "others"]);
    assert!(of_client.is("client.test") && of_client.is("system:node:n") && !of_client.is("others"));
}

#[tokio::test]
async fn a_client_certificate_is_demanded_asked_for_or_not_looked_at() {
    let (ca, stranger) = (TestCa::new("ca"), TestCa::new("stranger"));
    let server = identity(&ca.issue("server", &[], &["s.test"]));
    let ours = identity(&ca.issue("ours", &[], &[]));
    let theirs = identity(&stranger.issue("theirs", &[], &[]));
    let attempt = async |auth: ClientAuth, client: Option<&Arc<ReloadingIdentity>>| {
        let client = client_config(roots(&ca), client.cloned(), &[]);
        shake(server_config(server.clone(), auth, &[]), client, "s.test").await.map(|(_, client)| client.is_some())
    };
    let (none, optional, required) =
        (|| ClientAuth::None, || ClientAuth::Optional(roots(&ca)), || ClientAuth::Required(roots(&ca)));
    assert!(!attempt(none(), Some(&theirs)).await.unwrap());
    assert!(!attempt(optional(), None).await.unwrap());
    assert!(attempt(optional(), Some(&ours)).await.unwrap());
    assert!(attempt(optional(), Some(&theirs)).await.is_err(), "a stranger's certificate was taken");
    assert!(attempt(required(), Some(&ours)).await.unwrap());
    assert!(attempt(required(), None).await.is_err());
    assert!(attempt(required(), Some(&theirs)).await.is_err());
}

#[tokio::test]
async fn a_server_of_another_ca_or_name_is_refused() {
    let ca = TestCa::new("ca");
    let server = || server_config(identity(&ca.issue("s", &[], &["s.test"])), ClientAuth::None, &[]);
    assert!(shake(server(), client_config(roots(&ca), None, &[]), "s.test").await.is_ok());
    assert!(shake(server(), client_config(roots(&ca), None, &[]), "other.test").await.is_err());
    assert!(shake(server(), client_config(roots(&TestCa::new("x")), None, &[]), "s.test").await.is_err());
}

fn write(folder: &Path, issued: &Issued) {
    std::fs::write(folder.join("tls.crt"), &issued.certificate).unwrap();
    std::fs::write(folder.join("tls.key"), &issued.key).unwrap();
}

#[tokio::test]
async fn new_connections_use_the_renewed_certificate_and_roots() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &old.issue("first", &[], &["s.test"]));
    let server = ReloadingIdentity::from_files(&folder.path().join("tls.crt"), &folder.path().join("tls.key")).unwrap();
    let trusted = roots(&old);
    // Made once, as a server makes them.
    let (server_config, client_config) =
        (server_config(server.clone(), ClientAuth::None, &[]), client_config(trusted.clone(), None, &[]));
    let common_name = async || {
        let (of_server, _) = shake(server_config.clone(), client_config.clone(), "s.test").await?;
        Ok::<_, io::Error>(of_server.common_name.unwrap())
    };
    assert_eq!(common_name().await.unwrap(), "first");
    assert!(!server.reload().unwrap(), "nothing had changed");
    write(folder.path(), &new.issue("second", &[], &["s.test"]));
    assert!(server.reload().unwrap());
    assert!(common_name().await.is_err(), "the new CA is not trusted yet");
    trusted.replace_pem(format!("{}{}", old.pem(), new.pem()).as_bytes()).unwrap();
    assert_eq!(common_name().await.unwrap(), "second");
}

#[tokio::test]
async fn half_a_renewal_keeps_the_old_certificate() {
    let ca = TestCa::new("ca");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &ca.issue("first", &[], &["s.test"]));
    let paths = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let server = ReloadingIdentity::from_files(&paths.0, &paths.1).unwrap();
    let second = ca.issue("second", &[], &["s.test"]);
    std::fs::write(&paths.0, &second.certificate).unwrap();
    assert!(matches!(server.reload(), Err(IdentityError::Mismatch { .. })));
    std::fs::remove_file(&paths.1).unwrap();
    assert!(matches!(server.reload(), Err(IdentityError::Read { what: "key", .. })));
    assert_eq!(read(&server.certificates()[0]).common_name.as_deref(), Some("first"));
    std::fs::write(&paths.1, &second.key).unwrap();
    assert!(server.reload().unwrap());
    assert_eq!(read(&server.certificates()[0]).common_name.as_deref(), Some("second"));
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_again_by_themselves() {
    let ca = TestCa::new("ca");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &ca.issue("first", &[], &[]));
    let server = ReloadingIdentity::from_files(&folder.path().join("tls.crt"), &folder.path().join("tls.key")).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(server.clone().keep_fresh(stop.clone()));
    tokio::task::yield_now().await;
    write(folder.path(), &ca.issue("second", &[], &[]));
    // In paused time this passes as soon as the task waits.
    tokio::time::sleep(std::time::Duration::from_secs(31)).await;
    assert_eq!(read(&server.certificates()[0]).common_name.as_deref(), Some("second"));
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn what_cannot_be_used_is_refused_with_its_origin_and_without_the_key() {
    let ca = TestCa::new("ca");
    let (one, two) = (ca.issue("one", &[], &[]), ca.issue("two", &[], &[]));
    let refusal = |certificate: &str, key: &str| {
        let error = ReloadingIdentity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains(key.lines().nth(1).unwrap_or("-")), "the key is shown: {text}");
        error
    };
    assert!(matches!(refusal("", &one.key), IdentityError::NoCertificate(_)));
    assert!(matches!(refusal(&one.certificate, "nothing"), IdentityError::NoKey(_)));
    assert!(matches!(refusal(&one.certificate, &two.key), IdentityError::Mismatch { .. }));
    let missing =
        ReloadingIdentity::from_files(Path::new("/nowhere/tls.crt"), Path::new("/nowhere/tls.key")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/tls.crt"), "{missing}");
    assert!(matches!(TrustRoots::from_pem(b"nothing").unwrap_err(), RootsError::Empty(_)));
    assert!(CertificateDer::from_pem_slice(one.certificate.as_bytes()).is_ok());
}
