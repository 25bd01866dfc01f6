//! The node lease: as long as it is renewed, the node lifecycle controller takes the node for alive.
//!
//! Durations, owner reference and retries are a kubelet's (component-helpers `apimachinery/lease/controller.go`). The
//! holder is not the node's name as there, but the installation that keeps the node: so that a second one of the same
//! name is noticed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
};
use kube::{Api, api::PostParams};
use tensile_chassis::retry::Backoff;
use tokio::sync::watch;

use super::{MayWrite, NodeNameTaken, claim, said};

/// Where node leases live.
const NAMESPACE: &str = "kube-node-lease";

/// A node whose lease is this old is NotReady, give or take the controller's grace period.
pub(super) const LEASE_DURATION_SECONDS: i32 = 40;

/// A quarter of the duration, as a kubelet.
const RENEW_INTERVAL: Duration = Duration::from_secs(10);

/// Waits after a failed renewal: a kubelet's own 100 ms to 7 s.
const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// How long one request may take before it is given up and tried anew: well under the lease's duration.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Renews one node's lease.
pub(super) struct NodeLease {
    leases: Api<Lease>,
    node_name: String,
    installation: String,
    may_write: MayWrite,
    /// As the API server last showed it: renewals need no read before.
    latest: Option<Lease>,
}

/// Why a renewal did not come about.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Taken(#[from] NodeNameTaken),
    #[error("{}", said(.0))]
    Kube(#[from] kube::Error),
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
}

impl NodeLease {
    /// The lease of `node_name`, held by `installation`, written as the node.
    pub(super) fn new(node: kube::Client, node_name: String, installation: String, may_write: MayWrite) -> Self {
        Self { leases: Api::namespaced(node, NAMESPACE), node_name, installation, may_write, latest: None }
    }

    /// Whether the name is free, as far as the lease shows.
    pub(super) async fn check(&self) -> Result<Result<(), NodeNameTaken>, kube::Error> {
        let lease = self.leases.get_opt(&self.node_name).await?;
        Ok(lease.map_or(Ok(()), |l| claim::check_lease(&l, &self.installation, Timestamp::now())))
    }

    /// Renews from the moment the Node's UID is known. Ends only when somebody else keeps this node.
    pub(super) async fn renew_forever(mut self, mut node_uid: watch::Receiver<Option<String>>) -> NodeNameTaken {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
        loop {
            let Some(uid) = node_uid.borrow_and_update().clone() else {
                if node_uid.changed().await.is_err() {
                    // The keeper is gone, and with it whoever awaits us.
                    std::future::pending::<()>().await;
                }
                continue;
            };
            let pause = match self.renew_in_time(&uid).await {
                Ok(()) => {
                    backoff.reset();
                    RENEW_INTERVAL
                }
                Err(RenewError::Taken(taken)) => return taken,
                Err(error) => {
                    self.latest = None;
                    if backoff.failures() == 0 {
                        tracing::warn!(%error, "cannot renew the node lease; trying again");
                    }
                    backoff.next_delay()
                }
            };
            // A Node registered anew has a new UID, which the lease's owner reference must follow.
            let _ = tokio::time::timeout(pause, node_uid.changed()).await;
        }
    }

    async fn renew_in_time(&mut self, uid: &str) -> Result<(), RenewError> {
        if !(self.may_write)() {
            return Ok(());
        }
        tokio::time::timeout(REQUEST_TIMEOUT, self.renew(uid)).await.unwrap_or(Err(RenewError::Timeout))
    }

    async fn renew(&mut self, uid: &str) -> Result<(), RenewError> {
        match self.renew_once(uid).await {
            // Somebody changed it, or it went with a Node that was deleted by hand: read it anew.
            Err(RenewError::Kube(kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => {
                self.latest = None;
                self.renew_once(uid).await
            }
            other => other,
        }
    }

    async fn renew_once(&mut self, uid: &str) -> Result<(), RenewError> {
        if self.latest.is_none() {
            self.latest = self.leases.get_opt(&self.node_name).await?;
            if let Some(lease) = &self.latest {
                claim::check_lease(lease, &self.installation, Timestamp::now())?;
            }
        }
        let params = PostParams::default();
        let there = self.latest.take();
        let is_new = there.is_none();
        let mut lease = there.unwrap_or_default();
        self.fill(&mut lease, uid);
        let written = if is_new {
            self.leases.create(&params, &lease).await?
        } else {
            self.leases.replace(&self.node_name, &params, &lease).await?
        };
        self.latest = Some(written);
        Ok(())
    }

    fn fill(&self, lease: &mut Lease, uid: &str) {
        lease.metadata.name = Some(self.node_name.clone());
        lease.metadata.managed_fields = None;
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node_name.clone(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]);
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.installation.clone());
        spec.lease_duration_seconds = Some(LEASE_DURATION_SECONDS);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
    }
}
