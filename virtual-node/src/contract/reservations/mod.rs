//! Room that is held for upper pods: from the moment that a scheduler asks for it until a lower pod takes it.
//!
//! ```text
//!  Reserve ─▶ reserved (until its time is over) ─▶ bound (its upper pod was seen here) ─▶ settled: the lower pod is on a node
//!                       └─ Release, time over           └─ upper pod gone or finished          and counts by itself
//! ```
//!
//! The room itself stands in the fit engine of the [`CapacityLedger`], so that `Fit` and `Watch` see it; here stands for whom it is
//! held and until when. All of it is soft state: a new leader finds bound pods in the upper cluster, and waits until those that were
//! only reserved are bound or have run out.

mod keeper;
mod opening;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tensile_proto::vocabulary::annotation;
use tensile_scheduling::{Demand, Fit, FitEngine, Place, Wish};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub use self::opening::UpperPods;
use super::{metrics::ContractMetrics, template::demand_of_pod};
use crate::{capacity::CapacityLedger, context::Settings, translate};

/// Pods that room may be held for at once, bound ones on their way down not counted: several times what a burst has in flight.
const RESERVATIONS_MAX: usize = 20_000;

/// Who holds room on the lower nodes. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Reservations {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Arc<Settings>,
    ledger: CapacityLedger,
    ttl_max: Duration,
    metrics: ContractMetrics,
    book: Mutex<Book>,
    open: watch::Sender<Opening>,
    /// A reservation was made that runs out before the keeper looks again.
    sooner: Notify,
}

/// Upper UIDs and what is held for them. Room without an entry here is that of lower pods, which count by themselves.
#[derive(Default)]
struct Book {
    entries: HashMap<Arc<str>, Entry>,
    reserved: usize,
    /// When the keeper looks for what has run out.
    next: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Entry {
    demand: Arc<Demand>,
    /// Until when it is held for a pod that is not bound yet. `None`: it is bound.
    until: Option<Instant>,
}

/// Whether reservations are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Earlier leaders' promises may not all be known. `Some`: until then at least.
    Learning(Option<Instant>),
    /// All is known.
    Open,
}

/// Room for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub place: Place,
    /// How long it is held from now; `None` for a bound pod, whose room needs no time limit.
    pub ttl: Option<Duration>,
    /// Whether the pod held it before.
    pub existed: bool,
}

/// Why no room is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotHeld {
    /// No node has room.
    NoRoom(Box<Fit>),
    /// See [`Opening::Learning`].
    NotOpen {
        /// When to ask again.
        after: Duration,
    },
    /// Too many reservations.
    Overloaded,
    /// The lower API server does not answer: what is held goes on, and nothing new is promised.
    Unreachable,
}

impl Reservations {
    /// None yet, and closed.
    pub fn new(settings: Arc<Settings>, ledger: CapacityLedger, ttl_max: Duration, metrics: ContractMetrics) -> Self {
        let open = watch::Sender::new(Opening::Learning(None));
        let inner = Inner { settings, ledger, ttl_max, metrics, book: Mutex::default(), open, sooner: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// An upper pod that is bound to the virtual node, new or changed. Its room is held until its lower pod takes it.
    pub fn upper_pod(&self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        if has_ended(pod) {
            self.upper_gone(uid);
            return;
        }
        let mut book = self.inner.book.lock();
        if let Some(entry) = book.entries.get_mut(uid) {
            if entry.until.take().is_some() {
                book.reserved -= 1;
                self.inner.metrics.held(book.reserved);
                self.inner.metrics.ended("bound");
            }
            return;
        }
        if self.inner.ledger.decide(|engine| engine.has_lower_pod(uid)) {
            return;
        }
        self.hold(&mut book, uid, pod, None);
    }

    /// An upper pod of a live list, which the watch will tell of soon. Until it does the room has a time limit, for the pod may be gone
    /// again, and the watch have told so already.
    fn expect(&self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        let mut book = self.inner.book.lock();
        let known = book.entries.contains_key(uid) || self.inner.ledger.decide(|engine| engine.has_lower_pod(uid));
        if !known && !has_ended(pod) {
            self.hold(&mut book, uid, pod, Some(Instant::now() + self.inner.ttl_max));
        }
    }

    /// Holds room for a bound pod, on the node that its scheduler reserved or wherever it will go.
    fn hold(&self, book: &mut Book, uid: &str, pod: &Pod, until: Option<Instant>) {
        // One that is never sent down takes nothing.
        let Ok(demand) = demand_of_pod(pod, &self.inner.settings) else { return };
        self.inner.ledger.decide(|engine| engine.hold(uid, demand.clone(), reserved_node(pod)));
        book.entries.insert(uid.into(), Entry { demand, until });
        if let Some(until) = until {
            book.reserved += 1;
            self.runs_out(book, until);
        }
    }

    fn runs_out(&self, book: &Book, until: Instant) {
        if book.next.is_none_or(|next| until < next) {
            self.inner.sooner.notify_one();
        }
    }

    /// An upper pod is gone or finished.
    pub fn upper_gone(&self, uid: &str) {
        let mut book = self.inner.book.lock();
        self.end(&mut book, uid, "gone");
    }

    /// The upper pod as it is to be sent down: it names the node that is held for it now, wherever its scheduler put it first.
    pub fn pinned<'a>(&self, upper: &'a Pod) -> Cow<'a, Pod> {
        let uid = upper.metadata.uid.as_deref().unwrap_or_default();
        let held = self.inner.ledger.decide(|engine| engine.held_node(uid));
        match held {
            Some(node) if reserved_node(upper) != Some(node.as_str()) => {
                let mut upper = upper.clone();
                upper.metadata.annotations.get_or_insert_default().insert(annotation::RESERVED_NODE.to_owned(), node);
                Cow::Owned(upper)
            }
            _ => Cow::Borrowed(upper),
        }
    }

