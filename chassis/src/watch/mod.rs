//! A watch that never ends and never fails: it recovers, and says how it fares.
//!
//! kube's own watcher hands each error to its user and decodes objects whole. This one recovers by itself, drops
//! `managedFields` before they are decoded (half of a pod's bytes and most of its allocations), and lets a malformed
//! object stall nothing but itself. It follows client-go's reflector in what it asks of an API server.
//!
//! ```text
//! Restarted, Listed*, ListDone, (Applied | Deleted | Malformed)*      and again from Restarted when history is lost
//! ```

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt, stream::BoxStream};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::readiness::Gate;

mod answer;
mod decode;
mod driver;
mod health;
mod managed_fields;
mod metrics;

pub use health::{Failing, FailureReason, WatchHealth};
pub use metrics::WatchMetrics;

/// client-go's page size.
const PAGE_SIZE: u32 = 500;
/// Below the 240 s after which Azure's load balancers drop an idle connection.
const TIMEOUT_SECS: u32 = 200;
/// An API server ends a watch within a second or two of its timeout.
const HUNG_AFTER: Duration = Duration::from_secs(15);
/// Long enough for a rolling restart of one API server behind a balancer.
const UNREADY_AFTER: Duration = Duration::from_secs(30);

/// What to watch and how.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Names the watch in logs and metrics, for instance `lower-pods`.
    pub name: &'static str,
    /// Only objects with these labels.
    pub label_selector: Option<String>,
    /// Only objects with these fields.
    pub field_selector: Option<String>,
    /// Objects in one page of a list.
    pub page_size: u32,
    /// How long one watch request is kept open, in seconds; must be under 295.
    pub timeout_secs: u32,
    /// How much later than asked for a watch request may end before it counts as hung.
    pub hung_after: Duration,
    /// How long it may fail before its gate closes.
    pub unready_after: Duration,
    /// Counters; `Default` counts for nobody.
    pub metrics: WatchMetrics,
}

impl WatchOptions {
    /// Watches everything; fill in the rest with struct update.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            label_selector: None,
            field_selector: None,
            page_size: PAGE_SIZE,
            timeout_secs: TIMEOUT_SECS,
            hung_after: HUNG_AFTER,
            unready_after: UNREADY_AFTER,
            metrics: WatchMetrics::default(),
        }
    }
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<K> {
    /// A new list begins: what is neither [`Event::Listed`] nor [`Event::Malformed`] until [`Event::ListDone`] is gone.
    /// If another one follows before that, the list was broken off and this one counts.
    Restarted {
        /// The list decides about all versions up to this one. What is known of an object by such a version, and is
        /// listed with a lower one, was undone: the API server's store was restored from a backup. `u64::MAX` when the
        /// list itself is older than what this watch has heard.
        decides_until: u64,
    },
    /// An object of the list.
    Listed(K),
    /// The list is complete.
    ListDone,
    /// An object was made or changed.
    Applied(K),
    /// An object is gone, as it was last.
    Deleted(K),
    /// An object that cannot be decoded. It exists (or, if it was deleted, did): do not take it for gone.
    Malformed {
        /// Its namespace, if it has one.
        namespace: Option<String>,
        /// Its name.
        name: String,
        /// What is wrong; string values are left out, since they may be secret.
        error: String,
    },
}

/// The stream of [`watch`].
pub struct Watch<K> {
    events: BoxStream<'static, Event<K>>,
    health: WatchHealth,
}

impl<K> Watch<K> {
    /// How the watch fares; stays valid when the stream has moved elsewhere.
    pub fn health(&self) -> WatchHealth {
        self.health.clone()
    }
}

impl<K> Stream for Watch<K> {
    type Item = Event<K>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event<K>>> {
        self.events.poll_next_unpin(cx)
    }
}

impl<K> fmt::Debug for Watch<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("health", &self.health).finish_non_exhaustive()
    }
}

/// Watches the objects of `api`. The stream works only while it is polled; it never ends.
///
/// `gate` opens with the first complete list, is touched by every sign of life of the API server, and closes when the
/// watch has failed for [`WatchOptions::unready_after`]. Give the gate a maximum age above `timeout_secs` and a reader
/// that hangs is seen too.
///
/// Use a client of [`crate::kube_client::build`], or at least one without a read timeout under `timeout_secs`.
pub fn watch<K>(api: Api<K>, options: WatchOptions, gate: Gate) -> Watch<K>
where
    K: Resource + DeserializeOwned + Send + 'static,
{
    let health = WatchHealth::default();
    let path = api.resource_url().to_owned();
    let driver = driver::Driver::new(api.into_client(), path, options, gate, health.clone());
    let events = futures::stream::unfold(driver, |mut driver| async move {
        let event = driver.next_event().await;
        Some((event, driver))
    });
    Watch { events: events.boxed(), health }
}

#[cfg(test)]
mod tests;
