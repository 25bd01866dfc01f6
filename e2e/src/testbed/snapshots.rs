//! A cluster's data put back to what it was some time ago, as an operator does from a backup.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Cluster;

/// What a cluster's etcd held at one moment.
#[derive(Debug)]
pub struct EtcdSnapshot {
    data: PathBuf,
}

impl Cluster {
    /// Takes a snapshot: a copy of etcd's data folder, made while etcd is stopped in its tracks. For one member that is
    /// what `etcdutl snapshot restore` makes of a snapshot: the same keys, and the same revision.
    pub fn snapshot_etcd(&self) -> Result<EtcdSnapshot> {
        let data = self.dir().join("etcd-snapshot");
        if data.exists() {
            fs::remove_dir_all(&data).context("removing the snapshot before")?;
        }
        self.etcd.pause();
        let copied = copy_folder(&self.etcd_data(), &data);
        self.etcd.resume();
        copied.map(|()| EtcdSnapshot { data })
    }

    /// Puts etcd's data back to the snapshot, with everything of the cluster ended before and started again after it, as
    /// <https://kubernetes.io/docs/tasks/administer-cluster/configure-upgrade-etcd/> asks for. Resource versions begin
    /// again where they were at the snapshot. Real nodes' kubelets run on.
    pub async fn restore_etcd(&self, snapshot: &EtcdSnapshot) -> Result<()> {
        for component in [&self.kwok, &self.scheduler, &self.controller_manager, &self.apiserver, &self.etcd] {
            component.kill9();
        }
        fs::remove_dir_all(self.etcd_data()).context("removing etcd's data")?;
        copy_folder(&snapshot.data, &self.etcd_data())?;
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
            self.start_kwok_at_once().await?;
        }
        Ok(())
    }

    fn etcd_data(&self) -> PathBuf {
        self.dir().join("etcd")
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("copying to {}", target.display()))?;
        }
    }
    Ok(())
}
