//! Two replicas of one virtual-node: one leads, and the other takes over when that one is stopped, or dies, in the middle
//! of its work.
//!
//! The tests share their clusters (also with those of wrong clocks); each has a virtual node and a namespace of its own there.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::Instant,
};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tensile_e2e::{AuditEntry, Cluster, KwokNodes, Seen, VirtualNode, eventually};
use tensile_proto::vocabulary::label;
use tokio::sync::OnceCell;

use crate::support::{SOON, is_ready, node};

/// Short, for a takeover waits for a lease to run out.
const LEASE: [&str; 3] = ["--lease-duration=5", "--lease-renew-deadline=3", "--lease-retry=1"];

/// Pods of the burst in which the leader is lost.
const BURST: usize = 200;

pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
}

pub async fn world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    let start = async {
        let (upper, lower) = tokio::try_join!(
            Cluster::builder("upper").start(),
            Cluster::builder("lower").nodes(KwokNodes::count(6)).start()
        )
        .unwrap();
        World { upper, lower }
    };
    WORLD.get_or_init(|| Box::pin(start)).await
}

/// A virtual node with two replicas.
struct Pair {
    world: &'static World,
    name: &'static str,
    leader: VirtualNode,
    standby: VirtualNode,
    /// The leader's identity.
    old: String,
}

impl Pair {
    async fn start(name: &'static str) -> Self {
        let world = world().await;
        let replica = || VirtualNode::builder(&world.upper, &world.lower).name(name).args(LEASE).start();
        let leader = replica().await.unwrap();
        let old = holder(&world.upper, name).await;
        let standby = replica().await.unwrap();
        eventually("the second replica stands by", SOON, || async {
            let logs = standby.logs();
            Ok(Seen::when(logs.contains("standing by"), logs.lines().last().map(str::to_owned)))
        })
        .await
        .unwrap();
        let namespaces: Api<Namespace> = Api::all(world.upper.client());
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        Self { world, name, leader, standby, old }
    }

    /// Has so many pods on this virtual node.
    async fn scale(&self, replicas: usize) {
        let name = self.name;
        self.world
            .upper
            .apply_yaml(&format!(
                "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      nodeSelector: {{kubernetes.io/hostname: {name}}}
      tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
      containers: [{{name: web, image: example.test/web:1}}]
"
            ))
            .await
            .unwrap();
    }

    fn pods(&self, cluster: &Cluster) -> Api<Pod> {
        Api::namespaced(cluster.client(), self.name)
    }

    /// Starts the burst and waits until it is under way.
    async fn burst(&self) {
        self.scale(BURST).await;
        eventually("a part of the pods are below", SOON, || async {
            let below = self.pods(&self.world.lower).list_metadata(&ListParams::default()).await?.items.len();
            Ok(Seen::when(below >= BURST / 4, below))
        })
        .await
        .unwrap();
    }

    /// Waits for another leader, and gives its identity.
    async fn until_taken_over(&self) -> String {
        eventually("another replica leads", SOON, || async {
            let now = holder(&self.world.upper, self.name).await;
            Ok(if now != self.old && !now.is_empty() { Seen::Done(now) } else { Seen::NotYet(now) })
        })
        .await
        .unwrap()
    }

    /// Waits until so many pods are ready above, each has one twin below, and there is none beside; gives the restarts of
    /// the lower pods' containers by the pods' UIDs.
    async fn until_level(&self, count: usize) -> BTreeMap<String, i32> {
        eventually(&format!("{count} pods run, each once"), SOON * 2, || async {
            let above = self.pods(&self.world.upper).list(&ListParams::default()).await?.items;
            let below = self.pods(&self.world.lower).list(&ListParams::default()).await?.items;
            let ready = above.iter().filter(|pod| is_ready(pod)).count();
            let wanted: BTreeSet<String> = above.iter().filter_map(ResourceExt::uid).collect();
            let owners: BTreeSet<String> = below.iter().map(|pod| pod.labels()[label::UPPER_UID].clone()).collect();
            let level = above.len() == count && ready == count && below.len() == count && owners == wanted;
            if !level {
                return Ok(Seen::NotYet(format!("{ready} ready of {} above, {} below", above.len(), below.len())));
            }
            let restarts = |pod: &Pod| {
                let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
                containers.map(|container| container.restart_count).sum()
            };
            Ok(Seen::Done(below.iter().map(|pod| (pod.uid().unwrap(), restarts(pod))).collect()))
        })
        .await
        .unwrap()
    }

