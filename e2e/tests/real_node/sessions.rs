//! People at a container: `kubectl attach`, `kubectl run -i --rm` and `kubectl debug`, with a new and an old kubectl.

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tensile_e2e::SHELL_IMAGE;

use crate::{
    command::{Running, run},
    pods::is_ready,
    remote::in_terminal,
    world::{KUBECTLS, SLEEP, container, space},
};

const ECHO: &str = "while read word; do echo \"got $word\"; [ \"$word\" = end ] && exit 4; done; exit 3";

#[tokio::test(flavor = "multi_thread")]
async fn attach_reaches_the_input_and_output_of_a_running_container_and_leaves_it_running() {
    let Some(space) = space("attach").await else { return };
    let mut main = container("main", ECHO);
    main["stdin"] = true.into();
    let mut screen = container("screen", "sh");
    screen["stdin"] = true.into();
    screen["tty"] = true.into();
    space.pod("reads", "", json!({"containers": [main, screen]})).await;
    space.until("reads", "is ready", is_ready).await;
    let undisturbed = space.undisturbed().await;
    for version in KUBECTLS {
        let attach = |flags, container| space.kubectl_of(version, &["attach", flags, "reads", "-c", container]);
        let mut attached = Running::start(&mut attach("-i", "main"));
        attached.write(b"hello\n");
        attached.line("got hello");
        attached.kill();
        let mut attached = Running::start(&mut in_terminal(&attach("-it", "screen")));
        attached.line("outside");
        attached.write(b"echo $((6 * 7)); hostname\n");
        attached.line("42");
        attached.line("reads");
        attached.kill();
    }
    drop(undisturbed);
    let pod = space.until("reads", "is ready still", is_ready).await;
    assert_eq!(crate::pods::restarts(&pod, "main"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_with_input_and_rm_hands_on_the_exit_code_and_leaves_no_pod() {
    let Some(space) = space("run").await else { return };
    let overrides = json!({"spec": {
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
    }});
    let overrides = format!("--overrides={overrides}");
    let image = format!("--image={SHELL_IMAGE}");
    let _undisturbed = space.undisturbed().await;
    for version in KUBECTLS {
        let arguments = [
            &["run", "once", &image, "--image-pull-policy=Never", "--restart=Never", "-i", "--rm", "--quiet"][..],
            &[&overrides, "--", "sh", "-c", ECHO],
        ];
        let mut once = Running::start(&mut space.kubectl_of(version, &arguments.concat()));
        once.write(b"hello\n");
        once.line("got hello");
        once.write(b"end\n");
        assert_eq!(once.wait().code, Some(4));
        space.until_gone(&space.upper(), "once").await;
        space.until_gone(&space.lower(), "once").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_adds_a_container_that_sees_the_other_and_can_be_talked_to() {
    let Some(space) = space("debug").await else { return };
    space.pod("ill", SLEEP, json!({})).await;
    space.until("ill", "is ready", is_ready).await;
    let undisturbed = space.undisturbed().await;
    let image = format!("--image={SHELL_IMAGE}");
    // The first process that it sees is the other container's.
    let script = format!("tr '\\0' ' ' </proc/1/cmdline; echo; {ECHO}");
    let named = ["with-new", "with-old"];
    for (version, name) in KUBECTLS.into_iter().zip(named) {
        let flags = ["--image-pull-policy=Never", "--profile=general", "--target=main", "-i", "--quiet", "-c", name];
        let arguments = [&["debug", "ill", &image][..], &flags, &["--", "sh", "-c", &script]].concat();
        let mut debug = Running::start(&mut space.kubectl_of(version, &arguments));
        debug.write(b"hello\n");
        debug.line("got hello");
        debug.write(b"end\n");
        debug.wait().ok();
        let log = run(&mut space.kubectl_of(version, &["logs", "ill", "-c", name]), b"").ok();
        assert!(log.contains("sleep 3600") && log.ends_with("got hello\ngot end\n"), "{log}");
    }
    drop(undisturbed);
    let code = |pod: &Pod, name: &str| {
        let all = pod.status.as_ref()?.ephemeral_container_statuses.as_ref()?;
        Some(all.iter().find(|c| c.name == name)?.state.as_ref()?.terminated.as_ref()?.exit_code)
    };
    let pod = space.until("ill", "shows how they ended", |pod| named.iter().all(|n| code(pod, n) == Some(4))).await;
    assert!(is_ready(&pod));
}
