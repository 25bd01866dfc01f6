//! The playground brings everything up, shows it, and leaves nothing: not on this machine, and not in clusters that
//! the user has.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Node, Pod, Secret},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{Api, ResourceExt, api::ListParams};
use tensile_e2e::{Cluster, KwokNodes, Seen, eventually};

/// Starting and stopping three clusters takes twenty seconds on an idle machine.
const DEADLINE: Duration = Duration::from_mins(3);

fn playground(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
    command.env("XDG_STATE_HOME", state).stdin(Stdio::null());
    command
}

async fn finished(mut command: Command) -> Output {
    let child = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(DEADLINE, child).await.expect("the playground ends in time").unwrap()
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_a_deployment_across_two_clusters_and_leaves_nothing_running() {
    let state = tempfile::tempdir().unwrap();
    let mut up = playground(state.path());
    up.args(["up", "--plain", "--exit-after-ready", "--replicas=4"]);
    let output = finished(up).await;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for place in ["on east / ", "on west / "] {
        assert_eq!(text.matches(place).count(), 2, "two replicas are {place}: {text}");
    }
    assert!(text.contains("get nodes"), "{text}");
    let servers: BTreeSet<&str> =
        text.split(|c: char| c.is_whitespace() || c == ',').filter_map(|word| word.strip_prefix("https://")).collect();
    assert_eq!(servers.len(), 3, "{text}");
    for server in servers {
        // Not by dialling: once the run's bridge is gone, its addresses would lead out of this machine.
        let port: u16 = server.rsplit(':').next().unwrap().parse().unwrap();
        assert!(TcpListener::bind(("0.0.0.0", port)).is_ok(), "something still listens on {server}");
    }
    assert!(!state.path().join("tensile/playground").exists(), "the state is removed");
    assert!(text_of_down(state.path()).await.contains("no playground"), "there is nothing to remove");
}

async fn text_of_down(state: &Path) -> String {
    let mut down = playground(state);
    down.arg("down");
    let output = finished(down).await;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    text
}

/// Everything in a cluster that reminds of us.
async fn traces(cluster: &Cluster) -> Vec<String> {
    async fn named<K>(client: kube::Client, ours: impl Fn(&str) -> bool) -> Vec<String>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let listed = Api::<K>::all(client).list_metadata(&ListParams::default()).await.unwrap();
        let kind = K::kind(&());
        listed
            .iter()
            .map(ResourceExt::name_any)
            .filter(|name| ours(name))
            .map(|name| format!("{kind} {name}"))
            .collect()
    }
    let ours = |name: &str| name.contains("tensile") || name.contains("virtual-node") || name.starts_with("theirs");
    let mut all = Vec::new();
    all.extend(named::<Namespace>(cluster.client(), ours).await);
    all.extend(named::<Node>(cluster.client(), ours).await);
    all.extend(named::<ClusterRole>(cluster.client(), ours).await);
    all.extend(named::<ClusterRoleBinding>(cluster.client(), ours).await);
    all.extend(named::<Role>(cluster.client(), ours).await);
    all.extend(named::<RoleBinding>(cluster.client(), ours).await);
    all.extend(named::<ConfigMap>(cluster.client(), ours).await);
    all.extend(named::<Secret>(cluster.client(), |_| true).await);
    all.extend(named::<Deployment>(cluster.client(), |_| true).await);
    all.extend(named::<Pod>(cluster.client(), |_| true).await);
    all
}

async fn until_no_trace(cluster: &Cluster) {
    eventually(&format!("nothing is left in {}", cluster.name()), DEADLINE, || async {
        let left = traces(cluster).await;
        Ok(Seen::when(left.is_empty(), left))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_clusters_of_the_users_it_asks_first_and_leaves_no_trace_even_if_it_is_killed() {
    tensile_e2e::install_crypto();
    let (upper, lower) = tokio::try_join!(
        Cluster::builder("theirs-upper").start(),
        Cluster::builder("theirs-lower").nodes(KwokNodes::count(2)).start()
    )
    .unwrap();
    let state = tempfile::tempdir().unwrap();
    let up = || {
        let mut up = playground(state.path());
        up.args(["up", "--plain", "--replicas=3", "--upper"]).arg(upper.admin_kubeconfig());
        up.arg("--lower").arg(format!("theirs={}", lower.admin_kubeconfig().display()));
        up
    };

    let unasked = finished(up()).await;
    assert!(!unasked.status.success() && text(&unasked).contains("--yes"), "{}", text(&unasked));
    assert!(traces(&upper).await.is_empty(), "nothing was installed");

    let mut once = up();
    once.args(["--yes", "--exit-after-ready"]);
    let output = finished(once).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("on theirs / kwok-"), "{}", text(&output));
    until_no_trace(&upper).await;
    until_no_trace(&lower).await;

    let mut child = up().arg("--yes").stdout(Stdio::null()).spawn().unwrap();
    let pods: Api<Pod> = Api::default_namespaced(lower.client());
    let running = eventually("pods run below", DEADLINE, || async {
        let running = pods.list(&ListParams::default()).await?.items.len();
        Ok(Seen::when(running == 3, running))
    });
    let running = running.await;
    child.kill().unwrap();
    child.wait().unwrap();
    running.unwrap();
    let mut second = up();
    second.args(["--yes", "--exit-after-ready"]);
    let second = finished(second).await;
    assert!(text(&second).contains("playground down"), "what was left is not forgotten: {}", text(&second));
    text_of_down(state.path()).await;
    until_no_trace(&upper).await;
    until_no_trace(&lower).await;
    tokio::join!(upper.stop(), lower.stop());
}
