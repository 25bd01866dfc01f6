//! Who needs what: the reference counts, and the standing of each thing needed.
//!
//! Every thing (a namespace, a ConfigMap, a Secret, the root CA) has one [`Entry`] here and one task that alone works
//! on it. Pods hold entries; the last release starts the grace period after which the task takes the lower copy away.
//! Nothing here does I/O.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::names::Key;

/// What sort of thing is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The lower namespace itself.
    Namespace,
    /// A ConfigMap under its own name.
    ConfigMap,
    /// A Secret under its own name.
    Secret,
    /// The upper cluster's CA bundle, under a name of ours.
    RootCa,
}

/// Names a thing by where it stands in the upper cluster. A namespace has an empty `name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NeedKey {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl NeedKey {
    pub(super) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn namespace(namespace: &str) -> Self {
        Self::new(Kind::Namespace, namespace, "")
    }
}

/// Why something cannot be had below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// Event reason, CamelCase.
    pub(super) reason: &'static str,
    /// What, where, and the cure.
    pub(super) message: String,
}

/// What is known of a thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not yet found out.
    Unknown,
    /// Present and current in the lower cluster.
    Ready,
    /// The upper cluster has no such object.
    Absent,
    /// It cannot be had.
    Refused(Refused),
}

/// Why a look at an entry did not find it ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotReady {
    /// Still being found out or written.
    Pending,
    /// The upper cluster has no such object.
    Absent,
    /// It cannot be had.
    Refused(Refused),
}

#[derive(Debug, Default)]
struct Users {
    count: usize,
    /// Since when nobody uses it; `None` while somebody does.
    idle_since: Option<Instant>,
}

/// One thing that pods need, with its standing and those who wait for it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: NeedKey,
    standing: watch::Sender<Standing>,
    /// Pods (UID to key) that were told to wait, to be called when the standing changes.
    waiting: Mutex<HashMap<String, Key>>,
    users: Mutex<Users>,
    /// Wakes the entry's task: users came or went, or the lower copy was touched by somebody.
    pub(super) nudge: Notify,
    drifted: AtomicBool,
    /// resourceVersion of the lower copy when it was last found or made right.
    lower_version: Mutex<Option<String>>,
    /// Keys of the content, never values: what `envFrom` sets is known by them.
    keys: Mutex<Arc<[String]>>,
}

impl Entry {
    fn new(key: NeedKey) -> Self {
        Self {
            key,
            standing: watch::Sender::new(Standing::Unknown),
            waiting: Mutex::default(),
            users: Mutex::new(Users { count: 0, idle_since: Some(Instant::now()) }),
            nudge: Notify::new(),
            drifted: AtomicBool::new(false),
            lower_version: Mutex::default(),
            keys: Mutex::new(Arc::new([])),
        }
    }

    /// Notes the keys of the content that is below.
    pub(super) fn keys_are(&self, keys: Vec<String>) {
        *self.keys.lock() = keys.into();
    }

    /// The keys of the content that is below; none before it is there.
    pub(super) fn keys(&self) -> Arc<[String]> {
        self.keys.lock().clone()
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Waits until the standing is known; the caller sets the time limit.
    pub(super) async fn known(&self) {
        let mut standing = self.standing.subscribe();
        // An error means that the sender is gone, which cannot be while `self` lives.
        let _ = standing.wait_for(|standing| *standing != Standing::Unknown).await;
    }

    /// Waits until it is ready; the caller sets the time limit.
    pub(super) async fn ready(&self) {
        let mut standing = self.standing.subscribe();
        let _ = standing.wait_for(|standing| *standing == Standing::Ready).await;
    }

    /// What a pod finds. A pod that has to wait is remembered, under the lock that [`Entry::publish`] takes, so that no
    /// change falls between the look and the wait.
    pub(super) fn look(&self, uid: &str, pod: &Key, optional: bool) -> Result<(), NotReady> {
        if *self.standing.borrow() == Standing::Ready {
            return Ok(());
        }
        let mut waiting = self.waiting.lock();
        let found = match &*self.standing.borrow() {
            Standing::Ready => return Ok(()),
            Standing::Absent if optional => return Ok(()),
            Standing::Absent => NotReady::Absent,
            Standing::Unknown => NotReady::Pending,
            Standing::Refused(refused) => NotReady::Refused(refused.clone()),
        };
        waiting.insert(uid.to_owned(), pod.clone());
        Err(found)
    }

    /// Sets the standing and returns the pods to call again, if it changed.
    #[must_use]
    pub(super) fn publish(&self, standing: Standing) -> Vec<Key> {
        let mut waiting = self.waiting.lock();
        let changed = self.standing.send_if_modified(|current| {
            let changed = *current != standing;
            *current = standing;
            changed
        });
        if changed { waiting.drain().map(|(_, pod)| pod).collect() } else { Vec::new() }
    }

    /// Since when nobody uses it.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.users.lock().idle_since
    }

