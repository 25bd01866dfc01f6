//! The two streams, as a client sees them. They are pulled: nothing is made before the client's window has room for it, so a
//! slow client holds one message and no queue.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use tensile_chassis::lease::Leadership;
use tensile_proto::v1::{self, placement_event::Event};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    placements::{Batch, Kept, Reader},
    publisher::Newest,
    service::no_leader,
    state::timestamp,
};

/// Changes within this time are told together: a pod that is bound and evicted at once is one event.
const COALESCE: Duration = Duration::from_millis(50);

/// What ends a stream: the end of our leadership, or of the process.
pub(super) struct Term {
    epoch: u64,
    leadership: watch::Receiver<Leadership>,
    node_name: Arc<str>,
    stop: CancellationToken,
    /// Given back with the stream.
    _slot: OwnedSemaphorePermit,
}

impl Term {
    /// A stream's term. `slot` is its place among the streams that may be open at once.
    pub fn new(
        epoch: u64,
        leadership: watch::Receiver<Leadership>,
        node_name: Arc<str>,
        stop: CancellationToken,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self { epoch, leadership, node_name, stop, _slot: slot }
    }

    /// Waits for the end, and says why.
    pub(super) async fn ended(&mut self) -> Status {
        let epoch = self.epoch;
        let over = |leadership: &Leadership| !matches!(leadership, Leadership::Leader { term, .. } if *term == epoch);
        let lost = async {
            match self.leadership.wait_for(over).await {
                Ok(leadership) => no_leader(&self.node_name, &leadership),
                Err(_) => stopping(&self.node_name),
            }
        };
        tokio::select! {
            status = lost => status,
            () = self.stop.cancelled() => stopping(&self.node_name),
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn revision(&self, number: u64) -> v1::Revision {
        v1::Revision { epoch: self.epoch, number }
    }
}

fn stopping(node_name: &str) -> Status {
    Status::unavailable(format!(
        "the virtual-node of {node_name:?} stops; read the annotation tensile.dev/endpoint of the Node again"
    ))
}

/// The newest state, whole, and again after each change.
pub(super) fn states(
    newest: watch::Receiver<Newest>,
    term: Term,
) -> impl Stream<Item = Result<v1::ClusterState, Status>> {
    stream::unfold(Some((newest, term)), |place| async move {
        let (mut newest, mut term) = place?;
        loop {
            tokio::select! {
                biased;
                status = term.ended() => return Some((Err(status), None)),
                changed = newest.changed() => if changed.is_err() {
                    return Some((Err(stopping(&term.node_name)), None));
                },
            }
            let state = newest.borrow_and_update().clone();
            if let Some(state) = state {
                let mut state = v1::ClusterState::clone(&state);
                state.revision = Some(term.revision(state.revision.map_or(0, |revision| revision.number)));
                return Some((Ok(state), Some((newest, term))));
            }
        }
    })
}

/// All placements, and then what changes.
pub(super) fn placements(reader: Reader, term: Term) -> impl Stream<Item = Result<v1::PlacementEvent, Status>> {
    let batches = stream::unfold(Some((reader, term, true)), |place| async move {
        let (mut reader, mut term, first) = place?;
        let ready = async {
            reader.changed().await?;
            if !first {
                tokio::time::sleep(COALESCE).await;
            }
            Some(reader.take())
        };
        let batch = tokio::select! {
            biased;
            status = term.ended() => return Some((VecDeque::from([Err(status)]), None)),
            batch = ready => batch,
        };
        match batch {
            Some(batch) => Some((events(batch, &term).into_iter().map(Ok).collect(), Some((reader, term, false)))),
            None => Some((VecDeque::from([Err(stopping(&term.node_name))]), None)),
        }
    });
    batches.flat_map(stream::iter)
}

/// The events of a batch.
fn events(batch: Batch, term: &Term) -> Vec<v1::PlacementEvent> {
    let event = |number, event| v1::PlacementEvent { revision: Some(term.revision(number)), event: Some(event) };
    match batch {
        Batch::Whole { number, verdicts } => {
            let count = u32::try_from(verdicts.len()).unwrap_or(u32::MAX);
            let mut events = Vec::with_capacity(verdicts.len() + 2);
            events.push(event(number, Event::Begin(v1::PlacementsBegin { count })));
            events.extend(
                verdicts
                    .into_iter()
                    .map(|(uid, kept)| event(number, Event::Placement(placement(uid.to_string(), kept)))),
            );
            events.push(event(number, Event::Synced(v1::PlacementsSynced {})));
            events
        }
        Batch::Changes(changes) => changes
            .into_iter()
            .map(|(number, uid, kept)| match kept {
                Some(kept) => event(number, Event::Placement(placement(uid.to_string(), kept))),
                None => event(number, Event::ForgottenUpperUid(uid.to_string())),
            })
            .collect(),
    }
}

fn placement(upper_uid: String, kept: Kept) -> v1::Placement {
    let (verdict, reason) = match &kept {
        Kept::Bound(_) => (v1::Verdict::Bound, ""),
        Kept::Unschedulable(_) => (v1::Verdict::Unschedulable, "Unschedulable"),
        Kept::Evicted => (v1::Verdict::Evicted, "Evicted"),
        Kept::Preempted => (v1::Verdict::Preempted, "Preempted"),
    };
    let mut placement =
        v1::Placement { upper_uid, verdict: verdict.into(), reason: reason.to_owned(), ..v1::Placement::default() };
    match kept {
        Kept::Bound(node) => node.as_str().clone_into(&mut placement.lower_node),
        Kept::Unschedulable(why) => {
            let (message, since) = *why;
            placement.message = message;
            placement.since = since.map(timestamp);
        }
        Kept::Evicted | Kept::Preempted => {}
    }
    placement
}
