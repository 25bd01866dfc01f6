//! Leader election on a Lease (coordination.k8s.io/v1), with a fence for writes.
//!
//! Our own and not `kube-lease-manager`: that one tells that leadership is lost after a renewal failed, and cannot tell
//! while its loop hangs. A [`Fence`] is a point in time and needs no loop: an old leader stops writing when the time it
//! was promised is over, whatever else happens.
//!
//! The rules are client-go's: a lease counts as expired when it was not *seen to change* for its duration, by the
//! observer's own monotonic clock, so clocks need not agree.

use std::{fmt, time::Duration};

use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};
use rand::Rng;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

mod fence;
mod record;

pub use fence::{Fence, NotLeader};
use record::{Observed, Step, next_step};

use crate::shutdown::Shutdown;

/// The share of the lease's duration that a write in flight may need to land: our validity ends so much earlier.
const MARGIN_SHARE: u32 = 10;
/// How many times a standby looks in one retry time. It cannot count from the last renewal, only from when it saw it;
/// looking often keeps a takeover under the lease's duration + 1 s.
const LOOKS_PER_RETRY: u32 = 4;

/// The lease flags of a service; flatten them into the service's own arguments. Defaults are client-go's.
#[derive(Args, Clone, Debug)]
pub struct LeaseArgs {
    /// How long a leader that is not heard of keeps the lease, in seconds
    #[arg(long = "lease-duration", default_value = "15", value_parser = seconds, value_name = "SECONDS")]
    pub duration: Duration,

    /// How long a leader tries to renew before it steps down, in seconds; under the duration
    #[arg(long = "lease-renew-deadline", default_value = "10", value_parser = seconds, value_name = "SECONDS")]
    pub renew: Duration,

    /// How long to wait between tries to get or renew the lease, in seconds
    #[arg(long = "lease-retry", default_value = "2", value_parser = seconds, value_name = "SECONDS")]
    pub retry: Duration,
}

impl Default for LeaseArgs {
    fn default() -> Self {
        Self { duration: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3_600.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give a number of seconds above 0 and up to 3600".to_owned()),
    }
}

/// Why the lease settings cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the lease times do not fit: need retry ({retry:?}) < renew deadline ({renew:?}) < duration ({duration:?}) less a tenth"
)]
pub struct LeaseArgsError {
    duration: Duration,
    renew: Duration,
    retry: Duration,
}

impl LeaseArgs {
    /// Refuses times with which a leader would lose the lease without cause, or keep it for too long.
    pub fn check(&self) -> Result<(), LeaseArgsError> {
        let &Self { duration, renew, retry } = self;
        if retry < renew && renew < validity(duration) {
            return Ok(());
        }
        Err(LeaseArgsError { duration, renew, retry })
    }
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// We do.
    Leader {
        /// When we became it.
        since: Instant,
        /// Until when we surely are, if nothing else happens; moves on with each renewal.
        valid_until: Instant,
        /// Counts the leaders of this lease: each new one has a higher number (the lease's `leaseTransitions`).
        term: u64,
    },
    /// Another does, or nobody does.
    Standby {
        /// The leader's identity, if one is known.
        leader: Option<String>,
    },
}

impl Leadership {
    /// Whether we lead.
    pub fn is_leader(&self) -> bool {
        matches!(self, Self::Leader { .. })
    }
}

/// One candidate for one lease.
pub struct LeaseElection {
    api: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    args: LeaseArgs,
    fence: Fence,
    leadership: watch::Sender<Leadership>,
}

