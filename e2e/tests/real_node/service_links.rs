//! Containers find the upper cluster's Services in their environment (enableServiceLinks).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    pods::is_ready,
    world::{SLEEP, Space, container, space},
};

/// The environment of a container, as its first process got it.
async fn environment(space: &Space, pod: &str, container: &str) -> BTreeMap<String, String> {
    let printed = space.run(&["exec", pod, "-c", container, "--", "cat", "/proc/1/environ"]).await.ok();
    let pairs = printed.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The variables that begin so.
fn beginning(environment: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    environment.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_find_the_upper_services_of_their_namespace_and_their_own_settings_win() {
    let Some(space) = space("links").await else { return };
    space
        .apply(
            "
apiVersion: v1
kind: Service
metadata: {name: the-web, namespace: NAMESPACE}
spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: NAMESPACE}
spec: {selector: {app: web}, clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: NAMESPACE}
data: {PORT: mine, OTHER: other}
",
        )
        .await;
    // Its lower namespace is made with it.
    space.pod("unlinked", SLEEP, json!({"enableServiceLinks": false, "automountServiceAccountToken": false})).await;
    space.until("unlinked", "is ready", is_ready).await;
    // A stranger of the lower cluster.
    let stranger = json!({"metadata": {"name": "stranger"}, "spec": {"ports": [{"port": 1}]}});
    let stranger: Service = serde_json::from_value(stranger).unwrap();
    space.lower::<Service>().create(&kube::api::PostParams::default(), &stranger).await.unwrap();

    let mut own = container("own", SLEEP);
    own["env"] = json!([
        {"name": "THE_WEB_SERVICE_PORT", "value": "own"},
        {"name": "URL", "value": "http://$(THE_WEB_SERVICE_HOST):$(THE_WEB_SERVICE_PORT_HTTP)/"},
    ]);
    own["envFrom"] = json!([{"prefix": "THE_WEB_", "configMapRef": {"name": "settings"}}]);
    let containers = json!([container("main", SLEEP), own]);
    space.pod("linked", "", json!({"containers": containers, "automountServiceAccountToken": false})).await;
    space.until("linked", "is ready", is_ready).await;
    // The address where the container runs: the upper cluster's leads nowhere there.
    let web = space.lower::<Service>().get("the-web").await.unwrap().spec.unwrap().cluster_ip.unwrap();

    let expected: BTreeMap<String, String> = [
        ("THE_WEB_SERVICE_HOST", web.clone()),
        ("THE_WEB_SERVICE_PORT", "80".into()),
        ("THE_WEB_SERVICE_PORT_HTTP", "80".into()),
        ("THE_WEB_SERVICE_PORT_DNS", "53".into()),
        ("THE_WEB_PORT", format!("tcp://{web}:80")),
        ("THE_WEB_PORT_80_TCP", format!("tcp://{web}:80")),
        ("THE_WEB_PORT_80_TCP_PROTO", "tcp".into()),
        ("THE_WEB_PORT_80_TCP_PORT", "80".into()),
        ("THE_WEB_PORT_80_TCP_ADDR", web.clone()),
        ("THE_WEB_PORT_53_UDP", format!("udp://{web}:53")),
        ("THE_WEB_PORT_53_UDP_PROTO", "udp".into()),
        ("THE_WEB_PORT_53_UDP_PORT", "53".into()),
        ("THE_WEB_PORT_53_UDP_ADDR", web.clone()),
    ]
    .map(|(name, value): (&str, String)| (name.to_owned(), value))
    .into();
    let main = environment(&space, "linked", "main").await;
    assert_eq!(beginning(&main, "THE_WEB_"), expected);
    for absent in ["HEADLESS_", "STRANGER_"] {
        assert!(beginning(&main, absent).is_empty(), "{main:?}");
    }
    // As under a kubelet: what the container says itself counts, also what it takes from a ConfigMap.
    let own = environment(&space, "linked", "own").await;
    let seen = ["THE_WEB_SERVICE_PORT", "THE_WEB_PORT", "THE_WEB_OTHER", "URL"].map(|name| own[name].as_str());
    assert_eq!(seen, ["own", "mine", "other", &format!("http://{web}:80/")]);
    // The API server is found with and without.
    let (host, port) = &space.world.upper_api;
    let unlinked = environment(&space, "unlinked", "main").await;
    assert!(beginning(&unlinked, "THE_WEB_").is_empty(), "{unlinked:?}");
    for environment in [&main, &unlinked] {
        let seen = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_PORT"];
        let expected = [host.clone(), port.clone(), format!("tcp://{host}:{port}")];
        assert_eq!(seen.map(|name| environment[name].clone()), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_joins_the_running_pod_with_the_upper_pods_environment() {
    let Some(space) = space("ephemeral").await else { return };
    space
        .apply(
            "{apiVersion: v1, kind: Service, metadata: {name: db, namespace: NAMESPACE}, spec: {ports: [{port: 5432}]}}",
        )
        .await;
    space.pod("patient", SLEEP, json!({})).await;
    space.until("patient", "is ready", is_ready).await;
    let mut debugger = container("debugger", "echo $SPACE $DB_SERVICE_PORT; exit 3");
    debugger["env"] = json!([{"name": "SPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}]);
    let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": [debugger]}}));
    space.upper::<Pod>().patch_ephemeral_containers("patient", &PatchParams::default(), &patch).await.unwrap();
    let status = |pod: &Pod| -> Value {
        let pod = serde_json::to_value(pod).unwrap();
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"].clone()
    };
    space.until("patient", "shows how the ephemeral container ended", |pod| status(pod) == 3).await;
    assert_eq!(space.run(&["logs", "patient", "-c", "debugger"]).await.ok(), "ephemeral 5432\n");
}
