//! The last delete of a pod, cut between the two writes that an API server makes of it.
//!
//! An API server first writes that the pod's grace is 0 and then removes the pod, and a client that goes away between the
//! two leaves a pod that nobody else removes (K staging/src/k8s.io/apiserver/pkg/registry/generic/registry/store.go). It
//! asks admission before each of the two, so a webhook can hold the second one for as long as it takes to kill the client.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::{
    space::{describe, is_ready},
    subject::Subject,
    webhook::Webhook,
    world::SOON,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_last_delete_that_was_cut_between_its_two_writes_is_made_up_for() {
    let subject = Subject::start("cut").await;
    let space = subject.namespace().await;
    let held = Arc::new(Webhook::holding_the_second("system:node:cut").await);
    let labels = Patch::Merge(json!({"metadata": {"labels": {"tensile.test/webhook": "on"}}}));
    let namespaces: Api<Namespace> = Api::all(subject.world.upper.client());
    namespaces.patch(&space.name, &PatchParams::default(), &labels).await.unwrap();
    subject.world.upper.apply_yaml(&held.configuration().to_string()).await.unwrap();
    space.pod(json!({})).await;
    space.until("pod", "is ready", is_ready).await;

    space.delete("pod", false).await;
    tokio::time::timeout(SOON, held.asked_twice()).await.expect("the virtual-node sends the pod's last delete");
    subject.kill9();
    tokio::time::timeout(SOON, held.hung_up()).await.expect("the API server gives the request up");
    eventually("the pod is left half deleted", SOON, || async {
        let pod = space.upper::<Pod>().get("pod").await?;
        Ok(Seen::when(pod.metadata.deletion_grace_period_seconds == Some(0), describe(&pod)))
    })
    .await
    .unwrap();

    subject.revived().await;
    space.until_gone().await;
    space.until_empty_below().await;
    assert!(held.calls() >= 3, "nobody deleted it once more");
}

/// A webhook that hangs is given up by the API server after this time, whatever its client does.
pub const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(30);
