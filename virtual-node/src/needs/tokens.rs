//! ServiceAccount tokens of the upper cluster, in Secrets below: issued before a pod starts, refreshed while it lives,
//! deleted when it is gone.
//!
//! The virtual node asks under its node identity, so it can get tokens only for pods that are bound to it, and each
//! token ends with its pod (KEP-1205, NodeRestriction).

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use jiff::SignedDuration;
use kube::api::{ObjectMeta, Preconditions};
use parking_lot::Mutex;
use tensile_chassis::retry::Backoff;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Missing, PodNeed, Retry,
    clock::ServerClock,
    leftovers,
    shared::{RETRY_INITIAL, RETRY_MAX, Shared},
    token_plan::{self, Schedule},
    token_watch::Heard,
    token_writes::{self, Failure},
    trouble, wording,
};
use crate::{events, names::Key, translate::TokenNeed};

/// How often it is looked whether tokens are due. Wall-clock time decides, so a suspended machine catches up.
const TICK: Duration = Duration::from_secs(5);

/// Refreshes at once: they are never urgent, and must not crowd out the tokens of new pods.
const REFRESHES_MAX: usize = 8;

/// Deletes at once.
const DELETES_MAX: usize = 16;

/// The wait after a failed refresh; a kubelet tries at each sync of the pod, about once a minute.
const REFRESH_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// When a leftover token is looked at again whose pod still lives below: soon at first, for the pod may be about to go.
const LEFTOVER_LOOK_INITIAL: Duration = Duration::from_secs(1);
const LEFTOVER_LOOK_MAX: Duration = Duration::from_mins(5);

/// How long the tokens of a pod that is held, and that were not found below, are left to [`Tokens::ensure`]: the pod may
/// not be there yet, and then it asks for them itself.
const LOST_GRACE: SignedDuration = SignedDuration::from_secs(60);

/// A look at what is below counts as fresh for this long.
const FOUND_FRESH: Duration = Duration::from_secs(30);

/// Failures of one pod that are not told: the Node authorizer lags some milliseconds behind the binding of a pod.
const QUIET_FAILURES_MAX: u32 = 3;

/// The first wait before a pod whose token failed is looked at again.
const PENDING_RETRY_INITIAL: Duration = Duration::from_millis(100);

/// A Secret below that holds tokens.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// `None` when it is to be there and was not found.
    pub(super) uid: Option<String>,
    /// Its resourceVersion when it was last written or found right.
    pub(super) version: Option<String>,
    /// Digest of its content; `None` when an earlier run wrote it.
    pub(super) digest: Option<[u8; 32]>,
    /// When its tokens end and are due.
    pub(super) schedule: Schedule,
}

impl Written {
    /// One that is to be there and is not.
    pub(super) fn lost(schedule: Schedule) -> Self {
        Self { uid: None, version: None, digest: None, schedule }
    }
}

/// The tokens of one volume.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    /// Where the Secret stands below.
    pub(super) secret: Key,
    /// Its token files.
    pub(super) needs: Vec<TokenNeed>,
    /// What is there.
    pub(super) written: Option<Written>,
    /// A write is under way: what is heard from below may be our own.
    pub(super) writing: bool,
    /// What was heard from below and not compared yet with what was written.
    pub(super) heard: Option<Heard>,
}

#[derive(Debug)]
pub(super) struct PodTokens {
    pod: Key,
    service_account: String,
    pub(super) volumes: Vec<Volume>,
    failures: Backoff,
}

/// A Secret to delete. With `only_after`, no lower pod of that upper UID may be left.
#[derive(Debug)]
pub(super) struct Deletion {
    pub(super) secret: Key,
    pub(super) exactly: Preconditions,
    pub(super) only_after: Option<String>,
    /// The pauses between looks for that pod.
    looks: Backoff,
}

/// A token Secret that was found below at start, by its place.
#[derive(Debug)]
struct Found {
    pod_uid: String,
    resource_version: Option<String>,
    written: Written,
}

