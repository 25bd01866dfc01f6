//! What pods need below: namespaces, ConfigMaps, Secrets, ServiceAccount tokens and the upper CA.
//!
//! ```text
//!  pods ──ensure──▶ book ──▶ one task for each thing: upper watch ──▶ plan ──▶ lower write
//!    ▲                │                                   ▲
//!    └──ready_again───┘             lower watch ──drift───┘
//! ```
//!
//! * [`book`]: who needs what, and how it stands (pure).
//! * [`plan`], [`mirrored`], [`token_plan`], [`wording`]: decisions and texts (pure).
//! * [`namespaces`], [`copies`], [`tokens`], [`token_writes`]: the tasks that act.
//! * [`upper_watch`], [`lower_watch`], [`token_watch`]: what they hear.
//! * [`in_use`], [`leftovers`]: the proof before a delete, and what an earlier run left.
//!
//! Several virtual nodes of one upper cluster may share a lower namespace. A copy is marked by the first of them;
//! the others use and update it as it is, for it stands for the same upper object. None deletes it while a live pod of
//! the upper cluster refers to it, whichever virtual node that pod belongs to.

mod book;
mod clock;
mod copies;
mod in_use;
mod leftovers;
mod lower_watch;
mod mirrored;
mod namespaces;
mod plan;
mod shared;
mod token_plan;
mod token_watch;
mod token_writes;
mod tokens;
mod trouble;
mod upper_watch;
mod wording;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret};
use kube::Client;
use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub use self::upper_watch::WATCHES_PER_CONNECTION;
use self::{
    book::{Entry, Kind, NeedKey, NotReady},
    shared::Shared,
};
use crate::{
    context::{LowerClients, Settings, UpperClients},
    events::{PodRef, Recorder, Severity},
    names::Key,
    translate::{EnvFromKeys, KUBE_ROOT_CA_CONFIG_MAP, Needs, UsedBy},
};

/// How long one call of [`NeedsKeeper::ensure`] holds its caller. Longer waits are left to `ready_again`, so that a slow
/// object of one pod does not hold up the workers that other pods need.
const ENSURE_WAIT: Duration = Duration::from_secs(2);

/// Whether we may write to the lower cluster now: the fence of the leader lease.
pub type MayWrite = Arc<dyn Fn() -> bool + Send + Sync>;

/// A pod and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNeed {
    /// Namespace and name in the upper cluster.
    pub key: Key,
    /// UID in the upper cluster.
    pub uid: String,
    /// `spec.serviceAccountName`; empty means `default`.
    pub service_account: String,
    /// What its spec refers to.
    pub needs: Needs,
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The pod's key comes through `ready_again` when it is worth a try.
    Waits,
    /// Never, for this spec.
    Final,
}

/// Why a pod cannot start below yet. The event on the pod has been reported already, unless `quiet`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Missing {
    /// Event and condition reason, CamelCase.
    pub reason: &'static str,
    /// What, where, and the cure.
    pub message: String,
    /// When to try again.
    pub retry: Retry,
    /// Nothing is wrong, it only takes a moment: not worth an event or a condition.
    pub quiet: bool,
}

/// Keeps what pods need present and current in the lower cluster. Cheap to clone.
#[derive(Clone)]
pub struct NeedsKeeper {
    shared: Arc<Shared>,
}

