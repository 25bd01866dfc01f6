//! Clusters that are kept running between test runs, for the inner loop.
//!
//! The program `clusters` starts them and writes down where they are; tests attach to them when `TENSILE_KEPT` is set,
//! and never by accident.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use kube::{Client, core::DynamicObject};
use serde::{Deserialize, Serialize};

use crate::{
    Cluster, Site,
    testbed::{Clients, apply_yaml},
};

/// Set, to anything, to run tests against kept clusters.
const ATTACH_VARIABLE: &str = "TENSILE_KEPT";

/// Whether tests shall attach to kept clusters.
pub fn wanted() -> bool {
    env::var_os(ATTACH_VARIABLE).is_some()
}

/// Where the kept clusters are: name and administrator's kubeconfig of each.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    clusters: Vec<(String, PathBuf)>,
}

impl Kept {
    /// Describes running clusters.
    pub fn of(clusters: &[&Cluster]) -> Self {
        let described =
            clusters.iter().map(|cluster| (cluster.name().to_owned(), cluster.admin_kubeconfig().to_owned()));
        Self { clusters: described.collect() }
    }

    /// Writes it down, until the guard is dropped.
    pub fn write(&self) -> Result<Written> {
        let path = path();
        let dir = path.parent().unwrap_or_else(|| Path::new("/"));
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        fs::write(&path, serde_json::to_vec(self)?).with_context(|| format!("writing {}", path.display()))?;
        Ok(Written(path))
    }

    /// Reads what the program `clusters` wrote down.
    pub fn read() -> Result<Self> {
        let path = path();
        let text = fs::read(&path).with_context(|| {
            format!("there are no kept clusters (no {}): run `make clusters` in another terminal", path.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// One of them.
    pub async fn cluster(&self, name: &str) -> Result<TestCluster> {
        let (_, kubeconfig) = self
            .clusters
            .iter()
            .find(|(known, _)| known == name)
            .with_context(|| format!("no cluster {name} among the kept ones: start `make clusters` anew"))?;
        let site = Site::open(name, kubeconfig).await?;
        Ok(TestCluster(Place::Kept { clients: Box::new(Clients::new(kubeconfig).await?), site: Box::new(site) }))
    }
}

/// The note where the clusters are; removed when dropped.
#[derive(Debug)]
pub struct Written(PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.0);
    }
}

fn path() -> PathBuf {
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state.or_else(home).unwrap_or_else(env::temp_dir).join("tensile/clusters.json")
}

/// A cluster that a test works on: one that it started, or one that is kept.
pub struct TestCluster(Place);

enum Place {
    /// Started by this process, and stopped with it.
    Own(Box<Cluster>),
    /// Kept by another process. One client for each tokio runtime, for each test has its own.
    Kept { clients: Box<Clients>, site: Box<Site> },
}

impl From<Cluster> for TestCluster {
    fn from(cluster: Cluster) -> Self {
        Self(Place::Own(Box::new(cluster)))
    }
}

impl TestCluster {
    /// Its name.
    pub fn name(&self) -> &str {
        match &self.0 {
            Place::Own(cluster) => cluster.name(),
            Place::Kept { site, .. } => site.name(),
        }
    }

    /// Acts as the administrator.
    ///
    /// # Panics
    /// Outside a tokio runtime, as kube's clients do.
    pub fn client(&self) -> Client {
        match &self.0 {
            Place::Own(cluster) => cluster.client(),
            #[allow(clippy::expect_used)] // the same configuration made a client when it was opened
            Place::Kept { clients, .. } => clients.get().expect("a client inside a tokio runtime"),
        }
    }

    /// Applies YAML as [`Cluster::apply_yaml`] does.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        apply_yaml(&self.client(), yaml).await
    }

    /// The cluster as a virtual-node joins it.
    pub fn site(&self) -> Site {
        match &self.0 {
            Place::Own(cluster) => Site::of(cluster),
            Place::Kept { site, .. } => Site::clone(site),
        }
    }
}
