//! The two watches that feed the index: pods bound to the virtual node above, all pods below.

use std::{collections::HashSet, sync::Arc};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tensile_chassis::{
    queue::WorkQueue,
    readiness::Gate,
    watch::{Event, Watch, WatchMetrics, WatchOptions, watch},
};
use tensile_scheduling::PodFacts;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    down::pod_need,
    reading::{Disruption, disruption, is_terminal, key_of, unschedulable},
    sync::Syncer,
};
use crate::{capacity::CapacityLedger, contract::PlacementVerdict, names::Key, owner::OwnerMark, translate};

/// Watches the pods of the upper cluster that are bound to the virtual node.
pub(super) fn watch_upper(syncer: &Syncer, gate: Gate, metrics: WatchMetrics) -> Watch<Pod> {
    // The Node authorizer allows a node to watch pods only with this selector.
    let field_selector = Some(format!("spec.nodeName={}", syncer.settings.node_name));
    let options = WatchOptions { field_selector, metrics, ..WatchOptions::new("upper-pods") };
    watch(Api::<Pod>::all(syncer.upper.node.clone()), options, gate)
}

/// Watches all pods of the lower cluster.
pub(super) fn watch_lower(syncer: &Syncer, gate: Gate, metrics: WatchMetrics) -> Watch<Pod> {
    let options = WatchOptions { metrics, ..WatchOptions::new("lower-pods") };
    watch(Api::<Pod>::all(syncer.lower.api.clone()), options, gate)
}

/// Takes in what happens to upper pods.
pub(super) async fn upper(
    syncer: Arc<Syncer>,
    queue: WorkQueue<Key>,
    mut events: Watch<Pod>,
    synced: signal::Sender<bool>,
    shutdown: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(event) = events.next() => event,
            else => return,
        };
        match event {
            Event::Restarted { decides_until } => {
                syncer.index.upper_list_began(decides_until);
            }
            Event::Listed(pod) => {
                syncer.needs_of(&pod, *synced.borrow());
                if let Some(key) = syncer.upper_listed(pod) {
                    queue.add(key);
                }
            }
            Event::Applied(pod) => {
                syncer.needs_of(&pod, *synced.borrow());
                if let Some(key) = syncer.upper_applied(pod) {
                    queue.add(key);
                }
            }
            Event::Deleted(pod) => {
                if let Some(key) = key_of(&pod) {
                    syncer.index.upper_last_state(&pod);
                    syncer.upper_gone(&key, pod.metadata.uid.as_deref());
                    queue.add(key);
                }
            }
            Event::ListDone => {
                for key in syncer.index.upper_list_done() {
                    queue.add(key);
                }
                info!(pods = syncer.index.len(), "upper pods listed");
                synced.send_replace(true);
            }
            Event::Malformed { namespace, name, error } => {
                warn!(?namespace, %name, %error, "an upper pod cannot be read and is left alone; the others go on");
            }
        }
    }
}

/// Takes in what happens to lower pods: ours for their status, the others for the room they take.
pub(super) async fn lower(
    syncer: Arc<Syncer>,
    queue: WorkQueue<Key>,
    ledger: CapacityLedger,
    mut events: Watch<Pod>,
    synced: signal::Sender<bool>,
    shutdown: CancellationToken,
) {
    // UIDs of a list that is not the first: pods that went unseen must not keep their room.
    let mut listed: Option<HashSet<String>> = None;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(event) = events.next() => event,
            else => return,
        };
        match event {
            Event::Restarted { decides_until } => {
                syncer.index.lower_list_began(decides_until);
                listed = synced.borrow().then(HashSet::new);
                if listed.is_some() {
                    // The history is lost. Secrets and ConfigMaps may have been put back with it.
                    syncer.needs.look_again();
                }
            }
            Event::Listed(pod) => {
                if let (Some(listed), Some(uid)) = (&mut listed, &pod.metadata.uid) {
                    listed.insert(uid.clone());
                }
                let Some(mark) = syncer.lower_there(&pod, &ledger) else { continue };
                if let Some(key) = syncer.index.lower_listed(pod, mark) {
                    queue.add(key);
                }
            }
            Event::Applied(pod) => {
                let Some(mark) = syncer.lower_there(&pod, &ledger) else { continue };
                if let Some(key) = syncer.index.lower_applied(pod, mark) {
                    queue.add(key);
                }
            }
            Event::Deleted(pod) => {
                if let Some(uid) = pod.metadata.uid.as_deref() {
                    ledger.remove_pod(uid);
                }
                let Some(mark) = syncer.mark_of(&pod) else { continue };
                syncer.note_placement(&pod, &mark);
                syncer.strays.forget(&mark.key);
                if let Some(key) = syncer.index.lower_deleted(pod, mark) {
                    queue.add(key);
                }
            }
            Event::ListDone => {
                if let Some(listed) = listed.take() {
                    ledger.retain_pods(&listed);
                }
                ledger.pods_listed();
                for key in syncer.index.lower_list_done() {
                    queue.add(key);
                }
                info!("lower pods listed");
                synced.send_replace(true);
            }
            Event::Malformed { namespace, name, error } => {
                warn!(?namespace, %name, %error, "a lower pod cannot be read and is left alone; the others go on");
            }
        }
    }
}

