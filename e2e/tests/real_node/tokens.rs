//! In-cluster configuration: a container finds the upper cluster, under its pod's own identity.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use crate::{
    pods::is_ready,
    world::{SLEEP, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn in_cluster_configuration_leads_to_the_upper_cluster_as_the_pods_own_account() {
    let Some(space) = space("tokens").await else { return };
    let pod = space.pod("client", SLEEP, json!({})).await;
    space.until("client", "is ready", is_ready).await;
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(space.inside("client", &format!("cat {folder}/namespace")).await, "tokens");
    let ca = space.inside("client", &format!("cat {folder}/ca.crt")).await;
    assert_eq!(ca.trim(), space.world.upper.ca_pem().trim());
    let token = space.inside("client", &format!("cat {folder}/token")).await;
    let address = space.inside("client", "echo $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT").await;
    let (host, port) = &space.world.upper_api;
    assert_eq!(address.trim(), format!("{host} {port}"));

    // Just what a client library in the container does with these.
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {
            "server": format!("https://{host}:{port}"), "certificate-authority-data": STANDARD.encode(&ca),
        }}],
        "users": [{"name": "x", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let api: Api<SelfSubjectReview> = Api::all(Client::try_from(config).unwrap());
    let myself = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    let user = myself.status.unwrap().user_info.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:tokens:default"));
    let extra = user.extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["client"]);
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [pod.metadata.uid.unwrap()], "bound to the upper pod");

    // busybox's own TLS is too old for an API server; that the way there is open it can say.
    let open = "nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo open";
    assert_eq!(space.inside("client", open).await, "open\n");

    space.pod("without", SLEEP, json!({"automountServiceAccountToken": false})).await;
    space.until("without", "is ready", is_ready).await;
    assert_eq!(space.inside("without", &format!("ls {folder} 2>&1 || echo none")).await.lines().last(), Some("none"));
}
