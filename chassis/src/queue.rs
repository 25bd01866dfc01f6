//! A work queue by key, with the semantics of client-go's `workqueue`.
//!
//! A key that is waiting is queued once, however often it is added; a key that is being worked on is worked on again
//! afterwards if it was added meanwhile; no key is ever worked on twice at once. So the queue's size is bounded by the
//! number of objects, and a reconcile always sees the newest state.

use std::{fmt, future::Future, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use rand::Rng;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

mod state;

use state::State;

use crate::retry::Backoff;

/// client-go's first retry delay.
const RETRY_INITIAL: Duration = Duration::from_millis(5);
/// client-go waits up to 1000 s; a pod must not be forgotten for a quarter of an hour.
const RETRY_MAX: Duration = Duration::from_mins(1);
/// Seconds of one run.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];

/// How one run of a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing left to do; past failures of the key are forgotten.
    Done,
    /// Nothing went wrong; look again after a time. Past failures are forgotten.
    Requeue(Duration),
    /// It failed: again after a wait that grows with each failure in a row.
    Retry,
}

/// The queue. Cheap to clone; clones are the same queue.
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    state: Mutex<State<K>>,
    /// A key became ready.
    ready: Notify,
    /// The earliest delayed key changed.
    delayed: Notify,
    backoff: Backoff,
    metrics: Counters,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K> WorkQueue<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    /// An empty queue that retries after 5 ms, doubled up to a minute, and counts for nobody.
    pub fn new(name: &'static str) -> Self {
        Self::with(name, RETRY_MAX, &QueueMetrics::default())
    }

    /// An empty queue; `retry_max` is the longest wait between failures of one key.
    pub fn with(name: &'static str, retry_max: Duration, metrics: &QueueMetrics) -> Self {
        let inner = Inner {
            state: Mutex::new(State::default()),
            ready: Notify::new(),
            delayed: Notify::new(),
            backoff: Backoff::new(RETRY_INITIAL, retry_max),
            metrics: metrics.of(name),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Queues a key, unless it is queued already. A key that is being worked on is queued for when that is done.
    pub fn add(&self, key: K) {
        let inner = &self.inner;
        let mut state = inner.state.lock();
        let became_ready = state.add(key);
        inner.metrics.depth.set(state.ready_len_metric());
        drop(state);
        if became_ready {
            inner.metrics.adds.inc();
            inner.ready.notify_one();
        }
    }

    /// Queues a key after a time. Of several times for one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        if self.inner.state.lock().add_at(key, Instant::now() + delay) {
            self.inner.delayed.notify_one();
        }
    }

    /// Queues a key after a wait that grows with each call until [`WorkQueue::forget`]; returns the wait.
    pub fn retry(&self, key: K) -> Duration {
        let failures = self.inner.state.lock().count_failure(&key);
        let delay = self.inner.backoff.delay_after(failures, rand::rng().random());
        self.inner.metrics.retries.inc();
        self.add_after(key, delay);
        delay
    }

    /// Forgets past failures of a key. Does not take it out of the queue.
    pub fn forget(&self, key: &K) {
        self.inner.state.lock().forget(key);
    }

    /// How many keys are ready to be worked on; those being worked on, or waiting for their time, do not count.
    pub fn len(&self) -> usize {
        self.inner.state.lock().ready_len()
    }

    /// Whether no key is ready to be worked on.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing is ready, being worked on, or waiting for its time.
    pub fn is_idle(&self) -> bool {
        self.inner.state.lock().is_idle()
    }

    /// Works on keys, at most `concurrency` at once, until `shutdown` is cancelled; then finishes what it has begun.
    ///
    /// What is still queued stays queued, for the next call; it must not run twice at once. A panic of `work` is passed on.
    pub async fn run<F, Fut>(&self, concurrency: usize, shutdown: CancellationToken, work: F)
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let work = Arc::new(work);
        let mut workers = JoinSet::new();
        let (queue, stop) = (self.clone(), shutdown.clone());
        workers.spawn(async move { queue.move_delayed(stop).await });
        for _ in 0..concurrency.max(1) {
            let (queue, stop, work) = (self.clone(), shutdown.clone(), work.clone());
            workers.spawn(async move {
                while let Some(key) = queue.next(&stop).await {
                    let started = Instant::now();
                    let outcome = work(key.clone()).await;
                    queue.inner.metrics.durations.observe(started.elapsed().as_secs_f64());
                    queue.done(key, outcome);
                }
            });
        }
        while let Some(ended) = workers.join_next().await {
            match ended {
                Ok(()) => {}
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_cancelled) => return,
                },
            }
        }
    }

    async fn next(&self, shutdown: &CancellationToken) -> Option<K> {
        loop {
            if shutdown.is_cancelled() {
                return None;
            }
            {
                let mut state = self.inner.state.lock();
                if let Some(key) = state.take() {
                    self.inner.metrics.depth.set(state.ready_len_metric());
                    // A Notify remembers one call only: who takes a key wakes the next worker if there is more.
                    if state.ready_len() > 0 {
                        self.inner.ready.notify_one();
                    }
                    return Some(key);
                }
            }
            // A key added since then has left its permit in the Notify, so it is not missed.
            tokio::select! {
                () = self.inner.ready.notified() => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    fn done(&self, key: K, outcome: Outcome) {
        let became_ready = {
            let mut state = self.inner.state.lock();
            let became_ready = state.done(&key);
            self.inner.metrics.depth.set(state.ready_len_metric());
            became_ready
        };
        if became_ready {
            self.inner.ready.notify_one();
        }
        match outcome {
            Outcome::Done => self.forget(&key),
            Outcome::Requeue(delay) => {
                self.forget(&key);
                self.add_after(key, delay);
            }
            Outcome::Retry => {
                self.retry(key);
            }
        }
    }

    /// Makes delayed keys ready when their time comes.
    async fn move_delayed(&self, shutdown: CancellationToken) {
        loop {
            let (moved, next) = self.inner.state.lock().move_due(Instant::now());
            for _ in 0..moved {
                self.inner.ready.notify_one();
            }
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.inner.delayed.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

impl<K> fmt::Debug for WorkQueue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkQueue").finish_non_exhaustive()
    }
}

/// The metrics of all queues of a process. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    durations: Family<QueueLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

struct Counters {
    depth: Gauge,
    adds: Counter,
    retries: Counter,
    durations: Histogram,
}

impl Default for QueueMetrics {
    fn default() -> Self {
        Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        }
    }
}

impl QueueMetrics {
    /// Adds them to the registry of the process; call once and pass clones to the queues.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("tensile_queue_depth", "Keys that are ready to be worked on", metrics.depth.clone());
        registry.register("tensile_queue_adds", "Keys that became ready", metrics.adds.clone());
        registry.register("tensile_queue_retries", "Runs that failed and will be repeated", metrics.retries.clone());
        registry.register("tensile_queue_work_duration_seconds", "One run of a key", metrics.durations.clone());
        metrics
    }

    fn of(&self, queue: &'static str) -> Counters {
        let labels = QueueLabels { queue };
        Counters {
            depth: self.depth.get_or_create(&labels).clone(),
            adds: self.adds.get_or_create(&labels).clone(),
            retries: self.retries.get_or_create(&labels).clone(),
            durations: self.durations.get_or_create(&labels).clone(),
        }
    }
}

#[cfg(test)]
mod tests;
