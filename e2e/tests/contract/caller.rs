//! Certificates, and clients that hold them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tensile_chassis::{
    grpc::{ChannelOptions, ClientTls, channel},
    tls::{ReloadingIdentity, TrustRoots},
};
use tensile_proto::v1::{self, cluster_client::ClusterClient, reserve_request::Kind, reserve_response::Outcome};
use tokio::sync::mpsc;
use tonic::{Streaming, transport::Channel};

use crate::world::SOON;

/// A CA, and the files that a virtual-node reads.
pub struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
    files: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { ca, files: TempDir::new().unwrap() }
    }

    /// Arguments of a virtual-node that serves the contract under this CA.
    pub fn args(&self, node: &str) -> Vec<String> {
        let (certificate, key) = self.issue(node);
        let write = |name: &str, text: &str| -> PathBuf {
            let path = self.files.path().join(format!("{node}-{name}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        let argument = |name: &str, path: &Path| format!("--{name}={}", path.display());
        vec![
            argument("grpc-cert-file", &write("tls.crt", &certificate)),
            argument("grpc-key-file", &write("tls.key", &key)),
            argument("grpc-client-ca-file", &write("ca.crt", &self.ca.pem())),
        ]
    }

    /// A channel to a virtual node, as the owner of a certificate of this CA.
    pub fn channel(&self, endpoint: &str, node: &str, name: &str) -> Channel {
        self.channel_trusting(self, endpoint, node, name)
    }

    /// The same, towards a server with a certificate of another CA.
    pub fn channel_trusting(&self, servers: &Self, endpoint: &str, node: &str, name: &str) -> Channel {
        let (certificate, key) = self.issue(name);
        let identity = ReloadingIdentity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let roots = TrustRoots::from_pem(servers.ca.pem().as_bytes()).unwrap();
        let tls = ClientTls { roots, identity: Some(identity), server_name: Some(node.into()) };
        channel(&format!("https://{endpoint}"), Some(&tls), ChannelOptions::default()).unwrap()
    }

    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca).unwrap().pem(), key.serialize_pem())
    }
}

/// A scheduler with an open stream of reservations.
pub struct Reserver {
    requests: mpsc::Sender<v1::ReserveRequest>,
    answers: Streaming<v1::ReserveResponse>,
}

impl Reserver {
    pub async fn open(channel: Channel) -> Self {
        let (requests, mut queue) = mpsc::channel(64);
        let queue = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let answers = ClusterClient::new(channel).reserve(queue).await.unwrap().into_inner();
        Self { requests, answers }
    }

    /// Sends without waiting.
    pub async fn send(&self, request: v1::ReserveRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// The next answer.
    pub async fn answer(&mut self) -> v1::ReserveResponse {
        let answer = tokio::time::timeout(SOON, self.answers.message()).await.expect("no answer");
        answer.unwrap().expect("the stream has ended")
    }

    pub async fn ask(&mut self, request: v1::ReserveRequest) -> Result<v1::Reserved, v1::Refused> {
        self.send(request).await;
        outcome(self.answer().await)
    }
}

pub fn outcome(answer: v1::ReserveResponse) -> Result<v1::Reserved, v1::Refused> {
    match answer.outcome.expect("an outcome") {
        Outcome::Reserved(reserved) => Ok(reserved),
        Outcome::Refused(refused) => Err(refused),
    }
}

/// Asks for room for one pod of a template.
pub fn room_for(uid: &str, template: v1::Template, ttl: Duration) -> v1::ReserveRequest {
    v1::ReserveRequest {
        upper_uid: uid.into(),
        kind: Some(Kind::Template(template)),
        ttl: Some(ttl.try_into().unwrap()),
        ..v1::ReserveRequest::default()
    }
}
