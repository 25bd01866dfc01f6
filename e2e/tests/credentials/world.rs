//! The clusters that the tests share, the accounts of the lower one, and what tests say often.

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, Secret, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, VirtualNodeBuilder, eventually, run::Run};
use tokio::sync::OnceCell;

use crate::issuer::{AUDIENCE, Issuer};

/// The time limit for what takes a second or two on an idle machine.
pub const SOON: Duration = Duration::from_mins(1);

/// Where all pods are.
const NAMESPACE: &str = "credentials";

pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
    pub issuer: Issuer,
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
        let dir = Run::current().unwrap().new_dir("files").unwrap();
        let issuer = Issuer::start();
        let authentication = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [{
                "issuer": {"url": issuer.url, "certificateAuthority": issuer.ca_pem, "audiences": [AUDIENCE]},
                "claimMappings": {"username": {"claim": "sub", "prefix": "oidc:"}},
            }],
        });
        fs::write(dir.join("authentication.yaml"), authentication.to_string()).unwrap();
        static_tokens(&dir, "old");
        let lower = Cluster::builder("lower")
            .nodes(KwokNodes::count(1))
            .apiserver_arg(&format!("--authentication-config={}", dir.join("authentication.yaml").display()))
            .apiserver_arg(&format!("--token-auth-file={}", dir.join("tokens.csv").display()));
        let (upper, lower) = tokio::try_join!(Cluster::builder("upper").start(), lower.start()).unwrap();
        let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
        upper.apply_yaml(&namespace).await.unwrap();
        lower.apply_yaml(include_str!("../../../virtual-node/deploy/rbac-lower.yaml")).await.unwrap();
        lower.apply_yaml(IMPERSONATOR).await.unwrap();
        let world = Self { upper, lower, issuer, dir };
        world.bind("members", "Group", "tensile-below").await;
        world.bind("oidc", "User", "oidc:jane").await;
        world.bind("static", "User", "static").await;
        world
    }

    /// Static tokens of the lower cluster, read at the next start of its API server: `NAME-WHICH` for each user.
    pub fn static_tokens(&self, which: &str) {
        static_tokens(&self.dir, which);
    }

    /// A folder of its own.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Gives somebody below the rights of a virtual node.
    pub async fn bind(&self, name: &str, kind: &str, subject: &str) {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("credentials-{name}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tensile:virtual-node"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": subject}],
        });
        self.lower.apply_yaml(&binding.to_string()).await.unwrap();
    }

    /// Takes them away again.
    pub async fn unbind(&self, name: &str) {
        let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(self.lower.client());
        bindings.delete(&format!("credentials-{name}"), &DeleteParams::default()).await.unwrap();
    }

    /// The text of a kubeconfig for the lower cluster.
    pub fn below(&self, user: &Value) -> String {
        kubeconfig(self.lower.server_url(), self.lower.ca_pem(), user)
    }

    /// A virtual-node whose kubeconfig for the lower cluster is this file.
    pub fn node(&self, name: &str, lower_kubeconfig: &std::path::Path) -> VirtualNodeBuilder {
        let argument = format!("--lower-kubeconfig={}", lower_kubeconfig.display());
        VirtualNode::builder(&self.upper, &self.lower).name(name).args([argument])
    }

    /// Creates a pod for a virtual node.
    pub async fn create(&self, node: &str, name: &str) {
        let pod = json!({"metadata": {"name": name}, "spec": {
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "example.test/app:1"}],
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        }});
        let pod = serde_json::from_value(pod).unwrap();
        eventually(&format!("pod {name} is accepted"), SOON, || async {
            // The namespace's ServiceAccount may be a moment behind.
            Ok(match pods(&self.upper).create(&PostParams::default(), &pod).await {
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })
        .await
        .unwrap();
    }

    /// Waits until a pod is Ready above.
    pub async fn until_ready(&self, name: &str) {
        eventually(&format!("pod {name} is Ready above"), SOON, || async {
            let status = pods(&self.upper).get(name).await?.status.unwrap_or_default();
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(Seen::when(ready, status))
        })
        .await
        .unwrap();
    }

    /// Changes a pod's status below, and waits until that is seen above.
    pub async fn change_and_see(&self, name: &str, words: &str) {
        let patch = Patch::Merge(json!({"status": {"message": words}}));
        pods(&self.lower).patch_status(name, &PatchParams::default(), &patch).await.unwrap();
        eventually(&format!("the message of {name} is seen above"), SOON, || async {
            let status = pods(&self.upper).get(name).await?.status.unwrap_or_default();
            Ok(Seen::when(status.message.as_deref() == Some(words), status.message))
        })
        .await
        .unwrap();
    }
}

