//! The contract as a part of the process: the service, its publisher, and what the health service says of it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tensile_chassis::{
    grpc::{Callers, GrpcArgs, GrpcError, GrpcServer},
    lease::Leadership,
    tls::{ClientAuth, ReloadingIdentity},
};
use tensile_proto::{
    FILE_DESCRIPTOR_SET,
    v1::cluster_server::{ClusterServer, SERVICE_NAME},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    metrics::ContractMetrics,
    placements::Placements,
    publisher::{Feed, Publisher},
    reservations::{Reservations, UpperPods},
    service::ClusterService,
};
use crate::{capacity::CapacityLedger, context::Settings, node::Reach};

/// Largest message that a caller may send: a FitRequest of 64 templates of 256 KiB is the largest that the contract allows, but
/// templates of that size are not met; 4 MiB is gRPC's own default.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Who may call which RPC. Names are those in the callers' certificates (CN, DNS name or URI).
#[derive(clap::Args, Clone, Debug)]
pub struct ContractArgs {
    /// Certificate names of schedulers, which may watch this cluster, ask what fits, and reserve
    #[arg(long, default_value = "multi-scheduler", value_delimiter = ',', value_name = "NAME")]
    pub grpc_scheduler_names: Vec<String>,

    /// Certificate names of deschedulers, which may watch this cluster and its placements, and ask what fits
    #[arg(long, default_value = "descheduler", value_delimiter = ',', value_name = "NAME")]
    pub grpc_descheduler_names: Vec<String>,

    /// Longest time that a reservation is held for a pod that is not bound, in seconds; a caller that asks for more is told. A
    /// new leader makes no reservations for as long, so give every replica the same
    #[arg(long, default_value = "30", value_parser = reservation_seconds, value_name = "SECONDS")]
    pub reservation_ttl_max: Duration,
}

/// Reads a time within the contract's bounds.
fn reservation_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=600) => Ok(Duration::from_secs(seconds)),
        _ => Err("give a whole number of seconds from 1 to 600".to_owned()),
    }
}

/// What the contract needs.
pub struct ContractInputs {
    /// Whom we stand for.
    pub settings: Arc<Settings>,
    /// The lower cluster's snapshot.
    pub ledger: CapacityLedger,
    /// Whether the lower API server answers.
    pub reach: watch::Receiver<Reach>,
    /// Verdicts on pods.
    pub placements: Placements,
    /// Who leads. Other replicas answer UNAVAILABLE.
    pub leadership: watch::Receiver<Leadership>,
    /// Room that is held.
    pub reservations: Reservations,
    /// Counters.
    pub metrics: ContractMetrics,
    /// Lists the upper pods live, for a new leader.
    pub upper_pods: UpperPods,
}

/// The gRPC server of the contract, bound and not yet serving.
pub struct ContractServer {
    listener: TcpListener,
    server: GrpcServer,
    identity: Option<Arc<ReloadingIdentity>>,
    client_auth: ClientAuth,
}

impl ContractArgs {
    /// The list of callers of each RPC. One that is not listed here is closed to all.
    fn callers(&self) -> Callers {
        let schedulers = self.grpc_scheduler_names.iter();
        let deschedulers = self.grpc_descheduler_names.iter();
        let both = || schedulers.clone().chain(deschedulers.clone());
        let rpc = |name: &str| format!("/{SERVICE_NAME}/{name}");
        Callers::any()
            .allow(rpc("Watch"), both())
            .allow(rpc("Fit"), both())
            .allow(rpc("Reserve"), schedulers.clone())
            .allow(rpc("Release"), schedulers.clone())
            .allow(rpc("WatchPlacements"), deschedulers.clone())
    }
}

impl ContractServer {
    /// Takes the port and reads the certificates, so that what is wrong with either is an error at once. Callers are told apart only
    /// where TLS asks for their certificates.
    pub async fn bind(grpc: &GrpcArgs, args: &ContractArgs) -> Result<Self, GrpcError> {
        let identity = grpc.identity()?;
        let client_auth = grpc.client_auth()?;
        let mut server = GrpcServer::new().descriptors(FILE_DESCRIPTOR_SET);
        if let Some(identity) = &identity {
            server = server.tls(identity.clone(), client_auth.clone());
        }
        if matches!(client_auth, ClientAuth::Required(_)) {
            server = server.callers(args.callers());
        }
        Ok(Self { listener: grpc.bind().await?, server, identity, client_auth })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`.
    pub async fn run(self, inputs: ContractInputs, stop: CancellationToken) -> Result<(), GrpcError> {
        let feed = Feed::new();
        // A child, so that a server that fails ends the publisher and not the process: that is for others to judge.
        let service = ClusterService::new(&inputs, feed.clone(), stop.clone());
        let stop = stop.child_token();
        let ContractInputs { settings, ledger, reach, leadership, reservations, upper_pods, .. } = inputs;
        let publisher = Publisher { settings, ledger, reach, opening: reservations.opening(), feed };
        let opening = reservations.open(leadership.clone(), &upper_pods, &stop);
        let (served, (), (), ()) = tokio::join!(
            self.serve(service, leadership, stop.clone()),
            publisher.run(stop.clone()),
            opening,
            reservations.keep(stop.clone())
        );
        served
    }

    /// Serves the service until `stop`, and cancels `stop` when the server fails.
    pub(super) async fn serve(
        self,
        service: ClusterService,
        leadership: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) -> Result<(), GrpcError> {
        let health = report_health(self.server.health(), leadership);
        let fresh = keep_fresh(self.identity, self.client_auth, stop.clone());
        let service = ClusterServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let serving = async {
            let served = self.server.service(service).serve(self.listener, stop.clone()).await;
            stop.cancel();
            served
        };
        let (served, _, ()) = tokio::join!(serving, stop.run_until_cancelled(health), fresh);
        served
    }
}

/// Reads certificates and CAs again when their files change.
async fn keep_fresh(identity: Option<Arc<ReloadingIdentity>>, client_auth: ClientAuth, stop: CancellationToken) {
    let certificate = async {
        if let Some(identity) = identity {
            identity.keep_fresh(stop.clone()).await;
        }
    };
    let roots = async {
        if let ClientAuth::Required(roots) = client_auth {
            roots.keep_fresh(stop.clone()).await;
        }
    };
    tokio::join!(certificate, roots);
}

/// Says that the service is served while we lead, and only then.
async fn report_health(health: HealthReporter, mut leadership: watch::Receiver<Leadership>) {
    loop {
        let leads = leadership.borrow_and_update().is_leader();
        let status = if leads { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(SERVICE_NAME, status).await;
        if leadership.changed().await.is_err() {
            return;
        }
    }
}
