//! A pod that waits for what is missing.

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use tensile_e2e::{Seen, eventually};

use crate::{
    space::{Space, condition, is_ready},
    subject::{Subject, each},
    world::SOON,
};

/// What tells its user.
pub const POINTS: &[&str] = &["event", "upper-offloaded"];

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_waits_says_why_and_then_runs_also_when_the_process_dies_over_saying_so() {
    let subject = Subject::start("waits").await;
    for faults in each(POINTS) {
        let space = subject.namespace().await;
        let uid = space.pod(Space::with_config()).await;
        let told = async {
            space.until("pod", "says that it waits", |pod| says(pod, "False")).await;
        };
        let end = async {
            space.until("pod", "says that it waits", |pod| says(pod, "False")).await;
            until_event(&space).await;
            space.config("late").await;
            space.until("pod", "is ready, and says so", |pod| is_ready(pod) && says(pod, "True")).await;
        };
        subject.live_through(&faults, told, end).await;
        subject.world.twins.assert_one_each(&[uid]).await;
        space.delete("pod", false).await;
        space.until_gone().await;
    }
    subject.leaves_nothing().await;
}

fn says(pod: &k8s_openapi::api::core::v1::Pod, status: &str) -> bool {
    condition(pod, "tensile.dev/Offloaded").as_deref() == Some(status)
}

/// Waits until the user finds an event that names what is missing.
async fn until_event(space: &Space) {
    eventually("the pod has an event that says what is missing", SOON, || async {
        let events = space.upper::<Event>().list(&ListParams::default()).await?.items;
        let messages: Vec<String> = events.into_iter().filter_map(|event| event.message).collect();
        Ok(Seen::when(
            messages.iter().any(|message| message.contains("settings") || message.contains("login")),
            messages,
        ))
    })
    .await
    .unwrap();
}
