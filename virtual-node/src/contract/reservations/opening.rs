//! A new leader learns what earlier ones promised before it promises anything itself.

use std::{convert::Infallible, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use tensile_chassis::{lease::Leadership, retry::Backoff};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Opening, Reservations};

/// Lists the upper pods that are bound to the virtual node from the API server, past every cache.
pub type UpperPods = Box<dyn Fn() -> BoxFuture<'static, Result<Vec<Pod>, kube::Error>> + Send + Sync>;

/// The first term of a lease: nobody led before.
const FIRST_TERM: u64 = 1;

impl Reservations {
    /// Opens whenever this replica has come to lead and knows all that is promised, and closes when it leads no more.
    pub(in crate::contract) async fn open(
        &self,
        mut leadership: watch::Receiver<Leadership>,
        upper_pods: &UpperPods,
        stop: &CancellationToken,
    ) {
        let terms = async {
            while let Some((since, term)) = leads(&mut leadership).await {
                let over = |now: &Leadership| !matches!(now, Leadership::Leader { term: now, .. } if *now == term);
                tokio::select! {
                    lost = leadership.wait_for(over) => if lost.is_err() { return },
                    never = self.open_in_term(since, term, upper_pods) => match never {},
                }
                self.close();
            }
        };
        stop.run_until_cancelled(terms).await;
    }

    /// A reservation of an earlier leader is bound in the end, and so among the upper pods that are read last, or has run out.
    async fn open_in_term(&self, since: Instant, term: u64, upper_pods: &UpperPods) -> Infallible {
        if term > FIRST_TERM {
            let due = since + self.inner.ttl_max;
            self.inner.open.send_replace(Opening::Learning(Some(due)));
            tokio::time::sleep_until(due).await;
        }
        // Without the lower nodes and pods there is nothing to reserve. The ledger lives as long as we do.
        let mut listed = self.inner.ledger.published().revision;
        let _ = listed.wait_for(Option::is_some).await;
        for pod in list(upper_pods).await {
            self.expect(&pod);
        }
        tracing::info!(after = ?since.elapsed(), "reservations are made");
        self.inner.open.send_replace(Opening::Open);
        std::future::pending().await
    }

    /// What was promised for pods not bound yet is the next leader's to honour no more: it cannot know of it.
    fn close(&self) {
        self.inner.open.send_replace(Opening::Learning(None));
        let mut book = self.inner.book.lock();
        let promised = book.entries.iter().filter(|(_, entry)| entry.until.is_some());
        for uid in promised.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.end(&mut book, &uid, "leader_lost");
        }
    }
}

/// Waits until this replica leads. Answers since when, and its term.
async fn leads(leadership: &mut watch::Receiver<Leadership>) -> Option<(Instant, u64)> {
    match *leadership.wait_for(Leadership::is_leader).await.ok()? {
        Leadership::Leader { since, term, .. } => Some((since, term)),
        Leadership::Standby { .. } => None,
    }
}

async fn list(upper_pods: &UpperPods) -> Vec<Pod> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        match upper_pods().await {
            Ok(pods) => return pods,
            Err(error) => {
                tracing::warn!(%error, "the upper pods cannot be listed, so no reservations are made yet; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}
