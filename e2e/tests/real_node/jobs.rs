//! Jobs: results come up, and nothing runs twice.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt, api::ListParams};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::{
    command::run,
    pods::{describe, phase, runs, terminated},
    world::{SOON, Space, space},
};

/// A Job whose pods run a script.
async fn job(space: &Space, name: &str, script: &str, spec: serde_json::Value) {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": space.name},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never",
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
            "containers": [crate::world::container("main", script)],
        }}},
    });
    json_patch::merge(&mut job["spec"], &spec);
    space.world.upper.apply_yaml(&job.to_string()).await.unwrap();
}

/// Waits until a Job has this condition, and gives its pods.
async fn until_job(space: &Space, name: &str, kind: &str) -> Vec<Pod> {
    eventually(&format!("Job {name} is {kind}"), SOON, || async {
        let status = space.upper::<Job>().get(name).await?.status.unwrap_or_default();
        let holds = status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
        Ok(Seen::when(holds, status))
    })
    .await
    .unwrap();
    let selector = ListParams::default().labels(&format!("job-name={name}"));
    space.upper::<Pod>().list(&selector).await.unwrap().items
}

/// How many pods were created in the lower cluster in this namespace, ever.
fn created_below(space: &Space) -> usize {
    let entries = space.world.lower.audit_log("system:serviceaccount:tensile-system:virtual-node").unwrap();
    entries
        .iter()
        .filter(|e| e.verb == "create" && e.resource == "pods" && e.subresource.is_empty())
        .filter(|e| e.namespace == space.name && e.code == 201)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_with_its_pods_exit_codes_and_termination_messages() {
    let Some(space) = space("jobs").await else { return };
    job(&space, "sums", "echo -n forty-two >/dev/termination-log", json!({"completions": 3, "parallelism": 2})).await;
    job(&space, "broken", "echo -n no luck >/dev/termination-log; exit 3", json!({"backoffLimit": 0})).await;
    let pods = until_job(&space, "sums", "Complete").await;
    assert_eq!(pods.len(), 3, "{:?}", pods.iter().map(describe).collect::<Vec<_>>());
    for pod in &pods {
        assert_eq!(phase(pod), "Succeeded");
        let ended = terminated(pod, "main").unwrap();
        assert_eq!((ended.exit_code, ended.message.as_deref()), (0, Some("forty-two")), "{}", describe(pod));
        assert!(ended.started_at.is_some() && ended.finished_at.is_some());
        assert_eq!(pod.finalizers(), &[] as &[String], "the Job controller has counted it");
    }
    let pods = until_job(&space, "broken", "Failed").await;
    assert_eq!(pods.len(), 1);
    let ended = terminated(&pods[0], "main").unwrap();
    assert_eq!((phase(&pods[0]), ended.exit_code), ("Failed", 3));
    assert_eq!((ended.reason.as_deref(), ended.message.as_deref()), (Some("Error"), Some("no luck")));
    assert_eq!(created_below(&space), 4, "each ran once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_not_run_again_after_the_virtual_node_was_killed() {
    let Some(space) = space("jobs-kill").await else { return };
    job(&space, "before", "true", json!({"backoffLimit": 0})).await;
    job(&space, "during", "while [ ! -e /tmp/go ]; do sleep 0.1; done", json!({"backoffLimit": 0})).await;
    let finished = until_job(&space, "before", "Complete").await;
    let selector = ListParams::default().labels("job-name=during");
    let running = eventually("the second Job's container runs", SOON, || async {
        let listed = space.upper::<Pod>().list(&selector).await?.items;
        let seen = listed.iter().map(describe).collect::<Vec<_>>().join("\n");
        Ok(listed.into_iter().find(|pod| runs(pod, "main")).map_or(Seen::NotYet(seen), Seen::Done))
    })
    .await
    .unwrap();
    {
        let _alone = space.world.undisturbed.write().await;
        space.world.node.kill9();
        // Its result comes while nobody looks.
        let mut kubectl = space.world.lower.kubectl();
        kubectl.args(["-n", &space.name, "exec", &running.name_any(), "--", "touch", "/tmp/go"]);
        run(&mut kubectl, b"").ok();
        eventually("the lower pod has succeeded", SOON, || async {
            let pod = space.lower::<Pod>().get(&running.name_any()).await?;
            Ok(Seen::when(phase(&pod) == "Succeeded", describe(&pod)))
        })
        .await
        .unwrap();
        space.world.node.restart_without_waiting().unwrap();
        // Others go on when it serves again.
        eventually("the virtual-node is back", SOON, || async {
            let logs = run(&mut space.kubectl(&["logs", &running.name_any()]), b"");
            Ok(Seen::when(logs.code == Some(0), logs))
        })
        .await
        .unwrap();
    }
    let pods = until_job(&space, "during", "Complete").await;
    let uids = |pods: &[Pod]| pods.iter().map(|pod| pod.uid().unwrap()).collect::<Vec<_>>();
    assert_eq!(uids(&pods), uids(&[running]));
    let selector = ListParams::default().labels("job-name=before");
    let before = space.upper::<Pod>().list(&selector).await.unwrap().items;
    assert_eq!(uids(&before), uids(&finished));
    assert_eq!(created_below(&space), 2, "each ran once");
}
