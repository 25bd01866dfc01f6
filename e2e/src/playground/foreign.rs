//! A playground in clusters that the user has: asks before it installs anything, and removes what it made.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ObjectMeta, TypeMeta};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tensile_proto::vocabulary::label;

use super::UpArgs;
use super::progress::step;
use super::stage::{Joined, NAMESPACE, Stage, WORKLOAD};
use super::state::{Made, NodeMade, State};
use crate::testbed::{api_of, apply_yaml, parse_yaml};
use crate::virtual_node::{Rights, rights};
use crate::{Seen, Site, VirtualNode, eventually};

/// For pods that end in order, with the default grace of 30 s and some more.
const DRAIN_DEADLINE: Duration = Duration::from_mins(1);

/// An API server that answers at all answers in this time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// Makes virtual nodes of the user's lower clusters.
pub(super) async fn bring_up(args: &UpArgs, upper: &Path, stage: &mut Stage, state: &State, live: bool) -> Result<()> {
    let upper = Site::open("upper", upper).await?;
    let mut lowers = Vec::new();
    for (name, path) in &args.lower {
        let lower = Site::open(name, path).await?;
        if lower.server_url() == upper.server_url() {
            bail!(
                "--upper and --lower {name} are one cluster, {}: a cluster cannot be a node of itself",
                upper.server_url()
            );
        }
        lowers.push(lower);
    }
    let nodes: Api<Node> = Api::all(upper.client());
    for lower in &lowers {
        answers(&lower.client(), lower.name()).await?;
        let there = tokio::time::timeout(ANSWER_DEADLINE, nodes.get_opt(lower.name()));
        let there = there.await.context("the upper cluster does not answer")?.context("asking the upper cluster")?;
        if there.is_some() {
            bail!(
                "the upper cluster has a node {} already: choose another NAME in --lower NAME=KUBECONFIG",
                lower.name()
            );
        }
    }
    if !args.yes {
        ask(&upper, &lowers).await?;
    }

    stage.upper = Some(upper.clone());
    for lower in lowers {
        let name = lower.name().to_owned();
        let Rights { upper: above, lower: below } = rights(&name);
        state.note(|record| {
            record.nodes.push(NodeMade {
                name: name.clone(),
                upper_kubeconfig: upper.kubeconfig().to_owned(),
                lower_kubeconfig: lower.kubeconfig().to_owned(),
            });
        })?;
        let start = async {
            install(&upper, &above, state).await?;
            install(&lower, &below, state).await?;
            let args_of_node = ["--namespaces=same", "--adopt-namespace", NAMESPACE];
            let node = VirtualNode::between(upper.clone(), lower.clone()).name(&name).args(args_of_node);
            node.address(args.node_address).installed().start().await
        };
        let node = step(live, &format!("starting the virtual node {name}"), Box::pin(start)).await?;
        stage.joined.push(Joined { lower, node, about: "yours" });
    }
    Ok(())
}

async fn answers(client: &Client, name: &str) -> Result<()> {
    let version = tokio::time::timeout(ANSWER_DEADLINE, client.apiserver_version()).await;
    version
        .with_context(|| format!("the cluster {name} does not answer in {ANSWER_DEADLINE:?}"))?
        .with_context(|| format!("asking the cluster {name}"))?;
    Ok(())
}

/// Asks on the terminal; an error unless the answer is yes.
async fn ask(upper: &Site, lowers: &[Site]) -> Result<()> {
    println!("This will be made, and removed at the end:");
    println!(
        "  upper {}: namespace tensile-system, an account with its roles and a Node for each lower cluster,\n    \
         and the Deployment {NAMESPACE}/{WORKLOAD}",
        upper.server_url()
    );
    for lower in lowers {
        println!(
            "  {} {}: namespace tensile-system, an account that may work with pods, ConfigMaps and Secrets of all\n    \
             namespaces, and pods in the namespace {NAMESPACE}",
            lower.name(),
            lower.server_url()
        );
    }
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked here: add --yes if this is wanted");
    }
    print!("Go on? [y/N] ");
    std::io::stdout().flush()?;
    let (send, answer) = tokio::sync::oneshot::channel();
    // A thread of its own: the end of the program waits for no answer.
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        let _ = send.send(line);
    });
    let answer = answer.await.unwrap_or_default();
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was changed");
    }
    Ok(())
}

/// Makes what is not there. What is there stays as it is, and stays at the end.
async fn install(site: &Site, yaml: &str, state: &State) -> Result<()> {
    for object in parse_yaml(yaml)? {
        let (api, name) = api_of(&site.client(), &object).await?;
        if api.get_opt(&name).await.with_context(|| format!("reading {name} in {}", site.name()))?.is_some() {
            continue;
        }
        let types = object.types.clone().unwrap_or_default();
        state.note(|record| {
            record.made.push(Made {
                kubeconfig: site.kubeconfig().to_owned(),
                api_version: types.api_version,
                kind: types.kind,
                namespace: object.metadata.namespace.clone(),
                name,
            });
        })?;
        let document = serde_json::to_string(&object)?;
        apply_yaml(&site.client(), &document).await.with_context(|| format!("installing in {}", site.name()))?;
    }
    Ok(())
}

/// Deletes the Deployment and waits until its pods are gone, while virtual nodes still run.
pub(super) async fn drain(state: &State) -> Result<()> {
    for client in delete_workload(state).await? {
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let gone = eventually("the pods are gone", DRAIN_DEADLINE, || async {
            let left = pods.list_metadata(&of_workload()).await?.items.len();
            Ok(Seen::when(left == 0, format!("{left} pods")))
        });
        // What is left is removed by force next.
        if let Err(error) = gone.await {
            println!("{error:#}; going on");
        }
    }
    Ok(())
}

