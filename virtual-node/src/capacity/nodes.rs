//! Tells the ledger of the lower cluster's nodes.

use std::collections::HashSet;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tensile_chassis::{
    readiness::Gate,
    watch::{Event, Watch, WatchHealth, WatchOptions, watch},
};
use tokio_util::sync::CancellationToken;

use super::CapacityLedger;

/// The watch of the lower cluster's nodes.
pub struct NodesWatch {
    events: Watch<Node>,
    ledger: CapacityLedger,
    /// Nodes that the ledger knows.
    known: HashSet<String>,
    /// Known nodes not seen yet in the list under way.
    unseen: HashSet<String>,
}

impl NodesWatch {
    /// A watch that fills `ledger`; `gate` opens with the first list.
    pub fn new(lower: kube::Client, ledger: CapacityLedger, options: WatchOptions, gate: Gate) -> Self {
        let events = watch(Api::<Node>::all(lower), options, gate);
        Self { events, ledger, known: HashSet::new(), unseen: HashSet::new() }
    }

    /// How the watch fares, for [`crate::node::ReachProbe`].
    pub fn health(&self) -> WatchHealth {
        self.events.health()
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while let Some(Some(event)) = shutdown.run_until_cancelled(self.events.next()).await {
            self.take_in(event);
        }
    }

    fn take_in(&mut self, event: Event<Node>) {
        match event {
            Event::Restarted { .. } => self.unseen = self.known.clone(),
            Event::Listed(node) | Event::Applied(node) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                self.unseen.remove(&name);
                self.ledger.upsert_node(&node);
                self.known.insert(name);
            }
            Event::Deleted(node) => self.forget(&node.metadata.name.unwrap_or_default()),
            Event::ListDone => {
                for name in std::mem::take(&mut self.unseen) {
                    self.forget(&name);
                }
                self.ledger.nodes_listed();
            }
            // It exists: what was known of it stands.
            Event::Malformed { name, error, .. } => {
                tracing::warn!(node = %name, %error, "a lower node cannot be decoded; its last known size stands");
                self.unseen.remove(&name);
            }
        }
    }

    fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.ledger.remove_node(name);
    }
}
