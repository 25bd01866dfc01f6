//! What the tests of this module share: a virtual node's contract served on loopback with mutual TLS, and clients of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;
use tempfile::TempDir;
use tensile_chassis::{
    grpc::{ChannelOptions, ClientTls, GrpcArgs, GrpcError, channel},
    lease::Leadership,
    tls::{ReloadingIdentity, TrustRoots, install_crypto_provider},
};
use tensile_proto::v1::cluster_client::ClusterClient;
use tensile_scheduling::Pool;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

use super::{
    ContractArgs, ContractInputs, ContractMetrics, ContractServer, Placements, Reservations, publisher::Feed,
    service::ClusterService,
};
use crate::{capacity::CapacityLedger, context::Settings, names::NamespaceMapping, node::Reach};

/// Longest wait for anything here; all of it takes milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Longest time of a reservation here.
pub(super) const TTL_MAX: Duration = Duration::from_secs(30);

/// Settings of a virtual node `vn` for the cluster `lower`.
pub(super) fn settings() -> Settings {
    Settings {
        node_name: "vn".into(),
        cluster_name: "lower".into(),
        upper_cluster_uid: "upper-uid".into(),
        lower_cluster_uid: "lower-uid".into(),
        namespaces: NamespaceMapping::Same,
        adopt_namespaces: [].into(),
        lower_scheduler_name: None,
        upper_api_for_pods: None,
        node_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

/// A Ready lower node.
pub(super) fn node(name: &str, cpu: &str) -> Node {
    let size = json!({"cpu": cpu, "memory": "8Gi", "pods": "110"});
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "capacity": size, "allocatable": size,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
    .unwrap()
}

/// Leads in a term.
pub(super) fn leader(term: u64) -> Leadership {
    let now = Instant::now();
    Leadership::Leader { since: now, valid_until: now + Duration::from_hours(1), term }
}

/// Waits for an answer, not for ever.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

/// A contract that is served, and the hands on its inputs.
pub(super) struct Served {
    pub ledger: CapacityLedger,
    pub reach: watch::Sender<Reach>,
    pub placements: Placements,
    pub reservations: Reservations,
    pub leadership: watch::Sender<Leadership>,
    pub stop: CancellationToken,
    pub server: JoinHandle<Result<(), GrpcError>>,
    ca: CertifiedIssuer<'static, KeyPair>,
    address: SocketAddr,
    _stop: DropGuard,
    _files: TempDir,
}

impl Served {
    /// A leader of term 7 whose lower cluster is listed and has one node.
    pub async fn start() -> Self {
        let served = Self::start_unlisted().await;
        served.ledger.upsert_node(&node("a", "4"));
        served.ledger.nodes_listed();
        served.ledger.pods_listed();
        served
    }

    /// The first leader, whose lower cluster is listed and has these nodes; it makes reservations at once.
    pub async fn start_first(nodes: &[Node]) -> Self {
        let served = Self::serve(1, |server, inputs, stop| tokio::spawn(server.run(inputs, stop))).await;
        for node in nodes {
            served.ledger.upsert_node(node);
        }
        served.ledger.nodes_listed();
        served.ledger.pods_listed();
        served
    }

    /// A leader of term 7 that has not listed the lower cluster yet.
    pub async fn start_unlisted() -> Self {
        Self::serve(7, |server, inputs, stop| tokio::spawn(server.run(inputs, stop))).await
    }

    /// A leader of term 7 that tells what the test publishes, in place of a lower cluster.
    pub async fn start_fed() -> (Self, Feed) {
        let feed = Feed::new();
        let served = Self::serve(7, |server, inputs, stop| {
            let service = ClusterService::new(&inputs, feed.clone(), stop.clone());
            tokio::spawn(server.serve(service, inputs.leadership, stop))
        })
        .await;
        (served, feed)
    }

    async fn serve(
        term: u64,
        start: impl FnOnce(ContractServer, ContractInputs, CancellationToken) -> JoinHandle<Result<(), GrpcError>>,
    ) -> Self {
        install_crypto_provider();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = TempDir::new().unwrap();
        let write = |name: &str, text: &str| -> PathBuf {
            let path = files.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (certificate, key) = issue(&ca, "vn");
        let grpc = GrpcArgs {
            grpc_address: (Ipv4Addr::LOCALHOST, 0).into(),
            grpc_cert_file: Some(write("tls.crt", &certificate)),
            grpc_key_file: Some(write("tls.key", &key)),
            grpc_client_ca_file: Some(write("ca.crt", &ca.pem())),
        };
        let args = ContractArgs {
            grpc_scheduler_names: vec!["multi-scheduler".into()],
            grpc_descheduler_names: vec!["descheduler".into()],
            reservation_ttl_max: TTL_MAX,
        };
        let server = ContractServer::bind(&grpc, &args).await.unwrap();
        let address = server.local_addr().unwrap();
        let (ledger, placements) = (CapacityLedger::new(Pool::all()), Placements::new());
        let (reach, leadership) = (watch::Sender::new(Reach::Reachable), watch::Sender::new(leader(term)));
        let metrics = ContractMetrics::default();
        let reservations = Reservations::new(Arc::new(settings()), ledger.clone(), TTL_MAX, metrics);
        let inputs = ContractInputs {
            settings: Arc::new(settings()),
            ledger: ledger.clone(),
            reach: reach.subscribe(),
            placements: placements.clone(),
            leadership: leadership.subscribe(),
            reservations: reservations.clone(),
            metrics: ContractMetrics::default(),
            upper_pods: Box::new(|| Box::pin(async { Ok(Vec::new()) })),
        };
        let stop = CancellationToken::new();
        tokio::spawn({
            let (ledger, stop) = (ledger.clone(), stop.clone());
            async move { ledger.publish(stop).await }
        });
        let server = start(server, inputs, stop.clone());
        let guard = stop.clone().drop_guard();
        Self {
            ledger,
            reach,
            placements,
            reservations,
            leadership,
            stop,
            server,
            ca,
            address,
            _stop: guard,
            _files: files,
        }
    }

    /// A channel as somebody: the name in the client's certificate, or without one.
    pub fn channel(&self, name: Option<&str>) -> Channel {
        let identity = name.map(|name| {
            let (certificate, key) = issue(&self.ca, name);
            ReloadingIdentity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
        });
        let roots = TrustRoots::from_pem(self.ca.pem().as_bytes()).unwrap();
        // A virtual node's certificate has the node's name, whatever its address.
        let tls = ClientTls { roots, identity, server_name: Some("vn".into()) };
        channel(&format!("https://{}", self.address), Some(&tls), ChannelOptions::default()).unwrap()
    }

    /// A client as somebody.
    pub fn client(&self, name: &str) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel(Some(name)))
    }
}

/// A certificate for both ends, and its key.
fn issue(ca: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}
