//! What a watch or a list leaves out is never taken for gone.

use serde_json::{Value, json};
use tensile_chassis::testing::{Chunk, Reply};

use crate::{
    cluster::{Cluster, NAMESPACE, Trouble, lists_pods},
    world::{World, running, until, upper_pod},
};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Waits until a cluster's pods were listed `count` times.
async fn until_listed(cluster: &Cluster, count: usize) {
    until("the pods are listed anew and watched", || {
        let lists = cluster.requests("GET /pods").iter().filter(|request| request.line == "GET /pods").count();
        let watches = cluster.watches_open();
        if lists >= count && watches == 1 { Ok(()) } else { Err((lists, watches)) }
    })
    .await;
}

fn expired() -> Chunk {
    Chunk::event(
        "ERROR",
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired",
            "code": 410, "message": "too old resource version"}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_history_is_gone_lists_anew_and_deletes_nothing() {
    let world = World::start().await;
    world.running(&NAMES).await;
    // What happens meanwhile, no watch will ever tell.
    for cluster in [&world.upper, &world.lower] {
        cluster.fall_silent();
    }
    world.create(&["d"]);
    world.lower.patch("a", &json!({"status": {"reason": "Changed"}}));
    for cluster in [&world.upper, &world.lower] {
        cluster.end_watch(&[expired()]).await;
        until_listed(cluster, 2).await;
        cluster.speak();
    }
    world.until_below(&["a", "b", "c", "d"]).await;
    until("the change shows above", || {
        let status = world.upper.pod("a").unwrap()["status"].clone();
        if status["reason"] == "Changed" { Ok(()) } else { Err(status) }
    })
    .await;
    world.assert_nothing_lost_nor_doubled(&["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_cut_in_the_middle_of_an_event_misses_nothing() {
    let world = World::start().await;
    world.running(&NAMES).await;
    for cluster in [&world.upper, &world.lower] {
        cluster.fall_silent();
    }
    world.lower.patch("a", &json!({"status": {"reason": "Changed"}}));
    world.create(&["d"]);
    for cluster in [&world.upper, &world.lower] {
        let half = Chunk::Raw(r#"{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"na"#.into());
        cluster.end_watch(&[half, Chunk::Cut]).await;
        cluster.speak();
    }
    world.until_below(&["a", "b", "c", "d"]).await;
    until("the change shows above", || {
        let status = world.upper.pod("a").unwrap()["status"].clone();
        if status["reason"] == "Changed" { Ok(()) } else { Err(status) }
    })
    .await;
    world.assert_nothing_lost_nor_doubled(&["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_a_list_leaves_out_are_asked_for_before_anything_is_deleted() {
    for silly in ["upper", "lower"] {
        let world = World::start().await;
        world.running(&NAMES).await;
        let cluster = if silly == "upper" { &world.upper } else { &world.lower };
        cluster.trouble(|asked| lists_pods(asked).then(|| Trouble::Instead(Reply::list("1000", &[]))));
        cluster.end_watch(&[expired()]).await;
        // It is asked for each pod by name: a list of one above (what a node may do), a get below.
        until("each pod is asked for", || {
            let asked = match silly {
                "upper" => world.upper.requests("GET /pods").len().saturating_sub(2),
                _ => NAMES.iter().filter(|name| !world.lower.requests(&format!("GET /pods/{name}")).is_empty()).count(),
            };
            if asked >= NAMES.len() { Ok(()) } else { Err(asked) }
        })
        .await;
        cluster.well();
        // All of them are still followed.
        cluster.end_watch(&[expired()]).await;
        for name in NAMES {
            world.lower.patch(name, &json!({"status": {"reason": "StillHere"}}));
        }
        for name in NAMES {
            until("the pod is still followed", || {
                let status = world.upper.pod(name).unwrap()["status"].clone();
                if status["reason"] == "StillHere" { Ok(()) } else { Err(status) }
            })
            .await;
        }
        world.assert_nothing_lost_nor_doubled(&NAMES);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_the_first_list_leaves_out_are_asked_for_too() {
    for silly in ["upper", "lower"] {
        let mut world = World::start().await;
        world.running(&NAMES).await;
        let asked_before = world.upper.requests("GET /pods").len();
        let cluster = if silly == "upper" { &world.upper } else { &world.lower };
        cluster.trouble(|asked| lists_pods(asked).then(|| Trouble::Instead(Reply::list("1000", &[]))));
        world.restart();
        until("each pod is asked for", || {
            let asked = match silly {
                "upper" => world.upper.requests("GET /pods").len().saturating_sub(asked_before + 1),
                _ => NAMES.iter().filter(|name| !world.lower.requests(&format!("GET /pods/{name}")).is_empty()).count(),
            };
            if asked >= NAMES.len() { Ok(()) } else { Err(asked) }
        })
        .await;
        let cluster = if silly == "upper" { &world.upper } else { &world.lower };
        cluster.well();
        cluster.end_watch(&[expired()]).await;
        for name in NAMES {
            world.lower.patch(name, &json!({"status": {"reason": "StillHere"}}));
            until("the pod is followed again", || {
                let status = world.upper.pod(name).unwrap()["status"].clone();
                if status["reason"] == "StillHere" { Ok(()) } else { Err(status) }
            })
            .await;
        }
        world.assert_nothing_lost_nor_doubled(&NAMES);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_went_unseen_takes_its_twin_along_once_that_is_proven() {
    let world = World::start().await;
    world.running(&NAMES).await;
    for cluster in [&world.upper, &world.lower] {
        cluster.fall_silent();
    }
    world.upper.remove("a");
    world.lower.remove("b");
    for cluster in [&world.upper, &world.lower] {
        cluster.end_watch(&[expired()]).await;
        until_listed(cluster, 2).await;
        cluster.speak();
    }
    until("the lower pod of the one, and the upper pod of the other, are told to go", || {
        let deleting = |pod: Option<Value>| pod.is_none_or(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        let (below, above) = (deleting(world.lower.pod("a")), deleting(world.upper.pod("b")));
        if below && above { Ok(()) } else { Err((below, above)) }
    })
    .await;
    let proof = [world.upper.requests("GET /pods").len() > 2, !world.lower.requests("GET /pods/b").is_empty()];
    assert_eq!(proof, [true, true], "deleted without having asked (upper, lower)");
    assert!(world.lower.requests("DELETE /pods/c").is_empty() && world.upper.requests("DELETE /pods/c").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_read_stalls_none_of_the_others() {
    let world = World::start().await;
    world.running(&["a"]).await;
    // Above: one that is new, by its event.
    world.upper.put("broken", json!({"spec": {"nodeName": "vn-east", "containers": "none"}}));
    world.create(&["b"]);
    world.until_below(&["a", "b"]).await;

    // Below: one of ours whose status turns unreadable, and a stranger's; then a change to a good one.
    world.lower.patch("b", &json!({"status": {"conditions": "none"}}));
    world.lower.put("stranger", json!({"spec": 7}));
    world.lower.patch("a", &json!({"status": {"reason": "Seen"}}));
    let seen = || {
        let status = world.upper.pod("a").unwrap()["status"].clone();
        if status["reason"] == "Seen" { Ok(()) } else { Err(status) }
    };
    until("the good one's change shows above", seen).await;

    // The same in a list: nobody is taken for gone.
    for cluster in [&world.upper, &world.lower] {
        cluster.end_watch(&[expired()]).await;
        until_listed(cluster, 2).await;
    }
    world.create(&["c"]);
    until("the next one is created", || world.lower.pod("c").ok_or_else(|| world.lower.pod_names())).await;

    // Mended, it runs.
    world.upper.remove("broken");
    world.upper.put("broken", upper_pod());
    until("the mended one is created", || world.lower.pod("broken").ok_or_else(|| world.lower.pod_names())).await;
    world.lower.patch("broken", &running());
    world.until_phase("broken", "Running").await;
    assert!(world.lower.requests("DELETE").is_empty(), "{:?}", world.lower.requests("DELETE"));
    assert!(world.upper.requests("DELETE").is_empty(), "{:?}", world.upper.requests("DELETE"));
    assert_eq!(world.lower.pod("stranger").unwrap()["metadata"]["namespace"], NAMESPACE);
}
