//! An upper cluster with a real node for the virtual-node's pods, a lower one with a real node for the users', and what
//! an administrator does with them.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::ListParams};
use tensile_e2e::{Cluster, Seen, eventually, image::Program};

use crate::{
    helm::{chart, helm},
    lower_account::script,
};

/// The time limit for what takes some seconds on an idle machine: an image's start, a roll-out, a lease that runs out.
pub const SOON: Duration = Duration::from_mins(3);

/// Where the chart is installed.
pub const HOME: &str = "tensile-system";

/// The release, and the node's name.
pub const RELEASE: &str = "east";

/// The image, as a node's containerd knows it.
const IMAGE: (&str, &str) = ("tensile.test/virtual-node", "test");

/// Both clusters.
pub struct Story {
    pub upper: Cluster,
    pub lower: Cluster,
}

/// What stays the same of pods that nobody touches: name, UID, host address, and restarts of the containers.
pub type Untouched = Vec<(String, String, Option<String>, i32)>;

impl Story {
    /// Brings both clusters up, and the image onto the upper one's node.
    pub async fn begin() -> Self {
        tensile_e2e::install_crypto();
        let (upper, lower) = tokio::try_join!(
            Cluster::builder("upper-chart").real_nodes(1).start(),
            Cluster::builder("lower-chart").real_nodes(1).start(),
        )
        .unwrap();
        let archive = upper.dir().join("virtual-node.tar");
        let program = upper.dir().join("virtual-node");
        // Names and lines for a debugger are most of a debug build.
        let built = tensile_e2e::virtual_node::binary("virtual-node").unwrap();
        done(Command::new("strip").arg("-o").arg(&program).arg(built));
        let program = Program {
            file: program,
            image: format!("{}:{}", IMAGE.0, IMAGE.1),
            name: "virtual-node".to_owned(),
            version: "0".to_owned(),
        };
        program.pack(&archive).unwrap();
        upper.load_image(&archive).unwrap();
        Self { upper, lower }
    }

    /// What docs/user-guide/install.md has one do first: an account below, its kubeconfig in a Secret above.
    pub async fn connect(&self) {
        for words in [
            "create namespace tensile-system",
            // The strictest of Kubernetes' own rules for pods.
            "label namespace tensile-system pod-security.kubernetes.io/enforce=restricted",
        ] {
            done(self.upper.kubectl().args(words.split(' ')));
        }
        let kubeconfig = done(&mut script(self.lower.admin_kubeconfig()).await).stdout;
        let again = done(&mut script(self.lower.admin_kubeconfig()).await).stdout;
        assert!(kubeconfig == again, "a second run prints the same kubeconfig");
        let secret = "create secret generic east-lower --from-file=kubeconfig=/dev/stdin";
        let mut create = self.upper.kubectl();
        create.args(["--namespace", HOME]).args(secret.split(' ')).stdin(Stdio::piped());
        let mut child = create.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&kubeconfig).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// helm, in the upper cluster. Its answer holds the chart's notes.
    pub async fn helm(&self, words: &[&str]) -> String {
        let mut command = helm().await;
        command.env("KUBECONFIG", self.upper.admin_kubeconfig()).args(["--namespace", HOME]).args(words);
        String::from_utf8(done(&mut command).stdout).unwrap()
    }

    /// Installs or upgrades the chart, with more values.
    pub async fn install(&self, values: &[&str]) -> String {
        let (chart, image, tag) =
            (chart().display().to_string(), format!("image.repository={}", IMAGE.0), format!("image.tag={}", IMAGE.1));
        let fixed = ["image.pullPolicy=Never", "lower.kubeconfig.existingSecret=east-lower"];
        let sets = [image.as_str(), &tag].into_iter().chain(fixed).chain(values.iter().copied());
        let sets: Vec<&str> = sets.flat_map(|value| ["--set", value]).collect();
        self.helm(&[&["upgrade", "--install", RELEASE, &chart], &sets[..]].concat()).await
    }