/// Deletes the Deployment and waits until nothing makes new pods any more; gives the clusters in which it was.
async fn delete_workload(state: &State) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for made in state.record().made.iter().filter(|made| made.kind == "Deployment") {
        let client = Site::open("upper", &made.kubeconfig).await?.client();
        delete(&client, made).await?;
        let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), NAMESPACE);
        eventually("the ReplicaSets are gone", ANSWER_DEADLINE, || async {
            let left = sets.list_metadata(&of_workload()).await?.items.len();
            Ok(Seen::when(left == 0, format!("{left} ReplicaSets")))
        })
        .await?;
        clients.push(client);
    }
    Ok(clients)
}

fn of_workload() -> ListParams {
    ListParams::default().labels(&format!("app={WORKLOAD}"))
}

/// Removes everything in the record from the user's clusters. May be called again after an error.
pub(super) async fn remove(state: &State) -> Result<()> {
    let record = state.record();
    delete_workload(state).await?;
    for node in &record.nodes {
        remove_node(node).await.with_context(|| {
            format!("removing the virtual node {}; run `playground down` again once both clusters answer", node.name)
        })?;
    }
    for made in record.made.iter().rev() {
        let site = Site::open("", &made.kubeconfig).await?;
        delete(&site.client(), made).await?;
    }
    state.note(|record| {
        record.nodes.clear();
        record.made.clear();
    })
}

/// Removes the Node, and what its pods and their needs left below. Pods are not asked: their node is gone.
async fn remove_node(node: &NodeMade) -> Result<()> {
    let upper = Site::open("upper", &node.upper_kubeconfig).await?.client();
    let lower = Site::open(&node.name, &node.lower_kubeconfig).await?.client();
    let system = Api::<Namespace>::all(upper.clone()).get("kube-system").await?;
    // Both: others may share the lower cluster, with virtual nodes of that name.
    let owned = format!(
        "{}={},{}={}",
        label::VIRTUAL_NODE,
        node.name,
        label::UPPER_CLUSTER,
        system.metadata.uid.unwrap_or_default()
    );
    let owned = ListParams::default().labels(&owned);
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    for pod in Api::<Pod>::all(lower.clone()).list_metadata(&owned).await? {
        let pods: Api<Pod> = Api::namespaced(lower.clone(), &pod.namespace().unwrap_or_default());
        let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        gone_is_fine(pods.patch_metadata(&pod.name_any(), &PatchParams::default(), &bare).await)?;
        gone_is_fine(pods.delete(&pod.name_any(), &DeleteParams::default()).await)?;
    }
    for copy in Api::<ConfigMap>::all(lower.clone()).list_metadata(&owned).await? {
        let api: Api<ConfigMap> = Api::namespaced(lower.clone(), &copy.namespace().unwrap_or_default());
        gone_is_fine(api.delete(&copy.name_any(), &DeleteParams::default()).await)?;
    }
    for copy in Api::<Secret>::all(lower.clone()).list_metadata(&owned).await? {
        let api: Api<Secret> = Api::namespaced(lower.clone(), &copy.namespace().unwrap_or_default());
        gone_is_fine(api.delete(&copy.name_any(), &DeleteParams::default()).await)?;
    }
    let bound = ListParams::default().fields(&format!("spec.nodeName={}", node.name));
    let nodes: Api<Node> = Api::all(upper.clone());
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    gone_is_fine(nodes.patch(&node.name, &PatchParams::default(), &cordon).await)?;
    // Again and again: some may be on their way there, and once the node is gone the cluster takes a minute to collect
    // them.
    eventually("no pod is on the virtual node", ANSWER_DEADLINE, || async {
        let left = Api::<Pod>::all(upper.clone()).list_metadata(&bound).await?.items;
        for pod in &left {
            let pods: Api<Pod> = Api::namespaced(upper.clone(), &pod.namespace().unwrap_or_default());
            gone_is_fine(pods.delete(&pod.name_any(), &now).await)?;
        }
        Ok(Seen::when(left.is_empty(), format!("{} pods", left.len())))
    })
    .await?;
    gone_is_fine(nodes.delete(&node.name, &DeleteParams::default()).await)?;
    // What the virtual-node keeps for its next start.
    let identity: Api<Secret> = Api::namespaced(upper.clone(), "tensile-system");
    gone_is_fine(identity.delete(&format!("{}-identity", node.name), &DeleteParams::default()).await)?;
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(upper, "tensile-system");
    gone_is_fine(leases.delete(&format!("virtual-node-{}", node.name), &DeleteParams::default()).await)
}

async fn delete(client: &Client, made: &Made) -> Result<()> {
    let object = DynamicObject {
        types: Some(TypeMeta { api_version: made.api_version.clone(), kind: made.kind.clone() }),
        metadata: ObjectMeta {
            name: Some(made.name.clone()),
            namespace: made.namespace.clone(),
            ..ObjectMeta::default()
        },
        data: json!({}),
    };
    let (api, name): (Api<DynamicObject>, String) = api_of(client, &object).await?;
    gone_is_fine(api.delete(&name, &DeleteParams::background()).await)
        .with_context(|| format!("deleting {} {name}; run `playground down` once the cluster answers", made.kind))
}

fn gone_is_fine<T>(result: kube::Result<T>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}
