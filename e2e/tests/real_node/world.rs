//! The clusters that the tests share, and what tests say often.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Event, Pod, ServiceAccount};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use tensile_e2e::{Cluster, MetricsServer, RealNodes, SHELL_IMAGE, Seen, Tool, Tools, VirtualNode, eventually};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard};

use crate::{
    command::{Ended, run},
    pods::describe,
};

/// The time limit for what takes some seconds on an idle machine.
pub const SOON: Duration = Duration::from_mins(2);

/// The virtual node's name.
pub const NODE: &str = "vn-real";

/// The versions of kubectl that are tried: the newest, and one as users still have it.
pub const KUBECTLS: [Tool; 2] = [Tool::Kubectl, Tool::KubectlOld];

/// Does nothing until it is told to end, and then ends at once.
pub const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// An upper cluster without nodes of its own, and a lower cluster with one real node, behind the virtual node [`NODE`].
pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
    pub node: VirtualNode,
    /// Address and port of the upper API server as pods reach it.
    pub upper_api: (String, String),
    /// Commands that go through the virtual-node read this; who kills the virtual-node writes it.
    pub undisturbed: RwLock<()>,
    active: AtomicUsize,
    /// Above and below, for as long as the clusters: an API that goes away troubles every kubectl.
    _metrics_servers: [MetricsServer; 2],
}

/// The shared world, started by the first test that asks; `None`, with the reason said, where no real nodes can run.
pub async fn world() -> Option<&'static World> {
    static WORLD: OnceCell<Option<World>> = OnceCell::const_new();
    WORLD
        .get_or_init(|| async {
            if let Err(reason) = RealNodes::available() {
                eprintln!("skipped: {reason}");
                return None;
            }
            Some(Box::pin(World::start()).await)
        })
        .await
        .as_ref()
}

/// A namespace for a test, or `None` where no real nodes can run.
pub async fn space(name: &str) -> Option<Space> {
    Some(world().await?.space(name).await)
}

impl World {
    async fn start() -> Self {
        tensile_e2e::install_crypto();
        for tool in Tool::ALL {
            Tools::get(tool).await.unwrap();
        }
        let (upper, lower) = tokio::try_join!(
            // On the bridge, where pods of the lower cluster reach it.
            Cluster::builder("upper").on_bridge(true).start(),
            Cluster::builder("lower").real_nodes(1).start(),
        )
        .unwrap();
        let api = upper.server_url().strip_prefix("https://").unwrap().trim_end_matches('/').to_owned();
        let node = VirtualNode::builder(&upper, &lower).name(NODE).args(["--upper-api-for-pods", &api]);
        let (node, above, below) =
            tokio::try_join!(node.start(), MetricsServer::start(&upper), MetricsServer::start(&lower)).unwrap();
        let (host, port) = api.rsplit_once(':').unwrap();
        let upper_api = (host.to_owned(), port.to_owned());
        Self {
            upper,
            lower,
            node,
            upper_api,
            undisturbed: RwLock::default(),
            active: AtomicUsize::new(0),
            _metrics_servers: [above, below],
        }
    }

    /// Makes an upper namespace and waits until pods can be created in it.
    async fn space(&'static self, name: &str) -> Space {
        self.active.fetch_add(1, Ordering::SeqCst);
        let space = Space { world: self, name: name.to_owned() };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.upper.apply_yaml(&namespace.to_string()).await.unwrap();
        let accounts: Api<ServiceAccount> = space.upper();
        eventually("the namespace has its ServiceAccount", SOON, || async {
            Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
        })
        .await
        .unwrap();
        space
    }

    /// How many tests are at work.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }
}

/// A test's namespace, of the same name in both clusters.
pub struct Space {
    pub world: &'static World,
    pub name: String,
}

impl Drop for Space {
    fn drop(&mut self) {
        self.world.active.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Space {
    /// Objects of this namespace in the upper cluster.
    pub fn upper<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.world.upper.client(), &self.name)
    }

