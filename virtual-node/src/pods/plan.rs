//! What to do next for one pod: a pure decision over what is known of it in both clusters.
//!
//! The decision is made anew after every step and every event, so a crash between any two steps changes nothing: the
//! next process looks at the same two clusters and decides the same. The rules it follows are those of
//! docs/ARCHITECTURE.md: absence is proven before anything is deleted, a completed pod never runs again, and a pod
//! never has two lower twins.

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known<T> {
    /// It is in our cache.
    Present(T),
    /// An API server said in so many words that it is gone: a watch's DELETED, or NotFound to a live read.
    ProvenAbsent,
    /// It is not in our cache. That proves nothing.
    Unseen,
}

/// The facts about an upper pod that decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpperFacts {
    /// UID.
    pub uid: String,
    /// `metadata.deletionGracePeriodSeconds`, when it has a deletionTimestamp.
    pub deleting: Option<i64>,
    /// Its phase is Succeeded or Failed.
    pub terminal: bool,
    /// It was seen running, or starting, in the lower cluster: its status came from there.
    pub started: bool,
    /// Digest of the fields that may change while a pod lives.
    pub carried: String,
    /// Its condition `tensile.dev/Offloaded` says False, although the pod is there.
    pub reported_stuck: bool,
    /// The API server has acknowledged the delete with grace 0 that a kubelet sends last.
    pub finished: bool,
}

/// The facts about a lower pod that decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerFacts {
    /// UID.
    pub uid: String,
    /// UID of the upper pod in its owner mark.
    pub owner_uid: String,
    /// That upper pod was deleted with grace 0, by force.
    pub owner_forced: bool,
    /// `metadata.deletionGracePeriodSeconds`, when it has a deletionTimestamp.
    pub deleting: Option<i64>,
    /// Its phase is Succeeded or Failed.
    pub terminal: bool,
    /// Its restart policy lets it run to completion.
    pub completes: bool,
    /// A lower node has it.
    pub bound: bool,
    /// It carries our finalizer.
    pub holds_result: bool,
    /// Digest of the fields last sent down.
    pub carried: String,
    /// The lower cluster itself takes the pod away (preemption, taint, node loss, eviction): the reason it gives.
    pub disrupted: bool,
    /// Its status has changed since it was last written to the upper pod.
    pub status_unwritten: bool,
}

impl LowerFacts {
    /// Whether none of its containers runs any more, or ever did.
    ///
    /// A pod that carries our finalizer stays in the API server after the kubelet's last word, which is a delete with
    /// grace 0 (K pkg/kubelet/status/status_manager.go).
    fn stopped(&self) -> bool {
        self.terminal || !self.bound || self.deleting == Some(0)
    }
}

/// The next step for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Both clusters agree.
    Nothing,
    /// Wait for an event: something asked for is under way in the lower cluster.
    Wait,
    /// Neither cluster has the pod: forget it.
    Forget,
    /// Create the lower pod.
    Create,
    /// Send changed fields down.
    Update,
    /// Write the lower pod's status to the upper pod.
    WriteStatus,
    /// Tell the user that the pod is offloaded after all.
    ClearStuck,
    /// Delete the lower pod with this grace; `None` leaves the pod's own.
    DeleteLower {
        /// Seconds of grace.
        grace: Option<i64>,
    },
    /// Take our finalizer off the lower pod: its result is written, or nobody is left to read it.
    ReleaseResult,
    /// Delete the upper pod as a user would: its lower twin was deleted by somebody else, so its controller must see it go.
    DeleteUpper,
    /// Write the upper pod's terminal status: the lower cluster took its twin away.
    Fail,
    /// Write the upper pod's terminal status and delete it with grace 0, as a kubelet does last.
    Finish,
    /// Ask the upper API server whether the pod is really gone.
    ProveUpper,
    /// Ask the lower API server whether the pod is really gone.
    ProveLower,
}

