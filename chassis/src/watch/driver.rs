//! The course of a watch: list, watch, and the way back after each kind of trouble.

use std::{collections::VecDeque, marker::PhantomData, time::Duration};

use kube::{Client, Resource};
use rand::Rng;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Event, FailureReason, WatchHealth, WatchOptions,
    answer::{self, Lines, Trouble},
    decode::{self, Line, Received},
    metrics::Counters,
};
use crate::{readiness::Gate, retry::Backoff};

/// Waits between tries.
const BACKOFF_INITIAL: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A watch that ends earlier and without an event was not ended by its timeout.
const WATCH_SHORTEST: Duration = Duration::from_secs(1);
/// So many watches from one version may be refused in a row before the objects are listed anew: a version that the
/// server does not know (its etcd was restored from a backup) is not always answered with 410.
const REFUSED_WATCHES_MAX: u32 = 3;

enum State {
    /// The next page is to be asked for.
    Listing {
        next: Option<String>,
        begun: bool,
    },
    /// A watch is to be begun.
    Listed {
        version: String,
    },
    Watching {
        version: String,
        lines: Lines,
        since: Instant,
        deadline: Instant,
        any_event: bool,
    },
}

pub(super) struct Driver<K> {
    client: Client,
    path: String,
    options: WatchOptions,
    gate: Gate,
    health: WatchHealth,
    counters: Counters,
    backoff: Backoff,
    refused_watches: u32,
    /// The highest version heard of; 0 before the first list, and where versions are no numbers.
    newest: u64,
    /// A try has failed since the API server was last known to have the history that we heard.
    unsure: bool,
    state: State,
    /// Decoded and not yet handed out.
    ready: VecDeque<Event<K>>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Driver<K>
where
    K: Resource + DeserializeOwned,
{
    pub(super) fn new(client: Client, path: String, options: WatchOptions, gate: Gate, health: WatchHealth) -> Self {
        Self {
            client,
            path,
            counters: options.metrics.of(options.name),
            options,
            gate,
            health,
            backoff: Backoff::new(BACKOFF_INITIAL, BACKOFF_MAX),
            refused_watches: 0,
            newest: 0,
            unsure: false,
            state: State::Listing { next: None, begun: false },
            ready: VecDeque::new(),
            kind: PhantomData,
        }
    }

    pub(super) async fn next_event(&mut self) -> Event<K> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            let outcome = match &mut self.state {
                State::Listing { .. } => self.list_page().await,
                State::Listed { .. } if self.unsure => self.compare_history().await,
                State::Listed { .. } => self.begin_watch().await,
                State::Watching { .. } => self.read_line().await,
            };
            if let Err(trouble) = outcome {
                self.recover(trouble).await;
            }
        }
    }

    async fn list_page(&mut self) -> Result<(), Trouble> {
        let State::Listing { next, begun } = &self.state else { return Ok(()) };
        let begun = *begun;
        let mut text = answer::list(&self.client, &self.path, &self.options, next.as_deref()).await?;
        let page = decode::page::<K>(&mut text).map_err(|error| Trouble::new(FailureReason::Undecodable, error))?;
        drop(text);
        self.works();
        let version = page.resource_version;
        if !begun {
            let listed = number(version.as_deref());
            let decides_until = if self.went_back(listed) { u64::MAX } else { listed };
            self.unsure = false;
            self.ready.push_back(Event::Restarted { decides_until });
        }
        self.ready.reserve_exact(page.items.len() + 1);
        for item in page.items {
            let event = self.event(item, Event::Listed);
            self.count(&event);
            self.ready.push_back(event);
        }
        if page.next.is_some() {
            self.state = State::Listing { next: page.next, begun: true };
            return Ok(());
        }
        let missing = || Trouble::new(FailureReason::Undecodable, "the list has no resourceVersion");
        let version = version.ok_or_else(missing)?;
        self.backoff.reset();
        self.refused_watches = 0;
        // Not before: a list that is broken off must not hide from the next one that history went back.
        self.newest = number(Some(&version));
        self.ready.push_back(Event::ListDone);
        self.gate.set_ready();
        self.state = State::Listed { version };
        Ok(())
    }

    /// Asks whether the API server's history is the one that we heard, before a watch goes on from its last version.
    ///
    /// After a restore from a backup it is a shorter one. A watch from a version that it has not reached yet is no error
    /// to it: the watch is taken, and silent until then, whatever happens (K
    /// staging/src/k8s.io/apiserver/pkg/storage/cacher/cache_watcher.go). A list without a resourceVersion is of the
    /// newest version there is.
    async fn compare_history(&mut self) -> Result<(), Trouble> {
        let one = WatchOptions { page_size: 1, ..self.options.clone() };
        let mut text = answer::list(&self.client, &self.path, &one, None).await?;
        let page = decode::page::<K>(&mut text).map_err(|error| Trouble::new(FailureReason::Undecodable, error))?;
        self.unsure = false;
        let listed = number(page.resource_version.as_deref());
        if self.went_back(listed) {
            let (watch, heard) = (self.options.name, self.newest);
            tracing::warn!(
                watch,
                heard,
                now = listed,
                "the API server's history went back, as after a restore from a backup: listing anew"
            );
            self.state = State::Listing { next: None, begun: false };
        }
        Ok(())
    }

    /// Whether a list of this version shows that history was heard which the API server no longer has.
    fn went_back(&self, listed: u64) -> bool {
        listed > 0 && listed < self.newest
    }

    async fn begin_watch(&mut self) -> Result<(), Trouble> {
        let State::Listed { version } = &self.state else { return Ok(()) };
        // Not all watches of all processes should end at one time.
        let longest = self.options.timeout_secs;
        let timeout_secs = longest - rand::rng().random_range(0..=longest / 10);
        let lines = answer::watch(&self.client, &self.path, &self.options, version, timeout_secs).await?;
        let since = Instant::now();
        let deadline = since + Duration::from_secs(timeout_secs.into()) + self.options.hung_after;
        self.state = State::Watching { version: version.clone(), lines, since, deadline, any_event: false };
        self.works();
        Ok(())
    }

    async fn read_line(&mut self) -> Result<(), Trouble> {
        let State::Watching { version, lines, since, deadline, any_event } = &mut self.state else { return Ok(()) };
        let Ok(line) = timeout_at(*deadline, lines.next()).await else {
            return Err(Trouble::new(FailureReason::Hung, "the watch was open for longer than asked for"));
        };
        let Some(mut text) = line? else {
            if !*any_event && since.elapsed() < WATCH_SHORTEST {
                return Err(Trouble::new(FailureReason::Cut, "the watch ended as soon as it had begun"));
            }
            self.state = State::Listed { version: std::mem::take(version) };
            return Ok(());
        };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let decoded = decode::line::<K>(&mut text).map_err(|error| Trouble::new(FailureReason::Undecodable, error))?;
        let newer = match &decoded {
            Line::Applied(_, newer) | Line::Deleted(_, newer) | Line::Bookmark(newer) => newer,
            Line::Error(status) => return Err(Trouble::of_status(status)),
        };
        if let Some(newer) = newer {
            version.clone_from(newer);
            self.newest = number(Some(newer));
        }
        *any_event = true;
        self.backoff.reset();
        self.refused_watches = 0;
        self.gate.touch();
        let event = match decoded {
            Line::Applied(object, _) => self.event(object, Event::Applied),
            Line::Deleted(object, _) => self.event(object, Event::Deleted),
            Line::Bookmark(_) | Line::Error(_) => {
                self.counters.bookmarks.inc();
                return Ok(());
            }
        };
        self.count(&event);
        self.ready.push_back(event);
        Ok(())
    }

    /// Decides where to go on from, and waits before that.
    async fn recover(&mut self, trouble: Trouble) {
        let Trouble { reason, detail } = trouble;
        self.unsure = true;
        self.counters.restarted(reason);
        self.resume_at(reason);
        let delay = self.backoff.next_delay();
        if reason == FailureReason::Gone {
            tracing::info!(watch = self.options.name, detail, "the history is gone: listing anew");
        } else {
            self.note_failure(reason, detail, delay);
        }
        sleep(delay).await;
    }

    fn resume_at(&mut self, reason: FailureReason) {
        // Not when it is overloaded: a list costs it far more than a watch.
        let refused = matches!(reason, FailureReason::Refused | FailureReason::Undecodable);
        let anew = State::Listing { next: None, begun: false };
        let state = std::mem::replace(&mut self.state, anew);
        let version = match state {
            // A page can be asked for again, unless what it continues is gone.
            State::Listing { next, begun } if reason != FailureReason::Gone && reason != FailureReason::Undecodable => {
                self.state = State::Listing { next, begun };
                return;
            }
            State::Listing { .. } => return,
            State::Listed { version } | State::Watching { version, .. } => version,
        };
        self.refused_watches = if refused { self.refused_watches + 1 } else { 0 };
        if reason != FailureReason::Gone && self.refused_watches < REFUSED_WATCHES_MAX {
            self.state = State::Listed { version };
        } else {
            self.refused_watches = 0;
        }
    }

    fn note_failure(&mut self, reason: FailureReason, detail: String, delay: Duration) {
        let watch = self.options.name;
        let (failing, news) = self.health.failed(reason, detail);
        // A cut watch is every restart of an API server; it becomes a warning when it does not come back.
        let already = failing.since.elapsed();
        if news {
            tracing::warn!(watch, %reason, detail = failing.detail, "the watch failed; trying again until it works");
        } else {
            tracing::debug!(watch, %reason, detail = failing.detail, ?delay, ?already, "the watch still fails");
        }
        if already >= self.options.unready_after {
            let seconds = already.as_secs();
            self.gate.set_unready(format!("the watch has failed for {seconds} s ({reason}): {}", failing.detail));
        }
    }

    /// The API server answered.
    fn works(&mut self) {
        self.gate.touch();
        if let Some(ended) = self.health.works() {
            let watch = self.options.name;
            tracing::info!(watch, after = ?ended.since.elapsed(), "the watch works again");
            // Before the first complete list the gate stays closed.
            if !matches!(self.state, State::Listing { .. }) {
                self.gate.set_ready();
            }
        }
    }

    fn event(&self, received: Received<K>, wrap: impl FnOnce(K) -> Event<K>) -> Event<K> {
        match received {
            Received::Object(object) => wrap(object),
            Received::Malformed { namespace, name, error } => {
                let (watch, in_namespace) = (self.options.name, namespace.as_deref().unwrap_or_default());
                tracing::warn!(
                    watch,
                    namespace = in_namespace,
                    name,
                    error,
                    "an object cannot be decoded; it is left out"
                );
                Event::Malformed { namespace, name, error }
            }
        }
    }

    fn count(&self, event: &Event<K>) {
        let counter = match event {
            Event::Listed(_) => &self.counters.listed,
            Event::Applied(_) => &self.counters.applied,
            Event::Deleted(_) => &self.counters.deleted,
            Event::Malformed { .. } => &self.counters.malformed,
            Event::Restarted { .. } | Event::ListDone => return,
        };
        counter.inc();
    }
}

/// Versions are comparable as numbers (KEP-5504); one that is none compares as oldest.
fn number(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}
