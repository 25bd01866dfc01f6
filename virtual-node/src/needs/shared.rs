//! What the tasks of this module share.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use kube::Client;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc::UnboundedSender, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    MayWrite,
    book::{Book, Entry, Kind, NeedKey, Refused, Standing},
    in_use::InUse,
    plan::Purpose,
    tokens::Tokens,
    upper_watch::WatchPool,
};
use crate::{
    context::{Settings, UpperClients},
    events::Recorder,
    names::Key,
    owner::OwnerMark,
};

/// Objects worked on at once in the lower cluster: enough to fill its connection, few enough that a restart with
/// thousands of ConfigMaps holds no more than these in memory.
const CONCURRENCY_MAX: usize = 32;

/// How long a thing without users is kept: a Deployment that rolls over has its next pod here within seconds.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// How often one that may not write looks whether it may: a new leader takes up the work within this time.
pub(super) const STANDBY_INTERVAL: Duration = Duration::from_secs(1);

/// The first wait after a failed write.
pub(super) const RETRY_INITIAL: Duration = Duration::from_millis(200);

/// The longest wait after a failed write, and so how long a cure made in the lower cluster may go unnoticed.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long a copy waits for its namespace before it looks around again.
const NAMESPACE_WAIT: Duration = Duration::from_secs(5);

/// Clients, settings and state of all tasks.
pub(super) struct Shared {
    pub(super) settings: Arc<Settings>,
    pub(super) upper: UpperClients,
    pub(super) lower: Client,
    pub(super) pool: WatchPool,
    pub(super) recorder: Recorder,
    pub(super) may_write: MayWrite,
    pub(super) ready_again: UnboundedSender<Key>,
    pub(super) book: Book,
    pub(super) in_use: InUse,
    pub(super) tokens: Tokens,
    /// Copies of an earlier run, until it is known which pods there are.
    pub(super) leftovers: Mutex<Vec<NeedKey>>,
    /// It is known which pods there are: what is found without a user may go.
    pub(super) collecting: AtomicBool,
    /// Upper namespaces that stand below and are in use.
    pub(super) used_namespaces: watch::Sender<BTreeSet<String>>,
    pub(super) room: Semaphore,
    pub(super) tasks: TaskTracker,
    pub(super) end: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        settings: Arc<Settings>,
        upper: UpperClients,
        watch_clients: Vec<Client>,
        lower: Client,
        recorder: Recorder,
        may_write: MayWrite,
        ready_again: UnboundedSender<Key>,
    ) -> Self {
        Self {
            pool: WatchPool::new(upper.node.clone(), watch_clients),
            in_use: InUse::new(lower.clone(), &settings.upper_cluster_uid),
            settings,
            upper,
            lower,
            recorder,
            may_write,
            ready_again,
            book: Book::default(),
            tokens: Tokens::default(),
            leftovers: Mutex::default(),
            collecting: AtomicBool::new(false),
            used_namespaces: watch::Sender::new(BTreeSet::new()),
            room: Semaphore::new(CONCURRENCY_MAX),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
        }
    }

    /// Sets the standing of a thing, and has the pods that wait for it looked at again.
    pub(super) fn publish(&self, entry: &Entry, standing: Standing) {
        for pod in entry.publish(standing) {
            // A closed channel means that the process is shutting down.
            let _ = self.ready_again.send(pod);
        }
    }

    /// Notes whether an upper namespace stands below and is in use.
    pub(super) fn namespace_used(&self, upper_namespace: &str, used: bool) {
        self.used_namespaces.send_if_modified(|all| {
            if used { all.insert(upper_namespace.to_owned()) } else { all.remove(upper_namespace) }
        });
    }

    /// Publishes a failure, unless the thing is known to be there: pods go on with what they have.
    pub(super) fn publish_unless_ready(&self, entry: &Entry, reason: &'static str, message: String) {
        if entry.standing() != Standing::Ready {
            self.publish(entry, Standing::Refused(Refused { reason, message }));
        }
    }

    /// The namespace of a thing is not what we took it for: its task looks again at once.
    pub(super) fn namespace_changed(&self, upper_namespace: &str) {
        if let Some(entry) = self.book.entry(&NeedKey::namespace(upper_namespace)) {
            entry.mark_drifted();
        }
    }

    /// Waits a little for the lower namespace; whether it may be written to.
    pub(super) async fn namespace_ready(&self, upper_namespace: &str) -> bool {
        let Some(entry) = self.book.entry(&NeedKey::namespace(upper_namespace)) else { return false };
        tokio::time::timeout(NAMESPACE_WAIT, entry.ready()).await.is_ok()
    }

    /// Where the copy of a thing stands in the lower cluster.
    pub(super) fn lower_key(&self, key: &NeedKey) -> Key {
        let name = match key.kind {
            Kind::RootCa => crate::translate::ROOT_CA_CONFIG_MAP,
            _ => &key.name,
        };
        Key::new(self.settings.namespaces.lower(&key.namespace), name)
    }

    /// The mark of an object that stands for an upper one.
    pub(super) fn mark(&self, upper: Key, uid: &str) -> OwnerMark {
        OwnerMark {
            cluster: self.settings.upper_cluster_uid.clone(),
            uid: uid.to_owned(),
            virtual_node: self.settings.node_name.clone(),
            key: upper,
        }
    }
}

/// What the copy of a thing is labelled to be for.
pub(super) fn purpose(kind: Kind) -> Purpose {
    match kind {
        Kind::RootCa => Purpose::RootCa,
        Kind::Namespace | Kind::ConfigMap | Kind::Secret => Purpose::Copy,
    }
}
