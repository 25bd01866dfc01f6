//! Breaking a cluster on purpose, and mending it.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::real_nodes::RealNode;
use super::{Cluster, KWOK_ANNOTATION};
use crate::eventually::{Seen, eventually};

/// KWOK takes a second or two to take its nodes.
const KWOK_DEADLINE: Duration = Duration::from_mins(1);

impl Cluster {
    /// Ends a real node's kubelet with SIGKILL; its containers run on.
    pub fn stop_kubelet(&self, node: &str) -> Result<()> {
        self.with_real_node(node, |node| {
            node.kubelet.kill9();
            Ok(())
        })
    }

    /// Starts a real node's kubelet again.
    pub fn start_kubelet(&self, node: &str) -> Result<()> {
        self.with_real_node(node, |node| node.kubelet.start())
    }

    fn with_real_node(&self, name: &str, act: impl FnOnce(&RealNode) -> Result<()>) -> Result<()> {
        let nodes = self.real_nodes.lock();
        let node = nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("{} has no real node {name}", self.wanted.name))?;
        act(node)
    }

    /// Ends the API server with SIGKILL. etcd and its data stay.
    pub fn stop_apiserver(&self) {
        self.apiserver.kill9();
    }

    /// Starts the API server again, on the same port, and waits until it is ready.
    pub async fn start_apiserver(&self) -> Result<()> {
        self.apiserver.start()?;
        self.wait_ready().await
    }

    /// Stops the API server in its tracks (SIGSTOP): connections stay open, nothing is answered.
    pub fn pause_apiserver(&self) {
        self.apiserver.pause();
    }

    /// Ends [`Self::pause_apiserver`].
    pub fn resume_apiserver(&self) {
        self.apiserver.resume();
    }

    /// Ends etcd with SIGKILL; its data stays on disk. The API server runs on and fails.
    pub fn stop_etcd(&self) {
        self.etcd.kill9();
    }

    /// Starts etcd again and waits until the API server is ready.
    pub async fn start_etcd(&self) -> Result<()> {
        self.etcd.start()?;
        self.wait_ready().await
    }

    /// Ends the controllers.
    pub fn stop_controller_manager(&self) {
        self.controller_manager.kill9();
    }

    /// Starts the controllers again.
    pub fn start_controller_manager(&self) -> Result<()> {
        self.controller_manager.start()
    }

    /// Ends the scheduler.
    pub fn stop_scheduler(&self) {
        self.scheduler.kill9();
    }

    /// Starts the scheduler again.
    pub fn start_scheduler(&self) -> Result<()> {
        self.scheduler.start()
    }

    /// Lets one simulated node die: its heartbeats end, and its pods stand still, also those that are deleted. KWOK
    /// is started anew without it.
    pub async fn lose_kwok_node(&self, name: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client());
        let kept = json!({"metadata": {"annotations": {KWOK_ANNOTATION.0: null}}});
        self.stop_kwok();
        nodes
            .patch(name, &PatchParams::default(), &Patch::Merge(kept))
            .await
            .with_context(|| format!("taking the node {name} from KWOK"))?;
        self.start_kwok_at_once().await
    }

    /// Starts KWOK again, without the 40 s in which the leases of its former self run out, and waits until it keeps its
    /// nodes.
    pub(super) async fn start_kwok_at_once(&self) -> Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client(), "kube-node-lease");
        leases
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .context("deleting node leases")?;
        self.kwok.start()?;
        let nodes = Api::<Node>::all(self.client()).list_metadata(&ListParams::default()).await?;
        let kept = nodes.iter().filter(|node| node.annotations().contains_key(KWOK_ANNOTATION.0));
        let kept: Vec<String> = kept.map(ResourceExt::name_any).collect();
        eventually("KWOK keeps its nodes", KWOK_DEADLINE, || async {
            let there: Vec<String> =
                leases.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
            let missing: Vec<&String> = kept.iter().filter(|name| !there.contains(name)).collect();
            Ok(Seen::when(missing.is_empty(), missing))
        })
        .await?;
        self.touch_deleted_pods().await
    }

    /// KWOK overlooks what happens to a pod between its own start and the moment that it keeps the pod's node, and so a
    /// pod deleted then would stay for ever. Changed once more, it is looked at.
    async fn touch_deleted_pods(&self) -> Result<()> {
        let all: Api<Pod> = Api::all(self.client());
        let touch = Patch::Merge(json!({"metadata": {"annotations": {"tensile.test/touched": "true"}}}));
        for pod in all.list_metadata(&ListParams::default()).await?.items {
            if pod.metadata.deletion_timestamp.is_some() {
                let pods: Api<Pod> = Api::namespaced(self.client(), &pod.namespace().unwrap_or_default());
                // It may be gone by now.
                let _ = pods.patch(&pod.name_any(), &PatchParams::default(), &touch).await;
            }
        }
        Ok(())
    }

    /// Ends KWOK: all simulated nodes stop sending heartbeats, and their pods stand still.
    pub fn stop_kwok(&self) {
        self.kwok.kill9();
    }

    /// Starts KWOK again. It takes its nodes back once their leases have run out (40 s).
    pub fn start_kwok(&self) -> Result<()> {
        self.kwok.start()
    }
}