/// All tokens below.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) pods: Mutex<HashMap<String, PodTokens>>,
    found: Mutex<HashMap<Key, Found>>,
    /// When it was last looked what is below.
    looked: Mutex<Option<Instant>>,
    /// What is below may be other than what was found or written.
    unsure: AtomicBool,
    /// By which it is judged when tokens end.
    pub(super) clock: ServerClock,
    /// Secrets that may not be as they were written, with their pod's UID.
    pub(super) doubts: Mutex<HashSet<(String, Key)>>,
    /// There is a doubt.
    pub(super) doubted: Notify,
    deletions: mpsc::UnboundedSender<Deletion>,
    to_delete: Mutex<Option<mpsc::UnboundedReceiver<Deletion>>>,
}

impl Default for Tokens {
    fn default() -> Self {
        // Unbounded in form only: there is at most one deletion for each Secret that we made.
        let (deletions, to_delete) = mpsc::unbounded_channel();
        Self {
            pods: Mutex::default(),
            found: Mutex::default(),
            looked: Mutex::default(),
            unsure: AtomicBool::new(false),
            clock: ServerClock::default(),
            doubts: Mutex::default(),
            doubted: Notify::new(),
            deletions,
            to_delete: Mutex::new(Some(to_delete)),
        }
    }
}

impl Tokens {
    /// Notes that all token Secrets below were found, by a look that began at this time.
    pub(super) fn looked(&self, begun: Instant) {
        *self.looked.lock() = Some(begun);
    }

    /// Has the next refresh begin with a look at what is below.
    pub(super) fn look_again(&self) {
        self.unsure.store(true, Ordering::Release);
    }

    /// Takes in a token Secret that was found below: for the pod that holds it, or for one that may come to.
    pub(super) fn found(&self, secret: Key, pod_uid: String, meta: &ObjectMeta) {
        let now = self.clock.now();
        let schedule = Schedule::read(meta).unwrap_or(Schedule { expires: now, refresh: now });
        let written = Written { uid: meta.uid.clone(), version: meta.resource_version.clone(), digest: None, schedule };
        if let Some(tokens) = self.pods.lock().get_mut(&pod_uid) {
            if let Some(volume) = tokens.volumes.iter_mut().find(|volume| volume.secret == secret) {
                volume.written = Some(written);
            }
            return;
        }
        let resource_version = meta.resource_version.clone();
        self.found.lock().insert(secret, Found { pod_uid, resource_version, written });
    }

    /// Has the tokens of a pod kept fresh from now on, without waiting for any. Those of a pod that runs below and that
    /// were not found there are issued after a while.
    pub(super) fn hold(&self, shared: &Shared, pod: &PodNeed, runs: bool) {
        if pod.needs.tokens.is_empty() {
            return;
        }
        let mut pods = self.pods.lock();
        if pods.contains_key(&pod.uid) {
            return;
        }
        let lower_namespace = shared.settings.namespaces.lower(&pod.key.namespace);
        let now = self.clock.now();
        let lost = runs.then(|| Written::lost(Schedule { expires: now, refresh: now + LOST_GRACE }));
        let mut found = self.found.lock();
        let volumes = token_plan::by_secret(&pod.needs.tokens)
            .into_iter()
            .map(|(secret, needs)| {
                let secret = Key::new(&lower_namespace, secret);
                let written = found.remove(&secret).map(|found| found.written).or_else(|| lost.clone());
                Volume { secret, needs: needs.into_iter().cloned().collect(), written, writing: false, heard: None }
            })
            .collect();
        pods.insert(
            pod.uid.clone(),
            PodTokens {
                pod: pod.key.clone(),
                service_account: account(pod).to_owned(),
                volumes,
                failures: Backoff::new(PENDING_RETRY_INITIAL, RETRY_MAX),
            },
        );
    }

    /// Has every token of a pod present and good below.
    pub(super) async fn ensure(&self, shared: &Shared, pod: &PodNeed) -> Result<(), Missing> {
        self.hold(shared, pod, false);
        let now = self.clock.now();
        let missing: Vec<Volume> = match self.pods.lock().get(&pod.uid) {
            None => return Ok(()),
            Some(tokens) => tokens
                .volumes
                .iter()
                .filter(|volume| volume.written.as_ref().is_none_or(|written| written.schedule.expires <= now))
                .cloned()
                .collect(),
        };
        for volume in missing {
            self.begin_write(&pod.uid, &volume.secret);
            match token_writes::write(shared, &pod.key, &pod.uid, account(pod), &volume).await {
                Ok(written) => self.written(&pod.uid, &volume.secret, &written),
                Err(failure) => return Err(self.failed(shared, pod, &volume, failure)),
            }
        }
        Ok(())
    }

