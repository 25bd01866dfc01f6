//! Where each key of a queue stands. No clock and no waiting of its own.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
};

use tokio::time::Instant;

pub(super) struct State<K> {
    /// Ready, in order.
    ready: VecDeque<K>,
    /// To be worked on: those in `ready`, and those in `working` that were added again.
    dirty: HashSet<K>,
    working: HashSet<K>,
    /// Waiting for their time. The number tells keys of one time apart.
    delayed: BTreeMap<(Instant, u64), K>,
    delayed_at: HashMap<K, (Instant, u64)>,
    delayed_number: u64,
    failures: HashMap<K, u32>,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeMap::new(),
            delayed_at: HashMap::new(),
            delayed_number: 0,
            failures: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    /// Queues a key; true when it became ready by that.
    pub(super) fn add(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Queues a key for a time; true when the earliest time of all changed by that.
    pub(super) fn add_at(&mut self, key: K, at: Instant) -> bool {
        if let Some(&before) = self.delayed_at.get(&key) {
            if before.0 <= at {
                return false;
            }
            self.delayed.remove(&before);
        }
        self.delayed_number += 1;
        let place = (at, self.delayed_number);
        self.delayed_at.insert(key.clone(), place);
        self.delayed.insert(place, key);
        self.delayed.first_key_value().is_some_and(|(first, _)| *first == place)
    }

    /// Makes the keys whose time has come ready; returns how many became so, and the next time.
    pub(super) fn move_due(&mut self, now: Instant) -> (usize, Option<Instant>) {
        let mut moved = 0;
        while let Some(first) = self.delayed.first_entry() {
            let at = first.key().0;
            if at > now {
                return (moved, Some(at));
            }
            let key = first.remove();
            self.delayed_at.remove(&key);
            moved += usize::from(self.add(key));
        }
        (moved, None)
    }

    /// Takes the next ready key to work on.
    pub(super) fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// Ends the work on a key; true when it is ready again.
    pub(super) fn done(&mut self, key: &K) -> bool {
        self.working.remove(key);
        let again = self.dirty.contains(key);
        if again {
            self.ready.push_back(key.clone());
        }
        again
    }

    /// Counts a failure; returns how many there were before.
    pub(super) fn count_failure(&mut self, key: &K) -> u32 {
        let failures = self.failures.entry(key.clone()).or_default();
        let before = *failures;
        *failures = failures.saturating_add(1);
        before
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn ready_len_metric(&self) -> i64 {
        i64::try_from(self.ready.len()).unwrap_or(i64::MAX)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.working.is_empty() && self.delayed.is_empty()
    }
}
