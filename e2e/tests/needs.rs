//! What pods need below, on real API servers: the keeper works alone here, under a node's own identity above and the
//! lower account's rights below.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::TokenReview,
        core::v1::{ConfigMap, Event, Namespace, Pod, Secret, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tensile_chassis::kube_client::{ClientOptions, KubeMetrics, build, load_config};
use tensile_e2e::{Cluster, Seen, eventually};
use tensile_proto::vocabulary::{annotation, label};
use tensile_virtual_node::{
    context::{LowerClients, Settings, UpperClients},
    events::Recorder,
    names::{Key, NamespaceMapping},
    needs::{Missing, NeedsKeeper, PodNeed, Retry},
    translate,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The time limit for what takes a second or two on an idle machine. The keeper's own grace period is 30 s.
const SOON: Duration = Duration::from_secs(90);

/// Two clusters for all tests here; each test has a node and a namespace of its own.
async fn clusters() -> &'static (Cluster, Cluster) {
    static SHARED: tokio::sync::OnceCell<(Cluster, Cluster)> = tokio::sync::OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let start = |name: &'static str| async move {
                Cluster::builder(name).kwok(false).scheduler(false).start().await.unwrap()
            };
            let (upper, lower) = tokio::join!(start("upper"), start("lower"));
            lower.apply_yaml(include_str!("../../virtual-node/deploy/rbac-lower.yaml")).await.unwrap();
            (upper, lower)
        })
        .await
}

/// The lower account's kubeconfig: one file, so written once.
async fn lower_account(lower: &Cluster) -> &'static Path {
    static SHARED: tokio::sync::OnceCell<PathBuf> = tokio::sync::OnceCell::const_new();
    SHARED
        .get_or_init(|| async { lower.service_account_kubeconfig("tensile-system", "virtual-node").await.unwrap() })
        .await
}

/// One virtual node's part of the clusters.
struct World {
    upper: &'static Cluster,
    lower: &'static Cluster,
    node: String,
    namespace: String,
    settings: Arc<Settings>,
}

