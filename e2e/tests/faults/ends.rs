//! Pods that end: by themselves, by force, by eviction below.

use std::sync::Mutex;

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, EvictParams, ListParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::{
    space::{Space, describe, is_ready, phase},
    subject::{Subject, each},
    world::SOON,
};

/// What a Job's pod passes. (Above it is gone at once when it is deleted, for it has ended.)
pub const JOB: &[&str] = &["pod-create", "upper-status", "upper-result", "pod-release", "pod-delete"];

/// What a pod that is deleted by force passes after it is gone above.
pub const FORCED: &[&str] = &["pod-delete", "token-secret-delete"];

/// What a pod that the lower cluster evicts passes.
pub const EVICTED: &[&str] = &["upper-result"];

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_once_whichever_of_its_pods_steps_is_the_last_of_a_process() {
    let subject = Subject::start("job").await;
    for faults in each(JOB) {
        let space = subject.namespace().await;
        let uid = Mutex::new(None);
        let scene = async {
            let template = json!({
                "metadata": {"annotations": {"tensile.test/run-for": "200ms"}},
                "spec": space.spec(json!({"restartPolicy": "Never"})),
            });
            let job = json!({"apiVersion": "batch/v1", "kind": "Job",
                "metadata": {"name": "once", "namespace": space.name}, "spec": {"backoffLimit": 0, "template": template}});
            subject.world.upper.apply_yaml(&job.to_string()).await.unwrap();
            *uid.lock().unwrap() = Some(until_succeeded(&space).await);
            until_released(&space).await;
            space.upper::<Job>().delete("once", &DeleteParams::background()).await.unwrap();
            space.until_gone().await;
        };
        let end = async {
            space.until_gone().await;
            space.until_empty_below().await;
            let uid = uid.lock().unwrap().clone().unwrap();
            subject.world.twins.assert_one_each(&[uid]).await;
        };
        subject.live_through(&faults, scene, end).await;
    }
    subject.leaves_nothing().await;
}

/// Waits until the Job counts one success, of its only pod, and answers that pod's UID.
async fn until_succeeded(space: &Space) -> String {
    eventually(&format!("the Job of {} is complete", space.name), SOON, || async {
        let status = space.upper::<Job>().get("once").await?.status.unwrap_or_default();
        Ok(Seen::when(status.succeeded == Some(1) && status.completion_time.is_some(), status))
    })
    .await
    .unwrap();
    let job = space.upper::<Job>().get("once").await.unwrap().status.unwrap();
    assert_eq!((job.succeeded, job.failed.unwrap_or_default()), (Some(1), 0));
    let pods = space.upper::<Pod>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(pods.len(), 1, "a pod ran again: {:?}", pods.iter().map(describe).collect::<Vec<_>>());
    pods[0].uid().unwrap()
}

/// Waits until the lower pod's result is known above and holds it no more.
async fn until_released(space: &Space) {
    eventually(&format!("the lower pod of {} is released", space.name), SOON, || async {
        let pods = space.lower::<Pod>().list(&ListParams::default()).await?.items;
        let held = pods.iter().any(|pod| !pod.finalizers().is_empty());
        Ok(Seen::when(!held, pods.iter().map(describe).collect::<Vec<_>>()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_by_force_leaves_nothing_below_when_the_process_dies_over_it() {
    let subject = Subject::start("forced").await;
    for faults in each(FORCED) {
        let space = subject.namespace().await;
        space.config("one").await;
        let uid = space.pod(Space::with_config()).await;
        space.until("pod", "is ready", is_ready).await;
        let scene = async {
            space.delete("pod", true).await;
            space.until_gone().await;
        };
        let killed = faults[0].starts_with("kill");
        let end = async {
            space.until_empty_below().await;
            // The next process finds copies that only a dying lower pod still uses, and takes them away after it. (One that
            // lives on keeps them for half a minute.)
            if killed {
                space.until_nothing_below().await;
            }
        };
        subject.live_through(&faults, scene, end).await;
        subject.world.twins.assert_one_each(&[uid]).await;
    }
    subject.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_evicted_below_fails_with_the_reason_also_when_the_process_dies_over_it() {
    let subject = Subject::start("evicted").await;
    for faults in each(EVICTED) {
        let space = subject.namespace().await;
        // The pod takes its time to end, so that what is about to happen to it is told above before it is gone.
        let slow = json!({"tensile.test/terminate-after": "1s"});
        let uid = space.pod_with(slow, json!({})).await;
        space.until("pod", "is ready", is_ready).await;
        let scene = async {
            space.lower::<Pod>().evict("pod", &EvictParams::default()).await.unwrap();
        };
        let end = async {
            let failed = space.until("pod", "has failed", |pod| phase(pod) == "Failed").await;
            assert_eq!(failed.uid().as_ref(), Some(&uid));
            let reason = failed.status.as_ref().and_then(|status| status.reason.as_deref());
            assert_eq!(reason, Some("EvictionByEvictionAPI"), "{}", describe(&failed));
            assert_eq!(failed.metadata.deletion_timestamp, None, "{}", describe(&failed));
            space.until_empty_below().await;
        };
        subject.live_through(&faults, scene, end).await;
        subject.world.twins.assert_one_each(&[uid]).await;
    }
    subject.leaves_nothing().await;
}
