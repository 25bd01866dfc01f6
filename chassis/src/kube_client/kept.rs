//! Follows a kubeconfig, the files that it names, and what its plugin or issuer answers.
//!
//! Nothing is taken into use unproven: what is new must be accepted by the cluster, and where address or trust have
//! changed, it must be the same cluster. Until then what there is stays in use, and that is said.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    AccessError, KubeMetrics,
    access::{Access, Kind, Snapshot, Unusable},
    config::{self, Loaded},
    credential::Parts,
    proof::{Trouble, prove},
};
use crate::retry::Backoff;

/// How often the files are looked at. A few small files: far below a thousandth of a core.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Waits between tries of what was not taken, and between runs of a plugin whose answers are refused.
const RETRY_INITIAL: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The same while the cluster does not answer: when it is back, credentials may have expired meanwhile.
const OUTAGE_RETRY_MAX: Duration = Duration::from_secs(5);

/// Which kubeconfig is followed, and how that is told.
#[derive(Clone, Debug)]
pub struct AccessSource {
    /// The kubeconfig; without it [`super::load_config`] says where it is looked for.
    pub path: Option<PathBuf>,
    /// Its context; without it the current one.
    pub context: Option<String>,
    /// The flag that names it, for logs.
    pub flag: &'static str,
    /// Which side this is, `upper` or `lower`; a label of the metrics.
    pub role: &'static str,
}

/// A followed kubeconfig.
pub(super) struct Kept {
    source: AccessSource,
    metrics: KubeMetrics,
    /// The cluster's kube-system UID, once it is known.
    expected: parking_lot::Mutex<Option<String>>,
    state: Mutex<State>,
}

struct State {
    parts: Parts,
    /// All files that it comes from.
    files: Vec<PathBuf>,
    /// What they held.
    seen: u64,
    /// Why what is there is not in use, if it is not.
    trouble: Option<String>,
    pause: Backoff,
    not_before: Instant,
    notes: Vec<String>,
}

impl Access {
    /// Reads a kubeconfig and gets its credential. Nothing is sent to the cluster yet.
    ///
    /// Run [`Access::keep_fresh`] beside what uses it.
    pub async fn open(source: AccessSource, metrics: &KubeMetrics) -> Result<Self, AccessError> {
        let (parts, files, notes, loaded) = read(&source).await.map_err(|error| match error {
            Trouble::Config(error) => AccessError::Config(error),
            other => AccessError::Unusable(other.to_string()),
        })?;
        let unusable = |error: Unusable| AccessError::Config(loaded.invalid(error.to_string()));
        let obtained = parts.means.obtain(false).await.map_err(|error| unusable(error.into()))?;
        let snapshot = Snapshot::new(&parts, obtained, None).map_err(unusable)?;
        tell(&source, &[], &notes);
        let seen = fingerprint(&files);
        let state = State {
            parts,
            files,
            seen,
            trouble: None,
            pause: Backoff::new(RETRY_INITIAL, RETRY_MAX),
            not_before: Instant::now(),
            notes,
        };
        metrics.held_back(source.role, false);
        let kept = Kept {
            source,
            metrics: metrics.clone(),
            expected: parking_lot::Mutex::default(),
            state: Mutex::new(state),
        };
        Ok(Self::with(snapshot, Kind::Kept(Box::new(kept))))
    }

    /// Says which cluster this is, by the UID of its namespace kube-system. From then on no other one is followed.
    pub fn expect_cluster(&self, uid: &str) {
        if let Kind::Kept(kept) = &self.inner.kind {
            *kept.expected.lock() = Some(uid.to_owned());
        }
    }

