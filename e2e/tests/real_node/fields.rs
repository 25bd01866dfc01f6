//! Fields of a pod that pass to the lower cluster as they are, seen from inside the running container.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use k8s_openapi::api::{
    core::v1::{Pod, Secret},
    node::v1::RuntimeClass,
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tensile_e2e::{SHELL_IMAGE, Seen, eventually};

use crate::{
    pods::{is_ready, waiting},
    world::{NODE, SLEEP, SOON, container, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn names_hosts_and_resolver_are_those_that_the_pod_asks_for() {
    let Some(space) = space("names").await else { return };
    let spec = json!({
        "containers": [container("main", SLEEP), container("other", &format!(": the other one; {SLEEP}"))],
        "hostname": "me",
        "subdomain": "mine",
        "setHostnameAsFQDN": true,
        "shareProcessNamespace": true,
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["seven", "sept"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["example.test"], "options": [{"name": "ndots", "value": "3"}]},
    });
    space.pod("named", "", spec).await;
    let pod = space.until("named", "is ready", is_ready).await;
    let ip = pod.status.unwrap().pod_ip.unwrap();
    assert_eq!(space.inside("named", "hostname").await, "me.mine.names.svc.cluster.local\n");
    let hosts = space.inside("named", "cat /etc/hosts").await;
    for line in ["192.0.2.7\tseven\tsept".to_owned(), format!("{ip}\tme.mine.names.svc.cluster.local\tme")] {
        assert!(hosts.lines().any(|each| each == line), "{line:?} in {hosts}");
    }
    let resolver = space.inside("named", "cat /etc/resolv.conf").await;
    for line in ["nameserver 192.0.2.53", "search example.test", "options ndots:3"] {
        assert!(resolver.lines().any(|each| each == line), "{line:?} in {resolver}");
    }
    assert!(space.inside("named", "ps").await.contains(": the other one"), "one process namespace");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_security_context_holds() {
    let Some(space) = space("security").await else { return };
    let mut main = container("main", SLEEP);
    main["securityContext"] = json!({
        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
    });
    main["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let spec = json!({
        "containers": [main],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [4000],
            "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
    });
    space.pod("confined", "", spec).await;
    space.until("confined", "is ready", is_ready).await;
    let seen = space.inside("confined", "id -u; id -g; id -G; touch /data/file && stat -c %g /data/file").await;
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["1000", "3000", "3000 2000 4000", "2000"]);
    let status = space.inside("confined", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status").await;
    let words: Vec<&str> = status.split_ascii_whitespace().collect();
    assert_eq!(words, ["CapEff:", "0000000000000000", "NoNewPrivs:", "1", "Seccomp:", "2"]);
    assert_eq!(space.inside("confined", "touch /file 2>/dev/null || echo read-only").await, "read-only\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_resources_have_the_form_and_size_that_the_pod_gives_them() {
    let Some(space) = space("sizes").await else { return };
    let mut main = container("main", SLEEP);
    main["env"] = json!([
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
    ]);
    main["resources"] = json!({"requests": {"cpu": "20m"}});
    main["volumeMounts"] = json!([
        {"name": "memory", "mountPath": "/memory"},
        {"name": "disk", "mountPath": "/mine", "subPathExpr": "of-$(POD)"},
        {"name": "disk", "mountPath": "/all"},
        {"name": "info", "mountPath": "/info"},
    ]);
    let spec = json!({
        "containers": [main],
        "resources": {"requests": {"cpu": "30m", "memory": "32Mi"}, "limits": {"cpu": "300m", "memory": "64Mi"}},
        "volumes": [
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "3Mi"}},
            {"name": "disk", "emptyDir": {"sizeLimit": "10Mi"}},
            {"name": "info", "downwardAPI": {"defaultMode": 256, "items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "requests.cpu", "divisor": "1m"}},
            ]}},
        ],
    });
    space.pod("sized", "", spec.clone()).await;
    space.until("sized", "is ready", is_ready).await;
    let memory = space.inside("sized", "df -k /memory | tail -1").await;
    let words: Vec<&str> = memory.split_ascii_whitespace().collect();
    assert_eq!((words[0], words[1]), ("tmpfs", "3072"), "{memory}");
    assert_eq!(space.inside("sized", "touch /mine/file; ls /all; echo $CPU").await, "of-sized\n20\n");
    let info = space.inside("sized", "cd /info; cat namespace; echo; cat cpu; echo; stat -L -c %a cpu").await;
    assert_eq!(info, "sizes\n20\n400\n");
    let below = serde_json::to_value(space.lower::<Pod>().get("sized").await.unwrap()).unwrap();
    assert_eq!(below["spec"]["resources"], spec["resources"], "resources of the pod as a whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_fixed_node_and_a_host_port_is_reached_at_the_lower_node() {
    let Some(space) = space("host-port").await else { return };
    let mut main = container("main", "exec nc -ll -p 7000 -e cat");
    main["ports"] = json!([{"containerPort": 7000, "hostPort": 27000}]);
    space.pod("bound", "", json!({"containers": [main], "nodeName": NODE})).await;
    let pod = space.until("bound", "is ready", is_ready).await;
    assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some(NODE));
    let node = space.lower::<Pod>().get("bound").await.unwrap().status.unwrap().host_ip.unwrap();
    eventually("the port answers at the lower node's address", SOON, || async {
        let answer = tokio::task::spawn_blocking({
            let node = node.clone();
            move || -> std::io::Result<Vec<u8>> {
                let mut stream = TcpStream::connect((node.as_str(), 27000))?;
                stream.set_read_timeout(Some(SOON))?;
                stream.write_all(b"hello")?;
                let mut echoed = vec![0; 5];
                stream.read_exact(&mut echoed)?;
                Ok(echoed)
            }
        })
        .await?;
        Ok(Seen::when(answer.as_ref().is_ok_and(|echoed| echoed == b"hello"), answer))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_class_is_taken_by_name_and_what_it_costs_is_the_lower_clusters_affair() {
    let Some(space) = space("runtime").await else { return };
    let class = |cpu: &str| -> RuntimeClass {
        let class = json!({"metadata": {"name": "tensile-test-runc"}, "handler": "runc", "overhead": {"podFixed": {"cpu": cpu}}});
        serde_json::from_value(class).unwrap()
    };
    for (cluster, cpu) in [(&space.world.upper, "10m"), (&space.world.lower, "20m")] {
        Api::all(cluster.client()).create(&PostParams::default(), &class(cpu)).await.unwrap();
    }
    space.pod("classed", SLEEP, json!({"runtimeClassName": "tensile-test-runc"})).await;
    space.until("classed", "is ready", is_ready).await;
    let overhead = |pod: Pod| pod.spec.unwrap().overhead.unwrap()["cpu"].0.clone();
    assert_eq!(overhead(space.upper::<Pod>().get("classed").await.unwrap()), "10m");
    assert_eq!(overhead(space.lower::<Pod>().get("classed").await.unwrap()), "20m");
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_secrets_come_along_and_an_image_that_may_not_be_pulled_is_told() {
    let Some(space) = space("images").await else { return };
    let login: Secret = serde_json::from_value(json!({
        "metadata": {"name": "login"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": "{\"auths\":{\"registry.test\":{\"auth\":\"dTpw\"}}}"},
    }))
    .unwrap();
    space.upper::<Secret>().create(&PostParams::default(), &login).await.unwrap();
    let mut absent = container("absent", SLEEP);
    absent["image"] = "registry.test/nowhere:1".into();
    let spec = json!({
        "containers": [{"name": "main", "image": SHELL_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", SLEEP]}, absent],
        // A kubelet warns of one that is not there, and pulls without it.
        "imagePullSecrets": [{"name": "login"}, {"name": "missing"}],
    });
    space.pod("pulled", "", spec.clone()).await;
    let pod = space.until("pulled", "says why", |pod| waiting(pod, "absent") == Some("ErrImageNeverPull")).await;
    let below = serde_json::to_value(space.lower::<Pod>().get("pulled").await.unwrap()).unwrap();
    assert_eq!(below["spec"]["imagePullSecrets"], spec["imagePullSecrets"]);
    let copy = space.lower::<Secret>().get("login").await.unwrap();
    assert_eq!(copy.type_, login.type_);
    assert!(copy.data.unwrap()[".dockerconfigjson"].0.starts_with(b"{\"auths\""));
    let message = space.until_event("pulled", "ErrImageNeverPull").await;
    assert!(message.contains("registry.test/nowhere:1"), "{message}");
    let policies: Value = serde_json::to_value(&pod.spec.unwrap().containers).unwrap();
    assert_eq!(policies[0]["imagePullPolicy"], below["spec"]["containers"][0]["imagePullPolicy"]);
}
