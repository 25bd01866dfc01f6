//! One real node: its processes, started in its namespace and cgroup.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use serde_json::json;

use super::network::{Network, Slot};
use super::{cgroup, cni_dir, find_program, image, inotify, node_config, run};
use crate::eventually::{Seen, eventually};
use crate::testbed::access::{certificate_user, kubeconfig};
use crate::testbed::certificates::{Authority, write_private};
use crate::testbed::component::Component;
use crate::testbed::kwok::node_is_usable;
use crate::tools::{Tool, Tools};

/// containerd listens within a second, on a busy machine within some.
const CONTAINERD_DEADLINE: Duration = Duration::from_mins(1);

/// A kubelet is Ready 8 s after its start on an idle machine.
const READY_DEADLINE: Duration = Duration::from_mins(3);

/// The kernel's limit for a socket's path, less the suffix `.ttrpc` that containerd appends.
const SOCKET_PATH_MAX: usize = 107 - 6;

/// What a node needs to know of its cluster.
#[derive(Debug)]
pub(crate) struct NodeWanted<'a> {
    pub(crate) name: String,
    /// The folder in which the node's own is made.
    pub(crate) cluster_dir: &'a Path,
    pub(crate) cluster: &'a str,
    pub(crate) pki_dir: &'a Path,
    pub(crate) authority: &'a Authority,
    pub(crate) server_url: &'a str,
    pub(crate) ca_pem: &'a str,
    pub(crate) service_cidr: &'a str,
    /// The name server of its pods.
    pub(crate) dns: Option<Ipv4Addr>,
    pub(crate) feature_gates: &'a [String],
}

/// A running node. Its folder lies in the cluster's, whose clean-up removes everything.
#[derive(Debug)]
pub(crate) struct RealNode {
    pub(crate) name: String,
    dir: PathBuf,
    slot: Slot,
    pub(crate) containerd: Component,
    pub(crate) kubelet: Component,
    pub(crate) kube_proxy: Component,
}

impl RealNode {
    /// Makes the node and starts its programs. It is not Ready yet, see [`Self::wait_ready`].
    pub(crate) async fn start(wanted: NodeWanted<'_>) -> Result<Self> {
        let name = wanted.name.clone();
        let kubelet = Tools::get(Tool::Kubelet).await?;
        let kube_proxy = Tools::get(Tool::KubeProxy).await?;
        inotify::wait_for_room().await?;
        let node =
            Self::prepare(&wanted, &kubelet, &kube_proxy).with_context(|| format!("preparing the node {name}"))?;
        node.start_programs().await.with_context(|| format!("starting the node {name}"))?;
        Ok(node)
    }

    fn prepare(wanted: &NodeWanted<'_>, kubelet: &Path, kube_proxy: &Path) -> Result<Self> {
        let dir = wanted.cluster_dir.join(&wanted.name);
        for folder in ["", "cni", "cni-addresses", "log-pods", "volume-plugins", "images"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("making {}", dir.display()))?;
        }
        let socket = node_config::socket(&dir);
        ensure!(
            socket.len() <= SOCKET_PATH_MAX,
            "the socket path {socket} is longer than {SOCKET_PATH_MAX} bytes: set TMPDIR to a shorter folder"
        );
        let slot = Network::shared()?.add_node(&dir, wanted.service_cidr)?;
        let procs = cgroup::make(&slot.netns, &dir)?;
        write_files(wanted, &dir, &slot)?;
        let address = slot.address;

