//! Breaking a cluster on purpose, and mending it.

use anyhow::{Context, Result};

use super::Cluster;
use super::real_nodes::RealNode;

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

    /// Ends KWOK: all simulated nodes stop sending heartbeats, and their pods stand still.
    pub fn stop_kwok(&self) {
        self.kwok.kill9();
    }

    /// Starts KWOK again. It takes its nodes back once their leases have run out (40 s).
    pub fn start_kwok(&self) -> Result<()> {
        self.kwok.start()
    }
}
