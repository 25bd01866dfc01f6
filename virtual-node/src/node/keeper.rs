//! Watches our Node and makes the changes that [`super::level`] plans.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use tensile_chassis::{
    readiness::Gate,
    retry::Backoff,
    watch::{Event, Watch, WatchOptions, watch as watch_objects},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Advertised, Facts, MayWrite, NodeNameTaken, NodeProfile, Reach, Shape, claim,
    lease::NodeLease,
    level::{Change, Plan, plan},
    said,
};
use crate::{
    context::{Settings, UpperClients},
    events::{Recorder, Severity},
};

/// Least time between two rounds of changes: bursts of capacity changes below become one status patch.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// Changes in one round; creation, metadata, taints and status are four.
const CHANGES_MAX: u32 = 8;

/// Waits after a change that failed.
const RETRY_INITIAL: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Longest sleep: the wall clock may be set while we sleep by the monotonic one.
const LOOK_MAX: Duration = Duration::from_mins(1);

/// What the keeper works with.
#[derive(Clone)]
pub struct NodeKeeperInputs {
    /// Names and UIDs.
    pub settings: Arc<Settings>,
    /// Labels, taints and policy.
    pub profile: NodeProfile,
    /// Clients to the upper cluster.
    pub upper: UpperClients,
    /// Size of the lower cluster; `None` until its nodes and pods have been listed.
    pub shape: watch::Receiver<Option<Arc<Shape>>>,
    /// Whether the lower API server answers.
    pub reach: watch::Receiver<Reach>,
    /// Version of the lower API server, as `v1.36.3`.
    pub lower_version: String,
    /// Where this replica is reached.
    pub advertised: Advertised,
    /// Who keeps the node, as `NAMESPACE/NAME` of the election lease: equal for the replicas of one installation, and
    /// different for any other.
    pub installation: String,
    /// Whether we lead still.
    pub may_write: MayWrite,
    /// Reports outages as events on the Node.
    pub recorder: Recorder,
    /// Closed while we lead and the Node is not registered or not level. A standby's is open: it has nothing to do, and
    /// a replica that is never ready would hold up every rollout.
    pub gate: Gate,
}

/// Keeps the Node.
pub struct NodeKeeper {
    inputs: NodeKeeperInputs,
    nodes: Api<Node>,
    nodes_by_account: Api<Node>,
    /// The Node as last seen or written; `None` when there is none.
    observed: Option<Node>,
    /// Whether the API server stores `status.declaredFeatures`.
    features_kept: bool,
    /// Whether the list of the watch under way has shown the Node.
    listed: bool,
    node_uid: watch::Sender<Option<String>>,
}

/// Why the name could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is somebody else's.
    #[error(transparent)]
    Taken(#[from] NodeNameTaken),
    /// The upper API server refused or did not answer.
    #[error(
        "cannot read Node `{node}` and its lease in the upper cluster: {said}. The node identity must be \
         system:node:{node} in group system:nodes, and the API server must run with --authorization-mode=Node,RBAC",
        said = said(source)
    )]
    Kube {
        /// Name of the Node.
        node: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Why a round of changes broke off.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Taken(#[from] NodeNameTaken),
    #[error("cannot {verb}: {}", said(source))]
    Kube {
        verb: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("we no longer lead")]
    NotLeader,
    #[error(
        "the Node differs from what was just written to it, {CHANGES_MAX} times in a row: another controller or an \
         admission webhook changes it back"
    )]
    Unsettled,
}

impl NodeKeeper {
    /// A keeper that has not started.
    pub fn new(inputs: NodeKeeperInputs) -> Self {
        inputs.gate.set_ready();
        Self {
            nodes: Api::all(inputs.upper.node.clone()),
            nodes_by_account: Api::all(inputs.upper.account.clone()),
            observed: None,
            features_kept: true,
            listed: false,
            node_uid: watch::Sender::new(None),
            inputs,
        }
    }

    /// Whether the Node's name is ours to use. To be asked before the election too: a replica that stands for another
    /// cluster must fail at its start, not when it comes to lead.
    pub async fn check_name(node: &kube::Client, settings: &Settings, installation: &str) -> Result<(), ClaimError> {
        let failed =
            |source: kube::Error| ClaimError::Kube { node: settings.node_name.clone(), source: Box::new(source) };
        let nodes: Api<Node> = Api::all(node.clone());
        if let Some(there) = nodes.get_opt(&settings.node_name).await.map_err(failed)? {
            claim::check_node(&there, &settings.lower_cluster_uid)?;
        }
        let (name, installation) = (settings.node_name.clone(), installation.to_owned());
        NodeLease::new(node.clone(), name, installation, Arc::new(|| false)).check().await.map_err(failed)??;
        Ok(())
    }

