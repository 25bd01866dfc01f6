//! Renews the node's certificate in the background, as a kubelet does.
//!
//! The node itself asks (right `selfnodeclient`, which the cluster approves by itself where that is granted). Only
//! when its certificate has run out does the ServiceAccount ask, as at the first start.

use std::time::Duration;

use jiff::Timestamp;
use tensile_chassis::{kube_client::Access, retry::Backoff};
use tokio_util::sync::CancellationToken;

use super::{certificate::Credential, signing::Requester};

/// The part of a certificate's life after which it is renewed lies between these, by chance: the replicas do not ask
/// at the same time, and the first one's certificate serves all. The same bounds as client-go's certificate manager.
const RENEW_FRACTION: std::ops::Range<f64> = 0.7..0.9;

/// Longest time between two looks at the wall clock: a machine that slept or whose clock was set notices soon.
const LOOK: Duration = Duration::from_mins(1);

/// Waits after a renewal that failed: a denial is not undone in seconds.
const RETRY_INITIAL: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_mins(10);

/// The task that renews.
pub struct Renewal {
    requester: Requester,
    /// Acts as our ServiceAccount.
    account: kube::Client,
    /// Acts as the node.
    node: kube::Client,
    /// Through which all clients of the node go.
    access: Access,
    present: Credential,
}

impl Renewal {
    pub(super) fn new(
        requester: Requester,
        account: kube::Client,
        node: kube::Client,
        access: Access,
        first: Credential,
    ) -> Self {
        Self { requester, account, node, access, present: first }
    }

    /// Renews until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(Box::pin(self.renew_forever())).await;
    }

    async fn renew_forever(mut self) {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
        loop {
            let due = self.present.renew_at(rand::random_range(RENEW_FRACTION));
            tracing::info!(node = self.requester.node_name(), valid_until = %self.present.not_after, renewal = %due,
                "node certificate in use");
            sleep_until(due).await;
            while let Err(error) = self.renew().await {
                let pause = backoff.next_delay();
                tracing::error!(%error, valid_until = %self.present.not_after, ?pause, "cannot renew the node certificate");
                tokio::time::sleep(pause).await;
            }
            backoff.reset();
        }
    }

    async fn renew(&mut self) -> Result<(), super::IdentityError> {
        let next = self.requester.next(self.asker(), &self.present).await?;
        self.access
            .replace_certificate(next.certificate_pem(), next.key_pem())
            .map_err(super::IdentityError::Client)?;
        self.present = next;
        Ok(())
    }

    /// Who asks for the next certificate.
    fn asker(&self) -> &kube::Client {
        if self.present.valid(Timestamp::now()) { &self.node } else { &self.account }
    }
}

/// Sleeps until a time of the wall clock.
async fn sleep_until(due: Timestamp) {
    loop {
        let left = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}
