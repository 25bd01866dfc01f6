//! How a watch fares, for those who must judge whether an API server is away.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::time::Instant;

/// What stopped a watch. The text is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// No connection came about, or it broke before an answer came.
    Unreachable,
    /// The connection broke, or the watch ended much too early.
    Cut,
    /// The watch was open for longer than asked for, and silent.
    Hung,
    /// The server is overloaded or not ready (429, 5xx).
    Overloaded,
    /// The server refuses (401, 403, 404 and other 4xx): credentials, rights, or a kind it does not have.
    Refused,
    /// The server no longer has the history (410): the objects are listed anew.
    Gone,
    /// The answer as a whole could not be understood.
    Undecodable,
}

impl FailureReason {
    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Cut => "cut",
            Self::Hung => "hung",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::Gone => "gone",
            Self::Undecodable => "undecodable",
        }
    }

    /// Whether the server may be away. A refusal or a lost history come from a server that works.
    pub fn may_be_away(self) -> bool {
        matches!(self, Self::Unreachable | Self::Cut | Self::Hung | Self::Overloaded)
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A failure that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// When the first try of the row failed.
    pub since: Instant,
    /// What stopped the latest try.
    pub reason: FailureReason,
    /// The latest error, for people.
    pub detail: String,
}

/// How a watch fares. Cheap to clone; clones see the same watch.
#[derive(Clone, Debug, Default)]
pub struct WatchHealth {
    failing: Arc<Mutex<Option<Failing>>>,
}

impl WatchHealth {
    /// Since when it has failed without a break; `None` while it works, and before its first try.
    pub fn failing_since(&self) -> Option<Instant> {
        self.failing.lock().as_ref().map(|failing| failing.since)
    }

    /// The failure it is in, if it is in one.
    pub fn failing(&self) -> Option<Failing> {
        self.failing.lock().clone()
    }

    /// Notes a failure; returns it, and whether it is news (the first of its row, or for a new reason).
    pub(super) fn failed(&self, reason: FailureReason, detail: String) -> (Failing, bool) {
        let mut failing = self.failing.lock();
        let news = failing.as_ref().is_none_or(|before| before.reason != reason);
        let since = failing.as_ref().map_or_else(Instant::now, |before| before.since);
        let now = Failing { since, reason, detail };
        *failing = Some(now.clone());
        (now, news)
    }

    /// Notes that it works; returns the failure this ends.
    pub(super) fn works(&self) -> Option<Failing> {
        self.failing.lock().take()
    }
}
