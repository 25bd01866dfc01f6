//! One running cluster.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams};
use parking_lot::Mutex;

use super::access::{Clients, certificate_user, kubeconfig};
use super::builder::ClusterBuilder;
use super::certificates::{Authority, write_all, write_private};
use super::component::Component;
use super::control_plane::{self, AUDIT_POLICY, Layout};
use super::real_nodes::{Network, NodeWanted, RealNode};
use super::{AuditEntry, KwokNodes, RealNodes, audit, dns, kwok};
use crate::claim::PortClaim;
use crate::eventually::{Seen, eventually};
use crate::run::{self, Run};
use crate::tools::{Tool, Tools};

/// Ready takes 3 to 4 s on an idle machine with 2 cores; this is for a machine that builds meanwhile.
const READY_DEADLINE: Duration = Duration::from_mins(2);

/// What a component gets between SIGTERM and SIGKILL in an orderly stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A cluster of real Kubernetes processes. Dropping it ends them and removes its folder.
pub struct Cluster {
    pub(super) wanted: ClusterBuilder,
    layout: Layout,
    authority: Authority,
    ca_pem: String,
    server_url: String,
    admin_kubeconfig: PathBuf,
    clients: Clients,
    kubectl: PathBuf,
    pub(super) etcd: Component,
    pub(super) apiserver: Component,
    pub(super) controller_manager: Component,
    pub(super) scheduler: Component,
    pub(super) kwok: Component,
    pub(super) real_nodes: Mutex<Vec<RealNode>>,
    /// How many simulated nodes were ever made: numbers their addresses.
    kwok_nodes_made: AtomicUsize,
    _ports: [PortClaim; 3],
}

impl Cluster {
    /// Begins the description of a cluster; `name` shows in its folder, its contexts and its logs.
    pub fn builder(name: &str) -> ClusterBuilder {
        ClusterBuilder::new(name)
    }

    pub(crate) async fn start(wanted: ClusterBuilder) -> Result<Self> {
        let name = wanted.name.clone();
        let started = Instant::now();
        let cluster = Self::prepare(wanted).await.with_context(|| format!("preparing the cluster {name}"))?;
        let result = cluster.start_processes().await;
        if result.is_err() {
            Run::current()?.keep_logs();
        }
        // On an error the drop of `cluster` takes everything down again.
        result.with_context(|| format!("starting the cluster {name}"))?;
        tracing::info!(cluster = name, seconds = started.elapsed().as_secs_f64(), "cluster started");
        Ok(cluster)
    }

    /// Files, certificates and command lines; nothing runs yet.
    async fn prepare(wanted: ClusterBuilder) -> Result<Self> {
        let program = |tool| Tools::get(tool);
        let etcd = program(Tool::Etcd).await?;
        let apiserver = program(Tool::KubeApiserver).await?;
        let controller_manager = program(Tool::KubeControllerManager).await?;
        let scheduler = program(Tool::KubeScheduler).await?;
        let kubectl = program(Tool::Kubectl).await?;
        let kwok = program(Tool::Kwok).await?;

        let dir = Run::current()?.new_dir(&wanted.name)?;
        let ports = [PortClaim::new()?, PortClaim::new()?, PortClaim::new()?];
        let address = if wanted.on_bridge || wanted.real_nodes > 0 {
            RealNodes::available().map_err(|reason| anyhow!("real nodes cannot run here: {reason}"))?;
            IpAddr::V4(Network::shared()?.host_address())
        } else {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        };
        let layout = Layout {
            pki_dir: dir.join("pki"),
            dir: dir.clone(),
            address,
            apiserver_port: ports[0].port(),
            etcd_port: ports[1].port(),
            etcd_peer_port: ports[2].port(),
            advertise_address: advertise_address(address),
        };
        let authority = write_all(&layout, &wanted)?;
        let ca_pem = authority.pair().certificate_pem.clone();
        let server_url = layout.server_url();
        for (file, user, groups) in [
            ("admin", "kubernetes-admin", &["system:masters"][..]),
            ("controller-manager", "system:kube-controller-manager", &[]),
            ("scheduler", "system:kube-scheduler", &[]),
            // system:masters: simulated kubelets must not be throttled by the API server's fairness.
            ("kwok", "kwok-controller", &["system:masters"]),
        ] {
            let pair = authority.client(user, groups)?;
            let text = kubeconfig(&wanted.name, &server_url, &ca_pem, &certificate_user(&pair));
            write_private(&dir.join(format!("{file}.kubeconfig")), &text)?;
        }
        std::fs::write(dir.join("audit-policy.yaml"), AUDIT_POLICY)?;
        std::fs::write(dir.join("scheduler.yaml"), control_plane::scheduler_config(&layout, &wanted))?;

        let admin_kubeconfig = dir.join("admin.kubeconfig");
        let pod_cidr = wanted.pod_cidr.clone().unwrap_or_else(next_pod_cidr);
        Ok(Self {
            clients: Clients::new(&admin_kubeconfig).await?,
            etcd: Component::new("etcd", control_plane::etcd(&etcd, &layout), &dir),
            apiserver: Component::new("kube-apiserver", control_plane::apiserver(&apiserver, &layout, &wanted), &dir),
            controller_manager: Component::new(
                "kube-controller-manager",
                control_plane::controller_manager(&controller_manager, &layout, &wanted),
                &dir,
            ),
            scheduler: Component::new("kube-scheduler", control_plane::scheduler(&scheduler, &layout, &wanted), &dir),
            kwok: Component::new("kwok", kwok::command(&kwok, &dir, &dir.join("kwok.kubeconfig"), &pod_cidr)?, &dir),
            real_nodes: Mutex::default(),
            kwok_nodes_made: AtomicUsize::new(0),
            wanted,
            layout,
            authority,
            ca_pem,
            server_url,
            admin_kubeconfig,
            kubectl,
            _ports: ports,
        })
    }