    /// Objects of this namespace in the lower cluster.
    pub fn lower<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.world.lower.client(), &self.name)
    }

    /// Applies YAML to the upper cluster; `NAMESPACE`, `IMAGE` and `SLEEP` stand for what they say.
    pub async fn apply(&self, yaml: &str) {
        let yaml = yaml.replace("NAMESPACE", &self.name).replace("IMAGE", SHELL_IMAGE);
        let yaml = yaml.replace("SLEEP", &SLEEP.replace('\'', "''"));
        self.world.upper.apply_yaml(&yaml).await.unwrap();
    }

    /// Creates a pod that tolerates the virtual node, with one container `main` that runs this script. `change` is merged
    /// into its spec.
    pub async fn pod(&self, name: &str, script: &str, change: Value) -> Pod {
        let mut spec = json!({
            "containers": [container("main", script)],
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        });
        json_patch::merge(&mut spec, &change);
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.upper::<Pod>().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    /// Waits until an upper pod fits a description.
    pub async fn until(&self, pod: &str, what: &str, fits: impl Fn(&Pod) -> bool) -> Pod {
        eventually(&format!("pod {pod} {what}"), SOON, || async {
            let seen = self.upper::<Pod>().get(pod).await?;
            Ok(if fits(&seen) { Seen::Done(seen) } else { Seen::NotYet(describe(&seen)) })
        })
        .await
        .unwrap()
    }

    /// Waits until a pod is gone from one cluster.
    pub async fn until_gone(&self, pods: &Api<Pod>, pod: &str) {
        eventually(&format!("pod {pod} is gone"), SOON, || async {
            Ok(match pods.get_opt(pod).await? {
                None => Seen::Done(()),
                Some(seen) => Seen::NotYet(describe(&seen)),
            })
        })
        .await
        .unwrap();
    }

    /// The upper pod of this label `app`, as soon as there is one.
    pub async fn pod_of_app(&self, app: &str) -> String {
        let selector = ListParams::default().labels(&format!("app={app}"));
        eventually(&format!("there is a pod of {app}"), SOON, || async {
            let listed = self.upper::<Pod>().list(&selector).await?.items;
            Ok(listed.first().map_or(Seen::NotYet("none".into()), |pod| Seen::Done(pod.name_any())))
        })
        .await
        .unwrap()
    }

    /// Waits until an event with this reason is told of an upper pod, and answers its message.
    pub async fn until_event(&self, pod: &str, reason: &str) -> String {
        let selector = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        eventually(&format!("pod {pod} has an event {reason}"), SOON, || async {
            let events = self.upper::<Event>().list(&selector).await?.items;
            let found = events.iter().find(|event| event.reason.as_deref() == Some(reason));
            Ok(match found {
                Some(event) => Seen::Done(event.message.clone().unwrap_or_default()),
                None => {
                    Seen::NotYet(format!("{:?}", events.iter().map(|e| (&e.reason, &e.message)).collect::<Vec<_>>()))
                }
            })
        })
        .await
        .unwrap()
    }

    /// kubectl in the upper cluster and this namespace, for who holds [`Self::undisturbed`].
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        self.kubectl_of(Tool::Kubectl, arguments)
    }

    /// [`Self::kubectl`] of one of [`KUBECTLS`].
    pub fn kubectl_of(&self, version: Tool, arguments: &[&str]) -> Command {
        let plain = self.world.upper.kubectl();
        let mut command = Command::new(Tools::shared().locate_or_build(version).unwrap());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(["--namespace", &self.name]).args(arguments);
        command
    }

    /// Keeps the virtual-node alive. Who holds this calls no method that asks for it again: behind somebody who waits to
    /// kill the virtual-node, that would wait for ever.
    pub async fn undisturbed(&self) -> RwLockReadGuard<'static, ()> {
        self.world.undisturbed.read().await
    }

    /// Runs kubectl to its end.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        let _undisturbed = self.undisturbed().await;
        run(&mut self.kubectl(arguments), b"")
    }

    /// What a shell script in the container `main` prints.
    pub async fn inside(&self, pod: &str, script: &str) -> String {
        self.run(&["exec", pod, "-c", "main", "--", "sh", "-c", script]).await.ok()
    }

    /// Waits until a shell script in the container `main` prints this. The virtual-node must not be restarted between a
    /// change above and this, for a start looks at everything anew: hence the guard.
    pub async fn until_inside(
        &self,
        _undisturbed: &RwLockReadGuard<'static, ()>,
        pod: &str,
        script: &str,
        printed: &str,
    ) {
        eventually(&format!("`{script}` prints {printed:?} in pod {pod}"), SOON, || async {
            let ended = run(&mut self.kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", script]), b"");
            Ok(Seen::when(ended.code == Some(0) && ended.out == printed, ended))
        })
        .await
        .unwrap();
    }
}

/// A container that runs a script.
pub fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": SHELL_IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script]})
}
