//! A scripted API server that keeps pods, and can be told to have a bad day.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tensile_chassis::testing::{Asked, Chunk, Events, Reply, ScriptedServer};

use crate::{strategic, world::until};

/// The namespace of every pod here.
pub const NAMESPACE: &str = "team";

/// What a server does about a request in place of answering it well.
pub enum Trouble {
    /// It answers this and does nothing.
    Instead(Reply),
    /// It does what was asked, and then answers this.
    After(Reply),
}

type Rule = Box<dyn FnMut(&Asked) -> Option<Trouble> + Send>;

/// A request as it was answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Such as `POST /pods` or `PATCH /pods/web/status`; the namespace is left out.
    pub line: String,
    /// When it came.
    pub at: Instant,
}

/// One cluster: an API server and its pods.
pub struct Cluster {
    server: ScriptedServer,
    state: Arc<State>,
}

struct State {
    name: &'static str,
    store: Mutex<Store>,
    rule: Mutex<Option<Rule>>,
    requests: Mutex<Vec<Request>>,
}

#[derive(Default)]
struct Store {
    version: u64,
    pods: BTreeMap<String, Value>,
    /// Everything that happened to pods: version, kind of event, pod.
    history: Vec<(u64, &'static str, Value)>,
    watchers: Vec<Watcher>,
    /// Watchers are told nothing for now.
    silent: bool,
}

struct Watcher {
    events: Events,
    /// What it was told last.
    told: u64,
}

impl Cluster {
    pub async fn start(name: &'static str) -> Self {
        let state =
            Arc::new(State { name, store: Mutex::default(), rule: Mutex::default(), requests: Mutex::default() });
        let answering = state.clone();
        let server = ScriptedServer::start(move |asked| answering.answer(asked)).await.unwrap();
        Self { server, state }
    }

    pub fn config(&self) -> kube::Config {
        self.server.config()
    }

    /// What happens to requests from now on.
    pub fn trouble(&self, rule: impl FnMut(&Asked) -> Option<Trouble> + Send + 'static) {
        *self.state.rule.lock() = Some(Box::new(rule));
    }

    /// All is well again.
    pub fn well(&self) {
        *self.state.rule.lock() = None;
    }

    /// Requests whose line begins so.
    pub fn requests(&self, beginning: &str) -> Vec<Request> {
        self.state.requests.lock().iter().filter(|request| request.line.starts_with(beginning)).cloned().collect()
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.state.store.lock().pods.get(name).cloned()
    }

    pub fn pod_names(&self) -> Vec<String> {
        self.state.store.lock().pods.keys().cloned().collect()
    }

    /// How many pods of this name there were, one after the other.
    pub fn times_created(&self, name: &str) -> usize {
        let store = self.state.store.lock();
        store.history.iter().filter(|(_, kind, pod)| *kind == "ADDED" && pod["metadata"]["name"] == name).count()
    }

    /// Puts a pod there, in place of one of its name, and gives its UID.
    pub fn put(&self, name: &str, pod: Value) -> String {
        let mut store = self.state.store.lock();
        let pod = store.created(self.state.name, name, pod);
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Changes a pod, as others than the virtual-node do.
    pub fn patch(&self, name: &str, patch: &Value) {
        self.state.store.lock().patched(name, patch).unwrap();
    }

    /// Takes a pod away.
    pub fn remove(&self, name: &str) {
        self.state.store.lock().removed(name).unwrap();
    }

    /// Tells watchers nothing until [`Self::speak`].
    pub fn fall_silent(&self) {
        self.state.store.lock().silent = true;
    }

    /// Tells watchers what they missed, and goes on.
    pub fn speak(&self) {
        let mut store = self.state.store.lock();
        store.silent = false;
        store.tell();
    }

    /// Waits until pods are watched, sends these to the watcher, and ends its watch.
    pub async fn end_watch(&self, chunks: &[Chunk]) {
        until("pods are watched", || match self.watches_open() {
            1 => Ok(()),
            other => Err(other),
        })
        .await;
        for watcher in self.state.store.lock().watchers.drain(..) {
            for chunk in chunks {
                watcher.events.send(chunk.clone());
            }
        }
    }

    /// The watches of pods that are open.
    pub fn watches_open(&self) -> usize {
        self.state.store.lock().watchers.iter().filter(|watcher| !watcher.events.is_closed()).count()
    }
}

impl State {
    fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.replace(&format!("/namespaces/{NAMESPACE}/"), "/").replace("/api/v1", "");
        let method = if asked.is_watch() { "WATCH" } else { asked.method.as_str() };
        self.requests.lock().push(Request { line: format!("{method} {path}"), at: Instant::now() });
        let trouble = self.rule.lock().as_mut().and_then(|rule| rule(asked));
        match trouble {
            Some(Trouble::Instead(reply)) => reply,
            Some(Trouble::After(reply)) => {
                drop(self.well(asked, &path));
                reply
            }
            None => self.well(asked, &path),
        }
    }

