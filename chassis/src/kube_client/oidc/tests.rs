//! An issuer that is not asked.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn provider(change: &Value) -> Result<OidcProvider, String> {
    let mut config = json!({"idp-issuer-url": "https://127.0.0.1:1", "client-id": "c", "client-secret": "p&q",
        "refresh-token": "r"});
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    OidcProvider::new(&serde_json::from_value(json!({"name": "oidc", "config": config})).unwrap())
}

fn token(expires: i64) -> String {
    format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(json!({"exp": expires}).to_string()))
}

#[test]
fn sections_that_cannot_work_are_refused_with_the_cure() {
    let refusal = |change: Value| provider(&change).unwrap_err();
    assert!(refusal(json!({"client-id": ""})).contains("no client-id"));
    assert!(refusal(json!({"idp-issuer-url": "http://a"})).contains("https://"));
    assert!(refusal(json!({"refresh-token": ""})).contains("neither a refresh-token nor an id-token"));
    let gcp = serde_json::from_value(json!({"name": "gcp"})).unwrap();
    assert!(OidcProvider::new(&gcp).unwrap_err().contains("gke-gcloud-auth-plugin"));
}

#[tokio::test]
async fn a_token_that_is_good_is_used_without_asking() {
    let now = Timestamp::now().as_second();
    let good = provider(&json!({"id-token": token(now + 600)})).unwrap().token(false).await.unwrap();
    assert_eq!(good.expires.unwrap().as_second(), now + 600);
    // Nobody listens at that issuer.
    let error = provider(&json!({"id-token": token(now - 1)})).unwrap().token(false).await.err().unwrap();
    assert!(error.to_string().contains("the issuer https://127.0.0.1:1 gives no token"), "{error}");
    let lone = json!({"id-token": token(now - 1), "refresh-token": ""});
    assert!(provider(&lone).unwrap().token(false).await.err().unwrap().to_string().contains("log in anew"));
}

#[test]
fn the_clients_secret_goes_once_and_encoded() {
    let provider = provider(&json!({})).unwrap();
    let header = provider.form("r+r", true);
    assert_eq!(header.body, "grant_type=refresh_token&refresh_token=r%2Br");
    assert_eq!(header.authorization.unwrap(), format!("Basic {}", STANDARD.encode("c:p%26q")));
    let form = provider.form("r", false);
    assert_eq!(form.body, "grant_type=refresh_token&refresh_token=r&client_id=c&client_secret=p%26q");
    assert!(form.authorization.is_none());
}
