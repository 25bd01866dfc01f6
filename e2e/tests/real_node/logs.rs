//! `kubectl logs` through the upper API server.

use serde_json::json;
use tensile_e2e::{Seen, eventually};

use crate::{
    command::{Running, run},
    pods::{is_ready, restarts, runs},
    world::{KUBECTLS, SOON, space},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_deployments_pod_runs_a_container_whose_logs_can_be_read_with_every_option() {
    let Some(space) = space("logs").await else { return };
    space
        .apply(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      containers:
      - name: main
        image: IMAGE
        imagePullPolicy: Never
        command: [sh, -c, 'echo one; echo two; echo three; SLEEP']
      - name: side
        image: IMAGE
        imagePullPolicy: Never
        command: [sh, -c, 'echo aside; SLEEP']
",
        )
        .await;
    let pod = space.pod_of_app("web").await;
    let seen = space.until(&pod, "is ready", is_ready).await;
    let status = seen.status.unwrap();
    assert_eq!(status.host_ip.unwrap(), space.world.upper.host_address().to_string(), "the virtual node's address");
    assert!(status.pod_ip.is_some_and(|ip| ip.starts_with("198.1")), "the real pod's address");

    eventually("the log is complete", SOON, || async {
        let log = space.run(&["logs", &pod, "-c", "main"]).await.ok();
        Ok(Seen::when(log == "one\ntwo\nthree\n", log))
    })
    .await
    .unwrap();
    let undisturbed = space.undisturbed().await;
    for version in KUBECTLS {
        let logs = |arguments: &[&str]| run(&mut space.kubectl_of(version, &[&["logs"], arguments].concat()), b"").ok();
        assert_eq!(logs(&["deployment/web", "-c", "side"]), "aside\n");
        assert_eq!(logs(&[&pod, "-c", "main", "--tail", "1"]), "three\n");
        assert_eq!(logs(&[&pod, "-c", "main", "--since", "1h"]), "one\ntwo\nthree\n");
        assert_eq!(logs(&[&pod, "-c", "main", "--since-time", "2124-01-01T00:00:00Z"]), "");
        assert_eq!(logs(&[&pod, "-c", "main", "--limit-bytes", "4"]), "one\n");
        let stamped = logs(&[&pod, "-c", "side", "--timestamps"]);
        assert!(stamped.starts_with("20") && stamped.ends_with("Z aside\n"), "{stamped}");
        // What was said after one of the lines, its own time included; the API counts in seconds.
        let time = stamped.split(' ').next().unwrap();
        assert_eq!(logs(&[&pod, "-c", "side", "--since-time", time]), "aside\n");
        let all = logs(&[&pod, "--all-containers", "--prefix"]);
        assert!(all.contains("/main] two") && all.contains("/side] aside"), "{all}");
        let selected = logs(&["--selector", "app=web", "-c", "main", "--tail", "2", "--prefix"]);
        assert_eq!(selected, format!("[pod/{pod}/main] two\n[pod/{pod}/main] three\n"));
    }
    drop(undisturbed);
    let refused = space.run(&["logs", &pod, "-c", "main", "--previous"]).await;
    assert!(refused.err.contains("previous terminated container \"main\""), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_ends_with_its_container_and_logs_of_the_life_before_are_there() {
    let Some(space) = space("logs-previous").await else { return };
    let script = "echo x >>/data/lives; echo life $(wc -l </data/lives); while [ ! -e /data/end ]; do sleep 0.1; done; rm /data/end; exit 3";
    let mut main = crate::world::container("main", script);
    main["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    space.pod("cat", "", json!({"containers": [main], "volumes": [{"name": "data", "emptyDir": {}}]})).await;
    space.until("cat", "runs", |pod| runs(pod, "main")).await;
    let undisturbed = space.undisturbed().await;
    let mut follower = Running::start(&mut space.kubectl(&["logs", "--follow", "cat"]));
    follower.line("life 1");
    run(&mut space.kubectl(&["exec", "cat", "--", "touch", "/data/end"]), b"").ok();
    // As on any node: a follower stays with the container that it began with.
    assert_eq!(follower.wait().ok(), "life 1\n");
    drop(undisturbed);
    space.until("cat", "runs again", |pod| runs(pod, "main") && restarts(pod, "main") == 1).await;
    eventually("the new life has said a word", SOON, || async {
        let log = space.run(&["logs", "cat"]).await;
        Ok(Seen::when(log.out == "life 2\n", log))
    })
    .await
    .unwrap();
    assert_eq!(space.run(&["logs", "cat", "--previous"]).await.ok(), "life 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_comes_as_it_is_written_and_ends_with_its_container() {
    let Some(space) = space("logs-follow").await else { return };
    let script = "echo begin; while [ ! -e /tmp/go ]; do sleep 0.1; done; seq 1 2000; echo end";
    space.pod("count", script, json!({"restartPolicy": "Never"})).await;
    space.until("count", "runs", |pod| runs(pod, "main")).await;
    let undisturbed = space.undisturbed().await;
    let mut follower = Running::start(&mut space.kubectl(&["logs", "--follow", "count"]));
    // The container waits, so a log that came as a whole only would never come.
    follower.line("begin");
    run(&mut space.kubectl(&["exec", "count", "--", "touch", "/tmp/go"]), b"").ok();
    let ended = follower.wait();
    drop(undisturbed);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let lines: Vec<&str> = ended.out.lines().collect();
    let numbers = (1..=2000).map(|number: u32| number.to_string());
    assert_eq!((lines.first(), lines.last()), (Some(&"begin"), Some(&"end")));
    assert!(numbers.eq(lines[1..lines.len() - 1].iter().copied()), "{} lines", lines.len());
    space.until("count", "has succeeded", |pod| crate::pods::phase(pod) == "Succeeded").await;
    let log = space.run(&["logs", "count", "--tail=1"]).await.ok();
    assert_eq!(log, "end\n", "the log of an ended container");
}