    async fn start_processes(&self) -> Result<()> {
        self.etcd.start()?;
        self.apiserver.start()?;
        self.wait_ready().await?;
        if self.wanted.controller_manager {
            self.controller_manager.start()?;
        }
        if self.wanted.scheduler {
            self.scheduler.start()?;
        }
        if self.wanted.kwok {
            self.kwok.start()?;
        }
        if self.wanted.controller_manager {
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), "default");
            eventually("the default service account exists", READY_DEADLINE, || async {
                // Its end is final: no use in waiting on.
                if let Err(ended) = self.controller_manager.ensure_running() {
                    return Ok(Seen::Done(Err(ended)));
                }
                if accounts.get_opt("default").await?.is_some() {
                    return Ok(Seen::Done(Ok(())));
                }
                Ok(Seen::NotYet("no such account".to_owned()))
            })
            .await??;
        }
        for nodes in &self.wanted.kwok_nodes {
            self.add_kwok_nodes(nodes).await?;
        }
        self.start_real_nodes().await
    }

    async fn start_real_nodes(&self) -> Result<()> {
        let mut nodes = Vec::new();
        for number in 0..self.wanted.real_nodes {
            let node = RealNode::start(NodeWanted {
                name: format!("real-{number}"),
                cluster_dir: self.dir(),
                cluster: self.name(),
                pki_dir: &self.layout.pki_dir,
                authority: &self.authority,
                server_url: &self.server_url,
                ca_pem: &self.ca_pem,
                service_cidr: &self.wanted.service_cidr,
                dns: self.wanted.dns.then(|| dns::address(&self.wanted.service_cidr)).transpose()?,
                feature_gates: &self.wanted.feature_gates,
            })
            .await?;
            nodes.push(node);
        }
        // They become Ready side by side.
        for node in &nodes {
            node.wait_ready(&self.client()).await?;
        }
        *self.real_nodes.lock() = nodes;
        Ok(())
    }

    /// Waits until the API server answers /readyz, and fails early when it or etcd has ended.
    pub(super) async fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            self.etcd.ensure_running()?;
            self.apiserver.ensure_running()?;
            let answer = self.raw_get("/readyz").await;
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => bail!(
                    "the API server is not ready after {READY_DEADLINE:?}: {error:#}; its last output:\n{}",
                    self.apiserver.log_tail(20)
                ),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn raw_get(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new()).context("building a request")?;
        let answer = tokio::time::timeout(RAW_GET_TIMEOUT, self.client().request_text(request))
            .await
            .with_context(|| format!("GET {path}: no answer in {RAW_GET_TIMEOUT:?}"))?;
        answer.with_context(|| format!("GET {path}"))
    }

    /// The name given to [`Self::builder`].
    pub fn name(&self) -> &str {
        &self.wanted.name
    }

    /// A kubeconfig of a cluster administrator.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// A client of a cluster administrator, not throttled on either side. The same one for
    /// each call in one tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime, as kube's clients do.
    pub fn client(&self) -> Client {
        #[allow(clippy::expect_used)] // the same configuration made a client when the cluster was prepared
        self.clients.get().expect("a client inside a tokio runtime")
    }

    /// The API server's URL, such as `https://127.0.0.1:20443`.
    pub fn server_url(&self) -> &str {
        &self.server_url
    }

    /// The cluster's CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The cluster's folder: logs (`NAME.log`), kubeconfigs, certificates. Goes with the cluster.
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// The address that a virtual node on this machine should publish as its InternalIP, so that
    /// this cluster's API server reaches it. The API server takes a loopback address for logs and exec;
    /// only the path `nodes/NAME/proxy` refuses one.
    pub fn host_address(&self) -> IpAddr {
        self.layout.address
    }

    /// `kubectl` with this cluster's administrator, ready for arguments.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.admin_kubeconfig).env("KUBECACHEDIR", self.layout.dir.join("kubectl-cache"));
        command
    }

    /// The audited requests of users whose name begins with `user_prefix`.
    pub fn audit_log(&self, user_prefix: &str) -> Result<Vec<AuditEntry>> {
        audit::read(&self.layout.audit_log(), user_prefix)
    }

    /// The API server's `/metrics`, in the Prometheus text format.
    pub async fn metrics(&self) -> Result<String> {
        self.raw_get("/metrics").await
    }

    /// Creates simulated nodes and waits until pods can run there. KWOK must be on.
    pub async fn add_kwok_nodes(&self, nodes: &KwokNodes) -> Result<()> {
        anyhow::ensure!(
            self.wanted.kwok,
            "{}: KWOK does not run in this cluster; call .kwok(true) on its builder",
            self.wanted.name
        );
        let first = self.kwok_nodes_made.fetch_add(nodes.count, Ordering::Relaxed);
        kwok::add_nodes(&self.client(), nodes, first).await
    }

    /// Deletes the Node object of a simulated node. Its pods are left to the garbage collector.
    pub async fn delete_kwok_node(&self, name: &str) -> Result<()> {
        let api: Api<Node> = Api::all(self.client());
        api.delete(name, &DeleteParams::default()).await.with_context(|| format!("deleting the node {name}"))?;
        Ok(())
    }

    /// The names of the real nodes.
    pub fn real_node_names(&self) -> Vec<String> {
        self.real_nodes.lock().iter().map(|node| node.name.clone()).collect()
    }

    /// Makes an image (see [`super::ImageArchive`]) known to every real node of this cluster.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.real_nodes.lock().iter().try_for_each(|node| node.load_image(archive))
    }

    /// The running API server, for its CPU time and memory.
    pub fn apiserver_process(&self) -> Option<Arc<crate::process::Supervised>> {
        self.apiserver.process()
    }

    /// Ends everything in order and removes the cluster's folder.
    pub async fn stop(self) {
        let nodes = std::mem::take(&mut *self.real_nodes.lock());
        for node in &nodes {
            for component in node.components() {
                component.stop(STOP_GRACE).await;
            }
        }
        drop(nodes);
        for component in self.components() {
            component.stop(STOP_GRACE).await;
        }
        // The drop finds nothing running and removes the folder.
    }

    /// In the order in which they are best ended: clients before servers.
    fn components(&self) -> [&Component; 5] {
        [&self.kwok, &self.scheduler, &self.controller_manager, &self.apiserver, &self.etcd]
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name())
            .field("server_url", &self.server_url)
            .finish_non_exhaustive()
    }
}

/// `/metrics` of a busy API server takes a second; `/readyz` answers late when etcd is away.
const RAW_GET_TIMEOUT: Duration = Duration::from_secs(10);

impl Drop for Cluster {
    fn drop(&mut self) {
        self.real_nodes.lock().clear();
        // First a signal to all, so that they end side by side.
        for component in self.components() {
            component.term();
        }
        for component in self.components() {
            component.forget();
        }
        if let Err(error) = run::cleanup(&self.layout.dir) {
            eprintln!("tensile-e2e: {error:#}");
        }
    }
}

/// Endpoints may not be loopback addresses. On a cluster of simulated nodes nobody dials this one,
/// which is kept free for documentation (RFC 5737).
fn advertise_address(address: IpAddr) -> IpAddr {
    if address.is_loopback() { IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)) } else { address }
}

/// Each cluster of a process its own /16 of 100.64.0.0/10 (RFC 6598), so that two simulated pods
/// never share an address. Nothing is routed there.
fn next_pod_cidr() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    format!("100.{}.0.0/16", 64 + NEXT.fetch_add(1, Ordering::Relaxed) % 64)
}
