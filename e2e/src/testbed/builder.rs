//! What a cluster shall be like.

use std::time::Duration;

use anyhow::Result;

use super::control_plane::ClientRate;
use super::{Cluster, KwokNodes};

/// Collects a cluster's settings; [`Self::start`] starts it. Made by [`Cluster::builder`].
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // independent switches, each named by its setter
pub struct ClusterBuilder {
    pub(crate) name: String,
    pub(crate) kwok_nodes: Vec<KwokNodes>,
    pub(crate) kwok: bool,
    pub(crate) real_nodes: usize,
    pub(crate) on_bridge: bool,
    pub(crate) dns: bool,
    pub(crate) service_cidr: String,
    pub(crate) pod_cidr: Option<String>,
    pub(crate) controller_manager: bool,
    pub(crate) scheduler: bool,
    pub(crate) audit: bool,
    pub(crate) verify_kubelets: bool,
    pub(crate) feature_gates: Vec<String>,
    pub(crate) node_monitor_grace: Option<Duration>,
    pub(crate) default_toleration_seconds: Option<u32>,
    pub(crate) client_rate: Option<ClientRate>,
    pub(crate) apiserver_args: Vec<String>,
    pub(crate) controller_manager_args: Vec<String>,
    pub(crate) scheduler_args: Vec<String>,
}

impl ClusterBuilder {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kwok_nodes: Vec::new(),
            kwok: false,
            real_nodes: 0,
            on_bridge: false,
            dns: false,
            service_cidr: "10.96.0.0/16".to_owned(),
            pod_cidr: None,
            controller_manager: true,
            scheduler: true,
            audit: true,
            verify_kubelets: false,
            feature_gates: Vec::new(),
            node_monitor_grace: None,
            default_toleration_seconds: None,
            client_rate: None,
            apiserver_args: Vec::new(),
            controller_manager_args: Vec::new(),
            scheduler_args: Vec::new(),
        }
    }

    /// Adds simulated nodes, present and Ready when [`Self::start`] returns. May be called again
    /// for nodes of another size. Implies [`Self::kwok`].
    #[must_use]
    pub fn nodes(mut self, nodes: KwokNodes) -> Self {
        self.kwok = true;
        self.kwok_nodes.push(nodes);
        self
    }

    /// Whether KWOK runs, so that nodes can be added later (off by default).
    #[must_use]
    pub fn kwok(mut self, on: bool) -> Self {
        self.kwok = on;
        self
    }

    /// How many real nodes, with a kubelet and containers (0 by default). Needs what
    /// [`crate::RealNodes::available`] looks for.
    #[must_use]
    pub fn real_nodes(mut self, count: usize) -> Self {
        self.real_nodes = count;
        self
    }

    /// Lets the API server listen on the run's bridge, so that pods on real nodes (of any cluster in
    /// this run) reach it. Given with real nodes; needs root.
    #[must_use]
    pub fn on_bridge(mut self, on: bool) -> Self {
        self.on_bridge = on;
        self
    }

    /// Whether pods on real nodes ask the cluster's name server, which [`crate::ClusterDns`] starts; off by default.
    #[must_use]
    pub fn dns(mut self, on: bool) -> Self {
        self.dns = on;
        self
    }

    /// The range of ClusterIPs; `10.96.0.0/16` by default.
    #[must_use]
    pub fn service_cidr(mut self, cidr: &str) -> Self {
        cidr.clone_into(&mut self.service_cidr);
        self
    }

    /// The range of simulated pods' addresses. By default each cluster of a run has its own /16.
    #[must_use]
    pub fn pod_cidr(mut self, cidr: &str) -> Self {
        self.pod_cidr = Some(cidr.to_owned());
        self
    }

    /// Whether kube-controller-manager runs (on by default). Without it there are no
    /// ReplicaSets, no endpoints, no default service accounts, no garbage collection.
    #[must_use]
    pub fn controller_manager(mut self, on: bool) -> Self {
        self.controller_manager = on;
        self
    }

    /// Whether kube-scheduler runs (on by default).
    #[must_use]
    pub fn scheduler(mut self, on: bool) -> Self {
        self.scheduler = on;
        self
    }

    /// Whether an audit log is kept (on by default); a bench may want it off.
    #[must_use]
    pub fn audit(mut self, on: bool) -> Self {
        self.audit = on;
        self
    }

    /// Whether the API server verifies the serving certificates of nodes against the cluster's
    /// CA (`--kubelet-certificate-authority`); off by default, as kubeadm has it.
    #[must_use]
    pub fn verify_kubelets(mut self, on: bool) -> Self {
        self.verify_kubelets = on;
        self
    }

    /// Switches an alpha feature on, in the API server and the kubelets of real nodes.
    #[must_use]
    pub fn feature_gate(mut self, name: &str) -> Self {
        self.feature_gates.push(name.to_owned());
        self
    }

    /// After how long without a lease a node counts as lost (40 s by default).
    #[must_use]
    pub fn node_monitor_grace(mut self, grace: Duration) -> Self {
        self.node_monitor_grace = Some(grace);
        self
    }

    /// How long pods stay on a lost node unless they say so themselves (300 s by default).
    #[must_use]
    pub fn default_toleration_seconds(mut self, seconds: u32) -> Self {
        self.default_toleration_seconds = Some(seconds);
        self
    }

    /// The request rate of each controller and of the scheduler. By default 100 per second for the
    /// controllers (Kubernetes's own default is 20) and the stock 50 for the scheduler, which are
    /// what a bench would measure otherwise.
    #[must_use]
    pub fn client_rate(mut self, qps: u32, burst: u32) -> Self {
        self.client_rate = Some(ClientRate { qps, burst });
        self
    }

    /// Another flag for kube-apiserver, with its dashes.
    #[must_use]
    pub fn apiserver_arg(mut self, argument: &str) -> Self {
        self.apiserver_args.push(argument.to_owned());
        self
    }

    /// Another flag for kube-controller-manager, such as `--concurrent-deployment-syncs=20`.
    #[must_use]
    pub fn controller_manager_arg(mut self, argument: &str) -> Self {
        self.controller_manager_args.push(argument.to_owned());
        self
    }

    /// Another flag for kube-scheduler.
    #[must_use]
    pub fn scheduler_arg(mut self, argument: &str) -> Self {
        self.scheduler_args.push(argument.to_owned());
        self
    }

    /// Starts everything and waits until it works: the API server is ready, the default
    /// service account exists, nodes are Ready.
    pub async fn start(self) -> Result<Cluster> {
        Cluster::start(self).await
    }
}
