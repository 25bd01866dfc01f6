//! Pods that were sent to a reserved lower node and found it taken: each is given another node, deleted, and sent anew.
//!
//! Only a pod that never started is moved, and its deletion is bound to the very version in which the lower scheduler refused it.
//! While no other node has room it stays, and is looked at again whenever the room changes.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Pod};
use parking_lot::Mutex;
use tensile_scheduling::Demand;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{reading::unschedulable, requests, sync::Syncer};
use crate::{names::Key, owner::OwnerMark};

/// The lower pods that wait for a node which has no room for them.
#[derive(Debug, Default)]
pub(super) struct Strays {
    pods: Mutex<HashMap<Key, Stray>>,
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Stray {
    upper_uid: String,
    /// The node that it is pinned to.
    node: String,
    /// What it asks for, once the upper pod was read.
    demand: Option<Arc<Demand>>,
}

impl Strays {
    /// A lower pod of ours as it is now.
    pub fn note(&self, pod: &Pod, mark: &OwnerMark) {
        let Some(node) = pinned_to(pod).filter(|_| unschedulable(pod).is_some()) else { return self.forget(&mark.key) };
        let mut pods = self.pods.lock();
        let known = pods.get(&mark.key).filter(|known| known.upper_uid == mark.uid && known.node == node);
        let stray = Stray { upper_uid: mark.uid.clone(), node: node.to_owned(), demand: None };
        let stray = known.cloned().unwrap_or(stray);
        pods.insert(mark.key.clone(), stray);
        self.changed.notify_one();
    }

    /// It is gone.
    pub fn forget(&self, key: &Key) {
        self.pods.lock().remove(key);
    }

    fn all(&self) -> Vec<(Key, Stray)> {
        self.pods.lock().iter().map(|(key, stray)| (key.clone(), stray.clone())).collect()
    }
}

/// Moves pods until `shutdown`. Only the leader does.
pub(super) async fn run(syncer: Arc<Syncer>, shutdown: CancellationToken) {
    let moving = async {
        let mut room = syncer.reservations.room_changes();
        loop {
            for (key, stray) in syncer.strays.all() {
                if syncer.fence.check().is_ok() {
                    syncer.move_stray(&key, stray).await;
                }
            }
            tokio::select! {
                () = syncer.strays.changed.notified() => {}
                // The sender lives as long as the process.
                changed = room.changed() => if changed.is_err() { std::future::pending::<()>().await },
            }
        }
    };
    shutdown.run_until_cancelled(moving).await;
}

impl Syncer {
    async fn move_stray(&self, key: &Key, stray: Stray) {
        let Some(demand) = self.demand_of_stray(key, &stray).await else { return };
        let Some(node) = self.reservations.give_another(&stray.upper_uid, &demand, &stray.node) else { return };
        // Asked after the room is held: if the upper pod goes from here on, whoever notices gives the room back.
        if !self.index.knows_upper(key, &stray.upper_uid) {
            self.reservations.upper_gone(&stray.upper_uid);
            return;
        }
        info!(%key, from = stray.node, to = node, "the reserved lower node has no room for the pod; it is sent to another");
        match self.delete_stray(key, &stray).await {
            Ok(true) => self.reservations.moved(),
            // The lower scheduler, or somebody else, was faster; what the watch tells decides.
            Ok(false) => {}
            Err(error) => debug!(%key, %error, "could not delete a lower pod that is to be moved; trying again"),
        }
    }

    /// What the upper pod asks of any lower node; read once.
    async fn demand_of_stray(&self, key: &Key, stray: &Stray) -> Option<Arc<Demand>> {
        if let Some(demand) = &stray.demand {
            return Some(demand.clone());
        }
        let upper = match requests::read_upper(&self.upper.node, key, &self.settings.node_name).await {
            Ok(upper) => upper.filter(|upper| upper.metadata.uid.as_ref() == Some(&stray.upper_uid))?,
            Err(error) => {
                debug!(%key, %error, "could not read the upper pod of a lower one that is to be moved; trying again");
                return None;
            }
        };
        if upper.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let demand = self.reservations.demand_of(&upper)?;
        if let Some(known) = self.strays.pods.lock().get_mut(key) {
            known.demand = Some(demand.clone());
        }
        Some(demand)
    }

    /// Deletes the lower pod, if it still is as it was judged. Whether it was.
    async fn delete_stray(&self, key: &Key, stray: &Stray) -> Result<bool, kube::Error> {
        let lower = self.lower_key(key);
        let Some(pod) = requests::read_lower(&self.lower.api, &lower).await? else { return Ok(false) };
        let ours = OwnerMark::read(&pod.metadata).filter(|mark| self.is_ours(mark) && mark.uid == stray.upper_uid);
        let waits = unschedulable(&pod).is_some() && pinned_to(&pod) == Some(&stray.node);
        if ours.is_none() || !waits || pod.metadata.deletion_timestamp.is_some() {
            return Ok(false);
        }
        requests::delete_as_read(&self.lower.api, &lower, &pod.metadata).await
    }
}

/// The node that a pod's required affinity names in every term: our pin, which is the last requirement of each.
fn pinned_to(pod: &Pod) -> Option<&str> {
    let rules = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &rules.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let node = pin_of(terms.first()?)?;
    terms.iter().all(|term| pin_of(term) == Some(node)).then_some(node)
}

fn pin_of(term: &NodeSelectorTerm) -> Option<&str> {
    let last =
        term.match_fields.as_ref()?.last().filter(|last| last.key == "metadata.name" && last.operator == "In")?;
    let [node] = last.values.as_deref()? else { return None };
    Some(node)
}

#[cfg(test)]
#[path = "moving_tests.rs"]
mod tests;