impl NeedsKeeper {
    /// A keeper; [`NeedsKeeper::run`] must run beside it.
    ///
    /// * `watch_clients`: clients under the node identity, each with a connection of its own, that carry
    ///   [`WATCHES_PER_CONNECTION`] watches each. Objects beyond their number are read once a minute instead.
    /// * `ready_again`: gets the key of each pod that was told to wait when what it waits for changed.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        upper: UpperClients,
        watch_clients: Vec<Client>,
        lower: &LowerClients,
        recorder: Recorder,
        may_write: MayWrite,
        ready_again: UnboundedSender<Key>,
    ) -> Self {
        let shared = Shared::new(settings, upper, watch_clients, lower.api.clone(), recorder, may_write, ready_again);
        Self { shared: Arc::new(shared) }
    }

    /// Has everything that a pod needs present and current below, before the pod is created there. Free of requests
    /// when all of it is known to be there. Registers the pod as a user until [`NeedsKeeper::release`].
    ///
    /// # Errors
    /// What is missing. It has been reported as an event on the pod, in a kubelet's words.
    pub async fn ensure(&self, pod: &PodNeed) -> Result<(), Missing> {
        let outcome = self.try_ensure(pod).await;
        if let Err(missing) = &outcome
            && !missing.quiet
        {
            let subject = PodRef { namespace: &pod.key.namespace, name: &pod.key.name, uid: &pod.uid };
            self.shared.recorder.pod(subject, Severity::Warning, missing.reason, missing.message.clone());
        }
        outcome
    }

    async fn try_ensure(&self, pod: &PodNeed) -> Result<(), Missing> {
        let references = references(pod);
        let entries = self.hold_entries(pod, &references);
        let deadline = Instant::now() + ENSURE_WAIT;
        for (entry, reference) in entries.iter().zip(&references) {
            if entry.look(&pod.uid, &pod.key, reference.optional).is_ok() {
                continue;
            }
            // An elapsed deadline leaves the standing unknown, which the look below reports.
            let _ = timeout_at(deadline, entry.known()).await;
            entry.look(&pod.uid, &pod.key, reference.optional).map_err(|why| reference.missing(why))?;
        }
        self.shared.tokens.ensure(&self.shared, pod).await
    }

    /// The keys of the ConfigMaps and Secrets that a pod's containers read whole (`envFrom`), as far as they are below:
    /// all of them, once [`NeedsKeeper::ensure`] has said so.
    #[must_use]
    pub fn env_from_keys(&self, namespace: &str, spec: &PodSpec) -> EnvFromKeys {
        let keys = |kind: Kind, name: &str| {
            let entry = self.shared.book.entry(&NeedKey::new(kind, namespace, name))?;
            Some(entry.keys().to_vec())
        };
        EnvFromKeys::of(spec, |name| keys(Kind::ConfigMap, name), |name| keys(Kind::Secret, name))
    }

    /// Registers a pod that already runs below as a user of what it needs, without waiting. It is kept current from
    /// now on.
    pub fn hold(&self, pod: &PodNeed) {
        self.hold_entries(pod, &references(pod));
        self.shared.tokens.hold(&self.shared, pod, true);
    }

    fn hold_entries(&self, pod: &PodNeed, references: &[Reference<'_>]) -> Vec<Arc<Entry>> {
        let held = self.shared.book.hold(&pod.uid, references.iter().map(|reference| reference.key.clone()));
        for entry in held.fresh {
            start(&self.shared, entry);
        }
        held.entries
    }

    /// The pod is gone below: it uses nothing any more. Copies without users are deleted after a grace period, tokens
    /// at once.
    pub fn release(&self, pod_uid: &str) {
        self.shared.book.release(pod_uid);
        self.shared.tokens.release(pod_uid);
    }

    /// A request failed because the lower namespace is gone or going: it is looked at again at once.
    pub fn namespace_changed(&self, upper_namespace: &str) {
        self.shared.namespace_changed(upper_namespace);
    }

    /// Finds what an earlier run left below. To be called at start, before pods are held, so that their tokens need
    /// not be asked for anew.
    ///
    /// # Errors
    /// The lower API server's; call it again.
    pub async fn adopt_existing(&self) -> Result<(), kube::Error> {
        leftovers::find(&self.shared).await
    }

    /// The lower cluster may have other Secrets than we left there: its history is lost, as after a restore from a backup.
    /// Tokens are looked for anew before the next one is refreshed; the watches on the other copies look by themselves.
    pub fn look_again(&self) {
        self.shared.tokens.look_again();
    }

    /// Takes away what [`NeedsKeeper::adopt_existing`] found and no pod holds. To be called when every upper pod of this
    /// virtual node is held.
    pub fn collect_leftovers(&self) {
        leftovers::collect(&self.shared);
    }

    /// Runs what is not bound to one object: the watches on our copies below, and the refresh of tokens. Ends all tasks
    /// at shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        let shared = &self.shared;
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = shared.tokens.run(shared, &shutdown) => {}
            () = lower_watch::run::<ConfigMap>(shared, &[Kind::ConfigMap, Kind::RootCa]) => {}
            () = lower_watch::run::<Secret>(shared, &[Kind::Secret]) => {}
            () = token_watch::run(shared) => {}
        }
        shared.end.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
    }

    /// The upper namespaces that stand below and that pods use, or used until a moment ago.
    #[must_use]
    pub fn used_namespaces(&self) -> watch::Receiver<BTreeSet<String>> {
        self.shared.used_namespaces.subscribe()
    }

    /// Things kept and pods known, for metrics.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.shared.book.counts()
    }
}

/// Starts the task that alone works on a thing.
fn start(shared: &Arc<Shared>, entry: Arc<Entry>) {
    let of_task = shared.clone();
    let end = shared.end.clone();
    shared.tasks.spawn(async move {
        let work = async {
            match entry.key.kind {
                Kind::Namespace => namespaces::run(of_task, entry).await,
                Kind::ConfigMap | Kind::RootCa => copies::run::<ConfigMap>(of_task, entry).await,
                Kind::Secret => copies::run::<Secret>(of_task, entry).await,
            }
        };
        end.run_until_cancelled(work).await;
    });
}

/// One thing that a pod refers to.
struct Reference<'a> {
    key: NeedKey,
    optional: bool,
    used_by: Option<&'a UsedBy>,
}

impl Reference<'_> {
    fn missing(&self, why: NotReady) -> Missing {
        match why {
            NotReady::Refused(refused) => wording::refused(refused),
            NotReady::Pending => wording::pending(&self.what()),
            NotReady::Absent => {
                let volume = UsedBy::Volume("kube-api-access".into());
                let used_by = self.used_by.unwrap_or(&volume);
                if self.key.kind == Kind::Secret {
                    wording::absent::<Secret>(&self.key.name, used_by)
                } else {
                    wording::absent::<ConfigMap>(&self.key.name, used_by)
                }
            }
        }
    }

    fn what(&self) -> String {
        match self.key.kind {
            Kind::Namespace => format!("namespace {}", self.key.namespace),
            Kind::Secret => format!("secret {}", self.key.name),
            Kind::ConfigMap | Kind::RootCa => format!("configmap {}", self.key.name),
        }
    }
}

/// Everything that a pod refers to; the namespace comes first, for all else stands in it.
fn references(pod: &PodNeed) -> Vec<Reference<'_>> {
    let namespace = &pod.key.namespace;
    let mut references = vec![Reference { key: NeedKey::namespace(namespace), optional: false, used_by: None }];
    let named = [(Kind::ConfigMap, &pod.needs.config_maps), (Kind::Secret, &pod.needs.secrets)];
    for (kind, needs) in named {
        references.extend(needs.iter().map(|(name, need)| Reference {
            key: NeedKey::new(kind, namespace, name),
            optional: need.optional,
            used_by: Some(&need.used_by),
        }));
    }
    if pod.needs.root_ca {
        let key = NeedKey::new(Kind::RootCa, namespace, KUBE_ROOT_CA_CONFIG_MAP);
        references.push(Reference { key, optional: false, used_by: None });
    }
    references
}
