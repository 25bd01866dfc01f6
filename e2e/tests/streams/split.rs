//! The two streams of a log, each by itself (KEP-3288).

use tensile_e2e::{Seen, eventually};

use crate::{
    command::{Ended, run},
    world::{SLEEP, SOON, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn stdout_and_stderr_of_a_log_are_had_apart() {
    let Some((world, _turn)) = world().await else { return };
    world.pod("split", &[("main", &format!("echo out; echo err >&2; {SLEEP}"))]).await;
    // kubectl has no flag for it.
    let log = |query: &str| -> Ended {
        let path = format!("/api/v1/namespaces/streams/pods/split/log?container=main{query}");
        run(&mut world.kubectl(&["get", "--raw", &path]), b"")
    };
    eventually("the log has both lines", SOON, || async {
        let all = log("&stream=All").ok();
        Ok(Seen::when(all.lines().count() == 2, all))
    })
    .await
    .unwrap();
    assert_eq!(log("&stream=Stdout").ok(), "out\n");
    assert_eq!(log("&stream=Stderr").ok(), "err\n");
    assert_eq!(log("").ok().lines().count(), 2);
    let refused = log("&stream=Sideways");
    assert!(refused.code != Some(0) && refused.err.contains("Sideways"), "{refused:?}");
    let refused = log("&stream=Stdout&tailLines=1");
    assert!(refused.code != Some(0) && refused.err.contains("mutually exclusive"), "{refused:?}");
}