    /// Runs the command of the notes that approves the certificate, until there is a request to approve.
    pub async fn approve_as_told(&self, notes: &str) {
        let command =
            notes.lines().find(|line| line.contains("certificate approve")).unwrap_or_else(|| panic!("{notes}"));
        let kubectl = self.upper.kubectl();
        let folder = std::path::Path::new(kubectl.get_program()).parent().unwrap().display().to_string();
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
        eventually("the node's certificate is approved", SOON, || async {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]).env("PATH", &path).env("KUBECONFIG", self.upper.admin_kubeconfig());
            let output = shell.output()?;
            Ok(Seen::when(String::from_utf8_lossy(&output.stdout).contains("approved"), output))
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.pods_of_chart()));
    }

    /// Waits until all pods of the chart are of the newest template, and ready.
    pub fn rolled_out(&self) {
        let words = ["rollout", "status", "deployment/east-virtual-node", "--timeout=180s"];
        let output = self.upper.kubectl().args(["--namespace", HOME]).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", self.pods_of_chart());
    }

    /// Waits until the virtual node fits a description.
    pub async fn until_node(&self, what: &str, fits: impl Fn(&Node) -> bool) -> Node {
        let nodes: Api<Node> = Api::all(self.upper.client());
        eventually(&format!("the virtual node {what}"), SOON, || async {
            Ok(match nodes.get_opt(RELEASE).await? {
                Some(node) if fits(&node) => Seen::Done(node),
                Some(node) => Seen::NotYet(format!("{:?} {:?}", node.spec, node.status)),
                None => Seen::NotYet("no Node".to_owned()),
            })
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.pods_of_chart()))
    }

    /// Names of the chart's pods.
    pub async fn replicas(&self) -> Vec<String> {
        let pods: Api<Pod> = Api::namespaced(self.upper.client(), HOME);
        let mut names: Vec<_> =
            pods.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
        names.sort();
        names
    }

    /// What the chart's pods are at, and their last words: for who waits in vain.
    fn pods_of_chart(&self) -> String {
        let ask = |words: &[&str]| {
            let output = self.upper.kubectl().args(["--namespace", HOME]).args(words).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        let described = ask(&["describe", "pods"]);
        let said = ask(&["logs", "--tail=8", "--prefix", "--selector=app.kubernetes.io/name=virtual-node"]);
        format!("{described}\n{said}")
    }

    /// The pods of namespace `shop` in one of the clusters, once `count` run and none is left over.
    pub async fn running(&self, cluster: &Cluster, count: usize) -> Untouched {
        let pods: Api<Pod> = Api::namespaced(cluster.client(), "shop");
        eventually(&format!("{count} pods run in {}", cluster.name()), SOON, || async {
            let all = pods.list(&ListParams::default()).await?.items;
            let phases: Vec<_> = all.iter().map(|pod| pod.status.as_ref().and_then(|s| s.phase.clone())).collect();
            if phases.len() != count || phases.iter().any(|phase| phase.as_deref() != Some("Running")) {
                return Ok(Seen::NotYet(format!("{phases:?}")));
            }
            let mut all: Untouched = all
                .iter()
                .map(|pod| {
                    let status = pod.status.clone().unwrap_or_default();
                    let containers = status.container_statuses.into_iter().flatten();
                    let restarts = containers.map(|container| container.restart_count).sum();
                    (pod.name_any(), pod.uid().unwrap_or_default(), status.host_ip, restarts)
                })
                .collect();
            all.sort();
            Ok(Seen::Done(all))
        })
        .await
        .unwrap()
    }

    /// What kubectl prints of namespace `shop`, once it does without an error: the node's address moves with the leader.
    pub async fn kubectl_prints(&self, words: &[&str], wanted: &str) {
        eventually(&format!("kubectl {words:?} prints {wanted:?}"), SOON, || async {
            let output = self.upper.kubectl().args(["--namespace", "shop"]).args(words).output()?;
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(Seen::when(output.status.success() && printed.contains(wanted), output))
        })
        .await
        .unwrap();
    }
}

/// Runs a command that must not fail.
pub fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
