//! Interned names: equal names share one allocation.

use std::{
    collections::HashSet,
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// Names that the pool holds before it first looks for those that nobody uses any more. Few clusters have more resource names
/// and label sets than this.
const POOL_SWEEP_MIN: usize = 1_024;

/// A name of which each process holds one copy, so that a clone is a counter and equality mostly a pointer. Names that nobody
/// uses are dropped: a cluster that makes up names without end fills nothing.
#[derive(Clone)]
pub struct Name(Arc<str>);

/// All names in use.
static POOL: LazyLock<Mutex<Pool>> =
    LazyLock::new(|| Mutex::new(Pool { names: HashSet::new(), sweep_at: POOL_SWEEP_MIN }));

struct Pool {
    names: HashSet<Arc<str>>,
    /// Size at which the next sweep is due: twice what the last one left, so that sweeps cost O(1) for each new name.
    sweep_at: usize,
}

impl Name {
    /// The interned name.
    pub fn new(name: &str) -> Self {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pool.names.get(name) {
            return Self(known.clone());
        }
        if pool.names.len() >= pool.sweep_at {
            pool.names.retain(|known| Arc::strong_count(known) > 1);
            pool.sweep_at = (pool.names.len() * 2).max(POOL_SWEEP_MIN);
        }
        let new: Arc<str> = Arc::from(name);
        pool.names.insert(new.clone());
        Self(new)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { std::cmp::Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_copy() {
        assert!(Arc::ptr_eq(&Name::new("a.example/x").0, &Name::new("a.example/x").0));
    }

    #[test]
    fn names_that_nobody_uses_are_dropped() {
        for index in 0..POOL_SWEEP_MIN * 4 {
            Name::new(&format!("never-kept/{index}"));
        }
        let held = POOL.lock().unwrap_or_else(PoisonError::into_inner).names.len();
        assert!(held <= POOL_SWEEP_MIN + 64, "the pool holds {held} names");
    }
}
