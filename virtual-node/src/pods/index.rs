//! What is known of every pod in both clusters: one record for each upper namespace and name.
//!
//! Two watches write into the index, workers read from it and put back what an API server answered them. It holds no
//! pod whole for longer than somebody needs it: at thousands of pods the specs would be most of the memory.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    plan::{Known, Step},
    reading::{
        Disruption, deletion_grace, disruption, key_of, only_what_travels, version_of, with_generation, without_spec,
    },
    record::{Record, Upper, UpperStatus, lower_of},
};
use crate::{names::Key, owner::OwnerMark, packed::Packed, translate};

/// What a worker needs to perform a step.
#[derive(Debug)]
pub struct View {
    /// The step.
    pub step: Step,
    /// UID of the upper pod, if it is known.
    pub upper_uid: Option<String>,
    /// UID of the lower pod, if it is known.
    pub lower_uid: Option<String>,
    /// UID of the upper pod that the lower pod's mark names.
    pub lower_owner: Option<String>,
    /// The whole upper pod, if it is still held.
    pub upper_whole: Option<Packed<Pod>>,
    /// The upper pod's status as last known.
    pub upper_status: Option<Box<PodStatus>>,
    /// The lower pod whose status is to be written, or the last that was seen of it.
    pub lower_pod: Option<Arc<Pod>>,
}

/// What an upper pod's news meant.
#[derive(Debug)]
pub struct Applied {
    /// Its key.
    pub key: Key,
    /// UID of the pod of that name that it replaces, which is thereby gone.
    pub replaced: Option<String>,
}

/// The index.
#[derive(Debug, Default)]
pub struct Index {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<Key, Record>,
    /// Upper namespace of each lower one that was seen with pods of ours: hashed names cannot be mapped back.
    upper_namespaces: HashMap<String, String>,
    upper_listing: Listing,
    lower_listing: Listing,
}

/// The list under way, or the last one.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    number: u64,
    /// Up to this version the list says how things are; see [`tensile_chassis::watch::Event::Restarted`].
    decides_until: u64,
}

impl Listing {
    fn next(&mut self, decides_until: u64) {
        *self = Self { number: self.number + 1, decides_until };
    }

    /// Whether an object that was known by one version, and is listed with this lower one, was put back: the API server's
    /// store was restored from a backup. Otherwise the list is merely older than an answer that we had meanwhile.
    fn undoes(self, known_version: u64) -> bool {
        known_version <= self.decides_until
    }
}

impl Index {
    /// A new list of upper pods begins.
    pub fn upper_list_began(&self, decides_until: u64) {
        self.state.lock().upper_listing.next(decides_until);
    }

    /// The list of upper pods is complete: those that were not in it are unseen now, which proves nothing yet.
    /// Answers all keys, for after a gap in what was seen each is worth a look.
    pub fn upper_list_done(&self) -> Vec<Key> {
        let mut state = self.state.lock();
        let listing = state.upper_listing.number;
        for record in state.records.values_mut() {
            if let Known::Present(upper) = &record.upper
                && upper.listing != listing
            {
                record.vanished = Some(upper.uid.clone());
                record.upper = Known::Unseen;
            }
        }
        state.records.keys().cloned().collect()
    }

    /// A new list of lower pods begins.
    pub fn lower_list_began(&self, decides_until: u64) {
        self.state.lock().lower_listing.next(decides_until);
    }

    /// The list of lower pods is complete; see [`Self::upper_list_done`].
    pub fn lower_list_done(&self) -> Vec<Key> {
        let mut state = self.state.lock();
        let listing = state.lower_listing.number;
        for record in state.records.values_mut() {
            if matches!(&record.lower, Known::Present(lower) if lower.listing != listing) {
                record.lower = Known::Unseen;
            }
        }
        state.records.keys().cloned().collect()
    }

    /// An upper pod was added or changed. `None` when it tells nothing new.
    pub fn upper_applied(&self, pod: Pod) -> Option<Applied> {
        self.upper_told(pod, false)
    }

    /// An upper pod is in the list. `None` when it tells nothing new.
    pub fn upper_listed(&self, pod: Pod) -> Option<Applied> {
        self.upper_told(pod, true)
    }

