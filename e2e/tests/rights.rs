//! Least privilege (rule 9): over a pod's whole life nothing that our accounts ask for is forbidden, and nothing that
//! `deploy/` grants them is left unused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{ConfigMap, Node, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually, rights};

/// The time limit for what takes a second or two on an idle machine.
const SOON: Duration = Duration::from_mins(1);

/// Copies of what no pod needs any more are kept for 30 s.
const AFTER_GRACE: Duration = Duration::from_mins(2);

/// Our account, in either cluster.
const ACCOUNT: &str = "system:serviceaccount:tensile-system:virtual-node";

/// Granted, and not used in this test for a reason.
const UNUSED: [(&str, &str); 4] = [
    ("get pods/exec", "a WebSocket request is a GET; the upper API server of this test speaks SPDY to us"),
    ("get pods/attach", "as exec"),
    ("get pods/portforward", "as exec"),
    ("patch secrets", "tokens are refreshed after 80 % of their life, 8 minutes at the least"),
];

#[tokio::test(flavor = "multi_thread")]
async fn our_accounts_are_forbidden_nothing_and_granted_nothing_that_they_do_not_use() {
    tensile_e2e::install_crypto();
    let (upper, lower) = tokio::try_join!(
        Cluster::builder("upper-rights").start(),
        Cluster::builder("lower-rights").nodes(KwokNodes::count(2)).start(),
    )
    .unwrap();
    let node = VirtualNode::builder(&upper, &lower).name("vn-rights").start().await.unwrap();

    live(&upper, &lower).await;
    scrape(&upper).await;
    node.kill9();
    node.restart().await.unwrap();
    outage(&upper, &lower).await;
    die(&upper, &lower).await;

    let mut forbidden = Vec::new();
    for cluster in [&upper, &lower] {
        for account in [ACCOUNT, "system:node:vn-"] {
            forbidden.extend(rights::forbidden(cluster, account).unwrap());
        }
    }
    assert!(forbidden.is_empty(), "forbidden:\n{}", forbidden.join("\n"));

    let above = [
        rights::cluster_role(&upper, "tensile:virtual-node:vn-rights").await.unwrap(),
        rights::role(&upper, "tensile-system", "virtual-node-vn-rights").await.unwrap(),
        rights::role(&upper, "kube-system", "tensile:virtual-node:vn-rights").await.unwrap(),
    ];
    let below = rights::cluster_role(&lower, "tensile:virtual-node").await.unwrap();
    for (rules, cluster) in [(&above.concat(), &upper), (&below, &lower)] {
        let mut unused = rights::unused(rules, cluster, ACCOUNT).unwrap();
        unused.retain(|right| UNUSED.iter().all(|(excused, _)| right != excused));
        assert!(unused.is_empty(), "granted in {} and never used: {unused:#?}", cluster.name());
    }
    tokio::join!(upper.stop(), lower.stop());
}

/// A pod that needs all that a pod can need, and is changed in all ways that a pod can be changed.
async fn live(upper: &Cluster, lower: &Cluster) {
    upper
        .apply_yaml(
            "
apiVersion: v1
kind: Namespace
metadata: {name: life}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: life}
data: {colour: red}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: life}
stringData: {word: sesame}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: app, namespace: life}
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: life}
spec: {selector: {app: app}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: life, labels: {app: app}}
spec:
  serviceAccountName: app
  terminationGracePeriodSeconds: 1
  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
  readinessGates: [{conditionType: example.test/gate}]
  containers:
    - name: app
      image: example.test/app:1
      resources: {requests: {cpu: 100m}}
      envFrom: [{secretRef: {name: password}}]
      volumeMounts: [{name: settings, mountPath: /etc/settings}]
  volumes: [{name: settings, configMap: {name: settings}}]
