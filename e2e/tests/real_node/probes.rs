//! Probes of every kind: the lower kubelet makes them, and the upper pod shows what comes of them.

use serde_json::json;
use tensile_e2e::{Tool, Tools};

use crate::{
    pods::{container, describe, is_ready, is_true, restarts},
    world::{SLEEP, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_http_tcp_and_grpc_probes() {
    let Some(space) = space("readiness").await else { return };
    let probed = |name: &str, script: &str, probe: serde_json::Value| {
        let mut container = crate::world::container(name, script);
        container["readinessProbe"] = probe;
        container["readinessProbe"]["periodSeconds"] = 1.into();
        container
    };
    let mut http = probed(
        "main",
        "mkdir -p /www && exec httpd -f -p 8080 -h /www",
        json!({"httpGet": {"path": "/ready", "port": "web", "httpHeaders": [{"name": "X-Test", "value": "yes"}]}}),
    );
    http["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    let tcp = probed("tcp", "exec nc -ll -p 7000 -e cat", json!({"tcpSocket": {"port": 7000}}));
    // etcd answers the standard health service.
    let etcd = "exec /tools/etcd --data-dir=/tmp/etcd --log-level=error --listen-peer-urls=http://127.0.0.1:2380 \
                --listen-client-urls=http://0.0.0.0:2379 --advertise-client-urls=http://127.0.0.1:2379";
    let mut grpc = probed("grpc", etcd, json!({"grpc": {"port": 2379}}));
    grpc["volumeMounts"] = json!([{"name": "etcd", "mountPath": "/tools/etcd", "readOnly": true}]);
    let etcd = Tools::get(Tool::Etcd).await.unwrap();
    let volumes = json!([{"name": "etcd", "hostPath": {"path": etcd, "type": "File"}}]);
    space.pod("probed", "", json!({"containers": [http, tcp, grpc], "volumes": volumes})).await;

    let ready = |name: &'static str| move |pod: &_| container(pod, name).is_some_and(|container| container.ready);
    space.until("probed", "answers by TCP", ready("tcp")).await;
    let pod = space.until("probed", "answers by gRPC", ready("grpc")).await;
    assert!(!ready("main")(&pod) && !is_true(&pod, "ContainersReady"), "{}", describe(&pod));
    space.inside("probed", "touch /www/ready").await;
    space.until("probed", "is ready", is_ready).await;
    space.inside("probed", "rm /www/ready").await;
    let pod = space.until("probed", "is ready no more", |pod| !is_ready(pod)).await;
    assert_eq!(["main", "tcp", "grpc"].map(|name| restarts(&pod, name)), [0; 3], "{}", describe(&pod));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liveness_probe_restarts_its_container_but_not_before_the_startup_probe_has_passed() {
    let Some(space) = space("liveness").await else { return };
    let mut main = crate::world::container("main", SLEEP);
    main["startupProbe"] =
        json!({"exec": {"command": ["test", "-e", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 600});
    main["livenessProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/started"]}, "periodSeconds": 1,
        "failureThreshold": 1, "terminationGracePeriodSeconds": 1});
    // A kubelet tells few events of one pod, and else many of them would say that this cluster has no name server.
    space.pod("lives", "", json!({"containers": [main], "dnsPolicy": "Default"})).await;
    let message = space.until_event("lives", "Unhealthy").await;
    assert!(message.contains("Startup probe failed"), "{message}");
    let started = |pod: &_| container(pod, "main").is_some_and(|container| container.started == Some(true));
    let pod = space.upper().get("lives").await.unwrap();
    assert!(!started(&pod) && restarts(&pod, "main") == 0, "{}", describe(&pod));
    space.inside("lives", "touch /tmp/started").await;
    space.until("lives", "has started", |pod| started(pod) && is_ready(pod)).await;
    space.inside("lives", "rm /tmp/started").await;
    let pod = space.until("lives", "was restarted", |pod| restarts(pod, "main") > 0).await;
    let last = container(&pod, "main").unwrap().last_state.clone().unwrap().terminated;
    assert!(last.is_some(), "{}", describe(&pod));
}
