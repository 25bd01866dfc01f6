//! An orderly end, on request or because a part of the process failed.
//!
//! It has two phases. First everything that works stops: the main token is cancelled and the tasks of
//! [`Shutdown::spawn`] finish. Only then is let go of what the work stood on ([`Shutdown::spawn_last`]): the leader
//! lease, which must outlive our last write, and the admin server, which shows what the drain waits for.

use std::{collections::BTreeMap, fmt, future::Future, io, process, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The exit code after a second signal: 128 + SIGINT, what a shell shows for an interrupted program.
const EXIT_CODE_INTERRUPTED: i32 = 130;

/// What the last phase may take at most: one request to release a lease, one scrape to finish.
const LAST_PHASE_MAX: Duration = Duration::from_secs(5);

/// The process's end. Cheap to clone; clones are the same shutdown.
#[derive(Clone)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

struct Inner {
    work: Phase,
    last: Phase,
    /// The first failure, which becomes the process's error.
    failure: Mutex<Option<String>>,
}

struct Phase {
    token: CancellationToken,
    tasks: TaskTracker,
    /// By a running number, since two tasks may have one name.
    running: Arc<Mutex<BTreeMap<u64, Running>>>,
}

struct Running {
    name: String,
    abort: AbortHandle,
}

/// Why the process must not exit with 0.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ShutdownError {
    /// A part ended, failed or panicked while it was needed. The text names it.
    #[error("{0}")]
    PartFailed(String),
    /// Parts were still at work at the deadline and were stopped.
    #[error("still running {after:?} after the request to stop, and so cut off: {}", names.join(", "))]
    Deadline {
        /// The deadline that was given.
        after: Duration,
        /// The tasks that were cut off.
        names: Vec<String>,
    },
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::request`] or a failing part starts (tests, libraries).
    pub fn new() -> Self {
        Self { inner: Arc::new(Inner { work: Phase::new(), last: Phase::new(), failure: Mutex::new(None) }) }
    }

    /// A shutdown started by SIGTERM or SIGINT. A second signal ends the process at once.
    ///
    /// Must be called inside a tokio runtime. Fails when the signal handlers cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = shutdown.token();
        tokio::spawn(async move {
            let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
            tracing::info!(signal = name, "shutting down; a second signal ends the process at once");
            token.cancel();
            let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
            tracing::warn!(signal = name, "second signal: exiting without draining");
            process::exit(EXIT_CODE_INTERRUPTED);
        });
        Ok(shutdown)
    }

    /// Cancelled when work should stop.
    pub fn token(&self) -> CancellationToken {
        self.inner.work.token.clone()
    }

    /// Cancelled when all work has stopped (or was cut off).
    pub fn last_token(&self) -> CancellationToken {
        self.inner.last.token.clone()
    }

    /// Starts the end, as a signal would.
    pub fn request(&self) {
        self.inner.work.token.cancel();
    }

    /// Starts the end because of a failure: [`Shutdown::drain`] will return it. The first failure wins.
    pub fn fail(&self, failure: impl Into<String>) {
        let failure = failure.into();
        tracing::error!(%failure, "a part of the process failed: shutting down");
        self.inner.failure.lock().get_or_insert(failure);
        self.request();
    }

    /// Runs a part that is needed until shutdown. If it ends, fails or panics earlier, the process comes down with an
    /// error that names it. It must end soon after [`Shutdown::token`] is cancelled.
    pub fn spawn<F, O>(&self, name: impl Into<String>, part: F)
    where
        F: Future<Output = O> + Send + 'static,
        O: PartOutcome,
    {
        self.track(&self.inner.work, name.into(), part);
    }

    /// Runs a part that is needed until all work has stopped. It must end soon after the token it is given.
    pub fn spawn_last<F, O>(&self, name: impl Into<String>, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = O> + Send + 'static,
        O: PartOutcome,
    {
        let future = part(self.last_token());
        self.track(&self.inner.last, name.into(), future);
    }

    /// Waits until shutdown is requested, then at most `deadline` for all work to stop, then for the last phase.
    ///
    /// Parts that overrun are cut off. Returns the failure that brought the process down, or what was cut off.
    pub async fn drain(&self, deadline: Duration) -> Result<(), ShutdownError> {
        self.inner.work.token.cancelled().await;
        let mut cut_off = self.inner.work.finish(deadline).await;
        self.inner.last.token.cancel();
        cut_off.extend(self.inner.last.finish(LAST_PHASE_MAX).await);
        if let Some(failure) = self.inner.failure.lock().take() {
            return Err(ShutdownError::PartFailed(failure));
        }
        if cut_off.is_empty() { Ok(()) } else { Err(ShutdownError::Deadline { after: deadline, names: cut_off }) }
    }

    fn track<F, O>(&self, phase: &Phase, name: String, part: F)
    where
        F: Future<Output = O> + Send + 'static,
        O: PartOutcome,
    {
        let task = tokio::spawn(part);
        let id = phase.enter(name.clone(), task.abort_handle());
        let (shutdown, token, running) = (self.clone(), phase.token.clone(), phase.running.clone());
        phase.tasks.spawn(async move {
            let ended = task.await;
            running.lock().remove(&id);
            match ended {
                Ok(outcome) => match outcome.failure() {
                    Some(error) => shutdown.fail(format!("{name} failed: {error}")),
                    None if !token.is_cancelled() => shutdown.fail(format!("{name} ended while it was needed")),
                    None => tracing::debug!(part = name, "stopped"),
                },
                Err(error) if error.is_panic() => shutdown.fail(format!("{name} panicked")),
                Err(_cut_off) => {}
            }
        });
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("requested", &self.inner.work.token.is_cancelled())
            .field("running", &self.inner.work.names())
            .finish()
    }
}

impl Phase {
    fn new() -> Self {
        Self { token: CancellationToken::new(), tasks: TaskTracker::new(), running: Arc::default() }
    }

    fn enter(&self, name: String, abort: AbortHandle) -> u64 {
        let mut running = self.running.lock();
        let id = running.last_key_value().map_or(0, |(last, _)| last + 1);
        running.insert(id, Running { name, abort });
        id
    }

    fn names(&self) -> Vec<String> {
        self.running.lock().values().map(|task| task.name.clone()).collect()
    }

    /// Waits for all tasks, at most `limit`; cuts off and names those that overran.
    async fn finish(&self, limit: Duration) -> Vec<String> {
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_ok() {
            return Vec::new();
        }
        let names = self.names();
        for task in self.running.lock().values() {
            task.abort.abort();
        }
        self.tasks.wait().await;
        names
    }
}

/// What a part of the process may end with.
pub trait PartOutcome: Send + 'static {
    /// The failure, if it is one.
    fn failure(&self) -> Option<String>;
}

impl PartOutcome for () {
    fn failure(&self) -> Option<String> {
        None
    }
}

impl<E: fmt::Display + Send + 'static> PartOutcome for Result<(), E> {
    fn failure(&self) -> Option<String> {
        // The alternate form prints an anyhow error with its whole chain.
        self.as_ref().err().map(|error| format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_requested_shutdown_waits_for_its_tasks_and_is_ok() {
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        shutdown.spawn("worker", async move { token.cancelled().await });
        shutdown.request();
        assert_eq!(shutdown.drain(LONG).await, Ok(()));
    }

    #[tokio::test]
    async fn a_part_that_ends_early_brings_the_process_down() {
        let shutdown = Shutdown::new();
        shutdown.spawn("upper-pods watch", async {});
        let error = shutdown.drain(LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "upper-pods watch ended while it was needed");
    }

    #[tokio::test]
    async fn a_part_that_fails_or_panics_brings_the_process_down() {
        let shutdown = Shutdown::new();
        shutdown.spawn("listener", async { Err::<(), _>("address in use") });
        assert_eq!(shutdown.drain(LONG).await.unwrap_err().to_string(), "listener failed: address in use");
        let shutdown = Shutdown::new();
        shutdown.spawn("index", async {
            assert!(std::hint::black_box(false), "broken");
        });
        assert_eq!(shutdown.drain(LONG).await.unwrap_err().to_string(), "index panicked");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_stop_is_cut_off_and_named() {
        let shutdown = Shutdown::new();
        shutdown.spawn("stubborn", std::future::pending::<()>());
        shutdown.request();
        let error = shutdown.drain(Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(error, ShutdownError::Deadline { after: Duration::from_secs(10), names: vec!["stubborn".into()] });
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_phase_begins_when_all_work_has_stopped() {
        let shutdown = Shutdown::new();
        let work_done = Arc::new(AtomicBool::new(false));
        let (token, done) = (shutdown.token(), work_done.clone());
        shutdown.spawn("worker", async move {
            token.cancelled().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            done.store(true, Ordering::SeqCst);
        });
        let seen = Arc::new(AtomicBool::new(false));
        let seen_by_last = seen.clone();
        shutdown.spawn_last("lease", |token| async move {
            token.cancelled().await;
            seen_by_last.store(work_done.load(Ordering::SeqCst), Ordering::SeqCst);
        });
        shutdown.request();
        assert_eq!(shutdown.drain(LONG).await, Ok(()));
        assert!(seen.load(Ordering::SeqCst), "the lease was let go before the work had stopped");
    }
}