    /// Takes changes into use as they come, until `shutdown`.
    pub async fn keep_fresh(self, shutdown: CancellationToken) {
        loop {
            let look = async {
                tokio::time::sleep(LOOK_INTERVAL).await;
                self.look().await;
            };
            if shutdown.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    /// One look at the files, the clock, and what was not taken before.
    async fn look(&self) {
        let Kind::Kept(kept) = &self.inner.kind else { return };
        let mut state = kept.state.lock().await;
        let changed = state.changed().await;
        let due = self.inner.current.load().renew_at.is_some_and(|at| Timestamp::now() >= at);
        let again = (due || state.trouble.is_some()) && Instant::now() >= state.not_before;
        if changed.is_some() || again {
            self.renew(kept, &mut state, changed, false).await;
        }
    }

    pub(super) async fn renew_refused(&self, number: u64) -> Option<Arc<Snapshot>> {
        let Kind::Kept(kept) = &self.inner.kind else { return None };
        let mut state = kept.state.lock().await;
        let current = self.inner.current.load_full();
        // Whoever was first has done it for all.
        if current.number > number {
            return Some(current);
        }
        let changed = state.changed().await;
        let may_differ = state.parts.means.is_asked() || state.trouble.is_some();
        if changed.is_none() && (!may_differ || Instant::now() < state.not_before) {
            return None;
        }
        self.renew(kept, &mut state, changed, true).await
    }

    /// Reads, asks and proves; takes what is new into use. `changed` is what the files hold, if that is new.
    async fn renew(
        &self,
        kept: &Kept,
        state: &mut State,
        changed: Option<u64>,
        refused: bool,
    ) -> Option<Arc<Snapshot>> {
        let before = self.inner.current.load_full();
        let role = kept.source.role;
        if let Some(seen) = changed {
            state.seen = seen;
        }
        match self.candidate(kept, state, &before, refused).await {
            Ok(None) => {
                state.settled(kept);
                if changed.is_some() {
                    // What was wrong has been taken back.
                    state.pause.reset();
                } else {
                    // Asked, and nothing new: not at once again.
                    state.not_before = Instant::now() + state.pause.next_delay();
                }
                None
            }
            Ok(Some((parts, files, notes, snapshot))) => {
                let snapshot = Arc::new(snapshot);
                self.inner.current.store(snapshot.clone());
                tell(&kept.source, &state.notes, &notes);
                if files != state.files {
                    // What they hold was read a moment ago, but not compared: look once more.
                    state.seen = 0;
                }
                (state.parts, state.files, state.notes) = (parts, files, notes);
                state.settled(kept);
                state.pause.reset();
                kept.metrics.renewed(role, "taken");
                let moved = !before.same_place(&snapshot);
                tracing::info!(flag = kept.source.flag, server = %self.server(), moved, "new credentials are in use");
                Some(snapshot)
            }
            Err(trouble) => {
                let pause = state.pause.next_delay();
                let pause = if trouble.may_pass() { pause.min(OUTAGE_RETRY_MAX) } else { pause };
                state.not_before = Instant::now() + pause;
                kept.metrics.renewed(role, trouble.label());
                kept.metrics.held_back(role, true);
                let error = trouble.to_string();
                if state.trouble.as_ref() != Some(&error) {
                    let flag = kept.source.flag;
                    tracing::error!(
                        flag,
                        error,
                        "new credentials are not taken into use; those before stay. Trying on"
                    );
                    state.trouble = Some(error);
                }
                None
            }
        }
    }

    async fn candidate(
        &self,
        kept: &Kept,
        state: &State,
        before: &Snapshot,
        refused: bool,
    ) -> Result<Option<(Parts, Vec<PathBuf>, Vec<String>, Snapshot)>, Trouble> {
        let (mut parts, files, notes, _) = read(&kept.source).await?;
        parts.means = parts.means.or_equal(&state.parts.means);
        let obtained = parts.means.obtain(refused).await.map_err(Unusable::from)?;
        let snapshot = Snapshot::new(&parts, obtained, Some(before))?;
        if snapshot.is_like(before) {
            return Ok(None);
        }
        let expected = kept.expected.lock().clone();
        prove(&snapshot, snapshot.same_place(before), expected).await?;
        Ok(Some((parts, files, notes, snapshot)))
    }
}

impl State {
    /// What the files hold, if that is new.
    async fn changed(&self) -> Option<u64> {
        let files = self.files.clone();
        // A file may be on a slow or hanging file system.
        let now = tokio::task::spawn_blocking(move || fingerprint(&files)).await.ok()?;
        (now != self.seen).then_some(now)
    }

    /// What is in use is what is there.
    fn settled(&mut self, kept: &Kept) {
        kept.metrics.held_back(kept.source.role, false);
        if self.trouble.take().is_some() {
            tracing::info!(flag = kept.source.flag, "the credentials are in order again");
        }
    }
}

async fn read(source: &AccessSource) -> Result<(Parts, Vec<PathBuf>, Vec<String>, Loaded), Trouble> {
    let loaded = config::load(source.path.as_deref(), source.context.as_deref()).await?;
    let parts = Parts::of(loaded.config.clone()).map_err(|error| loaded.invalid(error.to_string()))?;
    let mut files = loaded.files.clone();
    files.extend(parts.files.iter().cloned());
    Ok((parts, files, loaded.notes.clone(), loaded))
}

/// Says what is new among the notes.
fn tell(source: &AccessSource, before: &[String], notes: &[String]) {
    for note in notes.iter().filter(|note| !before.contains(note)) {
        tracing::warn!(flag = source.flag, "{note}");
    }
}

/// What files hold. By content: a Secret's files are swapped as links, with times that say little.
fn fingerprint(files: &[impl AsRef<Path>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(file).map_err(|error| error.kind()).hash(&mut hasher);
    }
    hasher.finish()
}
