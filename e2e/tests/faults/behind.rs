//! Pods that are followed by another of the same name: a StatefulSet's.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::{
    space::{Space, describe, is_ready},
    subject::{Subject, each},
    world::SOON,
};

/// What follows when somebody deletes the lower pod.
pub const DELETED_BELOW: &[&str] = &["upper-delete", "upper-result", "upper-last-delete", "pod-create"];

/// What follows when the user deletes the upper pod by force.
pub const FORCED_ABOVE: &[&str] = &["pod-delete"];

/// A StatefulSet of one pod, which is ready; answers the pod's UID.
async fn stateful_set(space: &Space) -> String {
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "set", "namespace": space.name},
        "spec": {"replicas": 1, "serviceName": "set", "selector": {"matchLabels": {"app": "set"}},
            "template": {"metadata": {"labels": {"app": "set"}}, "spec": space.spec(json!({}))}}});
    space.world.upper.apply_yaml(&set.to_string()).await.unwrap();
    successor(space, None).await
}

/// Waits until a pod of another UID is ready.
async fn successor(space: &Space, before: Option<&String>) -> String {
    eventually(&format!("another pod of {} is ready", space.name), SOON, || async {
        let pod = space.upper::<Pod>().get("set-0").await?;
        let uid = pod.uid().unwrap_or_default();
        Ok(if is_ready(&pod) && Some(&uid) != before { Seen::Done(uid) } else { Seen::NotYet(describe(&pod)) })
    })
    .await
    .unwrap()
}

async fn followed(subject: &Subject, faults: &[String], end_first: impl AsyncFn(&Space)) {
    let space = subject.namespace().await;
    let first = stateful_set(&space).await;
    let scene = async {
        end_first(&space).await;
    };
    let end = async {
        let second = successor(&space, Some(&first)).await;
        let below = space.lower::<Pod>().get("set-0").await.unwrap();
        let twins = subject.world.twins.clone();
        twins.assert_one_each(&[first.clone(), second.clone()]).await;
        assert_eq!(twins.of(&second).first(), below.uid().as_ref(), "the second's twin is the one that is there");
        let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
        space.upper::<StatefulSet>().patch("set", &PatchParams::default(), &scale).await.unwrap();
        space.until_gone().await;
        space.until_empty_below().await;
    };
    subject.live_through(faults, scene, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_pod_deleted_by_somebody_is_replaced_once_whichever_step_is_the_last_of_a_process() {
    let subject = Subject::start("behind").await;
    for faults in each(DELETED_BELOW) {
        followed(&subject, &faults, async |space| {
            space.lower::<Pod>().delete("set-0", &DeleteParams::default()).await.unwrap();
        })
        .await;
    }
    for faults in each(FORCED_ABOVE) {
        followed(&subject, &faults, async |space| space.delete("set-0", true).await).await;
    }
    subject.leaves_nothing().await;
}