    /// What an upper pod asks of any lower node; `None` when it is never sent down.
    pub fn demand_of(&self, upper: &Pod) -> Option<Arc<Demand>> {
        demand_of_pod(upper, &self.inner.settings).ok()
    }

    /// Holds room elsewhere for a bound pod whose lower twin found its node taken. Answers the node, if one has room.
    pub fn give_another(&self, uid: &str, demand: &Arc<Demand>, lost: &str) -> Option<String> {
        let mut book = self.inner.book.lock();
        let excluded = [lost.to_owned()];
        let wish = Wish { excluded_nodes: &excluded, ..Wish::default() };
        let place = self.inner.ledger.decide(|engine| engine.reserve(uid, demand, wish)).ok()?;
        book.entries.insert(uid.into(), Entry { demand: demand.clone(), until: None });
        Some(place.node)
    }

    /// A lower pod was deleted to be sent to another node.
    pub fn moved(&self) {
        self.inner.metrics.moved();
    }

    /// Changes when the room of the lower nodes does.
    pub fn room_changes(&self) -> watch::Receiver<Option<u64>> {
        self.inner.ledger.published().revision
    }

    /// Whether reservations are made, and when that changes.
    pub(super) fn opening(&self) -> watch::Receiver<Opening> {
        self.inner.open.subscribe()
    }

    /// Holds room for a pod. Asked again it extends what the pod has; when that is lost, it looks for another place.
    pub(super) fn reserve(
        &self,
        uid: &str,
        demand: &Arc<Demand>,
        wish: Wish<'_>,
        ttl: Duration,
        reachable: bool,
    ) -> Result<Held, NotHeld> {
        if let Opening::Learning(until) = *self.inner.open.borrow() {
            let after = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            // After the time itself the upper pods are read once more.
            return Err(NotHeld::NotOpen { after: after.max(Duration::from_millis(200)) });
        }
        let mut book = self.inner.book.lock();
        if let Some(held) = self.already(&mut book, uid, wish, ttl)? {
            return Ok(held);
        }
        if !reachable {
            return Err(NotHeld::Unreachable);
        }
        if book.reserved >= RESERVATIONS_MAX {
            return Err(NotHeld::Overloaded);
        }
        let place = self.inner.ledger.decide(|engine| engine.reserve(uid, demand, wish)).map_err(NotHeld::NoRoom)?;
        let ttl = ttl.min(self.inner.ttl_max);
        let until = Instant::now() + ttl;
        book.entries.insert(uid.into(), Entry { demand: demand.clone(), until: Some(until) });
        book.reserved += 1;
        self.inner.metrics.held(book.reserved);
        self.runs_out(&book, until);
        Ok(Held { place, ttl: Some(ttl), existed: false })
    }

    /// What the pod has already, extended. A reservation whose place is lost, or that the caller does not want, ends here.
    fn already(&self, book: &mut Book, uid: &str, wish: Wish<'_>, ttl: Duration) -> Result<Option<Held>, NotHeld> {
        let state = |engine: &mut FitEngine| (engine.has_lower_pod(uid), engine.still_holds(uid), engine.place_of(uid));
        let (running, holds, place) = self.inner.ledger.decide(state);
        let entry = book.entries.get_mut(uid).filter(|entry| entry.until.is_none_or(|until| until > Instant::now()));
        let reserved = entry.as_ref().is_some_and(|entry| entry.until.is_some());
        if !reserved && (running || entry.is_some()) {
            // A bound pod is its own reservation.
            let waits = || Fit {
                message: "the pod is bound here and waits for a lower node with room".into(),
                ..Fit::default()
            };
            let place = place.ok_or_else(|| NotHeld::NoRoom(Box::new(waits())))?;
            return Ok(Some(Held { place, ttl: None, existed: true }));
        }
        if let (Some(place), Some(entry)) = (place, entry)
            && holds
            && !wish.excluded_nodes.contains(&place.node)
        {
            let ttl = ttl.min(self.inner.ttl_max);
            // Never shortened: two requests on their way may overtake each other.
            entry.until = entry.until.max(Some(Instant::now() + ttl));
            return Ok(Some(Held { place, ttl: Some(ttl), existed: true }));
        }
        if reserved {
            self.end(book, uid, "lost");
        }
        Ok(None)
    }

    /// Gives back what is held for pods that are not bound. Answers those that had any.
    pub(super) fn release<'a>(&self, uids: &'a [String]) -> Vec<&'a str> {
        let mut book = self.inner.book.lock();
        let reserved = |uid: &&str| book.entries.get(*uid).is_some_and(|entry| entry.until.is_some());
        let released: Vec<_> = uids.iter().map(String::as_str).filter(reserved).collect();
        for uid in &released {
            self.end(&mut book, uid, "released");
        }
        released
    }

    fn end(&self, book: &mut Book, uid: &str, how: &'static str) {
        let Some(entry) = book.entries.remove(uid) else { return };
        self.inner.ledger.decide(|engine| engine.release(uid));
        if entry.until.is_some() {
            book.reserved -= 1;
            self.inner.metrics.held(book.reserved);
            self.inner.metrics.ended(how);
        }
    }
}

fn has_ended(pod: &Pod) -> bool {
    translate::is_terminal(pod.status.as_ref().and_then(|status| status.phase.as_deref()))
}

/// The lower node that a scheduler wrote into the Binding.
fn reserved_node(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(annotation::RESERVED_NODE).map(String::as_str)
}
