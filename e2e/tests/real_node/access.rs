//! Who is let in at the virtual node's kubelet API.

use std::path::Path;

use http::Request;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use crate::{
    pods::is_ready,
    world::{NODE, SLEEP, World, space},
};

/// A client of the kubelet API itself, at the address that the Node publishes, with a kubeconfig's credentials or none.
async fn direct(world: &World, kubeconfig: Option<&Path>) -> Client {
    let status = Api::<Node>::all(world.upper.client()).get(NODE).await.unwrap().status.unwrap();
    let address = status.addresses.unwrap().into_iter().find(|a| a.type_ == "InternalIP").unwrap().address;
    let port = status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port;
    let mut config = Config::new(format!("https://{address}:{port}").parse().unwrap());
    if let Some(path) = kubeconfig {
        let read = Kubeconfig::read_from(path).unwrap();
        let read = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
        config.auth_info = read.auth_info;
    }
    config.accept_invalid_certs = true;
    Client::try_from(config).unwrap()
}

async fn get(client: &Client, path: &str) -> (u16, String) {
    let response = client.send(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_401_those_without_rights_403_and_the_api_server_is_let_in() {
    let Some(space) = space("access").await else { return };
    space.pod("secretive", &format!("echo secret; {SLEEP}"), json!({})).await;
    space.until("secretive", "is ready", is_ready).await;
    let world = space.world;
    let _undisturbed = space.undisturbed().await;
    let logs = "/containerLogs/access/secretive/main";
    let exec = "/exec/access/secretive/main?command=id&output=1";

    let anonymous = direct(world, None).await;
    // The lower cluster's authority is none here, whatever name it vouches for.
    let foreign = world.lower.user_kubeconfig("kube-apiserver-kubelet-client", &["system:masters"]).unwrap();
    let foreign = direct(world, Some(&foreign)).await;
    let nobody = world.upper.user_kubeconfig("nobody", &["guests"]).unwrap();
    let nobody = direct(world, Some(&nobody)).await;
    // A pod's own account: authenticated by its token, and a stranger to nodes.
    let account = world.upper.service_account_kubeconfig("access", "default").await.unwrap();
    let account = direct(world, Some(&account)).await;
    for path in [logs, exec, "/pods", "/healthz"] {
        assert_eq!(get(&anonymous, path).await.0, 401, "{path}");
        assert_eq!(get(&foreign, path).await.0, 401, "{path}");
        for client in [&nobody, &account] {
            let (code, text) = get(client, path).await;
            assert_eq!(code, 403, "{path}: {text}");
            assert!(!text.contains("secret\n"), "{path}: {text}");
        }
    }
    let admin = world.upper.user_kubeconfig("an-admin", &["system:masters"]).unwrap();
    assert_eq!(get(&direct(world, Some(&admin)).await, logs).await, (200, "secret\n".to_owned()));
    let raw = |path: String| {
        let mut kubectl = space.kubectl(&["get", "--raw", &path]);
        crate::command::run(&mut kubectl, b"").ok()
    };
    assert_eq!(raw("/api/v1/namespaces/access/pods/secretive/log".to_owned()), "secret\n");
    assert_eq!(raw(format!("/api/v1/nodes/{NODE}/proxy/healthz")), "ok");
    assert!(raw(format!("/api/v1/nodes/{NODE}/proxy/pods")).contains("\"secretive\""));
}