    fn upper_told(&self, pod: Pod, by_list: bool) -> Option<Applied> {
        let key = key_of(&pod)?;
        let uid = pod.metadata.uid.clone()?;
        let version = version_of(pod.metadata.resource_version.as_deref());
        let mut state = self.state.lock();
        let listing = state.upper_listing;
        let record = state.records.entry(key.clone()).or_insert_with(Record::new);
        let mut before = None;
        let mut replaced = record.vanished.take().filter(|vanished| *vanished != uid);
        if let Known::Present(known) = &mut record.upper
            && known.uid == uid
        {
            known.listing = listing.number;
            // The same version again is looked at: it may be known only from the answer to a status write of ours, which
            // tells nothing of a deletion that came with it.
            if version < known.version {
                if !(by_list && listing.undoes(known.version)) {
                    return None;
                }
                // Its last delete was undone with the rest.
                record.finished = None;
            }
            before = known.status.take().and_then(|status| status.packed);
        } else {
            if let Known::Present(known) = &record.upper {
                replaced = Some(known.uid.clone());
            }
            record.last_lower = None;
            record.lost_to_disruption = false;
        }
        if deletion_grace(&pod) == Some(0) {
            record.forced = Some(uid.clone());
        }
        let mut pod = pod;
        let status = pod.status.take();
        let kept = status.as_ref().map(UpperStatus::of);
        // Somebody else wrote the status: what the lower pod says must be compared with it anew.
        if before.is_some()
            && before != kept.as_ref().and_then(|status| status.packed.clone())
            && let Known::Present(lower) = &mut record.lower
        {
            lower.reread = lower.unwritten.is_none();
        }
        pod.status = status.as_ref().map(only_what_travels);
        let carried = with_generation(translate::carried_digest(&pod), pod.metadata.generation);
        record.upper = Known::Present(Upper {
            uid,
            version,
            listing: listing.number,
            deleting: deletion_grace(&pod),
            carried,
            status: kept,
            whole: None,
        });
        if !record.carries_all()
            && let Some(upper) = record.upper_present()
        {
            upper.whole = Packed::of(&pod);
        }
        Some(Applied { key, replaced })
    }

    /// The upper API server has said that the pod (of this UID; of any when `None`) is gone. Answers the UID of the pod
    /// that was known until now, if there was one.
    pub fn upper_proven_absent(&self, key: &Key, uid: Option<&str>) -> Option<String> {
        let mut state = self.state.lock();
        let record = state.records.get_mut(key)?;
        if matches!(&record.upper, Known::Present(known) if uid.is_some_and(|uid| uid != known.uid)) {
            return None;
        }
        match std::mem::replace(&mut record.upper, Known::ProvenAbsent) {
            Known::Present(known) => Some(known.uid),
            Known::ProvenAbsent | Known::Unseen => record.vanished.take(),
        }
    }

    /// A watch brought an upper pod's last state together with the news that it is gone. The state before, with the
    /// deletion's grace, may never have been seen.
    pub fn upper_last_state(&self, pod: &Pod) {
        if deletion_grace(pod) != Some(0) {
            return;
        }
        let Some(key) = key_of(pod) else { return };
        if let Some(record) = self.state.lock().records.get_mut(&key) {
            record.forced.clone_from(&pod.metadata.uid);
        }
    }

    /// A lower pod of ours was added or changed.
    pub fn lower_applied(&self, pod: Pod, mark: OwnerMark) -> Option<Key> {
        self.lower_told(pod, mark, false)
    }

    /// A lower pod of ours is in the list.
    pub fn lower_listed(&self, pod: Pod, mark: OwnerMark) -> Option<Key> {
        self.lower_told(pod, mark, true)
    }

    fn lower_told(&self, pod: Pod, mark: OwnerMark, by_list: bool) -> Option<Key> {
        let uid = pod.metadata.uid.clone()?;
        let version = version_of(pod.metadata.resource_version.as_deref());
        let mut state = self.state.lock();
        let listing = state.lower_listing;
        if let Some(lower) = pod.metadata.namespace.as_deref()
            && !state.upper_namespaces.contains_key(lower)
        {
            state.upper_namespaces.insert(lower.to_owned(), mark.key.namespace.clone());
        }
        let record = state.records.entry(mark.key.clone()).or_insert_with(Record::new);
        if let Known::Present(known) = &mut record.lower
            && known.uid == uid
        {
            known.listing = listing.number;
            let undone = by_list && version < known.version && listing.undoes(known.version);
            if version <= known.version && !undone {
                return None;
            }
        }
        record.last_lower = None;
        record.lost_to_disruption = false;
        record.announced = None;
        record.lower = Known::Present(lower_of(pod, uid, mark.uid, version, listing.number));
        record.trim();
        Some(mark.key)
    }

