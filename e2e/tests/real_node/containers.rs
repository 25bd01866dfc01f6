//! A pod's containers together: init containers, sidecars, readiness gates, resize.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tensile_e2e::{Seen, eventually};

use crate::{
    pods::{condition, describe, is_ready, is_true, phase, runs, terminated},
    world::{SLEEP, SOON, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_run_in_order_and_a_sidecar_runs_beside_until_the_pod_is_done() {
    let Some(space) = space("init").await else { return };
    let container = |name: &str, script: &str| {
        let mut container = crate::world::container(name, script);
        container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        container
    };
    let mut sidecar = container("sidecar", &format!("echo sidecar >>/data/order; {SLEEP}"));
    sidecar["restartPolicy"] = "Always".into();
    sidecar["startupProbe"] = json!({"exec": {"command": ["grep", "sidecar", "/data/order"]}, "periodSeconds": 1});
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [container("first", "echo first >>/data/order"), sidecar, container("last", "echo last >>/data/order")],
        "containers": [container("main", "echo main >>/data/order; while [ ! -e /data/go ]; do sleep 0.1; done")],
        "volumes": [{"name": "data", "emptyDir": {}}],
    });
    space.pod("ordered", "", spec).await;
    let pod = space.until("ordered", "is ready", is_ready).await;
    assert_eq!(space.inside("ordered", "cat /data/order").await, "first\nsidecar\nlast\nmain\n");
    assert!(runs(&pod, "sidecar") && is_true(&pod, "Initialized"), "{}", describe(&pod));
    for done in ["first", "last"] {
        assert_eq!(terminated(&pod, done).map(|ended| ended.exit_code), Some(0), "{}", describe(&pod));
    }
    let log = space.run(&["logs", "ordered", "-c", "sidecar"]).await;
    assert_eq!(log.code, Some(0), "{log:?}");
    space.inside("ordered", "touch /data/go").await;
    // A sidecar does not keep a pod from being done.
    space.until("ordered", "has succeeded", |pod| phase(pod) == "Succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readiness_gate_set_above_makes_the_pod_ready_in_both_clusters() {
    let Some(space) = space("gates").await else { return };
    space.pod("gated", SLEEP, json!({"readinessGates": [{"conditionType": "tensile.test/gate"}]})).await;
    let held =
        |pod: &Pod| is_true(pod, "ContainersReady") && condition(pod, "Ready").is_some_and(|c| c.status == "False");
    let pod = space.until("gated", "waits for its gate", held).await;
    assert_eq!(condition(&pod, "Ready").unwrap().reason.as_deref(), Some("ReadinessGatesNotReady"));
    for wanted in ["True", "False"] {
        let gate = json!({"status": {"conditions": [{"type": "tensile.test/gate", "status": wanted}]}});
        space.upper::<Pod>().patch_status("gated", &PatchParams::default(), &Patch::Strategic(gate)).await.unwrap();
        eventually(&format!("the pod's Ready is {wanted} in both clusters, as its gate"), SOON, || async {
            let above = space.upper::<Pod>().get("gated").await?;
            let below = space.lower::<Pod>().get("gated").await?;
            let follows = |pod: &Pod, kind: &str| condition(pod, kind).is_some_and(|c| c.status == wanted);
            let all = follows(&above, "Ready")
                && follows(&below, "Ready")
                && follows(&above, "tensile.test/gate")
                && follows(&below, "tensile.test/gate");
            Ok(Seen::when(all, format!("above {}\nbelow {}", describe(&above), describe(&below))))
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_of_cpu_reaches_the_running_container() {
    let Some(space) = space("resize").await else { return };
    let mut main = crate::world::container("main", SLEEP);
    main["resources"] = json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}});
    space.pod("grows", "", json!({"containers": [main]})).await;
    space.until("grows", "is ready", is_ready).await;
    let undisturbed = space.undisturbed().await;
    let bigger = json!({"requests": {"cpu": "60m"}, "limits": {"cpu": "200m"}});
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": bigger}]}});
    space.upper::<Pod>().patch_resize("grows", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    let actual = |pod: &Pod| -> Value {
        let pod = serde_json::to_value(pod).unwrap();
        pod["status"]["containerStatuses"][0]["resources"].clone()
    };
    let pod = space.until("grows", "has its new size", |pod| actual(pod)["limits"]["cpu"] == "200m").await;
    assert_eq!(actual(&pod), bigger);
    assert_eq!(crate::pods::restarts(&pod, "main"), 0);
    // 200m of a period of 100 ms; cgroup v1 or v2.
    let quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
    space.until_inside(&undisturbed, "grows", quota, "20000\n").await;
}