/// Decides the next step.
///
/// `lost_to_disruption` says that the last thing seen of a lower pod that is gone now was the lower cluster taking it away.
pub fn next(upper: &Known<UpperFacts>, lower: &Known<LowerFacts>, lost_to_disruption: bool) -> Step {
    match (upper, lower) {
        (Known::Present(upper), Known::Present(lower)) if lower.owner_uid != upper.uid => retire_predecessor(lower),
        (Known::Present(upper), Known::Present(lower)) if upper.deleting.is_some() => delete(upper, lower),
        (Known::Present(upper), Known::Present(lower)) if upper.terminal => settle(lower),
        (Known::Present(upper), Known::Present(lower)) => keep(upper, lower),
        (Known::Present(upper), absent) => without_twin(upper, *absent == Known::ProvenAbsent, lost_to_disruption),
        (Known::ProvenAbsent, Known::Present(lower)) => retire_predecessor(lower),
        (Known::Unseen, Known::Present(_)) => Step::ProveUpper,
        (_, _) => Step::Forget,
    }
}

/// A lower pod whose upper pod is gone (or was followed by another of the same name) goes too.
fn retire_predecessor(lower: &LowerFacts) -> Step {
    match lower.deleting {
        None => Step::DeleteLower { grace: lower.owner_forced.then_some(0) },
        Some(_) if lower.holds_result && lower.stopped() => Step::ReleaseResult,
        Some(granted) if lower.owner_forced && granted > 0 => Step::DeleteLower { grace: Some(0) },
        Some(_) => Step::Wait,
    }
}

/// The upper pod is being deleted.
fn delete(upper: &UpperFacts, lower: &LowerFacts) -> Step {
    let wanted = upper.deleting.unwrap_or_default();
    match lower.deleting {
        None => Step::DeleteLower { grace: Some(wanted) },
        // The user has shortened the grace meanwhile.
        Some(granted) if granted > wanted => Step::DeleteLower { grace: Some(wanted) },
        Some(_) if lower.status_unwritten && !upper.terminal => Step::WriteStatus,
        Some(_) if lower.holds_result && lower.stopped() => Step::ReleaseResult,
        Some(_) => Step::Wait,
    }
}

/// The upper pod has its final phase; nothing below may run on, and nothing is written any more.
fn settle(lower: &LowerFacts) -> Step {
    if lower.terminal {
        return if lower.holds_result { Step::ReleaseResult } else { Step::Nothing };
    }
    // Somebody else failed the upper pod (its controller counts it as gone and may have replaced it).
    match lower.deleting {
        None => Step::DeleteLower { grace: None },
        Some(_) if lower.holds_result && lower.stopped() => Step::ReleaseResult,
        Some(_) => Step::Wait,
    }
}

/// Both pods are there and wanted.
fn keep(upper: &UpperFacts, lower: &LowerFacts) -> Step {
    // A service that ends with exit code 0 because it was evicted has not completed: its last status is written, as a
    // failure with the reason, once it is gone. A pod that can complete keeps its own result, as on a kubelet.
    if lower.disrupted && lower.deleting.is_some() && lower.terminal && !lower.completes {
        return Step::Wait;
    }
    if lower.status_unwritten {
        return Step::WriteStatus;
    }
    if lower.deleting.is_some() {
        if lower.holds_result && lower.stopped() {
            return Step::ReleaseResult;
        }
        // A disruption ends in `Fail` once the pod is gone; until then its containers may still run.
        return if lower.disrupted { Step::Wait } else { Step::DeleteUpper };
    }
    if lower.terminal {
        // Its status is written (above), so this is a lower pod that the upper cluster does not yet show as terminal
        // in our cache; the event is on its way.
        return Step::Wait;
    }
    if upper.carried != lower.carried {
        return Step::Update;
    }
    if upper.reported_stuck {
        return Step::ClearStuck;
    }
    Step::Nothing
}