    /// The lower API server has created the pod; the watch will tell of it. Until then nobody creates it once more.
    pub fn lower_announced(&self, key: &Key, upper_uid: &str) {
        if let Some(record) = self.state.lock().records.get_mut(key)
            && matches!(&record.upper, Known::Present(upper) if upper.uid == upper_uid)
            && !matches!(&record.lower, Known::Present(lower) if lower.owner_uid == upper_uid)
        {
            record.announced = Some(Instant::now());
        }
    }

    /// A watch said that a lower pod of ours is gone.
    pub fn lower_deleted(&self, pod: Pod, mark: OwnerMark) -> Option<Key> {
        let uid = pod.metadata.uid.clone()?;
        let mut state = self.state.lock();
        let record = state.records.get_mut(&mark.key)?;
        if matches!(&record.lower, Known::Present(known) if known.uid != uid) {
            return None;
        }
        if matches!(&record.upper, Known::Present(upper) if upper.uid == mark.uid) {
            record.lost_to_disruption = disruption(&pod).is_some_and(Disruption::fails);
            record.last_lower = Some(Arc::new(without_spec(pod)));
        }
        record.announced = None;
        record.lower = Known::ProvenAbsent;
        Some(mark.key)
    }

    /// The lower API server has said NotFound.
    pub fn lower_proven_absent(&self, key: &Key) {
        if let Some(record) = self.state.lock().records.get_mut(key) {
            record.announced = None;
            record.lower = Known::ProvenAbsent;
        }
    }

