//! A small bounded map whose entries expire.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The key of an entry: a SHA-256 digest, so that neither tokens nor long lists of groups are held.
pub type Digest = [u8; 32];

/// Entries of one generation. Two generations are held, about 1 MiB in all at the size of a user with its groups; an API
/// server calls under one identity, so a cache of this size only fills under attack.
const GENERATION_SIZE_MAX: usize = 1024;

/// A bounded map from digests to values that expire.
///
/// When the young generation is full, the old one is dropped and the young one takes its place: no scan, no order to
/// keep, and what is still used is asked for once more.
pub struct ExpiringCache<V> {
    generations: Mutex<Generations<V>>,
}

struct Generations<V> {
    young: HashMap<Digest, (Instant, V)>,
    old: HashMap<Digest, (Instant, V)>,
}

impl<V: Clone> ExpiringCache<V> {
    /// An empty cache.
    pub fn new() -> Self {
        Self { generations: Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() }) }
    }

    /// The value, unless it has expired at `now`.
    pub fn get(&self, key: &Digest, now: Instant) -> Option<V> {
        let generations = self.generations.lock();
        let (expires, value) = generations.young.get(key).or_else(|| generations.old.get(key))?;
        (now < *expires).then(|| value.clone())
    }

    /// Remembers the value until `now + lifetime`.
    pub fn insert(&self, key: Digest, value: V, now: Instant, lifetime: Duration) {
        let mut generations = self.generations.lock();
        if generations.young.len() >= GENERATION_SIZE_MAX && !generations.young.contains_key(&key) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(key, (now + lifetime, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Digest {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    #[test]
    fn an_entry_expires() {
        let cache = ExpiringCache::new();
        let now = Instant::now();
        cache.insert(key(1), "a", now, Duration::from_secs(10));
        assert_eq!(cache.get(&key(1), now + Duration::from_secs(9)), Some("a"));
        assert_eq!(cache.get(&key(1), now + Duration::from_secs(10)), None);
    }

    #[test]
    fn size_is_bounded_and_the_newest_are_kept() {
        let cache = ExpiringCache::new();
        let now = Instant::now();
        let count = 10 * GENERATION_SIZE_MAX;
        for number in 0..count {
            cache.insert(key(number), number, now, Duration::from_mins(1));
        }
        let held = (0..count).filter(|number| cache.get(&key(*number), now).is_some()).count();
        assert!(held <= 2 * GENERATION_SIZE_MAX, "{held}");
        assert_eq!(cache.get(&key(count - 1), now), Some(count - 1));
        assert_eq!(cache.get(&key(count - GENERATION_SIZE_MAX), now), Some(count - GENERATION_SIZE_MAX));
    }

    #[test]
    fn a_newer_value_replaces_the_older_one() {
        let cache = ExpiringCache::new();
        let now = Instant::now();
        cache.insert(key(1), "a", now, Duration::from_mins(1));
        cache.insert(key(1), "b", now, Duration::from_mins(1));
        assert_eq!(cache.get(&key(1), now), Some("b"));
    }
}
