//! What an earlier process left below.

use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually};
use tensile_proto::vocabulary::{annotation, label};

use crate::{
    space::{Space, is_ready},
    subject::{Subject, each},
    world::SOON,
};

/// Copies that no pod uses any more. A running process keeps them for half a minute; one that starts does not.
pub const COPIES: &[&str] = &["config-map-delete", "secret-delete"];

/// A token that is due.
pub const TOKENS: &[&str] = &["token-secret-refresh"];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_below_is_taken_away_or_kept_fresh_by_the_next() {
    let subject = Subject::start("leftovers").await;
    for faults in each(COPIES) {
        let space = subject.namespace().await;
        space.config("one").await;
        space.pod(Space::with_config()).await;
        space.until("pod", "is ready", is_ready).await;
        space.delete("pod", false).await;
        space.until_gone().await;
        let scene = async { subject.kill9() };
        subject.live_through(&faults, scene, space.until_nothing_below()).await;
    }
    let space = subject.namespace().await;
    space.pod(json!({})).await;
    space.until("pod", "is ready", is_ready).await;
    let tokens = space.lower::<Secret>();
    let all = ListParams::default().labels(&format!("{}=token", label::NEED));
    let name = tokens.list_metadata(&all).await.unwrap().items[0].name_any();
    for faults in each(TOKENS) {
        let long_ago = "2020-01-01T00:00:00Z";
        let due = Patch::Merge(json!({"metadata": {"annotations": {annotation::TOKEN_REFRESH: long_ago}}}));
        let before = tokens.patch(&name, &PatchParams::default(), &due).await.unwrap();
        let scene = async { subject.kill9() };
        let end = eventually("the token is fresh", SOON, || async {
            let now = tokens.get(&name).await?;
            let due = now.annotations().get(annotation::TOKEN_REFRESH).cloned().unwrap_or_default();
            Ok(Seen::when(due != long_ago && now.data != before.data && now.uid() == before.uid(), due))
        });
        subject.live_through(&faults, scene, async { end.await.unwrap() }).await;
    }
    assert!(is_ready(&space.until("pod", "is there", |_| true).await));
    space.delete("pod", false).await;
    space.until_gone().await;
    subject.leaves_nothing().await;
}