    fn failed(&self, shared: &Shared, pod: &PodNeed, volume: &Volume, failure: Failure) -> Missing {
        self.end_write(&pod.uid, &volume.secret, None);
        let name = volume.needs.first().map_or("", |need| need.volume.as_str());
        let (delay, quiet) = match self.pods.lock().get_mut(&pod.uid) {
            Some(tokens) => (tokens.failures.next_delay(), tokens.failures.failures() <= QUIET_FAILURES_MAX),
            None => (RETRY_MAX, true),
        };
        let missing = match failure {
            Failure::Final(why) => return wording::no_token(name, &why, Retry::Final),
            Failure::Issue(why) => wording::no_token(name, &why, Retry::Waits),
            Failure::Write(missing) => missing,
        };
        // Nothing tells a node that a ServiceAccount appeared, so the pod is looked at again after a while.
        let (again, key, end) = (shared.ready_again.clone(), pod.key.clone(), shared.end.clone());
        shared.tasks.spawn(async move {
            if end.run_until_cancelled(tokio::time::sleep(delay)).await.is_some() {
                let _ = again.send(key);
            }
        });
        Missing { quiet: quiet || missing.quiet, ..missing }
    }

    /// Notes what was written.
    fn written(&self, pod_uid: &str, secret: &Key, written: &Written) {
        if let Some(tokens) = self.pods.lock().get_mut(pod_uid) {
            tokens.failures.reset();
        }
        if !self.end_write(pod_uid, secret, Some(written.clone())) {
            // The pod was released while its token was on the way.
            self.delete(secret, written);
        }
    }

    /// Whether tokens of a pod are kept.
    pub(super) fn knows(&self, pod_uid: &str) -> bool {
        self.pods.lock().contains_key(pod_uid)
    }

    /// The pod is gone: its tokens go too.
    pub(super) fn release(&self, pod_uid: &str) {
        let Some(tokens) = self.pods.lock().remove(pod_uid) else { return };
        for volume in tokens.volumes {
            if let Some(written) = volume.written {
                self.delete(&volume.secret, &written);
            }
        }
    }

    /// Deletes the Secrets that were found at start and that no pod came to hold.
    pub(super) fn collect_leftovers(&self) {
        for (secret, found) in self.found.lock().drain() {
            // The version, too: a pod that comes to use it after all has it written anew.
            let exactly = Preconditions { uid: found.written.uid, resource_version: found.resource_version };
            self.enqueue(secret, exactly, Some(found.pod_uid));
        }
    }

    fn delete(&self, secret: &Key, written: &Written) {
        if let Some(uid) = &written.uid {
            let exactly = Preconditions { uid: Some(uid.clone()), resource_version: None };
            self.enqueue(secret.clone(), exactly, None);
        }
    }

    fn enqueue(&self, secret: Key, exactly: Preconditions, only_after: Option<String>) {
        let looks = Backoff::new(LEFTOVER_LOOK_INITIAL, LEFTOVER_LOOK_MAX);
        // A closed channel means that the process is shutting down; the next one finds the leftover.
        let _ = self.deletions.send(Deletion { secret, exactly, only_after, looks });
    }

