//! Credential plugins, and how often they are run.

use super::*;

#[tokio::test]
async fn a_plugin_is_run_once_for_all_who_are_refused() {
    let taken = Taken::new("a", ["one"]);
    let (server, files) = (taken.start().await, Files::new());
    files.plugin_gives(&json!({"token": "one"}));
    files.kubeconfig(&plain(&server), &files.plugin());
    let followed = open(&files).await;
    let pods = followed.pods();
    assert!(lists(&pods).await);
    assert_eq!(files.plugin_runs(), 1);
    taken.set("two");
    files.plugin_gives(&json!({"token": "two"}));
    let all = join_all((0..20).map(|_| lists(&pods))).await;
    assert!(all.iter().all(|ok| *ok), "{all:?}");
    assert_eq!(files.plugin_runs(), 2, "one run more for twenty requests");
}

#[tokio::test]
async fn a_plugin_whose_tokens_are_refused_is_not_run_for_each_request() {
    let taken = Taken::new("a", ["one"]);
    let (server, files) = (taken.start().await, Files::new());
    files.plugin_gives(&json!({"token": "one"}));
    files.kubeconfig(&plain(&server), &files.plugin());
    let followed = open(&files).await;
    let pods = followed.pods();
    taken.set("none");
    for _ in 0..200 {
        assert!(!lists(&pods).await);
    }
    assert!(files.plugin_runs() < 20, "{} runs for 200 requests", files.plugin_runs());
}

#[tokio::test]
async fn a_plugins_token_is_replaced_before_it_expires() {
    let taken = Taken::new("a", ["one", "two"]);
    let (server, files) = (taken.start().await, Files::new());
    let soon = jiff::Timestamp::now() + Duration::from_secs(3);
    files.plugin_gives(&json!({"token": "one", "expirationTimestamp": soon.to_string()}));
    files.kubeconfig(&plain(&server), &files.plugin());
    let followed = open(&files).await;
    files.plugin_gives(&json!({"token": "two", "expirationTimestamp": "2999-01-01T00:00:00Z"}));
    followed.until_shown("tensile_kube_credential_renewals_total{role=\"lower\",outcome=\"taken\"} 1").await;
    assert!(lists(&followed.pods()).await);
    assert_eq!(server.seen().pop().unwrap().headers["authorization"], "Bearer two");
    assert!(server.seen().iter().all(|asked| asked.headers["authorization"] != "Bearer one"));
}