",
        )
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(upper.client(), "life");
    eventually("the pod runs", SOON, || async {
        let phase = pods.get("app").await?.status.and_then(|s| s.phase);
        Ok(Seen::when(phase.as_deref() == Some("Running"), phase))
    })
    .await
    .unwrap();

    report_resources(lower, &pods).await;
    let gate = json!([{"type": "example.test/gate", "status": "True"}]);
    let gate = Patch::Strategic(json!({"status": {"conditions": gate}}));
    pods.patch_status("app", &PatchParams::default(), &gate).await.unwrap();
    let label = Patch::Merge(json!({"metadata": {"labels": {"edited": "yes"}}}));
    pods.patch("app", &PatchParams::default(), &label).await.unwrap();
    let bigger = json!({"spec": {"containers": [{"name": "app", "resources": {"requests": {"cpu": "200m"}}}]}});
    pods.patch_resize("app", &PatchParams::default(), &Patch::Strategic(bigger)).await.unwrap();
    let debugger = json!({"spec": {"ephemeralContainers": [{"name": "look", "image": "example.test/look:1"}]}});
    pods.patch_ephemeral_containers("app", &PatchParams::default(), &Patch::Strategic(debugger)).await.unwrap();
    let blue = Patch::Merge(json!({"data": {"colour": "blue"}}));
    let settings: Api<ConfigMap> = Api::namespaced(upper.client(), "life");
    settings.patch("settings", &PatchParams::default(), &blue).await.unwrap();
    let word = Patch::Merge(json!({"stringData": {"word": "open"}}));
    let services: Api<Service> = Api::namespaced(upper.client(), "life");
    let labelled =
        Patch::Merge(json!({"metadata": {"labels": {"edited": "yes"}}, "spec": {"sessionAffinity": "ClientIP"}}));
    services.patch("app", &PatchParams::default(), &labelled).await.unwrap();
    let password: Api<Secret> = Api::namespaced(upper.client(), "life");
    password.patch("password", &PatchParams::default(), &word).await.unwrap();
    // KWOK has no containers to answer for; that the request is made is what counts here.
    for command in ["logs app", "exec app -- true", "attach app", "port-forward app :80"] {
        let words = command.split(' ');
        let _ = upper.kubectl().args(["-n", "life", "--request-timeout=5s"]).args(words).output().unwrap();
    }

    let below: Api<Pod> = Api::namespaced(lower.client(), "life");
    let settings: Api<ConfigMap> = Api::namespaced(lower.client(), "life");
    let services_below: Api<Service> = Api::namespaced(lower.client(), "life");
    let slices_below: Api<EndpointSlice> = Api::namespaced(lower.client(), "life");
    eventually("all changes have reached the lower cluster", SOON, || async {
        let service = services_below.get("app").await?.spec.and_then(|spec| spec.session_affinity);
        let slices = slices_below.list(&ListParams::default()).await?.items;
        let mut endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let pod = serde_json::to_value(below.get("app").await?)?;
        let colour = settings.get("settings").await?.data.and_then(|d| d.get("colour").cloned());
        let gates = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let seen = [
            pod["metadata"]["labels"]["edited"] == "yes",
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "200m",
            pod["spec"]["ephemeralContainers"].as_array().is_some_and(|all| all.len() == 1),
            gates.iter().any(|c: &Value| c["type"] == "example.test/gate" && c["status"] == "True"),
            colour.as_deref() == Some("blue"),
            service.as_deref() == Some("ClientIP"),
            endpoints.any(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true))),
        ];
        let what = "label, size, ephemeral container, gate, ConfigMap, Service, endpoint";
        Ok(Seen::when(seen.iter().all(|s| *s), (what, seen)))
    })
    .await
    .unwrap();
}

