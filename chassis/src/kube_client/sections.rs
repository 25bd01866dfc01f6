//! What a kubeconfig's cluster and user say, checked: nothing in them may be without effect and unsaid.
//!
//! kube reads a kubeconfig leniently: of two credentials it takes one, a field that it does not know it drops, and without
//! any credential it asks anonymously. Each of these shows much later as a refusal that names no cause.

use kube::config::{AuthInfo, Cluster};

/// The reason why the cluster's section cannot be used.
pub(super) fn check_cluster(cluster: &Cluster) -> Result<(), String> {
    let server = cluster.server.as_deref().unwrap_or_default();
    if !server.starts_with("https://") && !server.starts_with("http://") {
        return Err(format!("its server {server:?} does not begin with https://"));
    }
    let has_ca = given(cluster.certificate_authority.as_deref());
    let has_ca_data = given(cluster.certificate_authority_data.as_deref());
    both(has_ca, "certificate-authority", has_ca_data, "certificate-authority-data")?;
    if cluster.insecure_skip_tls_verify == Some(true) && (has_ca || has_ca_data) {
        return Err("it has insecure-skip-tls-verify and a certificate-authority, which would not be looked at: \
                    remove insecure-skip-tls-verify"
            .to_owned());
    }
    Ok(())
}

/// The reason why the user's section cannot be used.
pub(super) fn check_user(cluster: &Cluster, user: Option<&AuthInfo>) -> Result<(), String> {
    // Behind plain HTTP there is a proxy that authenticates for us, as `kubectl proxy` does; an API server has none.
    let anonymous_is_fine = cluster.server.as_deref().is_some_and(|server| server.starts_with("http://"));
    match user {
        Some(user) if !is_empty(user) => check_credentials(user),
        _ if anonymous_is_fine => Ok(()),
        _ => Err(format!("its user has no credentials, and anonymous access is not enough: {KINDS}")),
    }
}

/// What can be done about a missing or unusable credential.
const KINDS: &str = "give a client-certificate with its client-key, a token, a tokenFile, an exec plugin or the \
                     auth-provider oidc";

fn is_empty(user: &AuthInfo) -> bool {
    let token = user.token.is_some() || given(user.token_file.as_deref());
    !(token
        || has_certificate(user)
        || has_key(user)
        || user.exec.is_some()
        || user.auth_provider.is_some()
        || has_password(user))
}

fn has_certificate(user: &AuthInfo) -> bool {
    given(user.client_certificate.as_deref()) || given(user.client_certificate_data.as_deref())
}

fn has_key(user: &AuthInfo) -> bool {
    given(user.client_key.as_deref()) || user.client_key_data.is_some()
}

fn has_password(user: &AuthInfo) -> bool {
    given(user.username.as_deref()) || user.password.is_some()
}

/// Checks what goes with what.
pub(super) fn check_credentials(user: &AuthInfo) -> Result<(), String> {
    if has_password(user) {
        return Err(format!(
            "it has a username or password, but API servers have not taken those since Kubernetes 1.19: {KINDS}"
        ));
    }
    let data = given(user.client_certificate_data.as_deref());
    both(given(user.client_certificate.as_deref()), "client-certificate", data, "client-certificate-data")?;
    both(given(user.client_key.as_deref()), "client-key", user.client_key_data.is_some(), "client-key-data")?;
    match (has_certificate(user), has_key(user)) {
        (true, false) => return Err("it has a client-certificate without the client-key to it".to_owned()),
        (false, true) => return Err("it has a client-key without the client-certificate to it".to_owned()),
        _ => {}
    }
    let fixed = if has_certificate(user) {
        Some("a client-certificate")
    } else if user.token.is_some() {
        Some("a token")
    } else {
        user.token_file.as_ref().map(|_| "a tokenFile")
    };
    match (&user.exec, &user.auth_provider, fixed) {
        (Some(_), Some(_), _) => return Err("it has both exec and auth-provider: remove one".to_owned()),
        (Some(_), None, Some(fixed)) => return Err(never_asked("exec", fixed)),
        (None, Some(_), Some(fixed)) => return Err(never_asked("auth-provider", fixed)),
        _ => {}
    }
    let details = user.impersonate_uid.is_some()
        || user.impersonate_groups.as_ref().is_some_and(|groups| !groups.is_empty())
        || user.impersonate_user_extra.as_ref().is_some_and(|extra| !extra.is_empty());
    if details && !given(user.impersonate.as_deref()) {
        return Err("it has as-uid, as-groups or as-user-extra without the user to act as: add `as`".to_owned());
    }
    Ok(())
}

