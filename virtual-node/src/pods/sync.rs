//! The worker of one pod: looks at the record, performs the next step, looks again, until nothing is left to do.
//!
//! The steps themselves stand in `down` (towards the lower cluster) and `up` (towards the upper one). Every write is
//! fenced: a replica that has lost its lease stops in front of the next one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tensile_chassis::{lease::Fence, queue::Outcome};
use tokio::time::Instant;
use tracing::{Instrument, debug, info_span, warn};

use super::{
    index::{Applied, Index, View},
    moving::Strays,
    plan::Step,
    requests,
};
use crate::{
    context::{LowerClients, Settings, UpperClients},
    contract::{Placements, Reservations},
    events::Recorder,
    mirror::ServiceMirror,
    names::Key,
    needs::NeedsKeeper,
    owner::OwnerMark,
    services::Services,
};

/// Steps performed for one pod before others get their turn. A pod's whole life is shorter; more means that a step does
/// not do what the plan thinks it does.
const STEPS_MAX: usize = 16;

/// Pause before looking again at a pod that waits for an event which should have come. Events make it faster; this is
/// only the net below them.
const WAIT_RECHECK: Duration = Duration::from_mins(1);

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The record has changed: look again.
    Again,
    /// The rest is told by an event to come.
    Awaiting,
    /// Try again, with a growing pause.
    Retry,
    /// Nothing more until the pod itself, or something it needs, changes.
    Idle,
}

/// All that the steps use.
pub struct Syncer {
    pub(super) settings: Arc<Settings>,
    pub(super) index: Arc<Index>,
    pub(super) upper: UpperClients,
    pub(super) lower: LowerClients,
    pub(super) needs: NeedsKeeper,
    pub(super) services: Services,
    pub(super) mirror: Option<ServiceMirror>,
    /// Since when pods of a namespace do not wait for its Services.
    pub(super) given_up_services: Mutex<HashMap<String, Instant>>,
    pub(super) recorder: Recorder,
    pub(super) placements: Placements,
    pub(super) reservations: Reservations,
    pub(super) strays: Strays,
    pub(super) fence: Fence,
}

impl Syncer {
    /// The lower pod's namespace and name.
    pub(super) fn lower_key(&self, key: &Key) -> Key {
        Key::new(self.settings.namespaces.lower(&key.namespace), key.name.clone())
    }

    /// Whether a lower object's mark says that it belongs to this upper cluster and this virtual node.
    pub fn is_ours(&self, mark: &OwnerMark) -> bool {
        mark.cluster == self.settings.upper_cluster_uid && mark.virtual_node == self.settings.node_name
    }

    /// Takes news of an upper pod into the index. Answers its key when there is something to look at.
    pub fn upper_applied(&self, pod: Pod) -> Option<Key> {
        self.index.upper_applied(pod).map(|applied| self.replaced(applied))
    }

    /// Takes an upper pod of a list into the index. Answers its key when there is something to look at.
    pub fn upper_listed(&self, pod: Pod) -> Option<Key> {
        self.index.upper_listed(pod).map(|applied| self.replaced(applied))
    }

    fn replaced(&self, applied: Applied) -> Key {
        if let Some(uid) = applied.replaced {
            self.release(&uid);
        }
        applied.key
    }

    /// An upper pod is proven gone.
    pub fn upper_gone(&self, key: &Key, uid: Option<&str>) {
        if let Some(uid) = self.index.upper_proven_absent(key, uid) {
            self.release(&uid);
        }
    }

    /// Nobody needs any more what this upper pod needed.
    fn release(&self, uid: &str) {
        self.needs.release(uid);
        self.placements.forget(uid);
        self.reservations.upper_gone(uid);
    }

    /// Brings one pod as far as it goes now.
    pub async fn sync(&self, key: Key) -> Outcome {
        let span = info_span!("pod", %key);
        async {
            for _ in 0..STEPS_MAX {
                let Some(view) = self.index.look(&key) else { return Outcome::Done };
                if view.step == Step::Nothing {
                    return Outcome::Done;
                }
                if view.step == Step::Wait {
                    return Outcome::Requeue(WAIT_RECHECK);
                }
                if let Err(lost) = self.fence.check() {
                    debug!(%lost, "not writing: another replica leads");
                    // Not done: the lease may be renewed after all.
                    return Outcome::Retry;
                }
                match self.perform(&key, view).await {
                    Progress::Again => {}
                    Progress::Awaiting => return Outcome::Requeue(WAIT_RECHECK),
                    Progress::Retry => return Outcome::Retry,
                    Progress::Idle => return Outcome::Done,
                }
            }
            warn!("still not settled after {STEPS_MAX} steps; trying again later");
            Outcome::Retry
        }
        .instrument(span)
        .await
    }

    async fn perform(&self, key: &Key, view: View) -> Progress {
        debug!(step = ?view.step, "next");
        match view.step {
            Step::Nothing | Step::Wait | Step::Forget => Progress::Idle,
            Step::Create => self.create(key, view).await,
            Step::Update => self.update(key, view).await,
            Step::DeleteLower { grace } => self.delete_lower(key, &view, grace).await,
            Step::ReleaseResult => self.release_result(key, &view).await,
            Step::WriteStatus => self.write_status(key, view).await,
            Step::ClearStuck => self.clear_stuck(key, &view).await,
            Step::DeleteUpper => self.delete_upper(key, &view).await,
            Step::Fail => self.fail(key, &view).await,
            Step::Finish => self.finish(key, &view).await,
            Step::ProveUpper => self.prove_upper(key).await,
            Step::ProveLower => self.prove_lower(key).await,
        }
    }

    /// Asks the upper API server whether the pod is there.
    async fn prove_upper(&self, key: &Key) -> Progress {
        match requests::read_upper(&self.upper.node, key, &self.settings.node_name).await {
            Ok(Some(pod)) => {
                self.upper_applied(pod);
                Progress::Again
            }
            Ok(None) => {
                self.upper_gone(key, None);
                Progress::Again
            }
            Err(error) => retry("could not ask the upper API server for the pod", &error),
        }
    }

    /// Asks the lower API server whether the pod is there.
    pub(super) async fn prove_lower(&self, key: &Key) -> Progress {
        let lower = self.lower_key(key);
        match requests::read_lower(&self.lower.api, &lower).await {
            Ok(Some(pod)) => match OwnerMark::read(&pod.metadata) {
                Some(mark) if self.is_ours(&mark) => {
                    self.index.lower_read(pod, mark);
                    Progress::Again
                }
                // A pod of that name which is not ours: ours is not there.
                _ => {
                    self.index.lower_proven_absent(key);
                    Progress::Again
                }
            },
            Ok(None) => {
                self.index.lower_proven_absent(key);
                Progress::Again
            }
            Err(error) => retry("could not ask the lower API server for the pod", &error),
        }
    }
}

/// A failed request that is tried again.
pub(super) fn retry(what: &str, error: &kube::Error) -> Progress {
    debug!(%error, "{what}");
    Progress::Retry
}
