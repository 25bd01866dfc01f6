//! What is known of every pod in both clusters: one record for each upper namespace and name.
//!
//! Two watches write into the index, workers read from it and put back what an API server answered them. It holds no
//! pod whole for longer than somebody needs it: at thousands of pods the specs would be most of the memory.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use parking_lot::Mutex;
use tensile_proto::vocabulary::{annotation, condition, finalizer};
use tokio::time::Instant;

use super::plan::{self, Known, LowerFacts, Step, UpperFacts};
use crate::{names::Key, owner::OwnerMark, translate};

/// How long the watch may take to tell of a pod that was created. After that the API server is asked.
const ANNOUNCED_MAX: Duration = Duration::from_secs(30);

/// What is kept of an upper pod.
#[derive(Debug)]
struct Upper {
    uid: String,
    version: u64,
    listing: u64,
    deleting: Option<i64>,
    carried: String,
    /// The status as last read, or as answered to our last write.
    status: Option<Box<PodStatus>>,
    /// The whole pod, until the lower cluster has all of it.
    whole: Option<Arc<Pod>>,
}

/// What is kept of a lower pod.
#[derive(Debug)]
struct Lower {
    uid: String,
    owner_uid: String,
    version: u64,
    listing: u64,
    deleting: Option<i64>,
    terminal: bool,
    completes: bool,
    bound: bool,
    holds_result: bool,
    carried: String,
    disrupted: bool,
    /// The pod (without its spec) while its status waits to be written above.
    unwritten: Option<Arc<Pod>>,
    /// Somebody else changed the upper pod's status: the lower one must be read again to restore it.
    reread: bool,
}

#[derive(Debug)]
struct Record {
    upper: Known<Upper>,
    lower: Known<Lower>,
    /// The lower pod as last seen before it went, for the upper pod's last status.
    last_lower: Option<Arc<Pod>>,
    lost_to_disruption: bool,
    /// UID of an upper pod that was known and is not in a newer list: whoever is told that it is gone must be told so.
    vanished: Option<String>,
    /// A lower pod was created just now, and the watch has not told of it yet.
    announced: Option<Instant>,
    /// UID of the upper pod that was deleted with grace 0, by force: its lower twin is, too. Kept here, for the pod may be
    /// gone, or followed by another of its name, before anybody looks.
    forced: Option<String>,
}

impl Record {
    fn new() -> Self {
        Self {
            upper: Known::Unseen,
            lower: Known::Unseen,
            last_lower: None,
            lost_to_disruption: false,
            vanished: None,
            announced: None,
            forced: None,
        }
    }

    fn step(&self) -> Step {
        if self.vanished.is_some() && matches!(self.upper, Known::Unseen) {
            return Step::ProveUpper;
        }
        if let Some(since) = self.announced {
            return if since.elapsed() < ANNOUNCED_MAX { Step::Wait } else { Step::ProveLower };
        }
        plan::next(&upper_facts(&self.upper), &self.lower_facts(), self.lost_to_disruption)
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

    fn upper_present(&mut self) -> Option<&mut Upper> {
        match &mut self.upper {
            Known::Present(upper) => Some(upper),
            Known::ProvenAbsent | Known::Unseen => None,
        }
    }

    fn lower_present(&mut self) -> Option<&mut Lower> {
        match &mut self.lower {
            Known::Present(lower) => Some(lower),
            Known::ProvenAbsent | Known::Unseen => None,
        }
    }

    /// Lets go of the whole upper pod once the lower cluster has all that may travel.
    fn trim(&mut self) {
        if let (Known::Present(upper), Known::Present(lower)) = (&mut self.upper, &self.lower)
            && lower.owner_uid == upper.uid
            && lower.carried == upper.carried
            // Its last status will be made from the whole pod.
            && upper.deleting.is_none()
        {
            upper.whole = None;
        }
    }
}

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
    pub upper_whole: Option<Arc<Pod>>,
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
    upper_listing: u64,
    lower_listing: u64,
}

impl Index {
    /// A new list of upper pods begins.
    pub fn upper_list_began(&self) {
        self.state.lock().upper_listing += 1;
    }

