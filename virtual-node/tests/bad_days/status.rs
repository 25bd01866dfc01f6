//! Statuses arrive above, and only at the pod they are meant for.

use serde_json::json;
use tensile_chassis::testing::Reply;

use crate::{
    cluster::{Trouble, writes_status},
    world::{World, running, until, upper_pod},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_meets_a_conflict_is_written_at_the_next_try() {
    let world = World::start().await;
    world.create(&["web"]);
    world.until_below(&["web"]).await;
    let mut answers =
        vec![Reply::error(500, "etcd is slow"), Reply::Cut, Reply::error(409, "please apply your changes")];
    world.upper.trouble(move |asked| if writes_status(asked) { answers.pop().map(Trouble::Instead) } else { None });
    world.lower.patch("web", &running());
    world.until_phase("web", "Running").await;
    assert_eq!(world.upper.requests("PATCH /pods/web/status").len(), 4);
    world.assert_nothing_lost_nor_doubled(&["web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_never_written_to_a_successor_of_the_same_name() {
    let world = World::start().await;
    world.running(&["web"]).await;
    // The pod is replaced above, which our cache does not know when its old twin's status comes.
    world.upper.fall_silent();
    world.upper.remove("web");
    world.upper.put("web", upper_pod());
    let before = world.upper.requests("PATCH /pods/web/status").len();
    world.lower.patch("web", &json!({"status": {"reason": "OfTheOldOne"}}));
    until("the status is written, in vain", || {
        let writes = world.upper.requests("PATCH /pods/web/status").len();
        if writes > before { Ok(()) } else { Err(writes) }
    })
    .await;
    assert_eq!(world.upper.pod("web").unwrap()["status"], json!({"phase": "Pending"}));

    // Told of the successor, it takes the old twin away and creates the new one.
    world.upper.speak();
    until("the old twin is told to go", || {
        let pod = world.lower.pod("web").unwrap_or_default();
        if pod["metadata"]["deletionTimestamp"].is_null() { Err(pod) } else { Ok(()) }
    })
    .await;
    world.lower.remove("web");
    until("the successor is created", || {
        let (above, below) = (world.upper.pod("web").unwrap(), world.lower.pod("web").unwrap_or_default());
        let owner = below["metadata"]["labels"]["tensile.dev/upper-uid"].clone();
        if owner == above["metadata"]["uid"] { Ok(()) } else { Err(owner) }
    })
    .await;
    world.lower.patch("web", &running());
    world.until_phase("web", "Running").await;
    assert_ne!(world.upper.pod("web").unwrap()["status"]["reason"], "OfTheOldOne");
}
