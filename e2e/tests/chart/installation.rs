//! The chart, installed as docs/user-guide/install.md says, upgraded and uninstalled; a Deployment runs below meanwhile.

use k8s_openapi::api::{
    core::v1::{Node, Secret},
    rbac::v1::ClusterRole,
};
use kube::{Api, ResourceExt, api::ListParams};
use tensile_e2e::{RealNodes, SHELL_IMAGE, Seen, eventually, rights};

use crate::story::{HOME, RELEASE, SOON, Story, done};

/// Our account above, and the one below.
const ACCOUNT: &str = "system:serviceaccount:tensile-system:east-virtual-node";
const LOWER_ACCOUNT: &str = "system:serviceaccount:tensile-system:virtual-node";

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      nodeSelector: {kubernetes.io/hostname: east}
      containers:
        - name: web
          image: IMAGE
          imagePullPolicy: Never
          command: [sh, -c, \"echo open for business; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done\"]
";

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_serves_pods_which_neither_upgrade_nor_uninstallation_touches() {
    if let Err(reason) = RealNodes::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    let story = Story::begin().await;

    story.connect().await;
    let notes = story.install(&[]).await;
    story.approve_as_told(&notes).await;
    story.until_node("is Ready", is_ready).await;
    story.rolled_out();
    assert_eq!(story.replicas().await.len(), 2);

    story.upper.apply_yaml(&SHOP.replace("IMAGE", SHELL_IMAGE)).await.unwrap();
    let above = story.running(&story.upper, 2).await;
    let below = story.running(&story.lower, 2).await;
    reached_by_kubectl(&story).await;

    upgrade(&story).await;
    assert_eq!(story.running(&story.lower, 2).await, below, "the upgrade touched pods below");
    assert_eq!(story.running(&story.upper, 2).await, above, "the upgrade touched pods above");
    reached_by_kubectl(&story).await;
    nothing_is_unused(&story).await;

    assert_eq!(forbidden(&story), [""; 0]);
    uninstall(&story).await;
    assert_eq!(story.running(&story.lower, 2).await, below, "the uninstallation touched pods below");
    // helm takes the rights away while the processes end: the leader may not give its lease back any more.
    let while_ending = forbidden(&story);
    // Installed again, it goes on where it was, with the certificate that it has; this time on the machine's network,
    // which the strictest rules for pods do not allow.
    let relaxed = "label --overwrite namespace tensile-system pod-security.kubernetes.io/enforce=privileged";
    done(story.upper.kubectl().args(relaxed.split(' ')));
    story.install(&["hostNetwork=true", "kubelet.port=10350", "replicas=1"]).await;
    story.rolled_out();
    reached_by_kubectl(&story).await;
    assert_eq!(story.running(&story.lower, 2).await, below, "the second installation touched pods below");
    assert_eq!(story.running(&story.upper, 2).await, above, "the second installation touched pods above");

    // For good, as docs/user-guide/install.md has it. The Deployment's new pods find no place.
    let kubectl = |words: &str| done(story.upper.kubectl().args(words.split(' ')));
    kubectl("cordon east");
    kubectl("drain east --ignore-daemonsets --delete-emptydir-data --timeout=180s");
    story.running(&story.lower, 0).await;
    assert_eq!(forbidden(&story), while_ending);
    uninstall(&story).await;
    kubectl("delete node east");
    kubectl("--namespace tensile-system delete secret/east-identity secret/east-lower lease/virtual-node-east");
    tokio::join!(story.upper.stop(), story.lower.stop());
}

/// Another label and another taint on the Node: new pods of the chart, one of which comes to lead.
async fn upgrade(story: &Story) {
    let before = story.replicas().await;
    story.install(&["node.labels.tier=gold", "node.taints={example.test/own=east:PreferNoSchedule}"]).await;
    story.rolled_out();
    story
        .until_node("has the new label and the new taint", |node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
            node.labels().get("tier").is_some_and(|tier| tier == "gold")
                && taints.iter().any(|taint| taint.key == "example.test/own")
        })
        .await;
    eventually("only new pods of the chart are left", SOON, || async {
        let now = story.replicas().await;
        Ok(Seen::when(now.len() == 2 && now.iter().all(|name| !before.contains(name)), (&before, now)))
    })
    .await
    .unwrap();
    story.until_node("is Ready", is_ready).await;
}

/// Takes the release away, and looks at what stays, as docs/user-guide/install.md has it.
async fn uninstall(story: &Story) {
    story.helm(&["uninstall", RELEASE, "--wait"]).await;
    eventually("the chart's pods are gone", SOON, || async {
        let left = story.replicas().await;
        Ok(Seen::when(left.is_empty(), left))
    })
    .await
    .unwrap();
    let client = || story.upper.client();
    assert!(Api::<Node>::all(client()).get_opt(RELEASE).await.unwrap().is_some(), "the Node stays");
    let secrets: Api<Secret> = Api::namespaced(client(), HOME);
    assert!(secrets.get_opt("east-identity").await.unwrap().is_some(), "the certificate stays");
    assert!(secrets.get_opt("east-lower").await.unwrap().is_some(), "the Secret that the chart did not make stays");
    let roles = Api::<ClusterRole>::all(client()).list(&ListParams::default()).await.unwrap();
    let ours: Vec<_> = roles.iter().map(ResourceExt::name_any).filter(|name| name.contains("virtual-node")).collect();
    assert!(ours.is_empty(), "rights that outlive the release: {ours:?}");
}

/// Logs and exec, through the upper API server, a pod of the chart, and the lower API server.
async fn reached_by_kubectl(story: &Story) {
    story.kubectl_prints(&["logs", "deployment/web"], "open for business").await;
    story.kubectl_prints(&["exec", "deployment/web", "--", "sh", "-c", "echo in $((40+2))"], "in 42").await;
}

/// Every right that the chart grants above has been used by now. tests/rights.rs looks at those below.
async fn nothing_is_unused(story: &Story) {
    let upper = &story.upper;
    let granted = [
        rights::cluster_role(upper, "tensile:virtual-node:east").await.unwrap(),
        rights::role(upper, HOME, "virtual-node-east").await.unwrap(),
        rights::role(upper, "kube-system", "tensile:virtual-node:east").await.unwrap(),
    ];
    let unused = rights::unused(&granted.concat(), upper, ACCOUNT).unwrap();
    assert!(unused.is_empty(), "granted by the chart and not used: {unused:?}");
}

/// Requests of our accounts that were refused, in either cluster.
fn forbidden(story: &Story) -> Vec<String> {
    let above = [ACCOUNT, "system:node:east"].map(|account| rights::forbidden(&story.upper, account).unwrap()).concat();
    let below = rights::forbidden(&story.lower, LOWER_ACCOUNT).unwrap();
    [above, below].concat()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
