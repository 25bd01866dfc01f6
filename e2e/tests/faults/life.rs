//! A pod with config, a Secret and a token, from its creation to its deletion.

use std::sync::Mutex;

use crate::{
    space::{Space, is_ready},
    subject::{Subject, each},
};

/// What such a pod's life passes.
pub const POINTS: &[&str] = &[
    "namespace",
    "config-map-create",
    "secret-create",
    "token",
    "token-secret-create",
    "pod-create",
    "upper-status",
    "pod-delete",
    "upper-result",
    "upper-last-delete",
    "token-secret-delete",
];

/// The copy of the ConfigMap and the upper CA: one of them is there already.
const SECOND: &str = "config-map-create 2";

/// An answer that went lost lets the token's Secret be there already.
pub const AFTER_A_LOST_ANSWER: &str = "token-secret-replace";

async fn live(subject: &Subject, faults: &[String]) {
    let space = subject.namespace().await;
    let uid = Mutex::new(String::new());
    let scene = async {
        space.config("one").await;
        *uid.lock().unwrap() = space.pod(Space::with_config()).await;
        space.until("pod", "is ready", is_ready).await;
        space.delete("pod", false).await;
        space.until_gone().await;
    };
    let end = async {
        space.until_gone().await;
        space.until_empty_below().await;
        let uid = uid.lock().unwrap().clone();
        subject.world.twins.assert_one_each(&[uid]).await;
    };
    subject.live_through(faults, scene, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_and_goes_once_whichever_of_its_steps_is_the_last_of_a_process() {
    let subject = Subject::start("life").await;
    for faults in each(POINTS).into_iter().chain(each(&[SECOND])) {
        live(&subject, &faults).await;
    }
    for mut faults in each(&[AFTER_A_LOST_ANSWER]) {
        faults.push("lose-answer token-secret-create".to_owned());
        live(&subject, &faults).await;
    }
    subject.leaves_nothing().await;
}