pub fn pods(cluster: &Cluster) -> Api<Pod> {
    Api::namespaced(cluster.client(), NAMESPACE)
}

/// What a pod below is, to see whether it is still the same one. Another test may have the API server restart.
pub async fn lower_uid(world: &World, name: &str) -> String {
    eventually(&format!("pod {name} is read below"), SOON, || async {
        Ok(Seen::Done(pods(&world.lower).get(name).await?.metadata.uid.unwrap_or_default()))
    })
    .await
    .unwrap()
}

fn static_tokens(dir: &std::path::Path, which: &str) {
    let line = |user: &str| format!("{user}-{which},{user},{user}\n");
    fs::write(dir.join("tokens.csv"), line("static") + &line("impersonator")).unwrap();
}

/// A token of the account `tensile-system/virtual-node` that ends with the Secret of this name.
pub async fn revocable_token(cluster: &Cluster, secret: &str) -> String {
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), "tensile-system");
    let object: Secret = serde_json::from_value(json!({"metadata": {"name": secret}})).unwrap();
    let made = secrets.create(&PostParams::default(), &object).await.unwrap();
    let reference = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Secret".into()),
        name: Some(secret.into()),
        uid: made.metadata.uid,
    };
    let spec = TokenRequestSpec { bound_object_ref: Some(reference), ..TokenRequestSpec::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), "tensile-system");
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request("virtual-node", &PostParams::default(), &request).await.unwrap();
    answer.status.and_then(|status| status.token).unwrap()
}

/// Ends a token of [`revocable_token`].
pub async fn revoke(cluster: &Cluster, secret: &str) {
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), "tensile-system");
    secrets.delete(secret, &DeleteParams::default()).await.unwrap();
}

/// The text of a kubeconfig with one context.
pub fn kubeconfig(server: &str, ca_pem: &str, user: &Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "only",
        "clusters": [{"name": "c", "cluster": {
            "server": server, "certificate-authority-data": STANDARD.encode(ca_pem)}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "only", "context": {"cluster": "c", "user": "u"}}],
    })
    .to_string()
}

/// Waits until a virtual-node's metrics have this line.
pub async fn until_shown(node: &VirtualNode, line: &str) {
    eventually(&format!("the metrics show {line}"), SOON, || async {
        let metrics = node.metrics().await?;
        let shown: Vec<&str> = metrics.lines().filter(|shown| shown.contains("credential")).collect();
        Ok(Seen::when(metrics.lines().any(|shown| shown == line), shown))
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}; its log:\n{}", node.logs()));
}

/// The metric of what became of new credentials.
pub fn renewals(role: &str, outcome: &str, count: usize) -> String {
    format!("tensile_kube_credential_renewals_total{{role=\"{role}\",outcome=\"{outcome}\"}} {count}")
}

/// The metric of whether there are credentials that are not in use.
pub fn held_back(role: &str, held_back: bool) -> String {
    format!("tensile_kube_credentials_held_back{{role=\"{role}\"}} {}", u8::from(held_back))
}

/// May act as others, and nothing else.
const IMPERSONATOR: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: credentials-impersonator}
rules:
- {apiGroups: [''], resources: [users], resourceNames: [jane], verbs: [impersonate]}
- {apiGroups: [''], resources: [groups], resourceNames: [tensile-below], verbs: [impersonate]}
- {apiGroups: [authentication.k8s.io], resources: [uids], resourceNames: ['42'], verbs: [impersonate]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: credentials-impersonator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: credentials-impersonator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: impersonator}]
";
