//! Streams whose cluster, or whose virtual-node, goes away in the middle.

use tensile_e2e::{Seen, eventually};

use crate::{
    command::{Running, run},
    world::{SLEEP, SOON, World, world},
};

/// A stream of each kind, all with a sign of life.
fn streams(world: &World) -> Vec<(&'static str, Running)> {
    let open = [
        ("exec", vec!["exec", "-i", "cut", "-c", "main", "--", "sh", "-c", "echo up; cat"], "up"),
        (
            "talking exec",
            vec!["exec", "cut", "-c", "main", "--", "sh", "-c", "while echo tick; do sleep 0.1; done"],
            "tick",
        ),
        ("attach", vec!["attach", "-i", "cut", "-c", "reader"], "got word"),
        ("port-forward", vec!["port-forward", "pod/cut", ":7000"], "Forwarding"),
        ("logs", vec!["logs", "-f", "cut", "-c", "main"], "hello"),
    ];
    open.into_iter()
        .map(|(kind, arguments, sign)| {
            let mut stream = Running::start(&mut world.kubectl(&arguments));
            if kind == "attach" {
                stream.write(b"word\n");
            }
            stream.line(sign);
            (kind, stream)
        })
        .collect()
}

/// All must end by themselves, and all that can tell must tell that they were cut.
fn all_end(streams: Vec<(&'static str, Running)>) {
    for (kind, mut stream) in streams {
        let ended = stream.wait();
        // A cut log looks like an ended one to kubectl, on any node: the API server in between says nothing.
        if kind != "logs" {
            assert_eq!(ended.code, Some(1), "{kind}: {ended:?}");
            assert!(ended.err.contains("error: "), "{kind}: {ended:?}");
        }
    }
}

async fn until_exec_works(world: &World) {
    let echo = ["exec", "cut", "-c", "main", "--", "echo", "works"];
    eventually("exec works", SOON, || async {
        let ended = run(&mut world.kubectl(&echo), b"");
        Ok(Seen::when(ended.code == Some(0) && ended.out == "works\n", ended))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_api_server_or_a_virtual_node_that_dies_ends_its_streams_and_new_ones_work_afterwards() {
    let Some((world, _turn)) = world().await else { return };
    let reader = "while read line; do echo got $line; done";
    world.pod("cut", &[("main", &format!("echo hello; {SLEEP}")), ("reader", reader)]).await;

    let open = streams(world);
    world.lower.stop_apiserver();
    all_end(open);
    world.until_no_stream_is_left().await;
    for arguments in [&["exec", "cut", "-c", "main", "--", "true"][..], &["logs", "cut", "-c", "main"]] {
        let refused = run(&mut world.kubectl(arguments), b"");
        assert_ne!(refused.code, Some(0));
        assert!(refused.err.contains("cannot reach the lower cluster's API server"), "{refused:?}");
    }
    world.lower.start_apiserver().await.unwrap();
    until_exec_works(world).await;

    let open = streams(world);
    world.node.kill9();
    all_end(open);
    world.node.restart_without_waiting().unwrap();
    until_exec_works(world).await;
}
