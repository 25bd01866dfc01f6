//! The service `tensile.v1.Cluster`: who may be answered now, and with which stream.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use tensile_chassis::lease::Leadership;
use tensile_proto::v1::{self, cluster_server::Cluster};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    ContractInputs, fit,
    metrics::ContractMetrics,
    placements::Placements,
    publisher::Feed,
    reservations::Reservations,
    reserve,
    stream::{self, Term},
};
use crate::{capacity::CapacityLedger, context::Settings, node::Reach};

/// Streams at once: a few schedulers and deschedulers with a few replicas each. More are a client that leaks them.
const STREAMS_MAX: usize = 64;

/// UIDs in a ReleaseRequest.
const RELEASED_MAX: usize = 4_096;

/// Replicas up to which a Fit is answered at once: some milliseconds. More are reckoned where they hold up nobody.
const REPLICAS_AT_ONCE: u64 = 10_000;

/// The service. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct ClusterService {
    pub(super) settings: Arc<Settings>,
    node_name: Arc<str>,
    feed: Feed,
    ledger: CapacityLedger,
    pub(super) reach: watch::Receiver<Reach>,
    placements: Placements,
    pub(super) reservations: Reservations,
    pub(super) metrics: ContractMetrics,
    leadership: watch::Receiver<Leadership>,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl ClusterService {
    pub fn new(inputs: &ContractInputs, feed: Feed, stop: CancellationToken) -> Self {
        Self {
            settings: inputs.settings.clone(),
            node_name: inputs.settings.node_name.as_str().into(),
            feed,
            ledger: inputs.ledger.clone(),
            reach: inputs.reach.clone(),
            placements: inputs.placements.clone(),
            reservations: inputs.reservations.clone(),
            metrics: inputs.metrics.clone(),
            leadership: inputs.leadership.clone(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            stop,
        }
    }

    /// Our term, if we lead and stand for the node that is asked.
    pub(super) fn epoch(&self, target: Option<&v1::Target>) -> Result<u64, Status> {
        let asked = target.map(|target| target.virtual_node.as_str()).unwrap_or_default();
        if !asked.is_empty() && asked != &*self.node_name {
            return Err(Status::not_found(format!(
                "this process stands for the virtual node {:?} and not for {asked:?}; read the annotation \
                 tensile.dev/endpoint of that Node",
                self.node_name
            )));
        }
        match &*self.leadership.borrow() {
            // A leader whose renewals hang may have been replaced already.
            Leadership::Leader { term, valid_until, .. } if *valid_until > Instant::now() => Ok(*term),
            other => Err(no_leader(&self.node_name, other)),
        }
    }

    /// The number of the revision that is true now.
    pub(super) fn number(&self) -> u64 {
        self.feed.number(self.ledger.read(|snapshot, _| snapshot.revision()))
    }

    fn open_stream(&self, target: Option<&v1::Target>) -> Result<Term, Status> {
        let epoch = self.epoch(target)?;
        let slot = self.streams.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{STREAMS_MAX} streams are open on this virtual-node; close those that are not read any more"
            ))
        })?;
        Ok(Term::new(epoch, self.leadership.clone(), self.node_name.clone(), self.stop.clone(), slot))
    }
}

/// The answer of a replica that does not lead.
pub(super) fn no_leader(node_name: &str, leadership: &Leadership) -> Status {
    let leader = match leadership {
        Leadership::Standby { leader: Some(leader) } => format!("{leader:?} leads"),
        _ => "none is known to lead".to_owned(),
    };
    Status::unavailable(format!(
        "this replica of the virtual-node of {node_name:?} does not lead ({leader}); read the annotation \
         tensile.dev/endpoint of the Node again"
    ))
}

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Cluster for ClusterService {
    type WatchStream = Answers<v1::ClusterState>;
    type ReserveStream = Answers<v1::ReserveResponse>;
    type WatchPlacementsStream = Answers<v1::PlacementEvent>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let term = self.open_stream(request.get_ref().target.as_ref())?;
        Ok(Response::new(Box::pin(stream::states(self.feed.subscribe(), term))))
    }

    async fn watch_placements(
        &self,
        request: Request<v1::WatchPlacementsRequest>,
    ) -> Result<Response<Self::WatchPlacementsStream>, Status> {
        let term = self.open_stream(request.get_ref().target.as_ref())?;
        Ok(Response::new(Box::pin(stream::placements(self.placements.reader(), term))))
    }

    async fn fit(&self, request: Request<v1::FitRequest>) -> Result<Response<v1::FitResponse>, Status> {
        let epoch = self.epoch(request.get_ref().target.as_ref())?;
        if !self.ledger.synced() {
            return Err(Status::unavailable(format!(
                "the virtual-node of {:?} has not listed its lower nodes and pods yet; ask again",
                self.node_name
            )));
        }
        let request = request.into_inner();
        let began = Instant::now();
        let replicas: u64 = request.templates.iter().map(|each| u64::from(each.replicas)).sum();
        let (ledger, settings, reach) = (self.ledger.clone(), self.settings.clone(), self.reach.borrow().clone());
        let reckon = move || fit::answer(&request, &ledger, &settings, &reach);
        let answered = if replicas > REPLICAS_AT_ONCE {
            tokio::task::spawn_blocking(reckon).await.map_err(|error| Status::internal(format!("Fit: {error}")))?
        } else {
            reckon()
        };
        let (revision, fits) = answered?;
        self.metrics.fit_took(began.elapsed());
        let revision = v1::Revision { epoch, number: self.feed.number(revision) };
        Ok(Response::new(v1::FitResponse { revision: Some(revision), fits }))
    }

    async fn reserve(
        &self,
        request: Request<Streaming<v1::ReserveRequest>>,
    ) -> Result<Response<Self::ReserveStream>, Status> {
        let term = self.open_stream(None)?;
        Ok(Response::new(Box::pin(reserve::answers(self.clone(), request.into_inner(), term))))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let request = request.get_ref();
        let epoch = self.epoch(request.target.as_ref())?;
        if request.upper_uids.len() > RELEASED_MAX {
            let count = request.upper_uids.len();
            return Err(Status::invalid_argument(format!("{count} UIDs; release at most {RELEASED_MAX} at once")));
        }
        let released = self.reservations.release(&request.upper_uids).into_iter().map(ToOwned::to_owned).collect();
        let revision = v1::Revision { epoch, number: self.number() };
        Ok(Response::new(v1::ReleaseResponse { revision: Some(revision), released_upper_uids: released }))
    }
}