    /// Refreshes and deletes until shutdown.
    pub(super) async fn run(&self, shared: &Arc<Shared>, shutdown: &CancellationToken) {
        let to_delete = self.to_delete.lock().take();
        let deletes = async {
            let Some(to_delete) = to_delete else { return };
            tokio_stream::wrappers::UnboundedReceiverStream::new(to_delete)
                .for_each_concurrent(DELETES_MAX, |deletion| self.delete_one(shared, deletion))
                .await;
        };
        let refreshes = async {
            let mut tick = tokio::time::interval(TICK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut in_charge = false;
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = self.doubted.notified() => {}
                }
                in_charge &= !self.unsure.load(Ordering::Acquire);
                in_charge = (shared.may_write)() && (in_charge || self.take_charge(shared).await);
                if in_charge {
                    self.resolve_doubts(shared).await;
                    self.refresh_due(shared).await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = async { tokio::join!(deletes, refreshes); } => {}
        }
    }

    /// Another replica may have written tokens while we stood by: who becomes the leader looks again before it refreshes,
    /// or it would ask for a new token for every pod at once.
    async fn take_charge(&self, shared: &Arc<Shared>) -> bool {
        let unsure = self.unsure.swap(false, Ordering::AcqRel);
        let fresh = !unsure && self.looked.lock().is_some_and(|at| at.elapsed() < FOUND_FRESH);
        if fresh {
            return true;
        }
        match leftovers::find(shared).await {
            Ok(()) => true,
            Err(error) => {
                self.unsure.fetch_or(unsure, Ordering::AcqRel);
                debug!(error = trouble::message(&error), "could not look for tokens in the lower cluster yet");
                false
            }
        }
    }

    async fn refresh_due(&self, shared: &Shared) {
        let now = self.clock.now();
        let due: Vec<(String, Key, String, Volume)> = {
            let pods = self.pods.lock();
            pods.iter()
                .flat_map(|(uid, tokens)| tokens.volumes.iter().map(move |volume| (uid, tokens, volume)))
                .filter(|(_, _, volume)| volume.written.as_ref().is_some_and(|written| written.schedule.refresh <= now))
                .map(|(uid, tokens, volume)| {
                    (uid.clone(), tokens.pod.clone(), tokens.service_account.clone(), volume.clone())
                })
                .collect()
        };
        futures::stream::iter(due)
            .for_each_concurrent(REFRESHES_MAX, |(uid, pod, service_account, volume)| async move {
                self.begin_write(&uid, &volume.secret);
                match token_writes::write(shared, &pod, &uid, &service_account, &volume).await {
                    Ok(written) => {
                        debug!(%pod, secret = %volume.secret, "token refreshed");
                        self.written(&uid, &volume.secret, &written);
                    }
                    Err(failure) => self.refresh_failed(shared, &uid, &pod, &volume, failure),
                }
            })
            .await;
    }

    fn refresh_failed(&self, shared: &Shared, uid: &str, pod: &Key, volume: &Volume, failure: Failure) {
        self.end_write(uid, &volume.secret, None);
        let now = self.clock.now();
        let name = volume.needs.first().map_or("", |need| need.volume.as_str());
        let (message, quiet) = match failure {
            Failure::Issue(why) | Failure::Final(why) => (wording::no_token(name, &why, Retry::Waits).message, false),
            Failure::Write(missing) => (missing.message, missing.quiet),
        };
        warn!(%pod, message, "could not refresh a token; it is tried again");
        let expired = volume.written.as_ref().is_none_or(|written| written.schedule.expires <= now);
        if expired && !quiet {
            let subject = events::PodRef { namespace: &pod.namespace, name: &pod.name, uid };
            shared.recorder.pod(subject, events::Severity::Warning, "FailedMount", message);
        }
        let mut pods = self.pods.lock();
        let volumes = pods.get_mut(uid).into_iter().flat_map(|tokens| tokens.volumes.iter_mut());
        for written in volumes.filter(|other| other.secret == volume.secret).filter_map(|other| other.written.as_mut())
        {
            written.schedule.refresh = now + REFRESH_RETRY;
        }
    }

    async fn delete_one(&self, shared: &Shared, deletion: Deletion) {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
        loop {
            if (shared.may_write)() {
                match token_writes::delete(shared, &deletion).await {
                    Ok(true) => return,
                    Ok(false) => {
                        let again = self.deletions.clone();
                        let mut deletion = deletion;
                        let pause = deletion.looks.next_delay();
                        shared.tasks.spawn(shared.end.clone().run_until_cancelled_owned(async move {
                            tokio::time::sleep(pause).await;
                            let _ = again.send(deletion);
                        }));
                        return;
                    }
                    Err(error) => {
                        debug!(secret = %deletion.secret, error = trouble::message(&error), "token not deleted yet");
                    }
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// The API server fills the field in; only pods from before that have it empty.
fn account(pod: &PodNeed) -> &str {
    if pod.service_account.is_empty() { "default" } else { &pod.service_account }
}
