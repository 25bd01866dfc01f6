//! The point in time after which an old leader may not write.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Says whether this process may write as the leader, at this moment. Cheap to clone and to check: one atomic read and
/// one look at the monotonic clock.
#[derive(Clone)]
pub struct Fence {
    inner: Arc<Inner>,
}

struct Inner {
    /// What `valid_until` counts from.
    base: Instant,
    /// In nanoseconds after `base`; 0 means not valid.
    valid_until: AtomicU64,
}

/// This process does not lead now. The write must not be made; the next leader will make it if it is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the leader (any more): the write was not made, the leader will make it")]
pub struct NotLeader;

impl Fence {
    pub(crate) fn new() -> Self {
        Self { inner: Arc::new(Inner { base: Instant::now(), valid_until: AtomicU64::new(0) }) }
    }

    /// A fence that always lets through, for a process that runs without an election.
    pub fn open() -> Self {
        let fence = Self::new();
        fence.inner.valid_until.store(u64::MAX, Ordering::Release);
        fence
    }

    /// Ok while we surely lead. Check right before each write, not once at the start of a row of them.
    pub fn check(&self) -> Result<(), NotLeader> {
        let now = self.nanos(Instant::now());
        if now < self.inner.valid_until.load(Ordering::Acquire) { Ok(()) } else { Err(NotLeader) }
    }

    /// How long it would still let through if nothing else happened.
    pub fn remaining(&self) -> Duration {
        let until = self.inner.valid_until.load(Ordering::Acquire);
        Duration::from_nanos(until.saturating_sub(self.nanos(Instant::now())))
    }

    pub(crate) fn extend(&self, valid_until: Instant) {
        self.inner.valid_until.store(self.nanos(valid_until), Ordering::Release);
    }

    pub(super) fn revoke(&self) {
        self.inner.valid_until.store(0, Ordering::Release);
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.inner.base).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence").field("remaining", &self.remaining()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_closes_by_the_clock_alone() {
        let fence = Fence::new();
        assert_eq!(fence.check(), Err(NotLeader));
        fence.extend(Instant::now() + Duration::from_secs(13));
        tokio::time::advance(Duration::from_secs(12)).await;
        assert_eq!((fence.check(), fence.remaining()), (Ok(()), Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((fence.check(), fence.remaining()), (Err(NotLeader), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn it_can_be_closed_at_once_and_clones_close_with_it() {
        let fence = Fence::new();
        let clone = fence.clone();
        fence.extend(Instant::now() + Duration::from_secs(13));
        assert_eq!(clone.check(), Ok(()));
        fence.revoke();
        assert_eq!(clone.check(), Err(NotLeader));
        assert_eq!(Fence::open().check(), Ok(()));
    }
}
