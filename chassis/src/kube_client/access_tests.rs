//! An access that changes while its clients are in use, against scripted API servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams, client::Body};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

mod changes;
mod plugins;
mod tls;

use super::*;
use crate::{
    test_certs::TestCa,
    testing::{Asked, Reply, ScriptedServer},
    tls::{ClientAuth, ReloadingIdentity, TrustRoots, server_config},
};

const IDENTITY: &str = "/api/v1/namespaces/kube-system";
/// No test's single step takes longer than this unless it fails.
const LIMIT: Duration = Duration::from_secs(20);

/// An API server of the cluster with this UID that takes the tokens in `accepted`.
#[derive(Clone)]
struct Taken {
    uid: &'static str,
    accepted: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Taken {
    fn new(uid: &'static str, tokens: impl IntoIterator<Item = &'static str>) -> Self {
        Self { uid, accepted: Arc::new(Mutex::new(tokens.into_iter().collect())) }
    }

    fn set(&self, token: &'static str) {
        *self.accepted.lock() = BTreeSet::from([token]);
    }

    fn answer(&self, asked: &Asked) -> Reply {
        let token = asked.headers.get("authorization").map(|value| value.to_str().unwrap().replace("Bearer ", ""));
        if !token.is_some_and(|token| self.accepted.lock().contains(token.as_str())) {
            return Reply::error(401, "Unauthorized");
        }
        if asked.path == IDENTITY {
            return Reply::json(200, &json!({"metadata": {"name": "kube-system", "uid": self.uid}}));
        }
        Reply::list("1", &[])
    }

    async fn start(&self) -> ScriptedServer {
        let this = self.clone();
        ScriptedServer::start(move |asked| this.answer(asked)).await.unwrap()
    }
}

/// A kubeconfig in a folder of its own.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        // Renamed into place, as a kubelet does: a reader sees the old or the new.
        let path = self.path(name);
        let fresh = self.path("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, &path).unwrap();
        path.display().to_string()
    }

    fn kubeconfig(&self, cluster: &Value, user: &Value) {
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": user}]});
        self.write("kubeconfig", &text.to_string());
    }

    /// A plugin that notes its runs, and gives what is in the file `token` as a token.
    fn plugin(&self) -> Value {
        let script = r#"echo run >> "$0/runs"; cat "$0/answer""#;
        json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "sh",
            "args": ["-c", script, self.folder.path()], "interactiveMode": "Never"}})
    }

    fn plugin_gives(&self, status: &Value) {
        let answer = json!({"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1beta1",
            "status": status});
        self.write("answer", &answer.to_string());
    }

    fn plugin_runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }
}

struct Followed {
    access: Access,
    registry: Registry,
    metrics: KubeMetrics,
    _stop: DropGuard,
}

async fn open(files: &Files) -> Followed {
    let mut registry = Registry::default();
    let metrics = KubeMetrics::register(&mut registry);
    let source = AccessSource { path: Some(files.path("kubeconfig")), context: None, flag: "--k", role: "lower" };
    let access = Access::open(source, &metrics).await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(access.clone().keep_fresh(stop.clone()));
    Followed { access, registry, metrics, _stop: stop.drop_guard() }
}

impl Followed {
    fn pods(&self) -> Api<Pod> {
        let options = ClientOptions { role: "lower", retries_max: 0, ..ClientOptions::default() };
        Api::all(build(&self.access, &options, &self.metrics).unwrap())
    }

    fn shows(&self, line: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().any(|shown| shown == line)
    }

    async fn until_shown(&self, line: &str) {
        let started = Instant::now();
        while !self.shows(line) {
            assert!(started.elapsed() < LIMIT, "the metrics never show {line}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn lists(pods: &Api<Pod>) -> bool {
    pods.list(&ListParams::default()).await.is_ok()
}

fn plain(server: &ScriptedServer) -> Value {
    json!({"server": format!("http://{}", server.address())})
}