/// A keeper that runs.
struct Running {
    keeper: NeedsKeeper,
    ready_again: UnboundedReceiver<Key>,
    may_write: Arc<AtomicBool>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl World {
    /// A Node, a namespace and its default ServiceAccount in the upper cluster.
    async fn new(name: &str) -> Self {
        tensile_e2e::install_crypto();
        let (upper, lower) = clusters().await;
        let node = format!("vn-{name}");
        upper
            .apply_yaml(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n---\n\
                 {{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}"
            ))
            .await
            .unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(upper.client(), name);
        let bundles: Api<ConfigMap> = Api::namespaced(upper.client(), name);
        eventually("the namespace has its account and CA", SOON, || async {
            let (account, bundle) = (accounts.get_opt("default").await?, bundles.get_opt("kube-root-ca.crt").await?);
            Ok(Seen::when(account.is_some() && bundle.is_some(), (account.is_some(), bundle.is_some())))
        })
        .await
        .unwrap();
        let settings = Arc::new(Settings {
            node_name: node.clone(),
            cluster_name: "lower".into(),
            upper_cluster_uid: identity(upper).await,
            lower_cluster_uid: identity(lower).await,
            namespaces: NamespaceMapping::Same,
            adopt_namespaces: ["default".to_owned()].into(),
            lower_scheduler_name: None,
            upper_api_for_pods: None,
            node_address: Ipv4Addr::new(192, 0, 2, 1).into(),
        });
        Self { upper, lower, node, namespace: name.to_owned(), settings }
    }

    async fn keeper(&self) -> Running {
        let node = self.upper.user_kubeconfig(&format!("system:node:{}", self.node), &["system:nodes"]).unwrap();
        let node = client(&node).await;
        let lower = client(lower_account(self.lower).await).await;
        let upper = UpperClients { node: node.clone(), account: self.upper.client() };
        let lower = LowerClients { api: lower.clone(), streaming: lower };
        let (ready_sender, ready_again) = unbounded_channel();
        let may_write = Arc::new(AtomicBool::new(true));
        let fence = may_write.clone();
        let (recorder, writer) = Recorder::new(node.clone(), "tensile-virtual-node", &self.node);
        let keeper = NeedsKeeper::new(
            self.settings.clone(),
            upper,
            vec![node],
            &lower,
            recorder,
            Arc::new(move || fence.load(Ordering::Relaxed)),
            ready_sender,
        );
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(writer.run(shutdown.clone()));
        let running = keeper.clone();
        let end = shutdown.clone();
        tasks.spawn(async move { running.run(end).await });
        Running { keeper, ready_again, may_write, shutdown, tasks }
    }

    /// Creates a pod that is bound to our node, and what the keeper is told of it.
    async fn pod(&self, name: &str, spec: serde_json::Value) -> PodNeed {
        let mut spec = spec;
        spec["nodeName"] = json!(self.node);
        spec["containers"] =
            spec.get("containers").cloned().unwrap_or(json!([{"name": "main", "image": "x.test/a:1"}]));
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec
        }))
        .unwrap();
        let created = self.upper_api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
        PodNeed {
            key: Key::new(&self.namespace, name),
            uid: created.metadata.uid.clone().unwrap(),
            service_account: created.spec.as_ref().unwrap().service_account_name.clone().unwrap_or_default(),
            needs: translate::needs(&created),
        }
    }

    fn upper_api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.upper.client(), &self.namespace)
    }

    fn lower_api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.lower.client(), &self.namespace)
    }

    async fn upper_config_map(&self, name: &str, value: &str) {
        self.upper_api::<ConfigMap>().create(&PostParams::default(), &config_map(name, value)).await.unwrap();
    }

    /// Waits until the lower copy of a ConfigMap holds a value.
    async fn lower_value_is(&self, name: &str, value: &str) -> ConfigMap {
        let api = self.lower_api::<ConfigMap>();
        eventually(&format!("{name} holds {value} below"), SOON, || async {
            let found = api.get_opt(name).await?;
            let data = found.as_ref().and_then(|found| found.data.clone()).unwrap_or_default();
            Ok(match found {
                Some(found) if data.get("key").map(String::as_str) == Some(value) => Seen::Done(found),
                _ => Seen::NotYet(format!("{data:?}")),
            })
        })
        .await
        .unwrap()
    }

    fn upper_requests(&self, verb: &str, resource: &str) -> usize {
        let user = format!("system:node:{}", self.node);
        let entries = self.upper.audit_log(&user).unwrap();
        entries
            .iter()
            .filter(|entry| {
                entry.user == user
                    && entry.verb == verb
                    && entry.resource == resource
                    && entry.namespace == self.namespace
                    && entry.stage == "ResponseComplete"
            })
            .count()
    }
}

impl Running {
    /// Tries until the pod has all it needs, as the pod engine does.
    async fn until_ready(&self, pod: &PodNeed) {
        eventually("the pod has what it needs", SOON, || async {
            Ok(match self.keeper.ensure(pod).await {
                Ok(()) => Seen::Done(()),
                Err(missing) => Seen::NotYet(format!("{missing:?}")),
            })
        })
        .await
        .unwrap();
    }

    /// Tries until the pod is refused out loud.
    async fn until_refused(&self, pod: &PodNeed) -> Missing {
        eventually("the pod is told what is missing", SOON, || async {
            Ok(match self.keeper.ensure(pod).await {
                Err(missing) if !missing.quiet => Seen::Done(missing),
                other => Seen::NotYet(format!("{other:?}")),
            })
        })
        .await
        .unwrap()
    }

    async fn called_again(&mut self, pod: &PodNeed) {
        let wanted = async {
            while let Some(key) = self.ready_again.recv().await {
                if key == pod.key {
                    return;
                }
            }
            panic!("the keeper is gone");
        };
        tokio::time::timeout(SOON, wanted).await.expect("the waiting pod was not called again");
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.expect("the keeper does not end");
    }
}

async fn identity(cluster: &Cluster) -> String {
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    namespaces.get("kube-system").await.unwrap().metadata.uid.unwrap()
}

async fn client(kubeconfig: &Path) -> Client {
    let config = load_config(Some(kubeconfig), None).await.unwrap();
    build(config, &ClientOptions::default(), &KubeMetrics::default()).unwrap()
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([("key".into(), value.into())])),
        ..ConfigMap::default()
    }
}