/// What works, and an operator should know all the same.
pub(super) fn notes(cluster: &Cluster, user: Option<&AuthInfo>) -> Vec<String> {
    let mut notes = Vec::new();
    if cluster.insecure_skip_tls_verify == Some(true) {
        notes.push(
            "insecure-skip-tls-verify is set: whoever stands between can read and change everything, and get our \
             credentials; give a certificate-authority instead"
                .to_owned(),
        );
    }
    if cluster.server.as_deref().is_some_and(|server| server.starts_with("http://")) {
        notes.push("the server is reached in plain HTTP: whoever stands between can read and change everything".into());
    }
    let of_user = user.map(|user| user.other.keys()).into_iter().flatten().map(|key| format!("user.{key}"));
    let of_exec = user.and_then(|user| user.exec.as_ref()).map(|exec| exec.other.keys());
    let of_exec = of_exec.into_iter().flatten().map(|key| format!("user.exec.{key}"));
    for field in cluster.other.keys().map(|key| format!("cluster.{key}")).chain(of_user).chain(of_exec) {
        notes.push(format!("the field {field} is not known and has no effect; is it misspelt?"));
    }
    notes
}

fn given(text: Option<&str>) -> bool {
    text.is_some_and(|text| !text.is_empty())
}

fn both(one: bool, name: &str, other: bool, other_name: &str) -> Result<(), String> {
    if one && other { Err(format!("it has both {name} and {other_name}: remove one")) } else { Ok(()) }
}

fn never_asked(who: &str, fixed: &str) -> String {
    format!("it has both {who} and {fixed}, beside which {who} would never be asked: remove one")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn cluster(value: Value) -> Cluster {
        serde_json::from_value(value).unwrap()
    }

    fn refusal(user: Value) -> String {
        let user: AuthInfo = serde_json::from_value(user).unwrap();
        check_user(&cluster(json!({"server": "https://a"})), Some(&user)).unwrap_err()
    }

    #[test]
    fn credentials_that_would_have_no_effect_are_refused_with_the_cure() {
        let exec = json!({"command": "c", "apiVersion": "client.authentication.k8s.io/v1"});
        let cases = [
            (json!({}), "no credentials"),
            (json!({"tokenfile": "misspelt"}), "no credentials"),
            (json!({"username": "u", "password": "hunter2"}), "since Kubernetes 1.19"),
            (json!({"client-certificate": "a", "client-certificate-data": "b", "client-key": "k"}), "remove one"),
            (json!({"client-certificate": "a"}), "without the client-key"),
            (json!({"client-key-data": "hunter2"}), "without the client-certificate"),
            (json!({"exec": exec, "token": "hunter2"}), "beside which exec would never be asked"),
            (json!({"exec": exec, "auth-provider": {"name": "oidc"}}), "both exec and auth-provider"),
            (json!({"token": "hunter2", "as-groups": ["g"]}), "add `as`"),
            (json!({"token": "hunter2", "as-uid": "1"}), "add `as`"),
        ];
        for (user, words) in cases {
            let reason = refusal(user.clone());
            assert!(reason.contains(words) && !reason.contains("hunter2"), "{user}: {reason}");
        }
    }

    #[test]
    fn a_proxy_that_authenticates_for_us_needs_no_credentials() {
        check_user(&cluster(json!({"server": "http://127.0.0.1:8001"})), None).unwrap();
    }

    #[test]
    fn clusters_that_cannot_be_meant_are_refused() {
        let refusal = |value| check_cluster(&cluster(value)).unwrap_err();
        assert!(refusal(json!({"server": "10.0.0.1:6443"})).contains("does not begin with https://"));
        let both = json!({"server": "https://a", "certificate-authority": "f", "certificate-authority-data": "d"});
        assert!(refusal(both).contains("remove one"));
        let loose = json!({"server": "https://a", "certificate-authority": "f", "insecure-skip-tls-verify": true});
        assert!(refusal(loose).contains("remove insecure-skip-tls-verify"));
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let user: AuthInfo = serde_json::from_value(json!({"token": "t", "tokenfile": "f"})).unwrap();
        let notes = notes(
            &cluster(json!({"server": "https://a", "insecure-skip-tls-verify": true, "tls-server": "b"})),
            Some(&user),
        );
        for words in ["insecure-skip-tls-verify is set", "cluster.tls-server", "user.tokenfile"] {
            assert!(notes.iter().any(|note| note.contains(words)), "{words}: {notes:?}");
        }
    }
}
