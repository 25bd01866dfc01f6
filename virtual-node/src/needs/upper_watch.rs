//! Following one upper object, as a kubelet does.
//!
//! The Node authorizer lets a node read an object only by name, and only while a pod on the node refers to it, so
//! there is one watch for each object (`K pkg/kubelet/util/manager/watch_based_manager.go`). A watch holds an HTTP/2
//! stream, and kube-apiserver allows 100 streams on a connection unless told otherwise (the answer to
//! CVE-2023-44487): too many watches would starve every other request. So watches are leased from a pool of
//! connections, and what finds no place in it is read again every minute.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, watcher},
};
use rand::Rng;
use tensile_chassis::retry::Backoff;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use super::mirrored::Mirrored;

/// Watches on one connection: half of the 100 streams that a kube-apiserver allows by default.
pub const WATCHES_PER_CONNECTION: usize = 50;

/// How often an object without a watch is read again. A kubelet in `Cache` mode uses a minute too.
const POLL_INTERVAL: Duration = Duration::from_mins(1);

/// How often an immutable object is read again: it can only be replaced by another one of its name.
const IMMUTABLE_POLL_INTERVAL: Duration = Duration::from_mins(5);

/// A watch is renewed within this time: Azure's balancers cut idle connections at 240 s.
const WATCH_SECONDS_MAX: u32 = 200;

/// The first wait after a failed read. Short: the Node authorizer learns of a new pod through a watch of its own and
/// says Forbidden for some milliseconds after the pod was bound.
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);

/// The longest wait between reads that fail.
const BACKOFF_MAX: Duration = Duration::from_secs(20);

/// Where watches may run.
#[derive(Clone)]
pub(super) struct WatchPool {
    /// For reads.
    reads: Client,
    connections: Arc<[(Client, Arc<Semaphore>)]>,
}

impl WatchPool {
    /// `reads` serves plain requests; each of `watches` must have a connection of its own.
    pub(super) fn new(reads: Client, watches: Vec<Client>) -> Self {
        let connections =
            watches.into_iter().map(|client| (client, Arc::new(Semaphore::new(WATCHES_PER_CONNECTION)))).collect();
        Self { reads, connections }
    }

    fn lease(&self) -> Option<(Client, OwnedSemaphorePermit)> {
        self.connections
            .iter()
            .find_map(|(client, room)| Some((client.clone(), room.clone().try_acquire_owned().ok()?)))
    }
}

/// What an upper object was last seen to be.
#[derive(Clone, Debug)]
pub(super) enum Seen<K> {
    /// It is there.
    Object(Box<K>),
    /// The API server said that there is none.
    Absent,
}

type Watch<K> = Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>;

/// What was passed on last.
#[derive(Debug, PartialEq, Eq)]
enum Reported {
    Nothing,
    Absent,
    Version(Option<String>),
}

/// Follows one object, by watch or by reading it now and then.
pub(super) struct Follower<K> {
    pool: WatchPool,
    namespace: String,
    name: String,
    /// A running watch and its place in the pool.
    watch: Option<(Watch<K>, OwnedSemaphorePermit)>,
    /// Whether the object was in the list that is being received.
    listed: bool,
    reported: Reported,
    wake_at: Instant,
    immutable: bool,
    backoff: Backoff,
}

impl<K: Mirrored> Follower<K> {
    pub(super) fn new(pool: WatchPool, namespace: &str, name: &str) -> Self {
        Self {
            pool,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            watch: None,
            listed: false,
            reported: Reported::Nothing,
            wake_at: Instant::now(),
            immutable: false,
            backoff: Backoff::new(BACKOFF_INITIAL, BACKOFF_MAX),
        }
    }

    /// The next state that differs from the last one, or a failure (after which it goes on by itself, more slowly).
    /// Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Seen<K>, String> {
        loop {
            sleep_until(self.wake_at).await;
            if self.watch.is_none() && !self.immutable {
                self.start_watch();
            }
            let seen = match &mut self.watch {
                Some((watch, _)) => match watch.next().await {
                    Some(Ok(event)) => self.of_event(event),
                    Some(Err(error)) => {
                        // Begun anew with a list: after a restore from a backup the API server would take a watch from a
                        // version that it has not reached again, and be silent.
                        self.watch = None;
                        return Err(self.failed(watch_message(&error)));
                    }
                    // kube's watcher never ends; if it should, begin anew.
                    None => {
                        self.watch = None;
                        None
                    }
                },
                None => match self.read().await {
                    Ok(seen) => {
                        let interval = if self.immutable { IMMUTABLE_POLL_INTERVAL } else { POLL_INTERVAL };
                        self.wake_at = Instant::now() + interval.mul_f64(rand::rng().random_range(0.9..1.1));
                        Some(seen)
                    }
                    Err(error) => return Err(self.failed(super::trouble::message(&error))),
                },
            };
            if let Some(seen) = seen {
                self.backoff.reset();
                if let Some(seen) = self.changed(seen) {
                    return Ok(seen);
                }
            }
        }
    }

    /// Reads the object now, whatever was reported.
    pub(super) async fn read(&mut self) -> Result<Seen<K>, kube::Error> {
        let api: Api<K> = Api::namespaced(self.pool.reads.clone(), &self.namespace);
        Ok(match api.get_opt(&self.name).await? {
            Some(object) => Seen::Object(Box::new(object)),
            None => Seen::Absent,
        })
    }

    fn start_watch(&mut self) {
        let Some((client, permit)) = self.pool.lease() else { return };
        let api: Api<K> = Api::namespaced(client, &self.namespace);
        let config =
            watcher::Config::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_SECONDS_MAX);
        self.watch = Some((Box::pin(watcher(api, config)), permit));
    }

    fn of_event(&mut self, event: Event<K>) -> Option<Seen<K>> {
        match event {
            Event::Init => {
                self.listed = false;
                None
            }
            Event::InitApply(object) => {
                self.listed = true;
                Some(Seen::Object(Box::new(object)))
            }
            Event::InitDone => (!self.listed).then_some(Seen::Absent),
            Event::Apply(object) => Some(Seen::Object(Box::new(object))),
            Event::Delete(_) => Some(Seen::Absent),
        }
    }

    /// Passes on what is new: a relist brings the same object again.
    fn changed(&mut self, seen: Seen<K>) -> Option<Seen<K>> {
        let report = match &seen {
            Seen::Object(object) => Reported::Version(object.meta().resource_version.clone()),
            Seen::Absent => Reported::Absent,
        };
        self.immutable = matches!(&seen, Seen::Object(object) if object.is_immutable());
        if self.immutable && self.watch.take().is_some() {
            // It cannot change any more, so its place in the pool is better used by another; a kubelet ends its watch too.
            self.wake_at = Instant::now() + IMMUTABLE_POLL_INTERVAL;
        }
        if self.reported == report {
            return None;
        }
        self.reported = report;
        Some(seen)
    }

    fn failed(&mut self, message: String) -> String {
        self.wake_at = Instant::now() + self.backoff.next_delay();
        message
    }
}

fn watch_message(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => super::trouble::message(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}
