//! Kubeconfigs that cannot be used end the process, and are named with their flag.

use crate::world::{kubeconfig, says, world};

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