        let inside = |program: &Path| inside(program, &slot.netns, &procs);
        let mut containerd_command = inside(&find_program("containerd").context("no containerd")?);
        containerd_command.arg("--config").arg(dir.join("containerd.toml")).arg("--log-level=warn");
        let mut kubelet_command = inside(kubelet);
        kubelet_command
            .arg(format!("--config={}", dir.join("kubelet.json").display()))
            .arg(format!("--kubeconfig={}", dir.join("kubelet.kubeconfig").display()))
            .arg(format!("--root-dir={}", dir.join("kubelet").display()))
            .arg(format!("--cert-dir={}", dir.join("kubelet-pki").display()))
            .arg(format!("--hostname-override={}", wanted.name))
            .arg(format!("--node-ip={address}"))
            .arg("--node-labels=tensile.test/real=true");
        let mut proxy_command = inside(kube_proxy);
        proxy_command.arg(format!("--config={}", dir.join("kube-proxy.json").display()));
        Ok(Self {
            name: wanted.name.clone(),
            containerd: Component::new("containerd", containerd_command, &dir),
            kubelet: Component::new("kubelet", kubelet_command, &dir),
            kube_proxy: Component::new("kube-proxy", proxy_command, &dir),
            dir,
            slot,
        })
    }

    async fn start_programs(&self) -> Result<()> {
        self.containerd.start()?;
        let socket = node_config::socket(&self.dir);
        eventually("containerd listens", CONTAINERD_DEADLINE, || async {
            // Its end is final: no use in waiting on.
            if let Err(ended) = self.containerd.ensure_running() {
                return Ok(Seen::Done(Err(ended)));
            }
            if UnixStream::connect(&socket).is_ok() {
                return Ok(Seen::Done(Ok(())));
            }
            Ok(Seen::NotYet(self.containerd.log_tail(5)))
        })
        .await??;
        for archive in image::write_base_images(&self.dir.join("images"))? {
            self.load_image(&archive)?;
        }
        self.kubelet.start()?;
        self.kube_proxy.start()
    }

    /// Waits until pods can run here.
    pub(crate) async fn wait_ready(&self, client: &Client) -> Result<()> {
        let api: Api<Node> = Api::all(client.clone());
        let waited = eventually(&format!("the node {} is Ready", self.name), READY_DEADLINE, || async {
            if let Err(ended) = self.kubelet.ensure_running() {
                return Ok(Seen::Done(Err(ended)));
            }
            let Some(node) = api.get_opt(&self.name).await? else {
                return Ok(Seen::NotYet("no Node object".to_owned()));
            };
            if node_is_usable(&node) {
                return Ok(Seen::Done(Ok(())));
            }
            let conditions = node.status.and_then(|status| status.conditions);
            Ok(Seen::NotYet(format!("{conditions:?}")))
        })
        .await
        .flatten();
        waited.with_context(|| format!("the kubelet's last output:\n{}", self.kubelet.log_tail(20)))
    }

    /// Makes an image archive known to the node's containerd.
    pub(crate) fn load_image(&self, archive: &Path) -> Result<()> {
        run(Command::new("ctr")
            .args(["-a", &node_config::socket(&self.dir), "-n", "k8s.io", "images", "import"])
            .arg(archive))
    }

    /// Its programs, those first that should end first.
    pub(crate) fn components(&self) -> [&Component; 3] {
        [&self.kubelet, &self.kube_proxy, &self.containerd]
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        for component in self.components() {
            component.term();
        }
        for component in self.components() {
            component.forget();
        }
        if let Ok(network) = Network::shared() {
            network.remove_node(&self.slot);
        }
        // Containers, mounts and the namespace.
        if let Err(error) = crate::run::cleanup(&self.dir) {
            eprintln!("tensile-e2e: node {}: {error:#}", self.name);
        }
    }
}

/// A command that joins the node's cgroup, then its network namespace. Not `ip netns exec`: that mounts
/// a new /sys, without the cgroups.
fn inside(program: &Path, netns: &str, cgroup_procs: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $$ >\"$1\" && shift && exec nsenter \"$@\"", "sh"].map(OsStr::new))
        .arg(cgroup_procs)
        .arg(format!("--net=/run/netns/{netns}"))
        .arg(program);
    command
}

fn write_files(wanted: &NodeWanted<'_>, dir: &Path, slot: &Slot) -> Result<()> {
    let address = IpAddr::V4(slot.address);
    let authority = wanted.authority;
    authority.server(&format!("system:node:{}", wanted.name), &[&wanted.name], &[address])?.write(dir, "kubelet")?;
    for (file, user, groups) in [
        ("kubelet", format!("system:node:{}", wanted.name), &["system:nodes"][..]),
        ("kube-proxy", "system:kube-proxy".to_owned(), &[]),
    ] {
        let pair = authority.client(&user, groups)?;
        let text = kubeconfig(wanted.cluster, wanted.server_url, wanted.ca_pem, &certificate_user(&pair));
        write_private(&dir.join(format!("{file}.kubeconfig")), &text)?;
    }
    let mut kubelet = node_config::kubelet(dir, wanted.pki_dir, &slot.netns, wanted.feature_gates);
    if let Some(dns) = wanted.dns {
        kubelet["clusterDNS"] = json!([dns]);
    }
    let texts = [
        ("containerd.toml", node_config::containerd(dir, cni_dir()?, snapshotter(dir))),
        ("cni/10-tensile.conflist", node_config::cni(dir, &slot.pod_cidr).to_string()),
        ("kubelet.json", kubelet.to_string()),
        ("kube-proxy.json", node_config::kube_proxy(dir, &wanted.name).to_string()),
        // Pods must not inherit the machine's name servers: nothing may leave it.
        ("resolv.conf", String::new()),
    ];
    for (file, text) in texts {
        fs::write(dir.join(file), text).with_context(|| format!("writing {file}"))?;
    }
    Ok(())
}

/// overlayfs, except where the folder lies on an overlay itself (a CI container), which cannot be stacked.
fn snapshotter(dir: &Path) -> &'static str {
    let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir).output();
    match kind {
        Ok(output) if String::from_utf8_lossy(&output.stdout).trim() == "overlayfs" => "native",
        _ => "overlayfs",
    }
}