fn has_ended(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(is_terminal)
}

impl Syncer {
    /// Holds, or lets go of, what an upper pod needs below, and the room for it.
    fn needs_of(&self, pod: &Pod, synced: bool) {
        self.reservations.upper_pod(pod);
        // Pods of an earlier run, and those that another replica creates while we stand by, are never created anew by
        // us, so what they need is held here.
        if !synced || self.fence.check().is_err() {
            self.hold_needs(pod);
        }
        // A pod that ran to completion needs nothing any more: a thousand finished Jobs must not have their tokens
        // refreshed until somebody deletes them.
        if has_ended(pod) {
            self.needs.release(pod.metadata.uid.as_deref().unwrap_or_default());
        }
    }

    /// Counts the room of a lower pod, and gives its owner mark if it is ours.
    fn lower_there(&self, pod: &Pod, ledger: &CapacityLedger) -> Option<OwnerMark> {
        let mark = self.mark_of(pod);
        ledger.upsert_pod(PodFacts::of(pod, mark.as_ref().map(|mark| mark.uid.as_str())));
        let mark = mark?;
        self.note_placement(pod, &mark);
        self.strays.note(pod, &mark);
        Some(mark)
    }

    /// Holds what a pod needs below, if it may be running there.
    fn hold_needs(&self, pod: &Pod) {
        if let Some(key) = key_of(pod)
            && !has_ended(pod)
            && translate::admissible(pod).is_ok()
        {
            self.needs.hold(&pod_need(&key, pod));
        }
    }

    /// The owner mark of a lower pod, if it is ours and stands where the mapping says that it stands.
    fn mark_of(&self, pod: &Pod) -> Option<OwnerMark> {
        let mark = OwnerMark::read(&pod.metadata).filter(|mark| self.is_ours(mark))?;
        // A copy of one of our pods (a backup restored into another namespace, say) carries our mark, too.
        let lower = self.lower_key(&mark.key);
        (pod.metadata.namespace.as_deref() == Some(lower.namespace.as_str())
            && pod.metadata.name.as_deref() == Some(lower.name.as_str()))
        .then_some(mark)
    }

    /// Tells the contract's readers what the lower scheduler made of a pod.
    fn note_placement(&self, pod: &Pod, mark: &OwnerMark) {
        if let Some(verdict) = verdict(pod) {
            self.placements.record(&mark.uid, verdict);
        }
    }
}

/// What the lower cluster's scheduler, or its disruptions, made of a pod.
fn verdict(pod: &Pod) -> Option<PlacementVerdict> {
    if let Some(disruption) = disruption(pod) {
        return Some(match disruption {
            Disruption::Preempted => PlacementVerdict::Preempted,
            Disruption::Evicted | Disruption::NodeLost => PlacementVerdict::Evicted,
        });
    }
    if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
        return Some(PlacementVerdict::Bound { node });
    }
    unschedulable(pod).map(|scheduled| PlacementVerdict::Unschedulable {
        message: scheduled.message.clone().unwrap_or_default(),
        since: scheduled.last_transition_time.as_ref().map(|time| time.0),
    })
}
