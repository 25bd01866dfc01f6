//! Who is let in, and what else is served.

use http::Request;
use http_body_util::BodyExt;
use kube::{Client, Config, client::Body};
use prometheus_client::registry::Registry;
use serde_json::json;
use tensile_chassis::kube_client::{build_streaming, load_config};
use tensile_e2e::{Seen, eventually};
use tokio_util::sync::CancellationToken;

use crate::{
    command::{SOON, run},
    world::{SPDY_NODE, World, server, world},
};

/// A client of the kubelet server itself, with the credentials of a kubeconfig or none.
pub async fn direct(world: &World, port: u16, kubeconfig: Option<&std::path::Path>) -> Client {
    let url = format!("https://{}", std::net::SocketAddr::new(world.address, port));
    let mut config = Config::new(url.parse().unwrap());
    if let Some(path) = kubeconfig {
        config.auth_info = load_config(Some(path), None).await.unwrap().auth_info;
    }
    config.accept_invalid_certs = true;
    // This one does not try again by itself.
    build_streaming(config, "tensile-e2e").unwrap()
}

pub async fn get(client: &Client, path: &str) -> (u16, String) {
    let response = client.send(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

const LOGS: &str = "/containerLogs/shop/talk/side";

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_401_whatever_they_ask_for() {
    let Some(world) = world() else { return };
    // A certificate of another cluster's authority with a name that would open every door, and a token of the wrong cluster.
    let foreign = world.lower.user_kubeconfig("kube-apiserver-kubelet-client", &["system:masters"]).unwrap();
    let token = world.lower.service_account_kubeconfig("tensile-system", "virtual-node").await.unwrap();
    for kubeconfig in [None, Some(foreign.as_path()), Some(token.as_path())] {
        let client = direct(world, world.port, kubeconfig).await;
        for path in [LOGS, "/exec/shop/shell/main?command=sh&output=1", "/healthz", "/pods", "/no/such/path"] {
            assert_eq!(get(&client, path).await, (401, "Unauthorized\n".to_owned()), "{kubeconfig:?} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_without_rights_get_403_in_a_kubelets_words() {
    let Some(world) = world() else { return };
    let nobody = world.upper.user_kubeconfig("nobody", &["guests"]).unwrap();
    let client = direct(world, world.port, Some(&nobody)).await;
    assert_eq!(
        get(&client, LOGS).await,
        (403, "Forbidden (user=nobody, verb=get, resource=nodes, subresource(s)=[proxy])\n".to_owned())
    );
    assert_eq!(
        get(&client, "/healthz").await,
        (403, "Forbidden (user=nobody, verb=get, resource=nodes, subresource(s)=[healthz proxy])\n".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_open_what_they_name_by_certificate_and_by_token() {
    let Some(world) = world() else { return };
    world
        .upper
        .apply_yaml(&format!(
            "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: prober, namespace: default}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: probe}}
rules: [{{apiGroups: [''], resources: [nodes/healthz], resourceNames: [{SPDY_NODE}], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: probe}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: probe}}
subjects: [{{kind: ServiceAccount, name: prober, namespace: default}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: reader}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:kubelet-api-admin'}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: Group, name: node-readers}}]
"
        ))
        .await
        .unwrap();
    let token = world.upper.service_account_kubeconfig("default", "prober").await.unwrap();
    // RBAC reaches the API server's own cache a moment later; a denial is remembered for 30 s.
    eventually("the right to probe is known", SOON, || async {
        let client = direct(world, world.port, Some(&token)).await;
        let answer = get(&client, "/healthz").await;
        Ok(Seen::when(answer == (200, "ok".to_owned()), answer))
    })
    .await
    .unwrap();
    let prober = direct(world, world.port, Some(&token)).await;
    assert_eq!(get(&prober, "/pods").await.0, 403);
    assert_eq!(get(&prober, LOGS).await.0, 403);
    let certificate = world.upper.user_kubeconfig("ann", &["node-readers"]).unwrap();
    let reader = direct(world, world.port, Some(&certificate)).await;
    eventually("the right to read is known", SOON, || async {
        let answer = get(&reader, LOGS).await;
        Ok(Seen::when(answer == (200, "from the side\n".to_owned()), answer))
    })
    .await
    .unwrap();
    // Not an upgrade, not a method, not served, not there.
    assert_eq!(get(&reader, "/exec/shop/shell/main?command=sh&output=1").await.0, 400);
    assert_eq!(get(&reader, "/run/shop/shell/main").await.0, 404);
    assert_eq!(get(&reader, "/no/such/path").await.0, 404);
    assert_eq!(get(&reader, "/containerLogs/shop/talk/absent").await.0, 400);
    let post = Request::post(LOGS).body(Body::empty()).unwrap();
    assert_eq!(reader.send(post).await.unwrap().status(), 405);
}

#[test]
fn the_upper_api_server_is_let_in_and_lists_the_nodes_pods() {
    let Some(world) = world() else { return };
    let raw = |path: &str| {
        let path = format!("/api/v1/nodes/{SPDY_NODE}/proxy{path}");
        run(&mut world.kubectl(&["get", "--raw", &path]), b"").ok()
    };
    assert_eq!(raw("/healthz"), "ok");
    assert_eq!(raw("/healthz/ping"), "ok");
    assert!(raw("/healthz?verbose").ends_with("healthz check passed\n"));
    let pods: serde_json::Value = serde_json::from_str(&raw("/pods")).unwrap();
    assert_eq!((&pods["apiVersion"], &pods["kind"]), (&json!("v1"), &json!("PodList")));
    let mut names: Vec<&str> =
        pods["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["count", "crash", "echo", "gone", "late", "mute", "reader", "shell", "talk"]);
    // Whole, and as the upper cluster knows them: nothing of the lower cluster shows.
    let talk = pods["items"].as_array().unwrap().iter().find(|pod| pod["metadata"]["name"] == "talk").unwrap();
    let upper = run(&mut world.kubectl(&["get", "pod", "talk", "-o", "json"]), b"").ok();
    let upper: serde_json::Value = serde_json::from_str(&upper).unwrap();
    for part in ["spec", "status"] {
        assert_eq!(talk[part], upper[part]);
    }
    assert_eq!(talk["metadata"]["uid"], upper["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_open_streams_then_cuts_them_and_a_full_server_says_so() {
    let Some(world) = world() else { return };
    let mut registry = Registry::default();
    let server = server(
        &world.upper,
        &world.lower,
        &["--kubelet-streams-max", "1", "--kubelet-drain-seconds", "1"],
        &mut registry,
    )
    .await;
    let admin = world.upper.user_kubeconfig("admin-of-nodes", &["system:masters"]).unwrap();
    let client = direct(world, server.port(), Some(&admin)).await;
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    eventually("the server knows the authority", SOON, || async {
        let answer = get(&client, "/healthz").await;
        Ok(Seen::when(answer.0 == 200, answer))
    })
    .await
    .unwrap();
    let follow = Request::get("/containerLogs/shop/talk/side?follow=true").body(Body::empty()).unwrap();
    let mut log = client.send(follow).await.unwrap().into_body();
    let first = log.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"from the side\n");
    let (code, text) = get(&client, LOGS).await;
    assert_eq!(code, 429, "{text}");
    assert!(text.contains("--kubelet-streams-max"), "{text}");
    let stopped = std::time::Instant::now();
    shutdown.cancel();
    // Cut in the middle: an error, so that a reader does not take it for the end of the log.
    log.frame().await.unwrap().unwrap_err();
    running.await.unwrap();
    assert!(stopped.elapsed().as_secs_f64() >= 0.9, "{:?}", stopped.elapsed());
    client.send(Request::get("/healthz").body(Body::empty()).unwrap()).await.unwrap_err();
}
