//! Real nodes: containerd, kubelet and kube-proxy in a network namespace, one for each node.
//!
//! ```text
//!   host   API servers, virtual nodes        198.18.N.1 on the run's bridge
//!            |
//!   bridge --+--------------+
//!            |              |
//!   netns   real-0         real-0 (another cluster)   198.18.N.10, .11, ...
//!            |              |
//!   pods    /24 each, routed between all nodes of the run and from the host
//! ```
//! All addresses lie in 198.18.0.0/15, which is set aside for tests (RFC 2544), and no node has a
//! default route, so nothing leaves the machine.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

mod cgroup;
mod image;
mod inotify;
mod network;
mod node;
mod node_config;

pub use crate::image::ImageArchive;
pub(crate) use network::Network;
pub(crate) use node::{NodeWanted, RealNode};

/// The image of simple test containers: busybox with a shell and all its applets.
pub const SHELL_IMAGE: &str = "tensile.test/shell:1";
pub(crate) const PAUSE_IMAGE: &str = "tensile.test/pause:1";

/// Where Debian's package and the upstream archive put the CNI plugins.
const CNI_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const CNI_PLUGINS: [&str; 4] = ["ptp", "host-local", "loopback", "portmap"];

/// What real nodes need of the machine.
#[derive(Debug)]
pub struct RealNodes;

impl RealNodes {
    /// Whether real nodes can run here; else a reason that says how to mend it. Looked up once.
    pub fn available() -> Result<(), String> {
        static AVAILABLE: OnceLock<Result<(), String>> = OnceLock::new();
        AVAILABLE.get_or_init(|| look().map_err(|error| format!("{error:#}"))).clone()
    }
}

fn look() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("real nodes need Linux");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("real nodes need root, for network namespaces and containers: run the tests with sudo");
    }
    for (program, package) in [
        ("containerd", "containerd"),
        ("ctr", "containerd"),
        ("runc", "runc"),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("iptables", "iptables"),
        ("conntrack", "conntrack"),
    ] {
        if find_program(program).is_none() {
            bail!("real nodes need the program {program}: install the package {package}");
        }
    }
    cni_dir()?;
    image::static_busybox()?;
    // Root may still lack the right, in a container for example.
    let probe = format!("tensile-probe-{}", std::process::id());
    run(Command::new("ip").args(["netns", "add", &probe])).context("real nodes need network namespaces")?;
    run(Command::new("ip").args(["netns", "del", &probe]))?;
    Ok(())
}

/// The folder with the CNI plugins that a node uses.
pub(crate) fn cni_dir() -> Result<&'static Path> {
    CNI_DIRS.iter().map(Path::new).find(|dir| CNI_PLUGINS.iter().all(|plugin| dir.join(plugin).is_file())).with_context(
        || format!("no folder of {CNI_DIRS:?} has {CNI_PLUGINS:?}: install the package containernetworking-plugins"),
    )
}

pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH often lacks the folders of root's programs.
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(std::path::PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// Runs a short command to its end; an error holds what it printed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}
