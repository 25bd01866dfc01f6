//! What is kept of one pod, and the facts that the plan is made from.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tensile_proto::vocabulary::{annotation, finalizer};
use tokio::time::Instant;

use super::{
    plan::{self, Known, LowerFacts, Step, UpperFacts},
    reading::{
        Disruption, deletion_grace, disruption, disruption_in, is_reported_stuck, is_terminal, with_generation,
        without_spec,
    },
};
use crate::packed::Packed;

/// How long the watch may take to tell of a pod that was created. After that the API server is asked.
const ANNOUNCED_MAX: Duration = Duration::from_secs(30);

/// What is kept of an upper pod.
#[derive(Debug)]
pub(super) struct Upper {
    pub uid: String,
    pub version: u64,
    pub listing: u64,
    pub deleting: Option<i64>,
    pub carried: String,
    /// The status as last read, or as answered to our last write.
    pub status: Option<UpperStatus>,
    /// The whole pod, until the lower cluster has all of it.
    pub whole: Option<Packed<Pod>>,
}

/// An upper pod's status, with what decides read from it.
#[derive(Debug)]
pub(super) struct UpperStatus {
    pub terminal: bool,
    pub started: bool,
    pub reported_stuck: bool,
    /// It says that the lower cluster takes the pod away.
    pub disrupted: bool,
    pub packed: Option<Packed<PodStatus>>,
}

impl UpperStatus {
    pub fn of(status: &PodStatus) -> Self {
        Self {
            terminal: is_terminal(status),
            started: status.start_time.is_some(),
            reported_stuck: is_reported_stuck(status),
            disrupted: disruption_in(status).is_some_and(Disruption::fails),
            packed: Packed::of(status),
        }
    }
}

/// What is kept of a lower pod.
#[derive(Debug)]
pub(super) struct Lower {
    pub uid: String,
    pub owner_uid: String,
    pub version: u64,
    pub listing: u64,
    pub deleting: Option<i64>,
    pub terminal: bool,
    pub completes: bool,
    pub bound: bool,
    pub holds_result: bool,
    pub carried: String,
    pub disrupted: bool,
    /// The pod (without its spec) while its status waits to be written above.
    pub unwritten: Option<Arc<Pod>>,
    /// Somebody else changed the upper pod's status: the lower one must be read again to restore it.
    pub reread: bool,
}

#[derive(Debug)]
pub(super) struct Record {
    pub upper: Known<Upper>,
    pub lower: Known<Lower>,
    /// The lower pod as last seen before it went, for the upper pod's last status.
    pub last_lower: Option<Arc<Pod>>,
    pub lost_to_disruption: bool,
    /// UID of an upper pod that was known and is not in a newer list: whoever is told that it is gone must be told so.
    pub vanished: Option<String>,
    /// A lower pod was created just now, and the watch has not told of it yet.
    pub announced: Option<Instant>,
    /// UID of the upper pod that was deleted with grace 0, by force: its lower twin is, too. Kept here, for the pod may be
    /// gone, or followed by another of its name, before anybody looks.
    pub forced: Option<String>,
    /// UID of the upper pod whose last delete, with grace 0, the API server has acknowledged.
    pub finished: Option<String>,
}

impl Record {
    pub fn new() -> Self {
        Self {
            upper: Known::Unseen,
            lower: Known::Unseen,
            last_lower: None,
            lost_to_disruption: false,
            vanished: None,
            announced: None,
            forced: None,
            finished: None,
        }
    }

    pub fn step(&self) -> Step {
        if self.vanished.is_some() && matches!(self.upper, Known::Unseen) {
            return Step::ProveUpper;
        }
        if let Some(since) = self.announced {
            return if since.elapsed() < ANNOUNCED_MAX { Step::Wait } else { Step::ProveLower };
        }
        // A process that died over it knows it from the upper pod's status alone.
        let told = matches!(&self.upper, Known::Present(upper) if upper.status.as_ref().is_some_and(|s| s.disrupted));
        plan::next(&self.upper_facts(), &self.lower_facts(), self.lost_to_disruption || told)
    }

    fn upper_facts(&self) -> Known<UpperFacts> {
        match &self.upper {
            Known::Present(upper) => Known::Present(UpperFacts {
                uid: upper.uid.clone(),
                deleting: upper.deleting,
                terminal: upper.status.as_ref().is_some_and(|status| status.terminal),
                started: upper.status.as_ref().is_some_and(|status| status.started),
                carried: upper.carried.clone(),
                reported_stuck: upper.status.as_ref().is_some_and(|status| status.reported_stuck),
                finished: self.finished.as_ref() == Some(&upper.uid),
            }),
            Known::ProvenAbsent => Known::ProvenAbsent,
            Known::Unseen => Known::Unseen,
        }
    }

    fn lower_facts(&self) -> Known<LowerFacts> {
        match &self.lower {
            Known::Present(lower) => Known::Present(LowerFacts {
                uid: lower.uid.clone(),
                owner_uid: lower.owner_uid.clone(),
                owner_forced: self.forced.as_ref() == Some(&lower.owner_uid),
                deleting: lower.deleting,
                terminal: lower.terminal,
                completes: lower.completes,
                bound: lower.bound,
                holds_result: lower.holds_result,
                carried: lower.carried.clone(),
                disrupted: lower.disrupted,
                status_unwritten: lower.unwritten.is_some() || lower.reread,
            }),
            Known::ProvenAbsent => Known::ProvenAbsent,
            Known::Unseen => Known::Unseen,
        }
    }

    pub fn upper_present(&mut self) -> Option<&mut Upper> {
        match &mut self.upper {
            Known::Present(upper) => Some(upper),
            Known::ProvenAbsent | Known::Unseen => None,
        }
    }

    pub fn lower_present(&mut self) -> Option<&mut Lower> {
        match &mut self.lower {
            Known::Present(lower) => Some(lower),
            Known::ProvenAbsent | Known::Unseen => None,
        }
    }

    /// Whether the lower pod carries all of the upper one that may travel.
    pub fn carries_all(&self) -> bool {
        matches!((&self.upper, &self.lower), (Known::Present(upper), Known::Present(lower))
            if lower.owner_uid == upper.uid && lower.carried == upper.carried)
    }

    /// Lets go of the whole upper pod once the lower cluster has all that may travel.
    pub fn trim(&mut self) {
        if self.carries_all()
            && let Some(upper) = self.upper_present()
        {
            upper.whole = None;
        }
    }
}

/// What is kept of a lower pod as it is now.
pub(super) fn lower_of(pod: Pod, uid: String, owner_uid: String, version: u64, listing: u64) -> Lower {
    let spec = pod.spec.as_ref();
    let annotations = pod.metadata.annotations.as_ref();
    Lower {
        owner_uid,
        version,
        listing,
        deleting: deletion_grace(&pod),
        terminal: pod.status.as_ref().is_some_and(is_terminal),
        completes: spec.and_then(|spec| spec.restart_policy.as_deref()).is_some_and(|policy| policy != "Always"),
        bound: spec.and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty()),
        holds_result: pod.metadata.finalizers.iter().flatten().any(|name| name == finalizer::RESULT),
        carried: with_generation(
            annotations.and_then(|all| all.get(annotation::CARRIED)).cloned().unwrap_or_default(),
            annotations.and_then(|all| all.get(annotation::GENERATION)?.split('/').next()?.parse().ok()),
        ),
        disrupted: disruption(&pod).is_some_and(Disruption::fails),
        unwritten: Some(Arc::new(without_spec(pod))),
        reread: false,
        uid,
    }
}
