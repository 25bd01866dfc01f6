//! How pods end when they are deleted.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::{
    pods::{describe, is_ready},
    world::{SLEEP, Space, space},
};

async fn below(space: &Space, pod: &str) -> Option<Pod> {
    space.lower::<Pod>().get_opt(pod).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_waits_for_the_pre_stop_hook() {
    let Some(space) = space("pre-stop").await else { return };
    let mut main = crate::world::container("main", SLEEP);
    main["lifecycle"] = json!({"preStop": {"exec": {
        "command": ["sh", "-c", "touch /tmp/stopping; while [ ! -e /tmp/go ]; do sleep 0.1; done"],
    }}});
    space.pod("polite", "", json!({"containers": [main], "terminationGracePeriodSeconds": 100})).await;
    let pod = space.until("polite", "is ready", is_ready).await;
    let upper: Api<Pod> = space.upper();
    upper.delete("polite", &DeleteParams::default()).await.unwrap();
    let undisturbed = space.undisturbed().await;
    space.until_inside(&undisturbed, "polite", "ls /tmp/stopping", "/tmp/stopping\n").await;
    drop(undisturbed);
    let seen = upper.get("polite").await.unwrap();
    assert_eq!(seen.metadata.uid, pod.metadata.uid);
    assert!(seen.metadata.deletion_timestamp.is_some(), "{}", describe(&seen));
    let lower = below(&space, "polite").await.expect("the lower pod is there while its hook runs");
    assert_eq!(lower.metadata.deletion_grace_period_seconds, Some(100), "the pod's own grace");
    space.inside("polite", "touch /tmp/go").await;
    // Far less than its grace: the hook's end was noticed.
    space.until_gone(&upper, "polite").await;
    space.until_gone(&space.lower(), "polite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_deletion_takes_the_lower_pod_with_it() {
    let Some(space) = space("force").await else { return };
    space
        .pod("stubborn", "trap '' TERM; while :; do sleep 1; done", json!({"terminationGracePeriodSeconds": 600}))
        .await;
    space.until("stubborn", "is ready", is_ready).await;
    let ended = space.run(&["delete", "pod", "stubborn", "--force", "--grace-period=0"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(space.upper::<Pod>().get_opt("stubborn").await.unwrap().is_none());
    space.until_gone(&space.lower(), "stubborn").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shortened_grace_is_shortened_below() {
    let Some(space) = space("shortened").await else { return };
    space.pod("slow", "trap '' TERM; while :; do sleep 1; done", json!({"terminationGracePeriodSeconds": 600})).await;
    space.until("slow", "is ready", is_ready).await;
    let upper: Api<Pod> = space.upper();
    upper.delete("slow", &DeleteParams::default()).await.unwrap();
    eventually("the lower pod is being deleted with its long grace", crate::world::SOON, || async {
        let seen = space.lower::<Pod>().get("slow").await?;
        Ok(Seen::when(seen.metadata.deletion_grace_period_seconds == Some(600), describe(&seen)))
    })
    .await
    .unwrap();
    upper.delete("slow", &DeleteParams::default().grace_period(1)).await.unwrap();
    // What the kubelet makes of it is its own affair: with containerd 1.6 it goes on with the first grace.
    eventually("the lower pod's grace is as short", crate::world::SOON, || async {
        let seen = space.lower::<Pod>().get("slow").await?;
        Ok(Seen::when(seen.metadata.deletion_grace_period_seconds == Some(1), describe(&seen)))
    })
    .await
    .unwrap();
    let above = upper.get("slow").await.expect("an upper pod stays as long as its containers may run");
    assert!(above.metadata.deletion_timestamp.is_some());
    upper.delete("slow", &DeleteParams::default().grace_period(0)).await.unwrap();
    space.until_gone(&space.lower(), "slow").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statefulsets_pod_is_run_again_under_its_name() {
    let Some(space) = space("stateful").await else { return };
    space
        .apply(
            "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: NAMESPACE}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers:
      - name: main
        image: IMAGE
        imagePullPolicy: Never
        command: [sh, -c, 'echo I am $THE_UID; SLEEP']
        env: [{name: THE_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]
",
        )
        .await;
    let upper: Api<Pod> = space.upper();
    eventually("the first pod is there", crate::world::SOON, || async {
        Ok(Seen::when(upper.get_opt("db-0").await?.is_some(), "none"))
    })
    .await
    .unwrap();
    let first = space.until("db-0", "is ready", is_ready).await;
    let lower_first = below(&space, "db-0").await.unwrap();
    upper.delete("db-0", &DeleteParams::default()).await.unwrap();
    let second = space.until("db-0", "is a new one and ready", |pod| is_ready(pod) && pod.uid() != first.uid()).await;
    let lower_second = below(&space, "db-0").await.unwrap();
    assert_ne!(lower_second.uid(), lower_first.uid());
    let log = space.run(&["logs", "db-0"]).await.ok();
    assert_eq!(log, format!("I am {}\n", second.uid().unwrap()));
}