/// Somebody asks for CPU and memory. There is no metrics-server below; that it is asked is what counts here.
async fn scrape(upper: &Cluster) {
    let nodes: Api<Node> = Api::all(upper.client());
    let status = nodes.get("vn-rights").await.unwrap().status.unwrap();
    let port = status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port;
    let kubeconfig = upper.user_kubeconfig("scraper", &["system:masters"]).unwrap();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.cluster_url = format!("https://{}:{port}", upper.host_address()).parse().unwrap();
    config.accept_invalid_certs = true;
    let request = http::Request::get("/metrics/resource").body(Vec::new()).unwrap();
    let scraped = Client::try_from(config).unwrap().request_text(request).await.unwrap();
    assert!(scraped.contains("install metrics-server there"), "{scraped}");
}

/// Has the lower pod's status name its containers' resources, as a kubelet's does and KWOK's does not: an API server
/// resizes no pod whose status lacks them.
async fn report_resources(lower: &Cluster, upper_pods: &Api<Pod>) {
    let below: Api<Pod> = Api::namespaced(lower.client(), "life");
    let mut pod = serde_json::to_value(below.get("app").await.unwrap()).unwrap();
    let statuses = &mut pod["status"]["containerStatuses"];
    statuses[0]["resources"] = json!({"requests": {"cpu": "100m"}});
    let patch = Patch::Merge(json!({"status": {"containerStatuses": statuses}}));
    below.patch_status("app", &PatchParams::default(), &patch).await.unwrap();
    eventually("the containers' resources show on the upper pod", SOON, || async {
        let pod = serde_json::to_value(upper_pods.get("app").await?)?;
        let statuses = pod["status"]["containerStatuses"].clone();
        Ok(Seen::when(statuses[0]["resources"]["requests"]["cpu"] == "100m", statuses))
    })
    .await
    .unwrap();
}

/// The lower API server hangs, until the Node says so, and comes back.
async fn outage(upper: &Cluster, lower: &Cluster) {
    let nodes: Api<Node> = Api::all(upper.client());
    let tainted = |wanted: bool| {
        let nodes = nodes.clone();
        move || {
            let nodes = nodes.clone();
            async move {
                let taints = nodes.get("vn-rights").await?.spec.and_then(|s| s.taints).unwrap_or_default();
                let found = taints.iter().any(|t| t.key == "tensile.dev/unreachable");
                Ok(Seen::when(found == wanted, taints))
            }
        }
    };
    lower.pause_apiserver();
    let noticed = eventually("the outage shows on the Node", SOON, tainted(true)).await;
    lower.resume_apiserver();
    noticed.unwrap();
    eventually("the Node is as before the outage", SOON, tainted(false)).await.unwrap();
}

/// The Service goes, then the pod, and with it what was copied for it.
async fn die(upper: &Cluster, lower: &Cluster) {
    let services: Api<Service> = Api::namespaced(upper.client(), "life");
    services.delete("app", &DeleteParams::default()).await.unwrap();
    let below: Api<Service> = Api::namespaced(lower.client(), "life");
    eventually("the Service is gone below", SOON, || async {
        Ok(Seen::when(below.get_opt("app").await?.is_none(), "it is there"))
    })
    .await
    .unwrap();
    let pods: Api<Pod> = Api::namespaced(upper.client(), "life");
    pods.delete("app", &DeleteParams::default()).await.unwrap();
    let settings: Api<ConfigMap> = Api::namespaced(lower.client(), "life");
    let secrets: Api<Secret> = Api::namespaced(lower.client(), "life");
    let below: Api<Pod> = Api::namespaced(lower.client(), "life");
    eventually("pod, ConfigMap and Secrets are gone below", AFTER_GRACE, || async {
        let mut left = Vec::new();
        left.extend(below.list(&ListParams::default()).await?.items.into_iter().map(|p| p.metadata.name));
        left.extend(settings.get_opt("settings").await?.map(|c| c.metadata.name));
        left.extend(secrets.list(&ListParams::default()).await?.items.into_iter().map(|s| s.metadata.name));
        Ok(Seen::when(left.is_empty() && pods.get_opt("app").await?.is_none(), left))
    })
    .await
    .unwrap();
}