/// There is no lower pod in our cache.
fn without_twin(upper: &UpperFacts, proven: bool, lost_to_disruption: bool) -> Step {
    if upper.deleting.is_some() {
        if !proven {
            return Step::ProveLower;
        }
        // What is left after the last delete is other controllers' finalizers. That the pod's grace is 0 is no proof of
        // that delete: the API server writes the grace first and removes the pod then, and a request cut between the two
        // leaves a pod that nobody else removes (K staging/src/k8s.io/apiserver/pkg/registry/generic/registry/store.go).
        let done = upper.deleting == Some(0) && upper.terminal && upper.finished;
        return if done { Step::Nothing } else { Step::Finish };
    }
    if upper.terminal {
        return Step::Nothing;
    }
    if !upper.started {
        // A POST is its own proof: it answers AlreadyExists when our cache was behind.
        return Step::Create;
    }
    match (proven, lost_to_disruption) {
        (false, _) => Step::ProveLower,
        (true, true) => Step::Fail,
        (true, false) => Step::DeleteUpper,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upper() -> UpperFacts {
        UpperFacts {
            uid: "u1".into(),
            deleting: None,
            terminal: false,
            started: true,
            carried: "c1".into(),
            reported_stuck: false,
            finished: false,
        }
    }

    fn lower() -> LowerFacts {
        LowerFacts {
            uid: "l1".into(),
            owner_uid: "u1".into(),
            owner_forced: false,
            deleting: None,
            terminal: false,
            completes: false,
            bound: true,
            holds_result: false,
            carried: "c1".into(),
            disrupted: false,
            status_unwritten: false,
        }
    }

    #[allow(clippy::needless_pass_by_value)] // the tests read better so
    fn step(upper: Known<UpperFacts>, lower: Known<LowerFacts>) -> Step {
        next(&upper, &lower, false)
    }

    #[test]
    fn a_new_pod_is_created_once() {
        let fresh = UpperFacts { started: false, ..upper() };
        assert_eq!(step(Known::Present(fresh.clone()), Known::Unseen), Step::Create);
        assert_eq!(step(Known::Present(fresh), Known::Present(lower())), Step::Nothing);
    }

    #[test]
    fn a_pod_that_ends_before_it_began_is_never_created() {
        let fresh = UpperFacts { started: false, deleting: Some(30), ..upper() };
        assert_eq!(step(Known::Present(fresh.clone()), Known::Unseen), Step::ProveLower);
        assert_eq!(step(Known::Present(fresh), Known::ProvenAbsent), Step::Finish);
    }

    #[test]
    fn a_completed_pod_never_runs_again() {
        let done = UpperFacts { terminal: true, ..upper() };
        assert_eq!(step(Known::Present(done.clone()), Known::Unseen), Step::Nothing);
        assert_eq!(step(Known::Present(done), Known::ProvenAbsent), Step::Nothing);
    }

    #[test]
    fn a_result_is_written_before_the_lower_pod_may_go() {
        let finished =
            LowerFacts { terminal: true, holds_result: true, status_unwritten: true, deleting: Some(0), ..lower() };
        assert_eq!(step(Known::Present(upper()), Known::Present(finished.clone())), Step::WriteStatus);
        let written = LowerFacts { status_unwritten: false, ..finished };
        let done = UpperFacts { terminal: true, ..upper() };
        assert_eq!(step(Known::Present(done), Known::Present(written)), Step::ReleaseResult);
    }

    #[test]
    fn a_lower_pod_that_vanished_is_looked_for_before_its_upper_pod_is_deleted() {
        assert_eq!(step(Known::Present(upper()), Known::Unseen), Step::ProveLower);
        assert_eq!(step(Known::Present(upper()), Known::ProvenAbsent), Step::DeleteUpper);
        assert_eq!(next(&Known::Present(upper()), &Known::ProvenAbsent, true), Step::Fail);
    }

    #[test]
    fn an_orphan_is_deleted_only_after_the_upper_cluster_was_asked() {
        assert_eq!(step(Known::Unseen, Known::Present(lower())), Step::ProveUpper);
        assert_eq!(step(Known::ProvenAbsent, Known::Present(lower())), Step::DeleteLower { grace: None });
    }

    #[test]
    fn force_follows_the_user_also_when_only_the_pods_end_was_seen() {
        let forced = LowerFacts { owner_forced: true, ..lower() };
        let by_force = Step::DeleteLower { grace: Some(0) };
        let successor = UpperFacts { uid: "u2".into(), started: false, ..upper() };
        let going = LowerFacts { deleting: Some(600), ..forced.clone() };
        for upper in [Known::ProvenAbsent, Known::Present(successor)] {
            assert_eq!(step(upper.clone(), Known::Present(forced.clone())), by_force);
            assert_eq!(step(upper.clone(), Known::Present(going.clone())), by_force, "the user lost patience");
            let gone_soon = LowerFacts { deleting: Some(0), ..forced.clone() };
            assert_eq!(step(upper, Known::Present(gone_soon)), Step::Wait);
        }
    }

    #[test]
    fn a_successor_of_the_same_name_waits_for_its_predecessor() {
        let successor = UpperFacts { uid: "u2".into(), started: false, ..upper() };
        assert_eq!(step(Known::Present(successor.clone()), Known::Present(lower())), Step::DeleteLower { grace: None });
        let going = LowerFacts { deleting: Some(30), ..lower() };
        assert_eq!(step(Known::Present(successor.clone()), Known::Present(going)), Step::Wait);
        let stopped = LowerFacts { deleting: Some(0), holds_result: true, ..lower() };
        assert_eq!(step(Known::Present(successor.clone()), Known::Present(stopped)), Step::ReleaseResult);
        assert_eq!(step(Known::Present(successor), Known::ProvenAbsent), Step::Create);
    }

    #[test]
    fn grace_follows_the_user_down_but_not_up() {
        let deleting = UpperFacts { deleting: Some(30), ..upper() };
        assert_eq!(
            step(Known::Present(deleting.clone()), Known::Present(lower())),
            Step::DeleteLower { grace: Some(30) }
        );
        let going = LowerFacts { deleting: Some(30), ..lower() };
        assert_eq!(step(Known::Present(deleting), Known::Present(going.clone())), Step::Wait);
        let hurried = UpperFacts { deleting: Some(1), ..upper() };
        assert_eq!(step(Known::Present(hurried), Known::Present(going)), Step::DeleteLower { grace: Some(1) });
    }

    #[test]
    fn a_lower_pod_deleted_by_somebody_else_takes_its_upper_pod_along() {
        let going = LowerFacts { deleting: Some(30), ..lower() };
        assert_eq!(step(Known::Present(upper()), Known::Present(going)), Step::DeleteUpper);
    }

    #[test]
    fn a_preempted_lower_pod_fails_its_upper_pod_only_when_gone() {
        let going = LowerFacts { deleting: Some(30), disrupted: true, ..lower() };
        assert_eq!(step(Known::Present(upper()), Known::Present(going.clone())), Step::Wait);
        assert_eq!(next(&Known::Present(upper()), &Known::ProvenAbsent, true), Step::Fail);
        // Its containers ended well when they were told to: that is no success for a pod that should run for ever.
        let ended = LowerFacts { terminal: true, status_unwritten: true, ..going };
        assert_eq!(step(Known::Present(upper()), Known::Present(ended.clone())), Step::Wait);
        let job = LowerFacts { completes: true, ..ended };
        assert_eq!(step(Known::Present(upper()), Known::Present(job)), Step::WriteStatus);
    }

    #[test]
    fn an_upper_pod_failed_by_others_does_not_run_on() {
        let failed = UpperFacts { terminal: true, ..upper() };
        assert_eq!(step(Known::Present(failed), Known::Present(lower())), Step::DeleteLower { grace: None });
    }

    #[test]
    fn finalizers_of_others_are_waited_for_quietly() {
        let held = UpperFacts { deleting: Some(0), terminal: true, finished: true, ..upper() };
        assert_eq!(step(Known::Present(held), Known::ProvenAbsent), Step::Nothing);
    }

    #[test]
    fn a_last_delete_that_was_cut_in_the_middle_is_sent_again() {
        let cut = UpperFacts { deleting: Some(0), terminal: true, ..upper() };
        assert_eq!(step(Known::Present(cut), Known::ProvenAbsent), Step::Finish);
    }

    #[test]
    fn changed_fields_go_down_after_the_status_went_up() {
        let changed = UpperFacts { carried: "c2".into(), ..upper() };
        let news = LowerFacts { status_unwritten: true, ..lower() };
        assert_eq!(step(Known::Present(changed.clone()), Known::Present(news)), Step::WriteStatus);
        assert_eq!(step(Known::Present(changed), Known::Present(lower())), Step::Update);
    }
}
