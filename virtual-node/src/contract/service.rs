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
    placements::Placements,
    publisher::Feed,
    stream::{self, Term},
};

/// Streams at once: a few schedulers and deschedulers with a few replicas each. More are a client that leaks them.
const STREAMS_MAX: usize = 64;

/// What this version answers to questions about single lower nodes.
pub(super) const NOT_SERVED: &str = "this version of the virtual-node does not answer Fit and takes no reservations: schedule \
     by what Watch says, or upgrade the virtual-node";

/// The service. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct ClusterService {
    node_name: Arc<str>,
    feed: Feed,
    placements: Placements,
    leadership: watch::Receiver<Leadership>,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl ClusterService {
    pub fn new(
        node_name: &str,
        feed: Feed,
        placements: Placements,
        leadership: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        Self { node_name: node_name.into(), feed, placements, leadership, streams, stop }
    }

    /// Our term, if we lead and stand for the node that is asked.
    fn epoch(&self, target: Option<&v1::Target>) -> Result<u64, Status> {
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
        self.epoch(request.get_ref().target.as_ref())?;
        Err(Status::unimplemented(NOT_SERVED))
    }

    async fn reserve(
        &self,
        _request: Request<Streaming<v1::ReserveRequest>>,
    ) -> Result<Response<Self::ReserveStream>, Status> {
        self.epoch(None)?;
        Err(Status::unimplemented(NOT_SERVED))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        self.epoch(request.get_ref().target.as_ref())?;
        Err(Status::unimplemented(NOT_SERVED))
    }
}
