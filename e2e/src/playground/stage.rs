//! Clusters, virtual nodes and the Deployment: up and down.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::progress::step;
use super::state::{Made, State};
use super::{UpArgs, foreign};
use crate::testbed::{apply_yaml, write_private};
use crate::{Cluster, KwokNodes, RealNodes, SHELL_IMAGE, Seen, Site, Tool, Tools, VirtualNode, eventually};

/// Name of the Deployment, and of the label `app` of its pods.
pub(super) const WORKLOAD: &str = "hello";
pub(super) const NAMESPACE: &str = "default";

/// Pods here need no download and are ready in seconds; elsewhere an image must come first.
const READY_DEADLINE: Duration = Duration::from_mins(5);

/// What a virtual-node gets to end in order.
const NODE_STOP: Duration = Duration::from_secs(10);

/// All that was brought up so far.
pub(super) struct Stage {
    /// When it all began.
    pub begun: Instant,
    /// Before the clusters, so that a drop ends them first.
    pub joined: Vec<Joined>,
    /// The upper cluster, once it is there.
    pub upper: Option<Site>,
    clusters: Vec<Cluster>,
}

/// A lower cluster with its virtual node.
pub(super) struct Joined {
    pub lower: Site,
    pub node: VirtualNode,
    /// What its nodes are: `real`, `simulated`, or `yours`.
    pub about: &'static str,
}

impl Stage {
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, joined: Vec::new(), upper: None, clusters: Vec::new() }
    }

    /// The upper cluster.
    pub(super) fn upper(&self) -> Result<&Site> {
        self.upper.as_ref().context("the upper cluster is not up yet")
    }

    /// Starts three clusters and two virtual nodes on this machine.
    pub(super) async fn bring_up_own(&mut self, live: bool) -> Result<()> {
        let real = RealNodes::available();
        if let Err(reason) = &real {
            println!("both lower clusters have simulated nodes: {reason}");
        }
        // No line may be rewritten here: building tools print lines of their own.
        step(false, "finding or building the programs of Kubernetes", find_tools(real.is_ok())).await?;

        let upper = Cluster::builder("upper").on_bridge(real.is_ok());
        let (east, about) = match real {
            Ok(()) => (Cluster::builder("east").real_nodes(1), "real"),
            Err(_) => (Cluster::builder("east").nodes(KwokNodes::count(2)), "simulated"),
        };
        let west = Cluster::builder("west").nodes(KwokNodes::count(3));
        let start = async { tokio::try_join!(upper.start(), east.start(), west.start()) };
        let (upper, east, west) = step(live, "starting the clusters upper, east and west", Box::pin(start)).await?;
        let sites = [Site::of(&upper), Site::of(&east), Site::of(&west)];
        self.clusters.extend([upper, east, west]);
        let [upper, east, west] = sites;
        self.upper = Some(upper.clone());
        let lowers = [(east, about), (west, "simulated")];
        let nodes = lowers.iter().map(|(lower, _)| {
            let args = ["--namespaces=same", "--adopt-namespace", NAMESPACE];
            VirtualNode::between(upper.clone(), lower.clone()).name(lower.name()).args(args).start()
        });
        let nodes = step(live, "starting the virtual nodes east and west", try_join_all(nodes)).await?;
        self.joined =
            lowers.into_iter().zip(nodes).map(|((lower, about), node)| Joined { lower, node, about }).collect();
        Ok(())
    }

    /// Creates the Deployment and waits until all replicas are ready.
    pub(super) async fn run_workload(&self, args: &UpArgs, state: &State, live: bool) -> Result<()> {
        let upper = self.upper()?;
        let deployments: Api<Deployment> = Api::namespaced(upper.client(), NAMESPACE);
        if args.upper.is_some() {
            anyhow::ensure!(
                deployments.get_opt(WORKLOAD).await?.is_none(),
                "the upper cluster has a Deployment {NAMESPACE}/{WORKLOAD} already, which is not the playground's; rename it"
            );
            state.note(|record| {
                record.made.push(Made {
                    kubeconfig: upper.kubeconfig().to_owned(),
                    api_version: "apps/v1".to_owned(),
                    kind: "Deployment".to_owned(),
                    namespace: Some(NAMESPACE.to_owned()),
                    name: WORKLOAD.to_owned(),
                });
            })?;
        }
        let image = args.image.as_deref().unwrap_or(if args.upper.is_some() { "busybox" } else { SHELL_IMAGE });
        let names: Vec<&str> = self.joined.iter().map(|joined| joined.node.node_name()).collect();
        apply_yaml(&upper.client(), &workload(args.replicas, image, &names)).await?;
        let wanted = i32::from(args.replicas);
        let what = format!("running {wanted} replicas across {}", names.join(" and "));
        let ready = eventually("all replicas are ready", READY_DEADLINE, || async {
            let status = deployments.get(WORKLOAD).await?.status.unwrap_or_default();
            Ok(Seen::when(status.ready_replicas == Some(wanted), (status.ready_replicas, status.conditions)))
        });
        step(live, &what, ready).await
    }

    /// What to print for who wants to look by himself.
    pub(super) async fn hints(&self, state: &State) -> Result<Vec<String>> {
        let upper = self.upper()?;
        let mut paths = Vec::new();
        for site in std::iter::once(upper).chain(self.joined.iter().map(|joined| &joined.lower)) {
            // Short and steady paths for clusters whose own folders have neither.
            let path = if self.clusters.is_empty() {
                site.kubeconfig().to_owned()
            } else {
                let path = state.dir().join(format!("{}.kubeconfig", site.name()));
                write_private(&path, &std::fs::read_to_string(site.kubeconfig())?)?;
                path
            };
            paths.push((site.name(), path));
        }
        let kubectl = kubectl().await?;
        let mut lines = vec!["Kubeconfigs:".to_owned()];
        lines.extend(paths.iter().map(|(name, path)| format!("  {name:<8} {}", path.display())));
        lines.push("Try in another terminal:".to_owned());
        lines.push(format!("  export KUBECONFIG={}", paths[0].1.display()));
        lines.push(format!("  {kubectl} get nodes -L tensile.dev/cluster"));
        lines.push(format!("  {kubectl} get pods -o wide"));
        lines.push(match self.pod_with_a_shell().await? {
            Some(pod) => format!("  {kubectl} exec -it {pod} -- sh"),
            // Simulated containers have neither shell nor logs.
            None => format!("  {kubectl} scale deployment {WORKLOAD} --replicas=12"),
        });
        Ok(lines)
    }

    async fn pod_with_a_shell(&self) -> Result<Option<String>> {
        let Some(joined) = self.joined.iter().find(|joined| joined.about != "simulated") else { return Ok(None) };
        let pods: Api<Pod> = Api::namespaced(self.upper()?.client(), NAMESPACE);
        let there = ListParams::default()
            .labels(&format!("app={WORKLOAD}"))
            .fields(&format!("spec.nodeName={}", joined.node.node_name()))
            .limit(1);
        Ok(pods.list(&there).await?.items.first().map(ResourceExt::name_any))
    }

    /// Removes everything, whatever is there.
    pub(super) async fn take_down(self, state: State) -> Result<()> {
        if self.clusters.is_empty() {
            // The virtual nodes take their pods away before they go.
            foreign::drain(&state).await?;
        }
        let ends = self.joined.iter().map(|joined| joined.node.term(NODE_STOP));
        // One that does not end is killed by its drop.
        join_all(ends).await;
        drop(self.joined);
        if self.clusters.is_empty() {
            foreign::remove(&state).await?;
        }
        join_all(self.clusters.into_iter().map(Cluster::stop)).await;
        state.remove()
    }
}

