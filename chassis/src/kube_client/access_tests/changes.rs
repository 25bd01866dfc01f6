//! Files that come to hold something else.

use super::*;

#[tokio::test]
async fn a_token_file_that_changed_is_read_when_its_token_is_refused() {
    let taken = Taken::new("a", ["one"]);
    let (server, files) = (taken.start().await, Files::new());
    files.write("token", "one\n");
    files.kubeconfig(&plain(&server), &json!({"tokenFile": "token"}));
    let followed = open(&files).await;
    let pods = followed.pods();
    assert!(lists(&pods).await);
    taken.set("two");
    assert!(!lists(&pods).await, "a token that is not taken was enough");
    files.write("token", "two\n");
    assert!(lists(&pods).await, "the new token was not used at once");
    // A raw stream as well.
    let streaming = build_streaming(&followed.access, "test").unwrap();
    taken.set("three");
    files.write("token", "three");
    let request = http::Request::get("/api/v1/namespaces/a/pods/b/log").body(Body::empty()).unwrap();
    assert_eq!(streaming.send(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_credential_is_replaced_before_it_is_refused() {
    let taken = Taken::new("a", ["one", "two"]);
    let (server, files) = (taken.start().await, Files::new());
    files.kubeconfig(&plain(&server), &json!({"token": "one"}));
    let followed = open(&files).await;
    files.kubeconfig(&plain(&server), &json!({"token": "two", "as": "jane", "as-groups": ["g"], "as-uid": "7"}));
    followed.until_shown("tensile_kube_credential_renewals_total{role=\"lower\",outcome=\"taken\"} 1").await;
    assert!(lists(&followed.pods()).await);
    let last = server.seen().pop().unwrap().headers;
    assert_eq!(last["authorization"], "Bearer two");
    assert_eq!(
        (&last["impersonate-user"], &last["impersonate-uid"]),
        (&"jane".parse().unwrap(), &"7".parse().unwrap())
    );
    assert_eq!(last["impersonate-group"], "g");
}

#[tokio::test]
async fn what_is_broken_or_refused_is_held_back_until_it_is_mended() {
    let taken = Taken::new("a", ["one", "two"]);
    let (server, files) = (taken.start().await, Files::new());
    files.kubeconfig(&plain(&server), &json!({"token": "one"}));
    let followed = open(&files).await;
    followed.access.expect_cluster("a");
    let pods = followed.pods();
    for (user, outcome) in [
        (json!({"token": "unknown"}), "refused"),
        (json!({"username": "u"}), "unusable"),
        (json!({"tokenFile": "nowhere"}), "unusable"),
    ] {
        files.kubeconfig(&plain(&server), &user);
        followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 1").await;
        let count = |n: usize| {
            followed
                .shows(&format!("tensile_kube_credential_renewals_total{{role=\"lower\",outcome=\"{outcome}\"}} {n}"))
        };
        assert!((1..100).any(count), "{user} was not counted as {outcome}");
        assert!(lists(&pods).await, "{user} was taken into use");
        files.kubeconfig(&plain(&server), &json!({"token": "one"}));
        followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 0").await;
    }
    fs::remove_file(files.path("kubeconfig")).unwrap();
    followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 1").await;
    assert!(lists(&pods).await);
    files.kubeconfig(&plain(&server), &json!({"token": "two"}));
    followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 0").await;
    assert_eq!(server.seen().pop().unwrap().headers["authorization"], "Bearer two");
}

#[tokio::test]
async fn a_new_address_is_followed_to_the_same_cluster_and_never_to_another() {
    let (here, there) = (Taken::new("a", ["one"]), Taken::new("b", ["one"]));
    let (first, second, other) = (here.start().await, here.start().await, there.start().await);
    let files = Files::new();
    files.kubeconfig(&plain(&first), &json!({"token": "one"}));
    let followed = open(&files).await;
    followed.access.expect_cluster("a");
    let pods = followed.pods();

    files.kubeconfig(&plain(&other), &json!({"token": "one"}));
    let refused = "tensile_kube_credential_renewals_total{role=\"lower\",outcome=\"other-cluster\"} 1";
    followed.until_shown(refused).await;
    assert!(lists(&pods).await);
    assert!(
        other.seen().iter().all(|asked| asked.path == IDENTITY),
        "another cluster was asked for more than its name"
    );

    files.kubeconfig(&plain(&second), &json!({"token": "one"}));
    followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 0").await;
    assert!(lists(&pods).await);
    assert_eq!(second.seen().pop().unwrap().path, "/api/v1/pods");
    first.stop();
    assert!(lists(&pods).await, "the old address is still needed");
}

#[tokio::test]
async fn without_its_plugin_or_files_nothing_is_opened_and_the_cure_is_told() {
    let files = Files::new();
    let cluster = json!({"server": "https://127.0.0.1:1"});
    let missing = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./no-such-plugin",
        "interactiveMode": "IfAvailable", "installHint": "ask the platform team"}});
    for (user, words) in [
        (missing, "ask the platform team"),
        (json!({"tokenFile": "lost"}), "the tokenFile file"),
        (json!({"token": "two\nlines"}), "characters that no token has"),
        (json!({"client-certificate-data": "bm9uZQ==", "client-key-data": "bm9uZQ=="}), "no PEM certificate"),
        (json!({"client-certificate-data": "%", "client-key-data": "%"}), "client-certificate-data is not base64"),
    ] {
        files.kubeconfig(&cluster, &user);
        let source = AccessSource { path: Some(files.path("kubeconfig")), context: None, flag: "--k", role: "lower" };
        let error = Access::open(source, &KubeMetrics::default()).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("kubeconfig"), "{user}: {error}");
    }
}

#[tokio::test]
async fn during_an_outage_nothing_is_taken_unproven_and_after_it_what_is_right_is() {
    let taken = Taken::new("a", ["one", "two"]);
    let (server, files) = (taken.start().await, Files::new());
    files.kubeconfig(&plain(&server), &json!({"token": "one"}));
    let followed = open(&files).await;
    followed.access.expect_cluster("a");
    server.stop();
    files.kubeconfig(&plain(&server), &json!({"token": "unknown"}));
    followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 1").await;

    let started = Instant::now();
    let again = loop {
        let taken = taken.clone();
        match ScriptedServer::start_at(server.address(), None, move |asked| taken.answer(asked)).await {
            Ok(server) => break server,
            Err(error) => assert!(started.elapsed() < LIMIT, "the port does not come free: {error}"),
        }
        tokio::task::yield_now().await;
    };
    assert!(lists(&followed.pods()).await, "what was right before the outage is forgotten");
    files.kubeconfig(&plain(&server), &json!({"token": "two"}));
    followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 0").await;
    assert!(lists(&followed.pods()).await);
    assert_eq!(again.seen().pop().unwrap().headers["authorization"], "Bearer two");
}
