//! A virtual-node that is killed again and again, and started again each time.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Secret},
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tempfile::TempDir;
use tensile_e2e::{Seen, VirtualNode, VirtualNodeBuilder, eventually};
use tensile_proto::vocabulary::label;

use crate::{
    space::Space,
    world::{SOON, World, world},
};

/// The binary with fault points.
pub const BINARY: &str = "virtual-node-with-faults";

/// What happens at a point.
pub const MOMENTS: [&str; 3] = ["kill-before", "kill-after", "lose-answer"];

/// One virtual-node under test.
pub struct Subject {
    pub world: &'static World,
    pub node: VirtualNode,
    faults: PathBuf,
    _dir: TempDir,
    namespaces: AtomicU32,
    /// How often it was killed, or will have been once all faults have happened.
    deaths: AtomicUsize,
    /// How often it was started again.
    revivals: AtomicUsize,
    /// A process that ends by itself, with an error, is started again too, as a Deployment would do.
    may_fail: bool,
}

impl Subject {
    /// One that is ready.
    pub async fn start(name: &str) -> Self {
        let world = world().await;
        let (builder, faults, dir) = builder(world, name);
        let node = builder.start().await.unwrap();
        Self {
            world,
            node,
            faults,
            _dir: dir,
            namespaces: AtomicU32::new(0),
            deaths: AtomicUsize::new(0),
            revivals: AtomicUsize::new(0),
            may_fail: false,
        }
    }

    /// One that has only just been started, with these faults to come.
    pub async fn begin(name: &str, faults: &[String]) -> Self {
        let world = world().await;
        let (builder, file, dir) = builder(world, name);
        fs::write(&file, faults.join("\n")).unwrap();
        let node = builder.start_without_waiting().await.unwrap();
        Self {
            world,
            node,
            faults: file,
            _dir: dir,
            namespaces: AtomicU32::new(0),
            deaths: AtomicUsize::new(kills(faults)),
            revivals: AtomicUsize::new(0),
            may_fail: true,
        }
    }

    /// A namespace that no other scene or run uses.
    pub async fn namespace(&self) -> Space {
        let number = self.namespaces.fetch_add(1, Ordering::Relaxed);
        let node = self.node.node_name();
        self.world.namespace(&format!("{node}-{number}"), node).await
    }

    /// Plays a scene in which these faults happen, and then looks at how things ended. Whenever the process dies of a
    /// fault it is started again.
    pub async fn live_through(
        &self,
        faults: &[String],
        scene: impl Future<Output = ()>,
        end: impl Future<Output = ()>,
    ) {
        println!("{}: {}", self.node.node_name(), faults.join(", "));
        self.deaths.fetch_add(kills(faults), Ordering::SeqCst);
        // Renamed into place: the process may be reading.
        let fresh = self.faults.with_extension("armed");
        fs::write(&fresh, faults.join("\n")).unwrap();
        fs::rename(fresh, &self.faults).unwrap();
        self.play(scene, end).await;
    }

    /// The same, with the faults that it was begun with.
    pub async fn play(&self, scene: impl Future<Output = ()>, end: impl Future<Output = ()>) {
        let play = async {
            scene.await;
            self.until_faults_happened().await;
            end.await;
        };
        tokio::select! {
            () = play => {}
            why = self.revive() => panic!("{}: {why}", self.node.node_name()),
        }
    }

    /// Kills the process, wherever it is.
    pub fn kill9(&self) {
        self.deaths.fetch_add(1, Ordering::SeqCst);
        self.node.kill9();
    }

    /// Waits until no fault is to come any more, and the process was started again after the last one.
    async fn until_faults_happened(&self) {
        eventually("all faults have happened", SOON, || async {
            let left = fs::read_to_string(&self.faults)?;
            // A fault is taken out of the file right before the process dies of it.
            let (revivals, deaths) = (self.revivals.load(Ordering::SeqCst), self.deaths.load(Ordering::SeqCst));
            let over = left.trim().is_empty() && revivals == deaths;
            Ok(Seen::when(over, format!("to come: {left:?}; started again {revivals} of {deaths} times")))
        })
        .await
        .unwrap();
    }

    /// Starts the process again each time it was killed; ends when it died of something else.
    async fn revive(&self) -> String {
        loop {
            let status = loop {
                if let Some(status) = self.node.exited() {
                    break status;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            };
            let failed = self.may_fail && status.code() == Some(1);
            if status.signal() != Some(9) && !failed {
                let logs = self.node.logs();
                let tail: Vec<&str> = logs.lines().rev().take(8).collect();
                return format!("the process ended with {status}; its last words, backwards:\n{}", tail.join("\n"));
            }
            self.deaths.fetch_add(usize::from(failed), Ordering::SeqCst);
            self.revived().await;
        }
    }

    /// All pods are deleted: nothing of this virtual node is left below, once the process was started one last time.
    ///
    /// (A running process keeps copies of ConfigMaps and Secrets for half a minute, for the next pod that needs them.)
    pub async fn leaves_nothing(&self) {
        self.kill9();
        self.revived().await;
        let ours = ListParams::default().labels(&format!("{}={}", label::VIRTUAL_NODE, self.node.node_name()));
        let client = || self.world.lower.client();
        eventually(&format!("nothing of {} is left below", self.node.node_name()), SOON, || async {
            let pods = Api::<Pod>::all(client()).list_metadata(&ours).await?.items;
            let maps = Api::<ConfigMap>::all(client()).list_metadata(&ours).await?.items;
            let secrets = Api::<Secret>::all(client()).list_metadata(&ours).await?.items;
            let metas = [
                pods.iter().map(place).collect(),
                maps.iter().map(place).collect(),
                secrets.iter().map(place).collect(),
            ];
            Ok(Seen::when(metas.iter().all(Vec::<String>::is_empty), metas))
        })
        .await
        .unwrap();
    }

    /// Frees the dead leader's lease and starts the process again.
    pub async fn revived(&self) {
        // It would run out by itself after 15 s. Nobody writes under it: the process is known to be dead.
        let leases: Api<Lease> = Api::namespaced(self.world.upper.client(), "tensile-system");
        let free = json!({"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}});
        let name = format!("virtual-node-{}", self.node.node_name());
        match leases.patch(&name, &PatchParams::default(), &Patch::Merge(free)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("the lease {name} cannot be freed: {error}"),
        }
        self.node.restart_without_waiting().unwrap();
        self.revivals.fetch_add(1, Ordering::SeqCst);
    }
}

fn place(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn builder(world: &World, name: &str) -> (VirtualNodeBuilder, PathBuf, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults");
    fs::write(&faults, "").unwrap();
    let builder = VirtualNode::builder(&world.upper, &world.lower)
        .name(name)
        .binary(BINARY)
        .env("TENSILE_FAULT_FILE", faults.as_os_str());
    (builder, faults, dir)
}

/// How many of these faults end a process.
fn kills(faults: &[String]) -> usize {
    faults.iter().filter(|fault| fault.starts_with("kill")).count()
}

/// Each fault alone: every moment at every point.
pub fn each(points: &[&str]) -> Vec<Vec<String>> {
    points.iter().flat_map(|point| MOMENTS.map(|moment| vec![format!("{moment} {point}")])).collect()
}