    /// What an API server on a good day does.
    fn well(&self, asked: &Asked, path: &str) -> Reply {
        let mut store = self.store.lock();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (&asked.method, parts.as_slice()) {
            (&Method::GET, ["pods"]) if asked.is_watch() => store.watched(asked),
            (&Method::GET, ["pods"]) => {
                let pods: Vec<Value> = store.pods.values().filter(|pod| selected(asked, pod)).cloned().collect();
                Reply::list(&store.version.to_string(), &pods)
            }
            (&Method::GET, ["pods", name]) => {
                store.pods.get(*name).map_or_else(|| Reply::error(404, "no such pod"), |pod| Reply::json(200, pod))
            }
            (&Method::POST, ["pods"]) => {
                let pod = asked.json();
                let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
                if store.pods.contains_key(&name) {
                    return already_exists(&name);
                }
                Reply::json(201, &store.created(self.name, &name, pod))
            }
            (&Method::PATCH, ["pods", name] | ["pods", name, "status"]) => {
                if let Some(conflict) = store.conflict(name, &asked.json()["metadata"]) {
                    return conflict;
                }
                Reply::json(200, &store.patched(name, &asked.json()).unwrap())
            }
            (&Method::DELETE, ["pods", name]) => {
                let options = asked.json();
                if let Some(conflict) = store.conflict(name, &options["preconditions"]) {
                    return conflict;
                }
                store.deleted(name, options["gracePeriodSeconds"].as_i64())
            }
            (&Method::GET, ["namespaces", name]) => Reply::json(
                200,
                &json!({"apiVersion": "v1", "kind": "Namespace",
                    "metadata": {"name": name, "labels": {"tensile.dev/upper-cluster": "upper-1"}}}),
            ),
            _ if asked.is_watch() => Reply::watched_for_ever(),
            (&Method::GET, _) => Reply::list(&store.version.to_string(), &[]),
            // Events.
            _ => Reply::json(201, &asked.json()),
        }
    }
}

impl Store {
    fn happened(&mut self, kind: &'static str, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.history.push((self.version, kind, pod.clone()));
        self.tell();
        pod
    }

    fn tell(&mut self) {
        if self.silent {
            return;
        }
        for watcher in &mut self.watchers {
            let told = watcher.told;
            for (version, kind, pod) in self.history.iter().filter(|(version, ..)| *version > told) {
                watcher.events.send(Chunk::event(kind, pod));
                watcher.told = *version;
            }
        }
    }

    fn watched(&mut self, asked: &Asked) -> Reply {
        let (reply, events) = Reply::watch();
        let told = asked.query["resourceVersion"].parse().unwrap();
        self.watchers.push(Watcher { events, told });
        self.tell();
        reply
    }

    fn created(&mut self, cluster: &str, name: &str, mut pod: Value) -> Value {
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        let metadata = &mut pod["metadata"];
        metadata["name"] = json!(name);
        metadata["namespace"] = json!(NAMESPACE);
        metadata["uid"] = json!(format!("{cluster}-{}", self.version + 1));
        metadata["creationTimestamp"] = json!("2026-11-24T08:00:00Z");
        metadata["generation"] = json!(1);
        if pod["status"].is_null() {
            pod["status"] = json!({"phase": "Pending"});
        }
        let pod = self.happened("ADDED", pod);
        self.pods.insert(name.to_owned(), pod.clone());
        pod
    }

    fn patched(&mut self, name: &str, patch: &Value) -> Option<Value> {
        let mut patch = patch.clone();
        if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
            // A precondition, not a change.
            metadata.remove("resourceVersion");
        }
        let pod = strategic::patched(self.pods.get(name)?, &patch);
        let pod = self.happened("MODIFIED", pod);
        self.pods.insert(name.to_owned(), pod.clone());
        Some(pod)
    }

    fn removed(&mut self, name: &str) -> Option<Value> {
        let pod = self.pods.remove(name)?;
        Some(self.happened("DELETED", pod))
    }

    /// A pod that no node has goes at once; else the node's kubelet has the last word, with grace 0.
    fn deleted(&mut self, name: &str, grace: Option<i64>) -> Reply {
        let unbound = self.pods[name]["spec"]["nodeName"].is_null();
        let pod = if unbound || grace == Some(0) {
            self.removed(name)
        } else {
            let going = json!({"metadata": {"deletionTimestamp": "2026-11-24T08:00:30Z",
                "deletionGracePeriodSeconds": grace.unwrap_or(30)}});
            self.patched(name, &going)
        };
        Reply::json(200, &pod.unwrap())
    }

    /// What stands against a write with these preconditions.
    fn conflict(&self, name: &str, preconditions: &Value) -> Option<Reply> {
        let Some(pod) = self.pods.get(name) else { return Some(Reply::error(404, "no such pod")) };
        let differs = |field: &str| {
            let wanted = &preconditions[field];
            !wanted.is_null() && *wanted != pod["metadata"][field]
        };
        (differs("uid") || differs("resourceVersion")).then(|| Reply::error(409, "the object has been modified"))
    }
}

fn selected(asked: &Asked, pod: &Value) -> bool {
    let selector = asked.query.get("fieldSelector").map(String::as_str).unwrap_or_default();
    let name = selector.split(',').find_map(|part| part.strip_prefix("metadata.name="));
    name.is_none_or(|name| pod["metadata"]["name"] == name)
}

fn already_exists(name: &str) -> Reply {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": "AlreadyExists", "code": 409, "message": format!("pods \"{name}\" already exists")});
    Reply::json(409, &status)
}

/// Whether it is a request to create a pod of this name.
pub fn creates(asked: &Asked, name: &str) -> bool {
    asked.method == Method::POST && asked.path.ends_with("/pods") && asked.json()["metadata"]["name"] == name
}

/// Whether it writes a pod's status.
pub fn writes_status(asked: &Asked) -> bool {
    asked.method == Method::PATCH && asked.path.ends_with("/status")
}

/// Whether it is a list of many pods, and not the look for one.
pub fn lists_pods(asked: &Asked) -> bool {
    let one = asked.query.get("fieldSelector").is_some_and(|fields| fields.contains("metadata.name="));
    asked.method == Method::GET && asked.path == "/api/v1/pods" && !asked.is_watch() && !one
}

/// The time limit for what takes milliseconds to some seconds (pauses between tries) on an idle machine.
pub const LIMIT: Duration = Duration::from_mins(1);
