//! A pod is created once, whatever the lower API server answers.

use std::time::Duration;

use serde_json::json;
use tensile_chassis::testing::{Asked, Reply};

use crate::{
    cluster::{Trouble, creates},
    world::{World, running, until},
};

/// Has the first request to create `name` answered so.
fn first_create(name: &'static str, trouble: Trouble) -> impl FnMut(&Asked) -> Option<Trouble> {
    let mut trouble = Some(trouble);
    move |asked| if creates(asked, name) { trouble.take() } else { None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_patience_gets_it_and_the_pod_is_created_once() {
    let world = World::start().await;
    let slow_down = Reply::error(429, "too many requests").header("retry-after", "1");
    world.lower.trouble(first_create("web", Trouble::Instead(slow_down)));
    world.create(&["web"]);
    world.until_below(&["web"]).await;
    world.lower.patch("web", &running());
    world.until_phase("web", "Running").await;

    let posts = world.lower.requests("POST /pods");
    assert!(posts.len() >= 2, "{posts:?}");
    let waited = posts[1].at - posts[0].at;
    assert!(waited >= Duration::from_secs(1), "tried again after {waited:?}, although asked to wait for 1 s");
    world.assert_nothing_lost_nor_doubled(&["web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_created_by_a_request_that_failed_is_taken_over() {
    for answer in [Reply::error(500, "etcdserver: request timed out"), Reply::Cut] {
        let what = format!("{answer:?}");
        let world = World::start().await;
        // The watch tells nothing of it: only the second try does, by its AlreadyExists.
        world.lower.fall_silent();
        world.lower.trouble(first_create("web", Trouble::After(answer)));
        world.create(&["web"]);
        until("the pod that is there already is read", || {
            let reads = world.lower.requests("GET /pods/web").len();
            if reads > 0 { Ok(()) } else { Err(reads) }
        })
        .await;
        assert_eq!(world.lower.requests("POST /pods").len(), 2, "{what}");

        // Change it: that can only reach a twin that is known.
        world.upper.patch("web", &json!({"metadata": {"labels": {"edited": "yes"}, "generation": 2}}));
        until("the change is sent down", || {
            let labels = world.lower.pod("web").unwrap()["metadata"]["labels"].clone();
            if labels["edited"] == "yes" { Ok(()) } else { Err(labels) }
        })
        .await;
        // What the watch has to tell late changes nothing.
        world.lower.speak();
        world.lower.patch("web", &running());
        world.until_phase("web", "Running").await;
        world.assert_nothing_lost_nor_doubled(&["web"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_hangs_holds_up_no_other_pod() {
    let world = World::start().await;
    let mut posts = 0;
    world.lower.trouble(move |asked| {
        posts += usize::from(creates(asked, "slow"));
        (creates(asked, "slow") && posts == 1).then_some(Trouble::Instead(Reply::Hang))
    });
    world.create(&["slow"]);
    until("the request hangs", || {
        let posts = world.lower.requests("POST /pods");
        if posts.len() == 1 { Ok(()) } else { Err(posts) }
    })
    .await;
    let others: Vec<String> = (0..40).map(|number| format!("web-{number:02}")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    world.create(&others);
    // The slow one is not there yet: its request has not run into its time limit.
    world.until_below(&others).await;
    let all = [&["slow"], others.as_slice()].concat();
    world.until_below(&all).await;
    world.assert_nothing_lost_nor_doubled(&all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_for_a_while_costs_only_that_while() {
    let world = World::start().await;
    world.running(&["old"]).await;
    // More pods than workers, each with a request that is carried out or not, and never answered.
    let mut number = 0;
    world.lower.trouble(move |asked| {
        if asked.is_watch() {
            return None;
        }
        number += 1;
        Some(if number % 2 == 0 { Trouble::After(Reply::Hang) } else { Trouble::Instead(Reply::Hang) })
    });
    let new: Vec<String> = (0..20).map(|number| format!("web-{number:02}")).collect();
    let new: Vec<&str> = new.iter().map(String::as_str).collect();
    world.create(&new);
    until("a request for more than one pod hangs", || {
        let hanging = world.lower.requests("POST /pods").len();
        if hanging > 1 { Ok(()) } else { Err(hanging) }
    })
    .await;
    world.lower.well();
    let all = [&["old"], new.as_slice()].concat();
    world.until_below(&all).await;
    for name in &new {
        world.lower.patch(name, &running());
    }
    for name in &new {
        world.until_phase(name, "Running").await;
    }
    world.assert_nothing_lost_nor_doubled(&all);
}
