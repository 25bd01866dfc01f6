//! Whether the lower API server answers, judged with patience: one lost request is no outage.

use std::time::Duration;

use jiff::Timestamp;
use tensile_chassis::watch::WatchHealth;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::said;

/// Time between two probes, and how long one may take.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Failed probes in a row until the server counts as away: some 10 to 25 s, past a restart of one API server.
const FAILURES_MIN: u32 = 3;

/// Good probes in a row until a server that was away counts as back: it may crash again right after its start.
const SUCCESSES_MIN: u32 = 2;

/// A watch that finds the server away for this long outweighs a probe that finds it ready: what counts is whether we
/// hear of our pods.
const WATCH_PATIENCE: Duration = Duration::from_secs(30);

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Not judged yet: the process has just started.
    Unknown,
    /// It answers.
    Reachable,
    /// It does not.
    Unreachable {
        /// When the first probe of the row failed.
        since: Timestamp,
        /// What was seen first, for people.
        reason: String,
    },
}

/// Turns probes into verdicts. Pure: it is told the time.
#[derive(Debug)]
struct Judge {
    verdict: Reach,
    /// Good probes in a row.
    successes: u32,
    /// Bad probes in a row.
    failures: u32,
    /// The first of the bad ones.
    first_failure: Option<(Timestamp, String)>,
}

impl Judge {
    fn new() -> Self {
        Self { verdict: Reach::Unknown, successes: 0, failures: 0, first_failure: None }
    }

    /// Takes one probe's outcome in; the verdict when it changes.
    fn take(&mut self, probe: Result<(), String>, now: Timestamp) -> Option<Reach> {
        match probe {
            Ok(()) => {
                self.successes = self.successes.saturating_add(1);
                self.failures = 0;
                self.first_failure = None;
            }
            Err(reason) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                self.first_failure.get_or_insert((now, reason));
            }
        }
        let next = match (&self.verdict, &self.first_failure) {
            (Reach::Unknown, None) => Reach::Reachable,
            (Reach::Unreachable { .. }, None) if self.successes >= SUCCESSES_MIN => Reach::Reachable,
            (Reach::Unknown | Reach::Reachable, Some((since, reason))) if self.failures >= FAILURES_MIN => {
                Reach::Unreachable { since: *since, reason: reason.clone() }
            }
            _ => return None,
        };
        self.verdict = next.clone();
        Some(next)
    }
}

/// Probes the lower API server.
pub struct ReachProbe {
    client: kube::Client,
    watches: Vec<WatchHealth>,
    verdict: watch::Sender<Reach>,
}

impl ReachProbe {
    /// A probe through `client`, which should have no rate limit (a probe that queues behind a burst says nothing about
    /// the server): `LowerClients::streaming`. `watches` are those on the same server.
    pub fn new(client: kube::Client, watches: Vec<WatchHealth>) -> (Self, watch::Receiver<Reach>) {
        let (verdict, receiver) = watch::channel(Reach::Unknown);
        (Self { client, watches, verdict }, receiver)
    }

    /// Probes until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.probe_forever()).await;
    }

    async fn probe_forever(self) {
        let mut judge = Judge::new();
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome = match probe(&self.client).await {
                Ok(()) => self.watches_fare(),
                failed => failed,
            };
            if let Some(verdict) = judge.take(outcome, Timestamp::now()) {
                log(&verdict);
                self.verdict.send_replace(verdict);
            }
        }
    }

    fn watches_fare(&self) -> Result<(), String> {
        let away = |health: &WatchHealth| {
            let failing = health.failing()?;
            let lasts = Instant::now().saturating_duration_since(failing.since);
            let counts = failing.reason.may_be_away() && lasts > WATCH_PATIENCE;
            counts.then(|| format!("a watch has failed for {} s ({})", lasts.as_secs(), failing.reason))
        };
        self.watches.iter().find_map(away).map_or(Ok(()), Err)
    }
}

/// One look at `/readyz`, which fails when the server cannot reach its etcd.
async fn probe(client: &kube::Client) -> Result<(), String> {
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(|e| e.to_string())?;
    match tokio::time::timeout(PROBE_TIMEOUT, client.request_text(request)).await {
        Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
        Ok(Ok(_)) => Ok(()),
        // A server that refuses this path or this credential answers, and that is all we ask here.
        Ok(Err(kube::Error::Api(status))) if status.code < 500 => Ok(()),
        Ok(Err(kube::Error::Api(status))) => Err(format!("/readyz answers {}", status.code)),
        Ok(Err(error)) => Err(said(&error)),
    }
}

fn log(verdict: &Reach) {
    match verdict {
        Reach::Unreachable { since, reason } => tracing::warn!(%since, %reason, "the lower API server is unreachable"),
        Reach::Reachable => tracing::info!("the lower API server answers"),
        Reach::Unknown => {}
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH.checked_add(seconds.seconds()).unwrap_or_default()
    }

    fn bad(reason: &str) -> Result<(), String> {
        Err(reason.to_owned())
    }

    #[test]
    fn the_first_good_probe_is_believed() {
        assert_eq!(Judge::new().take(Ok(()), at(0)), Some(Reach::Reachable));
    }

    #[test]
    fn lost_probes_between_good_ones_are_no_outage() {
        let mut judge = Judge::new();
        judge.take(Ok(()), at(0));
        for second in 1..100 {
            let outcome = if second % 3 == 0 { Ok(()) } else { bad("lost") };
            assert_eq!(judge.take(outcome, at(second)), None);
        }
    }

    #[test]
    fn three_bad_probes_are_an_outage_since_the_first_of_them() {
        let mut judge = Judge::new();
        judge.take(Ok(()), at(0));
        assert_eq!(judge.take(bad("refused"), at(5)), None);
        assert_eq!(judge.take(bad("timeout"), at(10)), None);
        let verdict = Reach::Unreachable { since: at(5), reason: "refused".into() };
        assert_eq!(judge.take(bad("timeout"), at(15)), Some(verdict));
        assert_eq!(judge.take(bad("timeout"), at(20)), None, "said once");
    }

    #[test]
    fn a_server_that_comes_and_goes_is_not_back_yet() {
        let mut judge = Judge::new();
        for second in 0..3 {
            judge.take(bad("refused"), at(second));
        }
        assert_eq!(judge.take(Ok(()), at(3)), None);
        assert_eq!(judge.take(bad("refused"), at(4)), None);
        assert_eq!(judge.take(Ok(()), at(5)), None);
        assert_eq!(judge.take(Ok(()), at(6)), Some(Reach::Reachable));
    }
}
