//! Tokens are renewed before they end, whatever life an API server gives them.

use std::sync::Arc;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tensile_chassis::testing::{Asked, Reply};

use crate::{
    cluster::Trouble,
    world::{World, until, upper_pod},
};

/// Far less than was asked for: an API server may shorten what it grants.
const LIFE_SECONDS: i64 = 15;

/// Issues a numbered token for each request.
fn issues_short_tokens() -> impl FnMut(&Asked) -> Option<Trouble> {
    let mut number = 0;
    move |asked| {
        if asked.method != Method::POST || !asked.path.ends_with("/serviceaccounts/default/token") {
            return None;
        }
        number += 1;
        let mut answer = asked.json();
        answer["spec"]["expirationSeconds"] = LIFE_SECONDS.into();
        let expires = (Timestamp::now() + SignedDuration::from_secs(LIFE_SECONDS)).to_string();
        answer["status"] = json!({"token": format!("token-{number}"), "expirationTimestamp": expires});
        Some(Trouble::Instead(Reply::json(201, &answer)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_lives_shorter_than_asked_for_is_renewed_in_time() {
    let world = World::start().await;
    world.upper.trouble(issues_short_tokens());
    let written: Arc<Mutex<Vec<Value>>> = Arc::default();
    let noted = written.clone();
    world.lower.trouble(move |asked| {
        if asked.path.contains("/secrets") && matches!(asked.method, Method::POST | Method::PATCH) {
            noted.lock().push(asked.json());
        }
        None
    });
    let mut pod = upper_pod();
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    pod["spec"]["volumes"] = json!([{"name": "access", "projected": {"sources": [token]}}]);
    world.upper.put("web", pod);
    world.until_below(&["web"]).await;
    until("three tokens were written below, one after the other", || {
        let tokens: Vec<Value> = written.lock().iter().map(|secret| secret["data"]["token"].clone()).collect();
        if tokens.len() >= 3 { Ok(()) } else { Err(tokens) }
    })
    .await;
    let written = written.lock();
    let times = |at: usize, name: &str| -> Timestamp {
        written[at]["metadata"]["annotations"][format!("tensile.dev/token-{name}")].as_str().unwrap().parse().unwrap()
    };
    for at in 0..2 {
        assert_ne!(written[at]["data"], written[at + 1]["data"]);
        assert!(times(at, "refresh") < times(at, "expires"), "{}", written[at]);
        assert!(times(at, "expires") < times(at + 1, "expires"));
    }
}
