//! A pod that lives on while everything of it that may change is changed.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tensile_e2e::{Seen, eventually};

use crate::{
    space::{Space, describe, is_ready},
    subject::{Subject, each},
    world::SOON,
};

/// What such changes pass.
pub const POINTS: &[&str] = &[
    "pod-update",
    "pod-resize",
    "pod-ephemeral-containers",
    "pod-gates",
    "pod-bookkeeping",
    "config-map-replace",
    "secret-replace",
];

const GATE: &str = "tensile.test/gate";

async fn change(space: &Space, round: usize) {
    let params = PatchParams::default();
    let pods = space.upper::<Pod>();
    let value = format!("round-{round}");
    let data = Patch::Merge(json!({"data": {"key": value}}));
    space.upper::<ConfigMap>().patch("settings", &params, &data).await.unwrap();
    let data = Patch::Merge(json!({"stringData": {"key": value}}));
    space.upper::<Secret>().patch("login", &params, &data).await.unwrap();
    let image = format!("example.test/app:{round}");
    let patch = json!({"metadata": {"labels": {"round": value}},
        "spec": {"containers": [{"name": "main", "image": image}]}});
    pods.patch("pod", &params, &Patch::Strategic(patch)).await.unwrap();
    let resources = json!({"requests": {"cpu": format!("{}m", 10 + round)}, "limits": {"cpu": "1"}});
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}});
    pods.patch_resize("pod", &params, &Patch::Strategic(patch)).await.unwrap();
    let debugger = json!({"name": format!("debug-{round}"), "image": "example.test/debug:1"});
    let patch = json!({"spec": {"ephemeralContainers": [debugger]}});
    pods.patch_ephemeral_containers("pod", &params, &Patch::Strategic(patch)).await.unwrap();
    let gate = json!({"status": {"conditions": [{"type": GATE, "status": open(round)}]}});
    pods.patch_status("pod", &params, &Patch::Strategic(gate)).await.unwrap();
}

/// The gate opens and closes in turn.
fn open(round: usize) -> &'static str {
    if round.is_multiple_of(2) { "True" } else { "False" }
}

/// A pod can be resized when its kubelet has told what its containers have. KWOK does not tell.
async fn make_resizable(space: &Space) {
    let pods = space.lower::<Pod>();
    let mut statuses = serde_json::to_value(pods.get("pod").await.unwrap().status.unwrap().container_statuses).unwrap();
    statuses[0]["resources"] = json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "20m"}});
    let told = Patch::Strategic(json!({"status": {"containerStatuses": statuses}}));
    pods.patch_status("pod", &PatchParams::default(), &told).await.unwrap();
    let has_told = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.is_some_and(|all| all.iter().all(|container| container.resources.is_some()))
    };
    space.until("pod", "shows what it has", has_told).await;
}

async fn until_below(space: &Space, round: usize) -> Pod {
    let value = format!("round-{round}");
    eventually(&format!("change {round} is below, and its status above"), SOON, || async {
        let pod = space.lower::<Pod>().get("pod").await?;
        let json: Value = serde_json::to_value(&pod)?;
        let main = &json["spec"]["containers"][0];
        let config = space.lower::<ConfigMap>().get("settings").await?.data.unwrap_or_default();
        let login = space.lower::<Secret>().get("login").await?.data.unwrap_or_default();
        let above = space.upper::<Pod>().get("pod").await?;
        let facts = [
            ("label", json["metadata"]["labels"]["round"] == value),
            ("image", main["image"] == format!("example.test/app:{round}")),
            ("cpu", main["resources"]["requests"]["cpu"] == format!("{}m", 10 + round)),
            ("debugger", json["spec"]["ephemeralContainers"].as_array().is_some_and(|all| all.len() == round)),
            ("gate", crate::space::condition(&pod, GATE).as_deref() == Some(open(round))),
            ("config", config.get("key") == Some(&value)),
            ("login", login.get("key").is_some_and(|bytes| bytes.0 == value.as_bytes())),
            ("ready above", is_ready(&above) == (open(round) == "True")),
        ];
        let missing: Vec<&str> = facts.iter().filter(|(_, holds)| !holds).map(|(fact, _)| *fact).collect();
        Ok(if missing.is_empty() {
            Seen::Done(pod)
        } else {
            Seen::NotYet(format!("not so: {missing:?}; below {}; above {}", describe(&pod), describe(&above)))
        })
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_reach_a_running_pod_whichever_of_their_steps_is_the_last_of_a_process() {
    let subject = Subject::start("update").await;
    let space = subject.namespace().await;
    space.config("zero").await;
    let mut spec = Space::with_config();
    spec["readinessGates"] = json!([{"conditionType": GATE}]);
    let uid = space.pod(spec).await;
    space.until("pod", "runs", |pod| crate::space::phase(pod) == "Running").await;
    make_resizable(&space).await;
    let twins = subject.world.twins.clone();
    twins.assert_one_each(std::slice::from_ref(&uid)).await;
    let first = space.lower::<Pod>().get("pod").await.unwrap().uid();
    for (round, faults) in each(POINTS).into_iter().enumerate() {
        let round = round + 1;
        let end = async {
            let pod = until_below(&space, round).await;
            assert_eq!(pod.uid(), first, "the same pod runs on");
            assert_eq!(space.upper::<Pod>().get("pod").await.unwrap().uid().as_ref(), Some(&uid));
        };
        subject.live_through(&faults, change(&space, round), end).await;
    }
    twins.assert_one_each(&[uid]).await;
    space.delete("pod", false).await;
    space.until_gone().await;
    subject.leaves_nothing().await;
}