impl LeaseElection {
    /// A candidate that does not run yet.
    ///
    /// `identity` must be unique to this *process*, not only to its pod's name: a restarted container that took itself
    /// for the leader it was would write beside nobody, but under the fence of its old self. Pod name and a random part do.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
        args: LeaseArgs,
    ) -> Result<Self, LeaseArgsError> {
        args.check()?;
        Ok(Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            args,
            fence: Fence::new(),
            leadership: watch::Sender::new(Leadership::Standby { leader: None }),
        })
    }

    /// The fence to check before every write that only the leader may make.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Takes part in the election until all work of the process has stopped, then gives the lease back, so that the
    /// next leader need not wait.
    ///
    /// The receiver is notified when leadership changes, not at each renewal. Needs `get`, `create` and `update` on
    /// leases.
    pub fn run(self, shutdown: &Shutdown) -> watch::Receiver<Leadership> {
        let receiver = self.leadership.subscribe();
        shutdown.spawn_last(format!("lease {}/{}", self.namespace, self.name), |stop| self.take_part(stop));
        receiver
    }

    async fn take_part(self, stop: CancellationToken) {
        let mut seen: Option<Observed> = None;
        // Of the last lease seen, so that terms go on rising when someone deletes it.
        let mut last_term = 0;
        let mut trouble = String::new();
        loop {
            let started = Instant::now();
            let tried = tokio::select! {
                tried = timeout(self.args.renew, self.try_once(&mut seen, &mut last_term)) => tried,
                () = stop.cancelled() => break,
            };
            match tried {
                Ok(Ok(())) => trouble.clear(),
                Ok(Err(error)) => self.report(&mut trouble, error.to_string()),
                Err(_) => self.report(&mut trouble, format!("no answer within {:?}", self.args.renew)),
            }
            self.step_down_if_overdue();
            let wait = self.wait(seen.as_ref(), started);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
        self.release(seen).await;
    }

    /// Looks at the lease if need be, and takes or renews it if that is ours to do.
    async fn try_once(&self, seen: &mut Option<Observed>, last_term: &mut u64) -> Result<(), kube::Error> {
        // A leader renews what it wrote last without reading it: a conflict would tell it that another wrote.
        if !self.leadership.borrow().is_leader() || seen.is_none() {
            let lease = self.api.get_opt(&self.name).await?;
            *seen = lease.map(|lease| Observed::look(lease, seen.take().as_ref(), Instant::now()));
        }
        let leads = self.leadership.borrow().is_leader();
        let now = Instant::now();
        *last_term = seen.as_ref().map_or(*last_term, |seen| seen.term().max(*last_term));
        let (lease, term) = match next_step(seen.as_ref(), *last_term, &self.identity, leads, now) {
            Step::Wait { leader } => {
                self.stand_by(leader.as_deref());
                return Ok(());
            }
            Step::Create { term } => {
                (record::created(&self.namespace, &self.name, &self.identity, self.args.duration, term), term)
            }
            Step::Take { term } => (record::taken(seen.as_ref(), &self.identity, self.args.duration, term), term),
            Step::Renew { term } => (record::renewed(seen.as_ref(), self.args.duration), term),
        };
        // Validity counts from before the request: a standby may see the renewal as soon as that.
        let started = Instant::now();
        let written = match seen {
            None => self.api.create(&PostParams::default(), &lease).await,
            Some(_) => self.api.replace(&self.name, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(lease) => {
                *seen = Some(Observed::look(lease, None, Instant::now()));
                self.lead(started, term);
                Ok(())
            }
            // Another was quicker, or the lease was deleted: look again before the next try.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                let lease = self.api.get_opt(&self.name).await?;
                *seen = lease.map(|lease| Observed::look(lease, seen.take().as_ref(), Instant::now()));
                if let Some(other) = seen.as_ref().and_then(|seen| seen.other_holder(&self.identity)) {
                    self.stand_by(Some(&other));
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn lead(&self, renewal_started: Instant, term: u64) {
        let valid_until = renewal_started + validity(self.args.duration);
        self.fence.extend(valid_until);
        self.leadership.send_if_modified(|leadership| {
            let (since, news) = match leadership {
                Leadership::Leader { since, .. } => (*since, false),
                Leadership::Standby { .. } => (Instant::now(), true),
            };
            *leadership = Leadership::Leader { since, valid_until, term };
            if news {
                tracing::info!(lease = self.name, identity = self.identity, term, "leading");
            }
            news
        });
    }

    fn stand_by(&self, leader: Option<&str>) {
        self.fence.revoke();
        self.leadership.send_if_modified(|leadership| {
            let now = Leadership::Standby { leader: leader.map(str::to_owned) };
            if *leadership == now {
                return false;
            }
            if leadership.is_leader() {
                tracing::warn!(lease = self.name, leader, "no longer leading");
            } else {
                tracing::info!(lease = self.name, leader, "standing by");
            }
            *leadership = now;
            true
        });
    }

    fn step_down_if_overdue(&self) {
        let Leadership::Leader { valid_until, .. } = *self.leadership.borrow() else { return };
        // `valid_until` lies `validity` after the last renewal began.
        let left = valid_until.saturating_duration_since(Instant::now());
        if left + self.args.renew <= validity(self.args.duration) {
            self.stand_by(None);
        }
    }

    fn wait(&self, seen: Option<&Observed>, started: Instant) -> Duration {
        let leads = self.leadership.borrow().is_leader();
        let step = if leads { self.args.retry } else { self.args.retry / LOOKS_PER_RETRY };
        // Up to a fifth more, so that candidates do not look in step.
        let step = step.mul_f64(rand::rng().random_range(1.0..1.2)).saturating_sub(started.elapsed());
        match seen.filter(|_| !leads) {
            Some(seen) => {
                step.min(seen.expires_at().saturating_duration_since(Instant::now()).max(Duration::from_millis(10)))
            }
            None => step,
        }
    }

    /// Once for each new kind of trouble: an API server that is away for an hour is one line.
    fn report(&self, before: &mut String, error: String) {
        if *before != error {
            let (namespace, lease) = (&self.namespace, &self.name);
            tracing::warn!(
                namespace,
                lease,
                error,
                "the lease cannot be read or written; trying again (needs get, create and update on leases.coordination.k8s.io)"
            );
            *before = error;
        }
    }

    async fn release(&self, seen: Option<Observed>) {
        let led = self.leadership.borrow().is_leader();
        self.stand_by(None);
        let Some(seen) = seen.filter(|_| led) else { return };
        let released = record::released(&seen);
        match timeout(self.args.retry, self.api.replace(&self.name, &PostParams::default(), &released)).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "the lease is given back"),
            Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "the lease is not given back; it will run out"),
            Err(_) => tracing::warn!(lease = self.name, "the lease is not given back in time; it will run out"),
        }
    }
}

impl fmt::Debug for LeaseElection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseElection")
            .field("name", &self.name)
            .field("identity", &self.identity)
            .field("leadership", &*self.leadership.borrow())
            .finish_non_exhaustive()
    }
}

/// How long one renewal is good for.
fn validity(duration: Duration) -> Duration {
    duration.saturating_sub(duration / MARGIN_SHARE)
}

#[cfg(test)]
mod tests;
