//! Every kind of credential of the lower cluster, before and after its replacement.

use std::{fs, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::{join_all, try_join_all};
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;
use serde_json::{Value, json};
use tensile_e2e::VirtualNode;

use crate::{
    files::{Mounted, Plugin},
    issuer::{AUDIENCE, REFRESH_TOKEN},
    world::{World, held_back, lower_uid, pods, revocable_token, revoke, until_shown, world},
};

/// One kind: where its kubeconfig is, and what replaces the credential on disk.
struct Kind {
    name: &'static str,
    kubeconfig: PathBuf,
    replace: Box<dyn Fn() + Send + Sync>,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_carries_pods_and_goes_on_with_its_successor_when_it_is_revoked() {
    let w = world().await;
    let plugin = Plugin::new(w.folder("exec-token"));
    let kinds = [
        token(w).await,
        token_file(w).await,
        certificate_files(w).await,
        exec_token(w, &plugin),
        exec_certificate(w).await,
        oidc(w),
        impersonation(w),
    ];
    let start = |kind: &Kind| w.node(kind.name, &kind.kubeconfig).start();
    let nodes: Vec<VirtualNode> = try_join_all(kinds.iter().map(start)).await.unwrap();
    let (first, second) = (|kind: &Kind| format!("first-{}", kind.name), |kind: &Kind| format!("second-{}", kind.name));
    join_all(kinds.iter().map(|kind| async {
        w.create(kind.name, &first(kind)).await;
        w.until_ready(&first(kind)).await;
    }))
    .await;
    let uids = join_all(kinds.iter().map(|kind| async { lower_uid(w, &first(kind)).await })).await;
    assert_eq!(plugin.runs(), 1, "the plugin was run for more than its one token");

    // The successors come as files; then what was before ends. The restart cuts all watches.
    for kind in &kinds {
        (kind.replace)();
    }
    revoke(&w.lower, "token-1").await;
    revoke(&w.lower, "token-file-1").await;
    w.unbind("files-1").await;
    w.unbind("plugin-1").await;
    w.static_tokens("new");
    w.lower.stop_apiserver();
    w.lower.start_apiserver().await.unwrap();

    join_all(kinds.iter().zip(&nodes).map(|(kind, node)| async move {
        w.change_and_see(&first(kind), "after the replacement").await;
        w.create(kind.name, &second(kind)).await;
        w.until_ready(&second(kind)).await;
        until_shown(node, &held_back("lower", false)).await;
        assert!(node.exited().is_none(), "{} was restarted", kind.name);
        let ready = node.get("/readyz").await.unwrap();
        assert!(ready.starts_with("ready"), "{}: {ready}", kind.name);
    }))
    .await;
    // Logs go down by the same credentials, whatever a simulated node has to say to that.
    let _ = pods(&w.upper).logs("second-exec-token", &LogParams::default()).await;
    let asked = w.lower.audit_log("static").unwrap();
    let of_logs = asked.iter().filter(|entry| entry.subresource == "log" && entry.name == "second-exec-token");
    let codes: Vec<u16> = of_logs.map(|entry| entry.code).collect();
    assert!(!codes.is_empty() && !codes.contains(&401), "logs below were answered by {codes:?}");
    let after = join_all(kinds.iter().map(|kind| async { lower_uid(w, &first(kind)).await })).await;
    assert_eq!(uids, after, "a pod was made anew");
    assert!((2..10).contains(&plugin.runs()), "{} runs of a plugin for one new token", plugin.runs());
    for node in &nodes {
        for secret in ["static-old", "static-new", "impersonator-old", "impersonator-new", "PRIVATE KEY", REFRESH_TOKEN]
        {
            assert!(!node.logs().contains(secret), "{secret} is in a log");
        }
    }
}

/// A kubeconfig in a mounted Secret, with a token in it.
async fn token(w: &World) -> Kind {
    let tokens = [revocable_token(&w.lower, "token-1").await, revocable_token(&w.lower, "token-2").await];
    let [old, new] = tokens.map(|token| w.below(&json!({"token": token})));
    let mounted = Mounted::new(w.folder("token"), &[("kubeconfig", &old)]);
    Kind {
        name: "token",
        kubeconfig: mounted.path("kubeconfig"),
        replace: Box::new(move || mounted.replace(&[("kubeconfig", &new)])),
    }
}

/// A kubeconfig that names a file for the token.
async fn token_file(w: &World) -> Kind {
    let old = revocable_token(&w.lower, "token-file-1").await;
    let new = revocable_token(&w.lower, "token-file-2").await;
    let kubeconfig = w.below(&json!({"tokenFile": "token"}));
    let of = move |token: &str| [("kubeconfig", kubeconfig.clone()), ("token", format!("{token}\n"))];
    let mounted = mounted(w, "token-file", &of(&old));
    Kind {
        name: "token-file",
        kubeconfig: mounted.path("kubeconfig"),
        replace: Box::new(move || replace(&mounted, &of(&new))),
    }
}

/// A kubeconfig that names files for the client certificate and its key.
async fn certificate_files(w: &World) -> Kind {
    let [old, new] = users(w, "files").await;
    let kubeconfig = w.below(&json!({"client-certificate": "tls.crt", "client-key": "tls.key"}));
    let of = move |pair: &(String, String)| {
        [("kubeconfig", kubeconfig.clone()), ("tls.crt", pair.0.clone()), ("tls.key", pair.1.clone())]
    };
    let mounted = mounted(w, "certificate", &of(&old));
    Kind {
        name: "certificate",
        kubeconfig: mounted.path("kubeconfig"),
        replace: Box::new(move || replace(&mounted, &of(&new))),
    }
}

/// A plugin that gives a token without an expiry: only a refusal tells that it has to be run again.
fn exec_token(w: &World, plugin: &Plugin) -> Kind {
    plugin.gives(&json!({"token": "static-old"}));
    let path = kubeconfig_file(w, "exec-token.kubeconfig", &plugin.user());
    let plugin = Plugin::new(w.folder("exec-token"));
    Kind {
        name: "exec-token",
        kubeconfig: path,
        replace: Box::new(move || plugin.gives(&json!({"token": "static-new"}))),
    }
}

/// A plugin that gives a client certificate for some seconds.
async fn exec_certificate(w: &World) -> Kind {
    let [old, new] = users(w, "plugin").await;
    let plugin = Plugin::new(w.folder("exec-certificate"));
    let gives = |plugin: &Plugin, pair: &(String, String), seconds: i64| {
        let expires = Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap();
        plugin.gives(&json!({"clientCertificateData": pair.0, "clientKeyData": pair.1,
            "expirationTimestamp": expires.to_string()}));
    };
    gives(&plugin, &old, 600);
    let path = kubeconfig_file(w, "exec-certificate.kubeconfig", &plugin.user());
    let touched = path.clone();
    let text = w.below(&plugin.user());
    Kind {
        name: "exec-certificate",
        kubeconfig: path,
        replace: Box::new(move || {
            gives(&plugin, &new, 3_600);
            // A certificate without rights is not refused as unauthenticated: what has the plugin run again here is a
            // change of its kubeconfig.
            fs::write(&touched, format!("{text}\n")).unwrap();
        }),
    }
}

/// An issuer whose tokens live for seconds; the kubeconfig stays.
fn oidc(w: &World) -> Kind {
    let config = json!({
        "idp-issuer-url": w.issuer.url, "client-id": AUDIENCE, "refresh-token": REFRESH_TOKEN,
        "idp-certificate-authority-data": STANDARD.encode(&w.issuer.ca_pem),
    });
    let user = json!({"auth-provider": {"name": "oidc", "config": config}});
    Kind { name: "oidc", kubeconfig: kubeconfig_file(w, "oidc.kubeconfig", &user), replace: Box::new(|| {}) }
}

/// An account without rights that acts as one who has them.
fn impersonation(w: &World) -> Kind {
    let of =
        |token: &str| w.below(&json!({"token": token, "as": "jane", "as-groups": ["tensile-below"], "as-uid": "42"}));
    let (old, new) = (of("impersonator-old"), of("impersonator-new"));
    let mounted = Mounted::new(w.folder("impersonation"), &[("kubeconfig", &old)]);
    Kind {
        name: "impersonation",
        kubeconfig: mounted.path("kubeconfig"),
        replace: Box::new(move || mounted.replace(&[("kubeconfig", &new)])),
    }
}

/// Two users with certificates and the rights of a virtual node, by bindings `NAME-1` and `NAME-2`.
async fn users(w: &World, name: &str) -> [(String, String); 2] {
    let mut pairs = Vec::new();
    for number in 1..=2 {
        let user = format!("{name}-{number}");
        w.bind(&user, "User", &user).await;
        let text = fs::read_to_string(w.lower.user_kubeconfig(&user, &[]).unwrap()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let part = |key: &str| {
            let data = value["users"][0]["user"][key].as_str().unwrap();
            String::from_utf8(STANDARD.decode(data).unwrap()).unwrap()
        };
        pairs.push((part("client-certificate-data"), part("client-key-data")));
    }
    pairs.try_into().unwrap()
}

fn kubeconfig_file(w: &World, name: &str, user: &Value) -> PathBuf {
    let path = w.folder(name);
    fs::write(&path, w.below(user)).unwrap();
    path
}

fn borrowed<'a>(files: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    files.iter().map(|(name, text)| (*name, text.as_str())).collect()
}

fn mounted(w: &World, name: &str, files: &[(&str, String)]) -> Mounted {
    Mounted::new(w.folder(name), &borrowed(files))
}

fn replace(mounted: &Mounted, files: &[(&str, String)]) {
    mounted.replace(&borrowed(files));
}