    /// The lower API server answered a live read with this pod.
    pub fn lower_read(&self, pod: Pod, mark: OwnerMark) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let version = version_of(pod.metadata.resource_version.as_deref());
        let mut state = self.state.lock();
        let listing = state.lower_listing;
        let record = state.records.entry(mark.key.clone()).or_insert_with(Record::new);
        if matches!(&record.lower, Known::Present(known) if known.uid == uid && known.version > version) {
            return;
        }
        record.last_lower = None;
        record.lost_to_disruption = false;
        record.announced = None;
        record.lower = Known::Present(lower_of(pod, uid, mark.uid, version, listing.number));
        record.trim();
    }

    /// The upper API server answered a live read, or a write of ours, with this status.
    pub fn upper_status_written(&self, key: &Key, uid: &str, version: Option<&str>, status: Option<&PodStatus>) {
        let version = version_of(version);
        let mut state = self.state.lock();
        let Some(upper) = state.records.get_mut(key).and_then(Record::upper_present) else { return };
        if upper.uid == uid && version > upper.version {
            upper.version = version;
            upper.status = status.map(UpperStatus::of);
        }
    }

    /// The upper API server has acknowledged the last delete of this upper pod, with grace 0.
    pub fn upper_finished(&self, key: &Key, uid: &str) {
        if let Some(record) = self.state.lock().records.get_mut(key) {
            record.finished = Some(uid.to_owned());
        }
    }

    /// A lower pod's status (as of this UID and pod) is now written above.
    pub fn lower_status_written(&self, key: &Key, written: &Arc<Pod>) {
        let mut state = self.state.lock();
        if let Some(lower) = state.records.get_mut(key).and_then(Record::lower_present)
            && lower.unwritten.as_ref().is_some_and(|pod| Arc::ptr_eq(pod, written))
        {
            lower.unwritten = None;
        }
    }

    /// A live read has shown that the lower pod carries all that may travel.
    pub fn lower_updated(&self, key: &Key, lower_uid: &str) {
        let mut state = self.state.lock();
        let Some(record) = state.records.get_mut(key) else { return };
        if let (Known::Present(upper), Known::Present(lower)) = (&record.upper, &mut record.lower)
            && lower.uid == lower_uid
        {
            lower.carried.clone_from(&upper.carried);
        }
        record.trim();
    }

    /// Decides the next step for a pod and hands out what it takes. Forgets the record when neither cluster has the pod.
    pub fn look(&self, key: &Key) -> Option<View> {
        let mut state = self.state.lock();
        let record = state.records.get_mut(key)?;
        let step = record.step();
        if step == Step::Forget {
            state.records.remove(key);
            return None;
        }
        let (upper_uid, upper_whole, upper_status) = match &record.upper {
            Known::Present(upper) => {
                let status = upper.status.as_ref().filter(|_| needs_status(step));
                (Some(upper.uid.clone()), upper.whole.clone(), status.and_then(|status| status.packed.clone()))
            }
            Known::ProvenAbsent | Known::Unseen => (None, None, None),
        };
        let (lower_uid, lower_owner, unwritten) = match &record.lower {
            Known::Present(lower) => (Some(lower.uid.clone()), Some(lower.owner_uid.clone()), lower.unwritten.clone()),
            Known::ProvenAbsent | Known::Unseen => (None, None, None),
        };
        let lower_pod = unwritten.or_else(|| record.last_lower.clone());
        drop(state);
        let upper_status = upper_status.and_then(|status| status.unpack()).map(Box::new);
        Some(View { step, upper_uid, lower_uid, lower_owner, upper_whole, upper_status, lower_pod })
    }

    /// Whether the upper pod of this UID is known.
    pub fn knows_upper(&self, key: &Key, uid: &str) -> bool {
        let mut state = self.state.lock();
        let upper = state.records.get_mut(key).and_then(Record::upper_present);
        upper.is_some_and(|upper| upper.uid == uid)
    }

    /// Whether the upper pod is known, and whether its lower twin is.
    pub fn presence(&self, key: &Key) -> (bool, bool) {
        let mut state = self.state.lock();
        state
            .records
            .get_mut(key)
            .map_or((false, false), |record| (record.upper_present().is_some(), record.lower_present().is_some()))
    }

    /// Key and UID of the upper pod that a lower pod (of this UID, where one is given) stands for.
    pub fn upper_of(&self, lower: &Key, lower_uid: Option<&str>) -> Option<(Key, String)> {
        let mut state = self.state.lock();
        let key = Key::new(state.upper_namespaces.get(&lower.namespace)?.clone(), lower.name.clone());
        let record = state.records.get_mut(&key)?;
        let known = record.lower_present()?;
        let owner = known.owner_uid.clone();
        let meant = lower_uid.is_none_or(|uid| uid == known.uid);
        (meant && record.upper_present()?.uid == owner).then_some((key, owner))
    }

    /// Key of the upper pod that a lower pod stands for, and what `read` makes of its UID and status.
    pub fn upper_status_of<T>(&self, lower: &Key, read: impl FnOnce(&str, &PodStatus) -> T) -> Option<(Key, T)> {
        let mut state = self.state.lock();
        let key = Key::new(state.upper_namespaces.get(&lower.namespace)?.clone(), lower.name.clone());
        let record = state.records.get_mut(&key)?;
        let owner = record.lower_present()?.owner_uid.clone();
        let upper = record.upper_present().filter(|upper| upper.uid == owner)?;
        let read = read(&upper.uid, &upper.status.as_ref()?.packed.as_ref()?.unpack()?);
        Some((key, read))
    }

    /// All pods that are known.
    pub fn keys(&self) -> Vec<Key> {
        self.state.lock().records.keys().cloned().collect()
    }

    /// How many pods are known.
    pub fn len(&self) -> usize {
        self.state.lock().records.len()
    }

    /// Whether no pod is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Steps that compare with, or build on, the upper pod's status.