fn config_volume(name: &str) -> serde_json::Value {
    json!({"automountServiceAccountToken": false, "volumes": [{"name": "config", "configMap": {"name": name}}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_config_map_and_the_copy_follows_it_ever_after() {
    let world = World::new("follow").await;
    let mut running = world.keeper().await;
    let pod = world.pod("web", config_volume("settings")).await;

    let missing = running.until_refused(&pod).await;
    assert_eq!(missing.reason, "FailedMount");
    assert_eq!(missing.message, "MountVolume.SetUp failed for volume \"config\" : configmap \"settings\" not found");
    let events = world.upper_api::<Event>();
    eventually("the pod has the kubelet's event", SOON, || async {
        let found = events.list(&ListParams::default().fields("involvedObject.name=web")).await?.items;
        let told = found.iter().any(|event| event.message.as_deref() == Some(missing.message.as_str()));
        Ok(Seen::when(told, found.len()))
    })
    .await
    .unwrap();

    world.upper_config_map("settings", "1").await;
    running.called_again(&pod).await;
    running.until_ready(&pod).await;
    let copy = world.lower_value_is("settings", "1").await;
    let labels = copy.metadata.labels.unwrap();
    assert_eq!(labels[label::UPPER_CLUSTER], world.settings.upper_cluster_uid);
    assert_eq!(labels[label::VIRTUAL_NODE], world.node);

    let patch = |value: &str| Patch::Merge(json!({"data": {"key": value}}));
    world.upper_api::<ConfigMap>().patch("settings", &PatchParams::default(), &patch("2")).await.unwrap();
    world.lower_value_is("settings", "2").await;

    // What somebody does to the copy is put right.
    world.lower_api::<ConfigMap>().patch("settings", &PatchParams::default(), &patch("mine")).await.unwrap();
    world.lower_value_is("settings", "2").await;
    world.lower_api::<ConfigMap>().delete("settings", &DeleteParams::default()).await.unwrap();
    world.lower_value_is("settings", "2").await;

    // A deleted original leaves the copy to the pods that run; a new one of its name takes its place.
    world.upper_api::<ConfigMap>().delete("settings", &DeleteParams::default()).await.unwrap();
    let second = world.pod("web-2", config_volume("settings")).await;
    assert_eq!(running.until_refused(&second).await.reason, "FailedMount");
    world.lower_value_is("settings", "2").await;
    world.upper_config_map("settings", "3").await;
    running.called_again(&second).await;
    running.until_ready(&second).await;
    world.lower_value_is("settings", "3").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pods_with_one_config_map_cost_a_handful_of_requests() {
    let world = World::new("burst").await;
    let running = world.keeper().await;
    world.upper_config_map("settings", "1").await;
    let first = world.pod("web", config_volume("settings")).await;
    let pods: Vec<PodNeed> = (0..1000)
        .map(|n| PodNeed { key: Key::new("burst", format!("web-{n}")), uid: format!("uid-{n}"), ..first.clone() })
        .collect();
    running.until_ready(&first).await;
    let before = world.lower.audit_log("system:serviceaccount:tensile-system").unwrap();
    let started = std::time::Instant::now();
    let outcomes = futures::future::join_all(pods.iter().map(|pod| running.keeper.ensure(pod))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    eprintln!("1,000 pods were found ready in {:?}", started.elapsed());
    assert_eq!(running.keeper.counts(), (2, 1001), "a namespace and a ConfigMap");
    // The namespaces of other tests are busy meanwhile.
    let ours = |entries: &[tensile_e2e::AuditEntry]| entries.iter().filter(|entry| entry.namespace == "burst").count();
    let after = world.lower.audit_log("system:serviceaccount:tensile-system").unwrap();
    assert!(ours(&after) <= ours(&before) + 2, "{} requests", ours(&after) - ours(&before));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_keep_their_type_but_that_of_the_token_controller_and_immutable_ones_are_made_anew() {
    let world = World::new("secrets").await;
    let running = world.keeper().await;
    let secret = |name: &str, type_: &str, value: &str, immutable: bool| Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: Some(BTreeMap::from([("kubernetes.io/service-account.name".into(), "default".into())])),
            ..ObjectMeta::default()
        },
        type_: Some(type_.into()),
        data: Some(BTreeMap::from([("key".into(), ByteString(value.into()))])),
        immutable: Some(immutable),
        ..Secret::default()
    };
    let upper = world.upper_api::<Secret>();
    let lower = world.lower_api::<Secret>();
    upper
        .create(&PostParams::default(), &secret("legacy", "kubernetes.io/service-account-token", "x", false))
        .await
        .unwrap();
    upper.create(&PostParams::default(), &secret("fixed", "example.test/kind", "1", true)).await.unwrap();
    let env =
        |name: &str| json!({"name": name.to_uppercase(), "valueFrom": {"secretKeyRef": {"name": name, "key": "key"}}});
    let pod = world
        .pod(
            "web",
            json!({"automountServiceAccountToken": false, "imagePullSecrets": [{"name": "none"}],
                   "containers": [{"name": "main", "image": "x.test/a:1", "env": [env("legacy"), env("fixed")]}]}),
        )
        .await;
    running.until_ready(&pod).await;
    assert_eq!(lower.get("legacy").await.unwrap().type_.as_deref(), Some("Opaque"));
    let fixed = lower.get("fixed").await.unwrap();
    assert_eq!((fixed.type_.as_deref(), fixed.immutable), (Some("example.test/kind"), Some(true)));

    // The next pod with a need makes the keeper read it again: an immutable object has no watch.
    upper.delete("fixed", &DeleteParams::default()).await.unwrap();
    upper.create(&PostParams::default(), &secret("fixed", "Opaque", "2", true)).await.unwrap();
    let other = world.keeper().await;
    other.until_ready(&pod).await;
    let fixed = lower.get("fixed").await.unwrap();
    assert_eq!(fixed.data.unwrap()["key"], ByteString("2".into()));
    assert_eq!(fixed.type_.as_deref(), Some("Opaque"));
    other.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_object_of_the_same_name_is_refused_with_the_cure_and_never_touched() {
    let world = World::new("clash").await;
    let mut running = world.keeper().await;
    let lower_namespaces: Api<Namespace> = Api::all(world.lower.client());
    world.upper_config_map("settings", "ours").await;
    world.lower.apply_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: clash}}").await.unwrap();
    let pod = world.pod("web", config_volume("settings")).await;

    let missing = running.until_refused(&pod).await;
    assert_eq!(missing.reason, "NamespaceConflict");
    assert!(missing.message.contains("kubectl label --overwrite namespace clash"), "{missing}");
    world.lower_api::<ConfigMap>().create(&PostParams::default(), &config_map("settings", "theirs")).await.unwrap();
    let mark = json!({"metadata": {"labels": {label::UPPER_CLUSTER: world.settings.upper_cluster_uid}}});
    lower_namespaces.patch("clash", &PatchParams::default(), &Patch::Merge(mark)).await.unwrap();
    running.called_again(&pod).await;

    let missing = eventually("the clash of the ConfigMap is told", SOON, || async {
        Ok(match running.keeper.ensure(&pod).await {
            Err(missing) if missing.reason == "NameConflict" => Seen::Done(missing),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await
    .unwrap();
    assert!(missing.message.contains("kubectl delete configmap settings -n clash"), "{missing}");
    assert_eq!(missing.retry, Retry::Waits);
    world.lower_value_is("settings", "theirs").await;

    world.lower_api::<ConfigMap>().delete("settings", &DeleteParams::default()).await.unwrap();
    running.called_again(&pod).await;
    running.until_ready(&pod).await;
    world.lower_value_is("settings", "ours").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_after_its_last_pod_but_never_while_a_lower_pod_refers_to_it() {
    let world = World::new("leave").await;
    let running = world.keeper().await;
    world.upper_config_map("used", "1").await;
    world.upper_config_map("unused", "1").await;
    let used = world.pod("a", config_volume("used")).await;
    let unused = world.pod("b", config_volume("unused")).await;
    running.until_ready(&used).await;
    running.until_ready(&unused).await;
    let accounts = world.lower_api::<ServiceAccount>();
    eventually("the lower namespace has its account", SOON, || async {
        Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
    })
    .await
    .unwrap();
    // A twin of another virtual node of the same upper cluster.
    let twin: Pod = serde_json::from_value(json!({
        "metadata": {"name": "twin", "labels": {label::UPPER_CLUSTER: world.settings.upper_cluster_uid,
            label::UPPER_UID: "another", label::VIRTUAL_NODE: "vn-other"}},
        "spec": {"containers": [{"name": "main", "image": "x.test/a:1",
            "envFrom": [{"configMapRef": {"name": "used"}}]}]}
    }))
    .unwrap();
    world.lower_api::<Pod>().create(&PostParams::default(), &twin).await.unwrap();

    running.keeper.release(&used.uid);
    running.keeper.release(&unused.uid);
    let lower = world.lower_api::<ConfigMap>();
    eventually("the unused copy is gone", SOON, || async {
        Ok(Seen::when(lower.get_opt("unused").await?.is_none(), "it is there"))
    })
    .await
    .unwrap();
    world.lower_value_is("used", "1").await;
    running.stop().await;

    // The next run finds it, and takes it away when the twin is gone.
    world.lower_api::<Pod>().delete("twin", &DeleteParams::default().grace_period(0)).await.unwrap();
    let next = world.keeper().await;
    next.keeper.adopt_existing().await.unwrap();
    next.keeper.collect_leftovers();
    eventually("the leftover is gone", SOON, || async {
        Ok(Seen::when(lower.get_opt("used").await?.is_none(), "it is there"))
    })
    .await
    .unwrap();
    assert_eq!(next.keeper.counts(), (0, 0));
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_its_own_upper_token_and_it_lives_and_goes_with_the_pod() {
    let world = World::new("tokens").await;
    let mut running = world.keeper().await;
    let pod = world.pod("web", json!({})).await;
    let secret_name = pod.needs.tokens[0].secret.clone();
    assert!(pod.needs.root_ca);
    running.until_ready(&pod).await;

    let bundle = world.lower_api::<ConfigMap>().get(translate::ROOT_CA_CONFIG_MAP).await.unwrap();
    assert_eq!(bundle.data.unwrap()["ca.crt"].trim(), world.upper.ca_pem().trim());
    let lower = world.lower_api::<Secret>();
    let first = lower.get(&secret_name).await.unwrap();
    let token_of = |secret: &Secret| String::from_utf8(secret.data.as_ref().unwrap()["token"].0.clone()).unwrap();
    let reviews: Api<TokenReview> = Api::all(world.upper.client());
    let review: TokenReview =
        serde_json::from_value(json!({"metadata": {}, "spec": {"token": token_of(&first)}})).unwrap();
    let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
    let user = status.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:tokens:default"));
    assert_eq!(user.extra.unwrap()["authentication.kubernetes.io/pod-uid"], std::slice::from_ref(&pod.uid));

    // A restart asks for no new token ...
    let asked = world.upper_requests("create", "serviceaccounts");
    running.stop().await;
    let next = world.keeper().await;
    next.keeper.adopt_existing().await.unwrap();
    next.until_ready(&pod).await;
    next.keeper.collect_leftovers();
    assert_eq!(world.upper_requests("create", "serviceaccounts"), asked);
    assert_eq!(token_of(&lower.get(&secret_name).await.unwrap()), token_of(&first));
    next.stop().await;

    // ... unless it is due.
    let due = json!({"metadata": {"annotations": {annotation::TOKEN_REFRESH: "2020-01-01T00:00:00Z"}}});
    lower.patch(&secret_name, &PatchParams::default(), &Patch::Merge(due)).await.unwrap();
    running = world.keeper().await;
    running.keeper.adopt_existing().await.unwrap();
    running.keeper.hold(&pod);
    eventually("the token is refreshed", SOON, || async {
        let secret = lower.get(&secret_name).await?;
        let due = secret.metadata.annotations.clone().unwrap_or_default().remove(annotation::TOKEN_REFRESH);
        Ok(Seen::when(token_of(&secret) != token_of(&first) && due.as_deref() != Some("2020-01-01T00:00:00Z"), due))
    })
    .await
    .unwrap();

    // Who does not lead writes nothing.
    running.may_write.store(false, Ordering::Relaxed);
    let second = world.pod("web-2", json!({})).await;
    assert!(running.keeper.ensure(&second).await.unwrap_err().quiet);
    assert!(lower.get_opt(&second.needs.tokens[0].secret).await.unwrap().is_none());
    running.may_write.store(true, Ordering::Relaxed);
    running.called_again(&second).await;
    running.until_ready(&second).await;

    running.keeper.release(&pod.uid);
    eventually("the token is gone", SOON, || async {
        Ok(Seen::when(lower.get_opt(&secret_name).await?.is_none(), "it is there"))
    })
    .await
    .unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_pods_gets_a_token_each_and_leaves_none_behind() {
    const PODS: usize = 200;
    let world = World::new("tokenburst").await;
    let running = world.keeper().await;
    let pods = futures::stream::iter(0..PODS)
        .map(|n| {
            let world = &world;
            async move { world.pod(&format!("web-{n}"), json!({})).await }
        })
        .buffered(16)
        .collect::<Vec<PodNeed>>()
        .await;
    let started = std::time::Instant::now();
    futures::stream::iter(&pods).for_each_concurrent(64, |pod| running.until_ready(pod)).await;
    let took = started.elapsed().as_secs_f64();
    eprintln!("{PODS} pods got their tokens in {took:.2} s");
    let lower = world.lower_api::<Secret>();
    let tokens = ListParams::default().labels(&format!("{}=token", label::NEED));
    assert_eq!(lower.list_metadata(&tokens).await.unwrap().items.len(), PODS);
    for pod in &pods {
        running.keeper.release(&pod.uid);
    }
    eventually("no token is left", SOON, || async {
        let left = lower.list_metadata(&tokens).await?.items.len();
        Ok(Seen::when(left == 0, left))
    })
    .await
    .unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_goes_on_with_the_tokens_that_are_there() {
    let world = World::new("takeover").await;
    let standby = world.keeper().await;
    standby.may_write.store(false, Ordering::Relaxed);
    let leader = world.keeper().await;
    let pods = [world.pod("due", json!({})).await, world.pod("fresh", json!({})).await];
    for pod in &pods {
        standby.keeper.hold(pod);
        leader.until_ready(pod).await;
    }
    leader.stop().await;
    let lower = world.lower_api::<Secret>();
    let secret_of = |pod: &PodNeed| pod.needs.tokens[0].secret.clone();
    let fresh = lower.get(&secret_of(&pods[1])).await.unwrap();
    let due = json!({"metadata": {"annotations": {annotation::TOKEN_REFRESH: "2020-01-01T00:00:00Z"}}});
    let due = lower.patch(&secret_of(&pods[0]), &PatchParams::default(), &Patch::Merge(due)).await.unwrap();
    standby.may_write.store(true, Ordering::Relaxed);
    // Tokens that were not found are asked for after a minute: this one is refreshed before, for it was found due.
    eventually("the token that is due is refreshed", Duration::from_secs(30), || async {
        let secret = lower.get(&secret_of(&pods[0])).await?;
        Ok(Seen::when(secret.data != due.data, secret.metadata.annotations))
    })
    .await
    .unwrap();
    assert_eq!(lower.get(&secret_of(&pods[1])).await.unwrap().data, fresh.data);
    standby.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_issued_is_told_and_the_pod_goes_on_when_it_can() {
    let world = World::new("notoken").await;
    let mut running = world.keeper().await;
    world
        .upper
        .apply_yaml("{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot, namespace: notoken}}")
        .await
        .unwrap();
    let pod = world.pod("web", json!({"serviceAccountName": "robot"})).await;
    world.upper_api::<ServiceAccount>().delete("robot", &DeleteParams::default()).await.unwrap();
    let missing = running.until_refused(&pod).await;
    assert_eq!(missing.reason, "FailedMount");
    assert!(missing.message.contains("failed to fetch token: serviceaccounts \"robot\" not found"), "{missing}");
    world
        .upper
        .apply_yaml("{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot, namespace: notoken}}")
        .await
        .unwrap();
    running.called_again(&pod).await;
    running.until_ready(&pod).await;
    running.stop().await;
}
