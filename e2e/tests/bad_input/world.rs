//! The clusters that the tests share, and the question that most of them ask.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually, run::Run};
use tokio::sync::OnceCell;

/// The time limit for what takes a second or two on an idle machine.
pub const SOON: Duration = Duration::from_mins(1);

/// An upper cluster with a machine of its own (`kwok-0`), and two lower clusters.
pub struct World {
    pub upper: Cluster,
    pub a: Cluster,
    pub b: Cluster,
    /// Where tests put files.
    dir: PathBuf,
}

/// The shared world, started by the first test that asks.
pub async fn world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    // Boxed: a future of all the clusters is large, and each test would hold one.
    WORLD.get_or_init(|| Box::pin(World::start())).await
}

impl World {
    async fn start() -> Self {
        tensile_e2e::install_crypto();
        let cluster = |name: &'static str| Cluster::builder(name).nodes(KwokNodes::count(1)).start();
        let (upper, a, b) = tokio::try_join!(cluster("upper"), cluster("lower-a"), cluster("lower-b")).unwrap();
        let dir = Run::current().unwrap().new_dir("files").unwrap();
        Self { upper, a, b, dir }
    }

    /// Starts a virtual-node for cluster `a` that must end by itself with an exit code that says so, within seconds;
    /// gives what it logged.
    pub async fn refusal(&self, name: &str, args: &[&str]) -> String {
        let builder = VirtualNode::builder(&self.upper, &self.a).name(name).args(args.iter().copied());
        let (code, logs) = builder.start_expecting_failure().await.unwrap();
        assert!(code.is_some_and(|code| code != 0), "{args:?}: exit code {code:?}: {logs}");
        assert!(!logs.contains("panicked"), "{args:?}: {logs}");
        logs
    }

    /// Writes a file and gives its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A folder, where a file is wanted.
    pub fn folder(&self) -> String {
        self.dir.display().to_string()
    }
}

/// The text of a kubeconfig with one context, `only`.
pub fn kubeconfig(server: &str, ca_pem: &str, user: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(ca_pem),
        }}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "only", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "only",
    })
    .to_string()
}

/// The user part of a kubeconfig that the testbed wrote.
pub fn user_of(kubeconfig: &Path) -> Value {
    let text = fs::read_to_string(kubeconfig).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value["users"][0]["user"].clone()
}

/// Fails unless the logs have all of these words.
pub fn says(logs: &str, words: &[&str]) {
    for word in words {
        assert!(logs.contains(word), "not a word of {word:?} in: {logs}");
    }
}

/// Waits until a running virtual-node has said all of these words.
pub async fn until_said(node: &VirtualNode, words: &[&str]) {
    eventually(&format!("the log says {words:?}"), SOON, || async {
        let logs = node.logs();
        Ok(Seen::when(words.iter().all(|word| logs.contains(word)), logs))
    })
    .await
    .unwrap();
}