    /// The list of upper pods is complete: those that were not in it are unseen now, which proves nothing yet.
    /// Answers all keys, for after a gap in what was seen each is worth a look.
    pub fn upper_list_done(&self) -> Vec<Key> {
        let mut state = self.state.lock();
        let listing = state.upper_listing;
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
    pub fn lower_list_began(&self) {
        self.state.lock().lower_listing += 1;
    }

    /// The list of lower pods is complete; see [`Self::upper_list_done`].
    pub fn lower_list_done(&self) -> Vec<Key> {
        let mut state = self.state.lock();
        let listing = state.lower_listing;
        for record in state.records.values_mut() {
            if matches!(&record.lower, Known::Present(lower) if lower.listing != listing) {
                record.lower = Known::Unseen;
            }
        }
        state.records.keys().cloned().collect()
    }

    /// An upper pod was listed, added or changed. `None` when it tells nothing new.
    pub fn upper_applied(&self, pod: Pod) -> Option<Applied> {
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
            known.listing = listing;
            // The same version again is looked at: it may be known only from the answer to a status write of ours, which
            // tells nothing of a deletion that came with it.
            if version < known.version {
                return None;
            }
            before = known.status.take();
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
        let status = pod.status.take().map(Box::new);
        // Somebody else wrote the status: what the lower pod says must be compared with it anew.
        if before.is_some()
            && before != status
            && let Known::Present(lower) = &mut record.lower
        {
            lower.reread = lower.unwritten.is_none();
        }
        pod.status = status.as_deref().map(only_what_travels);
        let carried = with_generation(translate::carried_digest(&pod), pod.metadata.generation);
        record.upper = Known::Present(Upper {
            uid,
            version,
            listing,
            deleting: deletion_grace(&pod),
            carried,
            status,
            whole: Some(Arc::new(pod)),
        });
        record.trim();
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

    /// A lower pod of ours was listed, added or changed.
    pub fn lower_applied(&self, pod: Pod, mark: OwnerMark) -> Option<Key> {
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
            known.listing = listing;
            if version <= known.version {
                return None;
            }
        }
        record.last_lower = None;
        record.lost_to_disruption = false;
        record.announced = None;
        record.lower = Known::Present(lower_of(pod, uid, mark.uid, version, listing));
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
        record.announced = None;
        record.lower = Known::Present(lower_of(pod, uid, mark.uid, version, listing));
        record.trim();
    }

    /// The upper API server answered a live read, or a write of ours, with this status.
    pub fn upper_status_written(&self, key: &Key, uid: &str, version: Option<&str>, status: Option<PodStatus>) {
        let version = version_of(version);
        let mut state = self.state.lock();
        let Some(upper) = state.records.get_mut(key).and_then(Record::upper_present) else { return };
        if upper.uid == uid && version > upper.version {
            upper.version = version;
            upper.status = status.map(Box::new);
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
                let status = needs_status(step).then(|| upper.status.clone()).flatten();
                (Some(upper.uid.clone()), upper.whole.clone(), status)
            }
            Known::ProvenAbsent | Known::Unseen => (None, None, None),
        };
        let (lower_uid, lower_owner, unwritten) = match &record.lower {
            Known::Present(lower) => (Some(lower.uid.clone()), Some(lower.owner_uid.clone()), lower.unwritten.clone()),
            Known::ProvenAbsent | Known::Unseen => (None, None, None),
        };
        let lower_pod = unwritten.or_else(|| record.last_lower.clone());
        Some(View { step, upper_uid, lower_uid, lower_owner, upper_whole, upper_status, lower_pod })
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

fn upper_facts(upper: &Known<Upper>) -> Known<UpperFacts> {
    match upper {
        Known::Present(upper) => Known::Present(UpperFacts {
            uid: upper.uid.clone(),
            deleting: upper.deleting,
            terminal: upper.status.as_deref().is_some_and(is_terminal),
            started: upper.status.as_deref().is_some_and(|status| status.start_time.is_some()),
            carried: upper.carried.clone(),
            reported_stuck: upper.status.as_deref().is_some_and(is_reported_stuck),
        }),
        Known::ProvenAbsent => Known::ProvenAbsent,
        Known::Unseen => Known::Unseen,
    }
}

fn lower_of(pod: Pod, uid: String, owner_uid: String, version: u64, listing: u64) -> Lower {
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

/// Why the lower cluster takes a pod away, from the reason of its DisruptionTarget condition (KEP-3329).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disruption {
    /// A pod of higher priority takes its place.
    Preempted,
    /// The Eviction API, or the kubelet under pressure, ended it.
    Evicted,
    /// Its node is lost or tainted. The lower pod may stay Terminating for as long as its node is away.
    NodeLost,
}

impl Disruption {
    /// Whether the upper pod fails once the lower one is gone. A pod lost with its node is deleted above at once
    /// instead, so that its controller replaces it while the lower pod still hangs on the dead node.
    fn fails(self) -> bool {
        self != Self::NodeLost
    }
}

/// Reads why the lower cluster takes a pod away; `None` when it does not.
pub fn disruption(pod: &Pod) -> Option<Disruption> {
    match disruption_condition(pod)?.reason.as_deref() {
        Some("PreemptionByScheduler") => Some(Disruption::Preempted),
        Some("DeletionByTaintManager" | "DeletionByPodGC") => Some(Disruption::NodeLost),
        _ => Some(Disruption::Evicted),
    }
}

/// The DisruptionTarget condition, when it says True.
pub fn disruption_condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
}

/// Whether a pod has its final phase.
pub fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

fn is_reported_stuck(status: &PodStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == condition::OFFLOADED && condition.status == "False")
}

/// What must be equal for the lower pod to carry all of the upper one: the digest of what may change, and the generation
/// that it belongs to (API servers before 1.33 count none).
fn with_generation(digest: String, generation: Option<i64>) -> String {
    match generation {
        Some(generation) => format!("{digest}@{generation}"),
        None => digest,
    }
}

/// The part of an upper status that goes down: conditions, for readiness gates.
fn only_what_travels(status: &PodStatus) -> PodStatus {
    PodStatus { conditions: status.conditions.clone(), ..PodStatus::default() }
}

/// Drops what of a lower pod is never read after its facts were taken, which is most of its size.
fn without_spec(mut pod: Pod) -> Pod {
    pod.spec = None;
    pod.metadata.labels = None;
    pod.metadata.owner_references = None;
    pod
}

/// Namespace and name of a pod.
pub fn key_of(pod: &Pod) -> Option<Key> {
    Some(Key::new(pod.metadata.namespace.clone()?, pod.metadata.name.clone()?))
}

fn deletion_grace(pod: &Pod) -> Option<i64> {
    pod.metadata.deletion_timestamp.as_ref()?;
    Some(pod.metadata.deletion_grace_period_seconds.unwrap_or_default())
}

/// Resource versions of one resource are comparable as integers (KEP-5504); what is no integer compares as oldest.
fn version_of(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}
