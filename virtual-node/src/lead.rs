//! What only the leader does, for as long as this replica leads; and again when it comes to lead once more.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tensile_chassis::lease::Leadership;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    mirror::ServiceMirror,
    needs::NeedsKeeper,
    node::{NodeKeeper, NodeKeeperInputs, NodeNameTaken},
    pods::Pods,
};

/// The parts that work while this replica leads.
pub struct Leader {
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Whether the lower cluster has said that it is the one we take it for.
    pub workable: watch::Receiver<bool>,
    /// Keeps the Node.
    pub keeper: NodeKeeperInputs,
    /// Works on pods.
    pub pods: Arc<Pods>,
    /// Keeps what pods need.
    pub needs: NeedsKeeper,
    /// Keeps Services below.
    pub mirror: ServiceMirror,
    /// Pods worked on at once.
    pub workers: usize,
}

impl Leader {
    /// Works in each term of this replica, until `stop`.
    ///
    /// A leader that cannot renew its lease (the upper API server is away, the machine was suspended) is a standby again:
    /// it goes on to follow both clusters, so it is as good a next leader as any. What it was in the middle of ends
    /// first; from the moment that the lease ran out none of its writes is sent.
    ///
    /// # Errors
    /// When the Node's name turns out to be somebody else's; the process must end then.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        loop {
            // Made before its term: a standby's gate is open.
            let keeper = NodeKeeper::new(self.keeper.clone());
            let leads = self.leadership.wait_for(Leadership::is_leader);
            match stop.run_until_cancelled(leads).await {
                Some(leads) => drop(leads.context("the election ended")?),
                None => return Ok(()),
            }
            info!("this replica leads");
            Box::pin(self.term(keeper, &stop)).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
            warn!(
                "this replica leads no more: another has taken the lease, or it could not be renewed in time; standing by"
            );
        }
    }

    /// One term: ends when what was begun in it has ended.
    async fn term(&mut self, keeper: NodeKeeper, stop: &CancellationToken) -> Result<(), NodeNameTaken> {
        let Self { leadership, workable, pods, needs, mirror, workers, .. } = self;
        let over = stop.child_token();
        let watch_term = async {
            tokio::select! {
                // An election that ended leads no more, either.
                _ = leadership.wait_for(|leadership| !leadership.is_leader()) => over.cancel(),
                () = over.cancelled() => {}
            }
            Ok(())
        };
        let work = async {
            // Nobody drops the sender before the work ends.
            if over.run_until_cancelled(workable.wait_for(|workable| *workable)).await.is_none() {
                return Ok(());
            }
            let collect = async {
                if over.run_until_cancelled(pods.synced()).await.is_some() {
                    needs.collect_leftovers();
                    // Before that it is not known which namespaces have pods.
                    mirror.work(over.clone()).await;
                }
            };
            tokio::join!(collect, pods.work(*workers, over.clone()));
            Ok(())
        };
        tokio::try_join!(keeper.run(over.clone()), work, watch_term).map(|_| ())
    }
}