/// One line each five seconds, and a prompt end: a shell that is process 1 ignores SIGTERM unless told otherwise.
const SCRIPT: &str =
    r#"trap 'exit 0' TERM; while true; do echo \"hello from $HOSTNAME on node $NODE\"; sleep 5 & wait $!; done"#;

/// The Deployment, spread over the lower clusters as evenly as can be.
fn workload(replicas: u16, image: &str, nodes: &[&str]) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {WORKLOAD}, namespace: {NAMESPACE}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {WORKLOAD}}}}}
  template:
    metadata: {{labels: {{app: {WORKLOAD}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions: [{{key: tensile.dev/cluster, operator: In, values: [{}]}}]
      tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: tensile.dev/cluster
          whenUnsatisfiable: DoNotSchedule
          labelSelector: {{matchLabels: {{app: {WORKLOAD}}}}}
      containers:
        - name: main
          image: {image}
          imagePullPolicy: IfNotPresent
          command: [sh, -c, \"{SCRIPT}\"]
          env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
          resources: {{requests: {{cpu: 50m, memory: 16Mi}}}}
",
        nodes.join(", ")
    )
}

async fn find_tools(real: bool) -> Result<()> {
    let mut wanted = vec![
        Tool::Etcd,
        Tool::KubeApiserver,
        Tool::KubeControllerManager,
        Tool::KubeScheduler,
        Tool::Kubectl,
        Tool::Kwok,
    ];
    if real {
        wanted.extend([Tool::Kubelet, Tool::KubeProxy]);
    }
    for tool in wanted {
        Tools::get(tool).await?;
    }
    Ok(())
}

/// `kubectl` as to be typed.
async fn kubectl() -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("kubectl").is_file()) {
        return Ok("kubectl".to_owned());
    }
    let built: PathBuf = Tools::get(Tool::Kubectl).await?;
    Ok(built.display().to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_a_deployment_with_a_shell_script() {
        let objects = crate::testbed::parse_yaml(&workload(4, "example.test/shell:1", &["east", "west"])).unwrap();
        let deployment: Deployment = objects[0].clone().try_parse().unwrap();
        let spec = deployment.spec.unwrap();
        assert_eq!(spec.replicas, Some(4));
        let command = spec.template.spec.unwrap().containers[0].command.clone().unwrap();
        assert_eq!(command[2], SCRIPT.replace("\\\"", "\""));
    }
}
