//! The two clusters that all scenes share.

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use serde_json::json;
use tensile_e2e::{Cluster, KwokNodes, Seen, eventually};
use tokio::sync::OnceCell;

use crate::{space::Space, twins::Twins};

/// The time limit for what takes a second or two on an idle machine. A lease that was renewed by a dying process's last
/// request has to run out first, which takes 15 s.
pub const SOON: Duration = Duration::from_secs(90);

/// An upper cluster without nodes of its own, and a lower one of simulated nodes.
pub struct World {
    pub upper: Cluster,
    pub lower: Cluster,
    pub twins: Twins,
}

/// The shared world, started by the first test that asks.
pub async fn world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    WORLD
        .get_or_init(|| async {
            let (upper, lower) = tokio::try_join!(
                Cluster::builder("upper").start(),
                Cluster::builder("lower").nodes(KwokNodes { pods: 500, ..KwokNodes::count(2) }).start()
            )
            .unwrap();
            let twins = Twins::watch(lower.admin_kubeconfig());
            World { upper, lower, twins }
        })
        .await
}

impl World {
    /// Makes an upper namespace whose pods go to this virtual node, and waits until pods can be created in it.
    pub async fn namespace(&'static self, name: &str, node: &str) -> Space {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.upper.apply_yaml(&namespace.to_string()).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.upper.client(), name);
        eventually("the namespace has its ServiceAccount", SOON, || async {
            Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
        })
        .await
        .unwrap();
        Space { world: self, name: name.to_owned(), node: node.to_owned() }
    }
}
