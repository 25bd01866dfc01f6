//! The cgroup that holds all processes of one node, so that none can get away.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::network::record;

const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that a kubelet wants to find enabled on cgroup v2.
const CONTROLLERS_V2: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Makes the cgroup `/NAME` in every hierarchy, as a kubelet's `cgroupRoot`, records it in `dir`,
/// and gives the `cgroup.procs` file that daemons of the node join.
pub(super) fn make(name: &str, dir: &Path) -> Result<PathBuf> {
    record(dir, "cgroups", name)?;
    let root = Path::new(ROOT);
    let daemons = if root.join("cgroup.controllers").is_file() { make_v2(root, name)? } else { make_v1(root, name)? };
    fs::create_dir_all(&daemons).with_context(|| format!("making the cgroup {}", daemons.display()))?;
    Ok(daemons.join("cgroup.procs"))
}

/// cgroup v1: one hierarchy for each controller. The daemons join that of `pids`.
fn make_v1(root: &Path, name: &str) -> Result<PathBuf> {
    for hierarchy in fs::read_dir(root).context("reading /sys/fs/cgroup")?.flatten() {
        let parent = hierarchy.path();
        if !parent.join("cgroup.procs").is_file() {
            continue;
        }
        let cgroup = parent.join(name);
        fs::create_dir_all(&cgroup).with_context(|| format!("making the cgroup {}", cgroup.display()))?;
        // A new cpuset has no CPUs, and nothing can run in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(parent.join(file)) {
                fs::write(cgroup.join(file), value.trim()).with_context(|| format!("setting {file}"))?;
            }
        }
    }
    Ok(root.join("pids").join(name).join("daemons"))
}

/// cgroup v2: one hierarchy. Processes may live in leaves only, so the daemons get one of their own.
fn make_v2(root: &Path, name: &str) -> Result<PathBuf> {
    let cgroup = root.join(name);
    fs::create_dir_all(&cgroup).with_context(|| format!("making the cgroup {}", cgroup.display()))?;
    for controller in CONTROLLERS_V2 {
        for dir in [root, &cgroup] {
            // A kernel without this controller: the kubelet says so if it minds.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(cgroup.join("daemons"))
}