fn needs_status(step: Step) -> bool {
    matches!(step, Step::WriteStatus | Step::Fail | Step::Finish | Step::ClearStuck | Step::Create)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use tensile_proto::vocabulary::{annotation, label};

    use super::*;

    fn upper(version: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "p", "uid": "u", "resourceVersion": version}, "spec": {"containers": []},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    fn lower(uid: &str, version: &str) -> (Pod, OwnerMark) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "p", "uid": uid, "resourceVersion": version,
                "labels": {label::UPPER_CLUSTER: "c", label::UPPER_UID: "u", label::VIRTUAL_NODE: "vn"},
                "annotations": {annotation::UPPER_NAMESPACE: "n", annotation::UPPER_NAME: "p"}},
            "spec": {"containers": [], "nodeName": "x"},
            "status": {"phase": "Failed", "message": uid},
        }))
        .unwrap();
        let mark = OwnerMark::read(&pod.metadata).unwrap();
        (pod, mark)
    }

    /// The process that saw the lower pod's end died over it. The next one finds no lower pod, and an upper pod whose status
    /// says that the lower cluster takes it away: it fails, as it would have.
    #[test]
    fn a_pod_that_was_evicted_below_fails_also_after_a_restart_in_the_middle_of_it() {
        let told = |reason: &str| {
            let index = Index::default();
            let mut pod = upper("1", "Running");
            pod.status = serde_json::from_value(json!({"phase": "Running", "startTime": "2026-11-24T08:00:00Z",
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}))
            .unwrap();
            index.upper_listed(pod);
            index.lower_proven_absent(&Key::new("n", "p"));
            index.look(&Key::new("n", "p")).unwrap().step
        };
        assert_eq!(told("EvictionByEvictionAPI"), Step::Fail);
        assert_eq!(told("DeletionByTaintManager"), Step::DeleteUpper, "lost with its node: its controller replaces it");
    }

    /// A lower pod that went is followed by another, which a live read finds. If the upper status is then overwritten, the
    /// status to restore is read from the new pod and not taken from the old one.
    #[test]
    fn a_lower_pod_that_went_is_forgotten_when_another_is_found() {
        let index = Index::default();
        let key = Key::new("n", "p");
        index.upper_applied(upper("1", "Pending"));
        let (old, mark) = lower("old", "2");
        index.lower_applied(old.clone(), mark.clone());
        index.lower_deleted(old, mark).unwrap();
        let (new, mark) = lower("new", "3");
        index.lower_read(new, mark);
        let view = index.look(&key).unwrap();
        let written = view.lower_pod.unwrap();
        assert_eq!(written.metadata.uid.as_deref(), Some("new"));
        index.lower_status_written(&key, &written);

        index.upper_applied(upper("4", "Running"));
        let view = index.look(&key).unwrap();
        assert_eq!(view.step, Step::WriteStatus);
        assert!(view.lower_pod.is_none(), "the old pod's status would be written: {:?}", view.lower_pod);
    }

    /// A list tells how things are, also when that is how they were before: a backup was restored. Unless it is merely
    /// older than what we were answered meanwhile.
    #[test]
    fn a_list_that_decides_puts_a_pod_back_and_an_older_list_does_not() {
        for (decides_until, phase) in [(4, "Running"), (5, "Pending"), (u64::MAX, "Pending")] {
            let index = Index::default();
            let key = Key::new("n", "p");
            index.upper_list_began(2);
            index.upper_listed(upper("2", "Pending"));
            index.upper_list_done();
            index.upper_applied(upper("5", "Running"));

            index.upper_list_began(decides_until);
            index.upper_listed(upper("2", "Pending"));
            index.upper_list_done();
            let status = index.look(&key).unwrap().upper_status.unwrap();
            assert_eq!(status.phase.as_deref(), Some(phase), "a list that decides until {decides_until}");
        }
    }

    /// The same below. What the pod says now is told above once more.
    #[test]
    fn a_lower_pod_that_was_put_back_is_told_again() {
        for (decides_until, told) in [(8, false), (9, true), (u64::MAX, true)] {
            let index = Index::default();
            let key = Key::new("n", "p");
            index.upper_applied(upper("1", "Running"));
            let (pod, mark) = lower("l", "9");
            index.lower_applied(pod, mark);
            let written = index.look(&key).unwrap().lower_pod.unwrap();
            index.lower_status_written(&key, &written);

            index.lower_list_began(decides_until);
            let (pod, mark) = lower("l", "7");
            assert_eq!(index.lower_listed(pod, mark).is_some(), told, "a list that decides until {decides_until}");
            let unwritten = index.look(&key).unwrap().step == Step::WriteStatus;
            assert_eq!(unwritten, told, "a list that decides until {decides_until}");
        }
    }
}