    /// Notes that the lower copy is not what we wrote, and wakes the task.
    pub(super) fn mark_drifted(&self) {
        self.drifted.store(true, Ordering::Release);
        self.nudge.notify_one();
    }

    /// Whether the lower copy drifted since the last call.
    pub(super) fn take_drifted(&self) -> bool {
        self.drifted.swap(false, Ordering::AcqRel)
    }

    /// Notes the version of the lower copy that is right.
    pub(super) fn lower_is(&self, version: Option<String>) {
        *self.lower_version.lock() = version;
    }

    /// A lower copy of this version (`None`: it was deleted) was seen; it is looked at when that is not what we left.
    pub(super) fn lower_seen(&self, version: Option<&str>) {
        if version.is_none() || self.lower_version.lock().as_deref() != version {
            self.mark_drifted();
        }
    }

    fn add_user(&self) {
        let mut users = self.users.lock();
        users.count += 1;
        if users.idle_since.take().is_some() {
            self.nudge.notify_one();
        }
    }

    fn drop_user(&self, uid: &str) {
        self.waiting.lock().remove(uid);
        let mut users = self.users.lock();
        users.count = users.count.saturating_sub(1);
        if users.count == 0 {
            users.idle_since = Some(Instant::now());
            self.nudge.notify_one();
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<NeedKey, Arc<Entry>>,
    pods: HashMap<String, Vec<Arc<Entry>>>,
}

/// All entries, and which pod holds which.
#[derive(Debug, Default)]
pub(super) struct Book {
    inner: Mutex<Inner>,
}

/// What [`Book::hold`] found.
pub(super) struct Held {
    /// The entries in the order of the keys.
    pub(super) entries: Vec<Arc<Entry>>,
    /// Those that are new and need a task.
    pub(super) fresh: Vec<Arc<Entry>>,
}

impl Book {
    /// Makes a pod a user of these things, and of no others. Holding again is free; a pod whose needs changed (an
    /// ephemeral container came) gives up what it no longer needs.
    pub(super) fn hold(&self, uid: &str, keys: impl IntoIterator<Item = NeedKey>) -> Held {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let mut fresh = Vec::new();
        let entries: Vec<Arc<Entry>> = keys
            .into_iter()
            .map(|key| {
                if let Some(entry) = inner.entries.get(&key) {
                    return entry.clone();
                }
                let entry = Arc::new(Entry::new(key.clone()));
                inner.entries.insert(key, entry.clone());
                fresh.push(entry.clone());
                entry
            })
            .collect();
        let before = inner.pods.get(uid);
        let same = before.is_some_and(|before| {
            before.len() == entries.len() && before.iter().zip(&entries).all(|(one, other)| Arc::ptr_eq(one, other))
        });
        if !same {
            // Add first: an entry that stays must not look unused in between.
            for entry in &entries {
                entry.add_user();
            }
            for entry in inner.pods.insert(uid.to_owned(), entries.clone()).into_iter().flatten() {
                entry.drop_user(uid);
            }
        }
        Held { entries, fresh }
    }

    /// Ends a pod's use of everything. Releasing twice, or what was never held, is harmless.
    pub(super) fn release(&self, uid: &str) {
        let mut inner = self.inner.lock();
        for entry in inner.pods.remove(uid).into_iter().flatten() {
            entry.drop_user(uid);
        }
    }

    /// An entry without users, for a leftover that was found below; `None` when the thing is known already.
    pub(super) fn seed(&self, key: NeedKey) -> Option<Arc<Entry>> {
        let mut inner = self.inner.lock();
        if inner.entries.contains_key(&key) {
            return None;
        }
        let entry = Arc::new(Entry::new(key.clone()));
        inner.entries.insert(key, entry.clone());
        Some(entry)
    }

    pub(super) fn entry(&self, key: &NeedKey) -> Option<Arc<Entry>> {
        self.inner.lock().entries.get(key).cloned()
    }

    /// Strikes an entry off, unless somebody came to use it: then its task goes on.
    pub(super) fn remove_if_unused(&self, entry: &Arc<Entry>) -> bool {
        let mut inner = self.inner.lock();
        if entry.idle_since().is_none() {
            return false;
        }
        inner.entries.remove(&entry.key);
        true
    }

    /// All entries of a kind.
    pub(super) fn of_kind(&self, kinds: &[Kind]) -> Vec<Arc<Entry>> {
        self.inner.lock().entries.values().filter(|entry| kinds.contains(&entry.key.kind)).cloned().collect()
    }

    /// How many entries and pods are known, for metrics and tests.
    pub(super) fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.entries.len(), inner.pods.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn config_map(name: &str) -> NeedKey {
        NeedKey::new(Kind::ConfigMap, "team", name)
    }

    fn pod() -> Key {
        Key::new("team", "web-0")
    }

    #[test]
    fn a_thing_is_started_once_and_idle_after_its_last_user() {
        let book = Book::default();
        let first = book.hold("a", [config_map("x")]);
        assert_eq!(first.fresh.len(), 1);
        let second = book.hold("b", [config_map("x")]);
        assert!(second.fresh.is_empty());
        let entry = first.entries[0].clone();
        book.release("a");
        assert!(entry.idle_since().is_none(), "b still uses it");
        book.release("a");
        assert!(entry.idle_since().is_none(), "a second release of one pod counts once");
        book.release("b");
        assert!(entry.idle_since().is_some());
        assert!(book.remove_if_unused(&entry));
        assert_eq!(book.counts(), (0, 0));
    }

    #[test]
    fn holding_again_counts_once() {
        let book = Book::default();
        let entry = book.hold("a", [config_map("x")]).entries[0].clone();
        book.hold("a", [config_map("x")]);
        book.release("a");
        assert!(entry.idle_since().is_some());
    }

    #[test]
    fn changed_needs_give_up_what_is_no_longer_needed() {
        let book = Book::default();
        let before = book.hold("a", [config_map("x"), config_map("y")]).entries;
        book.hold("a", [config_map("y"), config_map("z")]);
        assert!(before[0].idle_since().is_some());
        assert!(before[1].idle_since().is_none());
    }

    #[test]
    fn an_entry_that_found_a_user_again_is_not_removed() {
        let book = Book::default();
        let entry = book.hold("a", [config_map("x")]).entries[0].clone();
        book.release("a");
        book.hold("b", [config_map("x")]);
        assert!(!book.remove_if_unused(&entry));
        assert!(Arc::ptr_eq(&book.entry(&config_map("x")).unwrap(), &entry));
    }

    #[test]
    fn a_waiting_pod_is_called_once_when_the_standing_changes() {
        let book = Book::default();
        let entry = book.hold("a", [config_map("x")]).entries[0].clone();
        assert_eq!(entry.look("a", &pod(), false), Err(NotReady::Pending));
        assert_eq!(entry.publish(Standing::Absent), vec![pod()]);
        assert_eq!(entry.publish(Standing::Ready), Vec::<Key>::new(), "it was not told to wait since");
        assert_eq!(entry.look("a", &pod(), false), Ok(()));
    }

    #[test]
    fn an_optional_reference_does_not_wait_for_what_is_absent_but_for_what_is_refused() {
        let book = Book::default();
        let entry = book.hold("a", [config_map("x")]).entries[0].clone();
        assert!(entry.publish(Standing::Absent).is_empty());
        assert_eq!(entry.look("a", &pod(), true), Ok(()));
        let refused = Refused { reason: "NameConflict", message: "m".into() };
        assert!(entry.publish(Standing::Refused(refused.clone())).is_empty());
        assert_eq!(entry.look("a", &pod(), true), Err(NotReady::Refused(refused)));
    }

    #[test]
    fn a_released_pod_is_not_called() {
        let book = Book::default();
        let entry = book.hold("a", [config_map("x")]).entries[0].clone();
        let _ = entry.look("a", &pod(), false);
        book.release("a");
        assert!(entry.publish(Standing::Ready).is_empty());
    }

    #[test]
    fn a_leftover_is_seeded_only_when_unknown() {
        let book = Book::default();
        assert!(book.seed(config_map("x")).is_some());
        assert!(book.seed(config_map("x")).is_none());
        assert!(book.hold("a", [config_map("x")]).fresh.is_empty());
    }
}