    /// Keeps Node and lease until `shutdown`; to be called while we lead. The Node is left in place at the end: it is
    /// its lease that lapses when nobody takes over.
    ///
    /// Ends early only when the name turns out to be somebody else's; the process must end then.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), NodeNameTaken> {
        let lease = NodeLease::new(
            self.inputs.upper.node.clone(),
            self.inputs.settings.node_name.clone(),
            self.inputs.installation.clone(),
            self.inputs.may_write.clone(),
        );
        let uid = self.node_uid.subscribe();
        self.inputs.gate.set_unready("the Node is not registered yet; it waits for the lower cluster's nodes and pods");
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            taken = self.keep() => Err(taken),
            taken = lease.renew_forever(uid) => Err(taken),
        }
    }

    async fn keep(mut self) -> NodeNameTaken {
        let mut own = self.watch_own_node();
        self.first_list(&mut own).await;
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
        loop {
            let pause = match self.round().await {
                Ok(next_look) => {
                    backoff.reset();
                    if self.observed.is_some() {
                        self.inputs.gate.set_ready();
                    }
                    next_look.map_or(LOOK_MAX, until).clamp(ROUND_INTERVAL, LOOK_MAX)
                }
                Err(RoundError::Taken(taken)) => return taken,
                Err(error) => {
                    let pause = backoff.next_delay();
                    // The first one may be a mere conflict with the node lifecycle controller.
                    if backoff.failures() == 2 {
                        tracing::warn!(%error, "the Node is not as it should be; trying again");
                    }
                    self.inputs.gate.set_unready(error.to_string());
                    pause
                }
            };
            self.wait(&mut own, pause).await;
        }
    }

    /// Waits for news, or for `pause`; at least [`ROUND_INTERVAL`], except when the Node was deleted.
    async fn wait(&mut self, own: &mut Watch<Node>, pause: Duration) {
        let start = Instant::now();
        let mut end = start + pause;
        let (mut shape_open, mut reach_open) = (true, true);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                Some(event) = own.next() => {
                    if self.take_in(event) {
                        return;
                    }
                }
                changed = self.inputs.shape.changed(), if shape_open => shape_open = changed.is_ok(),
                changed = self.inputs.reach.changed(), if reach_open => reach_open = changed.is_ok(),
            }
            // A Node that is not there yet is not waited for.
            let soonest = if self.observed.is_some() { start + ROUND_INTERVAL } else { start };
            end = end.min(soonest.max(Instant::now()));
        }
    }

    fn watch_own_node(&self) -> Watch<Node> {
        let options = WatchOptions {
            field_selector: Some(format!("metadata.name={}", self.inputs.settings.node_name)),
            ..WatchOptions::new("own-node")
        };
        // The watch's health shows through the rounds; its gate is one of nobody.
        watch_objects(self.nodes.clone(), options, tensile_chassis::readiness::Readiness::new().gate("own-node"))
    }

    async fn first_list(&mut self, own: &mut Watch<Node>) {
        while let Some(event) = own.next().await {
            let done = matches!(event, Event::ListDone);
            self.take_in(event);
            if done {
                return;
            }
        }
    }

    /// Notes what the watch tells of our Node; true when it is gone and must be registered again at once.
    fn take_in(&mut self, event: Event<Node>) -> bool {
        match event {
            Event::Restarted { .. } => {
                self.listed = false;
                false
            }
            Event::Applied(node) | Event::Listed(node) => {
                self.listed = true;
                self.note(node);
                false
            }
            Event::Deleted(node) => {
                // Our own write may be newer than the event.
                let gone = self.observed.as_ref().is_some_and(|o| o.metadata.uid == node.metadata.uid);
                gone && self.lost()
            }
            // Deleted while the watch had a gap.
            Event::ListDone => !self.listed && self.observed.is_some() && self.lost(),
            Event::Malformed { name, error, .. } => {
                tracing::warn!(node = %name, %error, "our Node cannot be decoded");
                self.listed = true;
                false
            }
        }
    }

    fn lost(&mut self) -> bool {
        tracing::warn!("the Node was deleted by somebody; registering it again, its pods' lower twins stay");
        self.observed = None;
        true
    }

    fn note(&mut self, node: Node) {
        let uid = node.metadata.uid.clone();
        self.node_uid.send_if_modified(|known| {
            let changed = *known != uid;
            known.clone_from(&uid);
            changed
        });
        self.observed = Some(node);
    }

    /// Plans once and makes the changes; when to look again.
    async fn round(&mut self) -> Result<Option<Timestamp>, RoundError> {
        // One change at a time, each planned on the Node as the one before left it: the patch of the taints carries a
        // resourceVersion.
        for _ in 0..CHANGES_MAX {
            if let Some(node) = &self.observed {
                claim::check_node(node, &self.inputs.settings.lower_cluster_uid)?;
            }
            let Plan { changes, next_look } = self.plan();
            let Some(change) = changes.into_iter().next() else { return Ok(next_look) };
            if !(self.inputs.may_write)() {
                return Err(RoundError::NotLeader);
            }
            self.make(change).await?;
        }
        Err(RoundError::Unsettled)
    }

    fn plan(&mut self) -> Plan {
        let shape = self.inputs.shape.borrow_and_update().clone();
        let reach = self.inputs.reach.borrow_and_update().clone();
        let facts = Facts {
            settings: &self.inputs.settings,
            profile: &self.inputs.profile,
            shape: shape.as_deref(),
            lower_version: &self.inputs.lower_version,
            advertised: &self.inputs.advertised,
            reach: &reach,
        };
        plan(&facts, self.observed.as_ref(), self.features_kept, Timestamp::now())
    }

    async fn make(&mut self, change: Change) -> Result<(), RoundError> {
        let name = self.inputs.settings.node_name.clone();
        let params = PatchParams::default();
        let (verb, result) = match change {
            Change::Create(node) => return self.register(*node).await,
            Change::Metadata(patch) => (
                "patch labels and annotations of the Node",
                self.nodes.patch(&name, &params, &Patch::Merge(patch)).await,
            ),
            Change::Taints(patch) => {
                // By the account: NodeRestriction lets no node change its taints.
                ("patch the Node's taints", self.nodes_by_account.patch(&name, &params, &Patch::Merge(patch)).await)
            }
            Change::Status(patch) => {
                let asked = patch["status"]["declaredFeatures"].as_array().is_some_and(|f| !f.is_empty());
                let result = self.nodes.patch_status(&name, &params, &Patch::Strategic(patch)).await;
                if let Ok(node) = &result {
                    self.status_written(node, asked);
                }
                ("patch the Node's status", result)
            }
        };
        match result {
            Ok(node) => {
                self.note(node);
                Ok(())
            }
            Err(source) => {
                if matches!(&source, kube::Error::Api(status) if status.is_not_found()) {
                    self.observed = None;
                }
                Err(RoundError::Kube { verb, source: Box::new(source) })
            }
        }
    }

    async fn register(&mut self, node: Node) -> Result<(), RoundError> {
        let name = self.inputs.settings.node_name.clone();
        let failed = |verb| move |source: kube::Error| RoundError::Kube { verb, source: Box::new(source) };
        let registered = match self.nodes.create(&PostParams::default(), &node).await {
            Ok(registered) => {
                tracing::info!(node = %name, "registered the Node");
                registered
            }
            // Made by somebody meanwhile: the next round finds out whether it is ours.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                self.nodes.get(&name).await.map_err(failed("get the Node"))?
            }
            Err(source) => return Err(failed("register the Node")(source)),
        };
        self.note(registered);
        Ok(())
    }

    /// Learns from what the API server stored, and reports outages.
    fn status_written(&mut self, after: &Node, asked_features: bool) {
        let stored = after.status.as_ref().and_then(|s| s.declared_features.as_ref()).is_some_and(|f| !f.is_empty());
        if asked_features && !stored {
            tracing::info!("the upper API server does not store declaredFeatures (feature gate NodeDeclaredFeatures)");
            self.features_kept = false;
        }
        let status_of = |node: Option<&Node>, kind: &str| {
            node.and_then(|n| super::conditions::find(n, kind)).map(|c| (c.status.clone(), c.message.clone()))
        };
        for kind in [tensile_proto::vocabulary::condition::LOWER_REACHABLE, "Ready"] {
            let (before, now) = (status_of(self.observed.as_ref(), kind), status_of(Some(after), kind));
            let (Some(before), Some((status, message))) = (before, now) else { continue };
            if before.0 != status {
                self.report(kind, &status, message.unwrap_or_default());
            }
        }
    }

    fn report(&self, condition: &str, status: &str, message: String) {
        let name = self.inputs.settings.node_name.clone();
        // As a kubelet does, the Node's name stands for its UID: `kubectl describe node` looks for that.
        let node = ObjectReference {
            kind: Some("Node".to_owned()),
            api_version: Some("v1".to_owned()),
            uid: Some(name.clone()),
            name: Some(name),
            ..ObjectReference::default()
        };
        let (severity, reason) = match (condition, status) {
            ("Ready", "True") => (Severity::Normal, "NodeReady"),
            ("Ready", _) => (Severity::Warning, "NodeNotReady"),
            (_, "True") => (Severity::Normal, "LowerReachable"),
            _ => (Severity::Warning, "LowerUnreachable"),
        };
        self.inputs.recorder.event(node, severity, reason, message);
    }
}

fn until(due: Timestamp) -> Duration {
    Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default()
}
