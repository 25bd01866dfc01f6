//! Kubeconfigs that cannot be used end the process, and are named with their flag.

use serde_json::{Value, json};
use tensile_e2e::VirtualNode;

use crate::world::{SOON, kubeconfig, says, user_of, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_that_cannot_be_used_is_named_with_its_flag_and_the_cure() {
    let w = world().await;
    let good = kubeconfig(w.upper.server_url(), w.upper.ca_pem(), &serde_json::json!({"token": "very-secret"}));
    let lost_ca = good.replace("certificate-authority-data\":\"", "certificate-authority\":\"lost-");
    let files = [
        ("/nowhere/at/all".to_owned(), "give the path of an existing file"),
        (w.folder(), "check its permissions and that it is a file"),
        (w.file("empty", " \n"), "is empty"),
        (w.file("not-yaml", "clusters: [{name: very-secret"), "compare it with `kubectl config view`"),
        (w.file("no-kubeconfig", "very-secret"), "compare it with `kubectl config view`"),
        (w.file("no-context", &good.replace("current-context", "other")), "name one of: only"),
        (
            w.file("lost-context", &good.replace("\"current-context\":\"only\"", "\"current-context\":\"old\"")),
            "it has: only",
        ),
        (w.file("lost-cluster", &good.replace("\"cluster\":\"c\"", "\"cluster\":\"d\"")), "add it under `clusters`"),
        (w.file("no-server", &good.replace("\"server\"", "\"host\"")), "with a `server`"),
        (w.file("lost-ca", &lost_ca), "names a file that cannot be read"),
        (w.file("bad-server", &good.replace("https://", "not a url ")), "bad-server"),
        (w.file("bad-ca", &good.replace("data\":\"LS0t", "data\":\"bm9u")), "bad-ca"),
    ];
    for flag in ["--upper-kubeconfig", "--lower-kubeconfig"] {
        for (path, cure) in &files {
            let logs = w.refusal("files", &[&format!("{flag}={path}")]).await;
            says(&logs, &[flag, path, cure]);
            assert!(!logs.contains("very-secret"), "a secret in the log: {logs}");
        }
        let context = flag.replace("kubeconfig", "context");
        let logs = w.refusal("files", &[&format!("{context}=nowhere")]).await;
        says(&logs, &[flag, "has no context \"nowhere\"", "it has: "]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_work_are_named_with_the_cure() {
    let w = world().await;
    let with = |name: &str, user: Value| w.file(name, &kubeconfig(w.a.server_url(), w.a.ca_pem(), &user));
    let exec = |change: Value| {
        let mut exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": "tensile-no-such-plugin", "installHint": "apt install our-plugin"});
        json_patch::merge(&mut exec, &change);
        json!({"exec": exec})
    };
    let of_shell = |script: &str| exec(json!({"command": "sh", "args": ["-c", script]}));
    let files = [
        (with("anonymous", json!({})), "anonymous access is not enough: give a client-certificate"),
        (with("basic", json!({"username": "u", "password": "very-secret"})), "since Kubernetes 1.19"),
        (with("twice", json!({"token": "very-secret", "exec": {"command": "c"}})), "would never be asked"),
        (with("acting", json!({"token": "very-secret", "as-groups": ["g"]})), "add `as`"),
        (with("half", json!({"client-certificate-data": "dmVyeS1zZWNyZXQ="})), "without the client-key"),
        (with("lost-token", json!({"tokenFile": "/nowhere/token"})), "the tokenFile file /nowhere/token"),
        (with("no-plugin", exec(json!({}))), "`tensile-no-such-plugin` is not installed: apt install our-plugin"),
        (with("old-plugin", exec(json!({"apiVersion": "client.authentication.k8s.io/v1alpha1"}))), "give one of"),
        (with("asking", exec(json!({"interactiveMode": "Always"}))), "there is nobody to ask here"),
        (with("failing", of_shell("echo very-secret >&2; exit 3")), "failed (exit status: 3); run it by hand"),
        (with("mumbling", of_shell("echo very-secret")), "is not an ExecCredential"),
        (with("gcp", json!({"auth-provider": {"name": "gcp"}})), "gke-gcloud-auth-plugin"),
        (with("oidc", json!({"auth-provider": {"name": "oidc"}})), "has no idp-issuer-url"),
    ];
    for (path, cure) in &files {
        let logs = w.refusal("credentials", &[&format!("--lower-kubeconfig={path}")]).await;
        says(&logs, &["--lower-kubeconfig", path, cure]);
        assert!(!logs.contains("very-secret"), "a secret in the log: {logs}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_works_and_is_dangerous_or_without_effect_is_said() {
    let w = world().await;
    w.a.apply_yaml(include_str!("../../../virtual-node/deploy/rbac-lower.yaml")).await.unwrap();
    let account = w.a.service_account_kubeconfig("tensile-system", "virtual-node").await.unwrap();
    let mut user = user_of(&account);
    user["tokenfile"] = json!("very-misspelt");
    let mut text: Value = serde_json::from_str(&kubeconfig(w.a.server_url(), w.a.ca_pem(), &user)).unwrap();
    text["clusters"][0]["cluster"] = json!({"server": w.a.server_url(), "insecure-skip-tls-verify": true});
    let path = w.file("insecure", &text.to_string());
    let argument = format!("--lower-kubeconfig={path}");
    let node = VirtualNode::builder(&w.upper, &w.a).name("insecure").args([argument]).start().await.unwrap();
    says(&node.logs(), &["insecure-skip-tls-verify is set", "user.tokenfile is not known and has no effect"]);
    assert!(node.term(SOON).await.unwrap().success());
}
