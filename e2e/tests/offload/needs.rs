//! What pods refer to: ConfigMaps and Secrets appear below, follow changes, and go with the last pod.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::world::{SOON, condition, is_ready, world};

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"key": value}})).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn config_and_secrets_come_along_and_go_with_the_last_pod() {
    let world = world().await;
    let space = world.namespace("needs").await;
    space.upper::<ConfigMap>().create(&PostParams::default(), &config_map("settings", "one")).await.unwrap();
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "login"}, "stringData": {"password": "x"}})).unwrap();
    space.upper::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    let change = json!({
        "nodeSelector": {"tensile.dev/cluster": "vn-a"},
        "containers": [{"name": "main", "image": "example.test/app:1",
            "env": [{"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}}]}],
        "volumes": [{"name": "login", "projected": {"sources": [{"secret": {"name": "login"}}]}}],
    });
    space.pod("user", change).await;
    space.until("user", "is ready", is_ready).await;
    let below = space.lower::<ConfigMap>(&world.a);
    assert_eq!(below.get("settings").await.unwrap().data.unwrap()["key"], "one");
    assert_eq!(space.lower::<Secret>(&world.a).get("login").await.unwrap().data.unwrap()["password"].0, b"x");
    assert!(space.lower::<ConfigMap>(&world.b).get_opt("settings").await.unwrap().is_none(), "only where it is needed");

    let patch = Patch::Merge(json!({"data": {"key": "two"}}));
    space.upper::<ConfigMap>().patch("settings", &PatchParams::default(), &patch).await.unwrap();
    eventually("the change is below", SOON, || async {
        let data = below.get("settings").await?.data;
        Ok(Seen::when(data.as_ref().is_some_and(|data| data["key"] == "two"), data))
    })
    .await
    .unwrap();

    space.upper_pods().delete("user", &DeleteParams::default()).await.unwrap();
    space.until_gone("user").await;
    eventually("the copies are gone", SOON, || async {
        let left = (
            below.get_opt("settings").await?.is_some(),
            space.lower::<Secret>(&world.a).get_opt("login").await?.is_some(),
        );
        Ok(Seen::when(left == (false, false), left))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_a_missing_config_map_with_the_kubelets_event_and_goes_on_when_it_appears() {
    let world = world().await;
    let space = world.namespace("missing").await;
    let change = json!({"volumes": [{"name": "late", "configMap": {"name": "late"}}]});
    space.pod("patient", change).await;
    let message = space.until_event("patient", "FailedMount").await;
    assert!(message.contains("configmap \"late\" not found"), "{message}");
    let waiting = space.upper_pods().get("patient").await.unwrap();
    assert_eq!(condition(&waiting, "tensile.dev/Offloaded").map(|c| c.status.as_str()), Some("False"));
    space.upper::<ConfigMap>().create(&PostParams::default(), &config_map("late", "now")).await.unwrap();
    let ready = space.until("patient", "is ready", is_ready).await;
    space
        .until("patient", "says that it is offloaded", |pod| {
            condition(pod, "tensile.dev/Offloaded").is_some_and(|c| c.status == "True")
        })
        .await;
    assert!(ready.status.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_object_of_the_same_name_is_never_overwritten() {
    let world = world().await;
    let space = world.namespace("clash").await;
    // A first pod makes the lower namespace; then a stranger puts his own things there.
    space.pod("first", json!({"nodeSelector": {"tensile.dev/cluster": "vn-a"}})).await;
    space.until("first", "is ready", is_ready).await;
    space.lower::<ConfigMap>(&world.a).create(&PostParams::default(), &config_map("shared", "theirs")).await.unwrap();
    let foreign: Pod = serde_json::from_value(json!({
        "metadata": {"name": "taken"},
        "spec": {"containers": [{"name": "main", "image": "example.test/foreign:1"}]},
    }))
    .unwrap();
    space.lower::<Pod>(&world.a).create(&PostParams::default(), &foreign).await.unwrap();

    space.upper::<ConfigMap>().create(&PostParams::default(), &config_map("shared", "ours")).await.unwrap();
    let selector = json!({"tensile.dev/cluster": "vn-a"});
    space.pod("taken", json!({"nodeSelector": selector})).await;
    let message = space.until_event("taken", "NameConflict").await;
    assert!(message.contains("is not ours"), "{message}");
    let volume = json!({"nodeSelector": selector, "volumes": [{"name": "v", "configMap": {"name": "shared"}}]});
    space.pod("reader", volume).await;
    space.until_event("reader", "NameConflict").await;

    assert_eq!(space.lower::<ConfigMap>(&world.a).get("shared").await.unwrap().data.unwrap()["key"], "theirs");
    let theirs = space.lower::<Pod>(&world.a).get("taken").await.unwrap();
    assert_eq!(theirs.spec.unwrap().containers[0].image.as_deref(), Some("example.test/foreign:1"));

    // Deleting our pod leaves the stranger's alone; once that is gone, our next one goes through.
    space.upper_pods().delete("taken", &DeleteParams::default()).await.unwrap();
    space.until_gone("taken").await;
    assert!(space.lower::<Pod>(&world.a).get_opt("taken").await.unwrap().is_some());
    space.lower::<ConfigMap>(&world.a).delete("shared", &DeleteParams::default()).await.unwrap();
    space.until("reader", "is ready after the cure", is_ready).await;
}