    /// The writes of one replica that an API server took. What a standby may do as well is left out: asking who a caller
    /// of its kubelet API is.
    fn writes_of(&self, replica: &str) -> Vec<AuditEntry> {
        let World { upper, lower } = self.world;
        let all = [upper, lower].into_iter().flat_map(|cluster| cluster.audit_log("system:").unwrap());
        all.filter(|entry| entry.user_agent.contains(replica))
            .filter(|entry| !matches!(entry.verb.as_str(), "get" | "list" | "watch"))
            .filter(|entry| !entry.resource.ends_with("reviews") && (200..300).contains(&entry.code))
            .collect()
    }
}

/// Who leads this virtual node.
async fn holder(upper: &Cluster, name: &str) -> String {
    let leases: Api<Lease> = Api::namespaced(upper.client(), "tensile-system");
    let lease = leases.get(&format!("virtual-node-{name}")).await.unwrap();
    lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_for_longer_than_its_lease_writes_nothing_when_it_goes_on() {
    let pair = Pair::start("stopped").await;
    // In the middle of its work, with requests on their way.
    pair.burst().await;
    pair.leader.pause();
    let new = pair.until_taken_over().await;
    let taken = pair.writes_of(&new).into_iter().map(|entry| entry.received_at).min().unwrap();
    pair.until_level(BURST).await;

    // When it goes on it hears at once of all that happened meanwhile, and of what goes on: to it each pod has a next step.
    pair.scale(80).await;
    pair.until_level(80).await;
    pair.scale(BURST).await;
    pair.leader.resume();
    eventually("the old leader stands by", SOON, || async {
        let logs = pair.leader.logs();
        Ok(Seen::when(logs.contains("leads no more"), logs.lines().last().map(str::to_owned)))
    })
    .await
    .unwrap();
    pair.until_level(BURST).await;
    pair.scale(10).await;
    pair.until_level(10).await;
    // By when it was done: an API server may have had the head of a request since before, and then never gets the rest.
    let late: Vec<AuditEntry> =
        pair.writes_of(&pair.old).into_iter().filter(|entry| entry.answered_at > taken).collect();
    assert!(late.is_empty(), "the old leader wrote after the new one's first write at {taken}: {late:#?}");
    assert!(!pair.writes_of(&pair.old).is_empty(), "no write of the old leader was found at all");
    assert!(pair.leader.exited().is_none(), "the old leader is as good a standby as any");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_in_the_middle_of_a_burst_is_followed_by_the_other_and_no_pod_notices() {
    let pair = Pair::start("killed").await;
    pair.burst().await;
    let endpoint = |node: k8s_openapi::api::core::v1::Node| {
        let port = node.status.and_then(|s| s.daemon_endpoints?.kubelet_endpoint.map(|e| e.port));
        (port, node.metadata.annotations.and_then(|all| all.get("tensile.dev/endpoint").cloned()))
    };
    let before = endpoint(node(&pair.world.upper, pair.name).await);
    let there: BTreeSet<String> = {
        let below = pair.pods(&pair.world.lower).list_metadata(&ListParams::default()).await.unwrap();
        below.iter().filter_map(ResourceExt::uid).collect()
    };
    pair.leader.kill9();
    let killed = Instant::now();
    let new = pair.until_taken_over().await;
    let led = killed.elapsed();
    let lives = pair.until_level(BURST).await;
    println!(
        "took over {:.1} s after kill -9 (lease of 5 s); all {BURST} pods ran {:.1} s after it",
        led.as_secs_f64(),
        killed.elapsed().as_secs_f64()
    );
    assert!(there.iter().all(|uid| lives.contains_key(uid)), "a lower pod was made anew");
    assert!(lives.values().all(|restarts| *restarts == 0), "{lives:?}");

    // Where logs and exec are served follows the leader.
    eventually("the Node names the new leader's ports", SOON, || async {
        let now = endpoint(node(&pair.world.upper, pair.name).await);
        Ok(Seen::when(now.0 != before.0 && now.1 != before.1, now))
    })
    .await
    .unwrap();
    let pod = pair.pods(&pair.world.upper).list(&ListParams::default()).await.unwrap().items[0].name_any();
    // A simulated node has no logs to give; that it was asked for them through the new leader is what counts.
    let mut kubectl = pair.world.upper.kubectl();
    kubectl.args(["logs", "--namespace", pair.name, &pod]).stdin(Stdio::null()).stderr(Stdio::null());
    let mut asking = kubectl.stdout(Stdio::null()).spawn().unwrap();
    eventually("the lower API server is asked for logs by the new leader", SOON, || async {
        let asked = pair.world.lower.audit_log("system:").unwrap();
        let logs = asked.iter().filter(|entry| entry.subresource == "log" && entry.name == pod);
        let agents: Vec<_> = logs.map(|entry| entry.user_agent.clone()).collect();
        Ok(Seen::when(agents.iter().any(|agent| agent.contains(&new)), agents))
    })
    .await
    .unwrap();
    let _ = asking.kill();
    let _ = asking.wait();
    assert!(pair.standby.exited().is_none());
}
