//! ConfigMaps, Secrets and the downward API, as a running container sees them.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    pods::is_ready,
    world::{NODE, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn configmaps_and_secrets_reach_the_container_and_an_edit_reaches_its_running_volume() {
    let Some(space) = space("config").await else { return };
    space
        .apply(
            "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: NAMESPACE}
data: {colour: red, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: NAMESPACE}
stringData: {WORD: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: NAMESPACE}
spec:
  terminationGracePeriodSeconds: 1
  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'SLEEP']
    env:
    - {name: SHAPE, valueFrom: {configMapKeyRef: {name: settings, key: shape}}}
    - {name: ABSENT, valueFrom: {configMapKeyRef: {name: nowhere, key: x, optional: true}}}
    envFrom:
    - {prefix: SECRET_, secretRef: {name: password}}
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /single/file, subPath: colour}
    - {name: password, mountPath: /password}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: password, secret: {secretName: password, defaultMode: 256, items: [{key: WORD, path: deep/word}]}}
",
        )
        .await;
    space.until("app", "is ready", is_ready).await;
    assert_eq!(
        space.inside("app", "echo $SHAPE $SECRET_WORD ${ABSENT-none}; cat /settings/colour /single/file").await,
        "round sesame none\nredred"
    );
    assert_eq!(space.inside("app", "cat /password/deep/word; stat -L -c %a /password/deep/word").await, "sesame400\n");

    let undisturbed = space.undisturbed().await;
    let blue = Patch::Merge(json!({"data": {"colour": "blue", "size": "large"}}));
    space.upper::<ConfigMap>().patch("settings", &PatchParams::default(), &blue).await.unwrap();
    let edited = "cat /settings/colour /settings/size /settings/shape";
    space.until_inside(&undisturbed, "app", edited, "bluelargeround").await;
    drop(undisturbed);
    // As on any kubelet: a subPath keeps what it was mounted with.
    assert_eq!(space.inside("app", "cat /single/file").await, "red");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_configmap_and_starts_when_it_appears() {
    let Some(space) = space("config-late").await else { return };
    let wants = json!({"containers": [{
        "name": "main", "image": tensile_e2e::SHELL_IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", crate::world::SLEEP],
        "env": [{"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "colour"}}}],
    }]});
    space.pod("waits", "", wants).await;
    let message = space.until_event("waits", "Failed").await;
    assert!(message.contains("configmap \"late\" not found"), "{message}");
    space
        .apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: late, namespace: NAMESPACE}, data: {colour: green}}")
        .await;
    space.until("waits", "is ready", is_ready).await;
    assert_eq!(space.inside("waits", "echo $COLOUR").await, "green\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_downward_api_shows_the_upper_pod_and_follows_its_labels() {
    let Some(space) = space("downward").await else { return };
    space
        .apply(
            "
apiVersion: v1
kind: Pod
metadata: {name: self, namespace: NAMESPACE, labels: {tier: one}, annotations: {note: first}}
spec:
  terminationGracePeriodSeconds: 1
  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'SLEEP']
    resources: {limits: {memory: 64Mi}}
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: SPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: THE_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['tier']\"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    volumeMounts: [{name: info, mountPath: /info}]
  volumes:
  - name: info
    projected:
      sources:
      - downwardAPI:
          items:
          - {path: name, fieldRef: {fieldPath: metadata.name}}
          - {path: namespace, fieldRef: {fieldPath: metadata.namespace}}
          - {path: uid, fieldRef: {fieldPath: metadata.uid}}
          - {path: labels, fieldRef: {fieldPath: metadata.labels}}
          - {path: tier, fieldRef: {fieldPath: \"metadata.labels['tier']\"}}
          - {path: note, fieldRef: {fieldPath: \"metadata.annotations['note']\"}}
",
        )
        .await;
    let pod = space.until("self", "is ready", is_ready).await;
    let uid = pod.metadata.uid.unwrap();
    let status = pod.status.unwrap();
    let pod_ip = status.pod_ip.unwrap();
    // Who asks for it wants to reach the machine it runs on.
    let host_ip = space.lower::<Pod>().get("self").await.unwrap().status.unwrap().host_ip.unwrap();
    assert_eq!(
        space.inside("self", "echo $POD $SPACE $THE_UID $TIER $NODE $ACCOUNT $POD_IP $HOST_IP $LIMIT").await,
        format!("self downward {uid} one {NODE} default {pod_ip} {host_ip} 67108864\n")
    );
    assert_eq!(
        space
            .inside("self", "cd /info; for f in name namespace uid tier note; do cat $f; echo; done; cat labels")
            .await,
        format!("self\ndownward\n{uid}\none\nfirst\ntier=\"one\"")
    );
    let undisturbed = space.undisturbed().await;
    let edit = Patch::Merge(json!({"metadata": {"labels": {"tier": "two"}, "annotations": {"note": "second"}}}));
    Api::<Pod>::namespaced(space.world.upper.client(), "downward")
        .patch("self", &PatchParams::default(), &edit)
        .await
        .unwrap();
    space.until_inside(&undisturbed, "self", "cd /info; cat labels tier note", "tier=\"two\"twosecond").await;
}
