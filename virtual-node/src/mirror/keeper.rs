//! Brings one Service or EndpointSlice below to what it should be.

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{ObjectReference, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Error,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tensile_chassis::queue::Outcome;
use tensile_proto::vocabulary::label;
use tokio::sync::watch as signal;
use tracing::{debug, info};

use super::{
    store::{Item, Lower, Store, marked},
    translate::{Network, covers, needs_another},
};
use crate::{
    context::{Settings, UpperClients},
    events::{Recorder, Severity},
};

/// The longest pause between tries at one object.
pub(super) const RETRY_MAX: Duration = Duration::from_mins(1);

/// Pause before looking again whether the last pod of a namespace is gone.
const RECHECK: Duration = Duration::from_mins(1);

pub(super) struct Keeper {
    pub settings: std::sync::Arc<Settings>,
    pub network: Network,
    pub upper: UpperClients,
    pub lower: Client,
    pub recorder: Recorder,
    pub store: Mutex<Store>,
    /// Told when the Services below have changed.
    pub changed: signal::Sender<()>,
    /// Whether each watch has listed once: before that, nothing is known to be missing.
    pub listed: [signal::Sender<bool>; 4],
}

impl Keeper {
    /// Waits until both clusters were listed once.
    pub async fn listed(&self) {
        for listed in &self.listed {
            // The senders live as long as `self`, so waiting cannot fail.
            let _ = listed.subscribe().wait_for(|listed| *listed).await;
        }
    }

    pub async fn sync(&self, item: Item) -> Outcome {
        let (wanted, lower) = {
            let store = self.store.lock();
            (store.wanted(&item, self.network, &self.settings.node_name), store.lower(&item))
        };
        let done = match (wanted, lower) {
            (None, None) => Ok(Outcome::Done),
            (Some(wanted), None) => self.create(&item, &wanted).await,
            (Some(wanted), Some(lower)) if covers(&lower.object, &wanted) => Ok(Outcome::Done),
            (Some(wanted), Some(lower)) if needs_another(&lower.object, &wanted) => self.delete(&item, &lower).await,
            (Some(wanted), Some(lower)) => self.patch(&item, &lower, wanted).await,
            (None, Some(lower)) => self.retire(&item, &lower).await,
        };
        done.unwrap_or_else(|error| {
            debug!(?item, %error, "not as it should be in the lower cluster yet");
            Outcome::Retry
        })
    }

    async fn create(&self, item: &Item, wanted: &Value) -> Result<Outcome, Error> {
        let api = self.below(item);
        let object: DynamicObject = serde_json::from_value(wanted.clone()).map_err(Error::SerdeError)?;
        match api.create(&PostParams::default(), &object).await {
            Ok(made) => {
                info!(?item, "made in the lower cluster");
                self.note(item, &made);
                Ok(Outcome::Done)
            }
            Err(Error::Api(status)) if status.reason == "AlreadyExists" => {
                let Some(found) = one(&api, item).await? else { return Ok(Outcome::Retry) };
                // Ours of an earlier try: the watch is about to tell of it.
                if marked(&found.metadata, &self.settings.upper_cluster_uid).as_ref() != Some(item.key()) {
                    self.conflict(item, wanted).await?;
                }
                Ok(Outcome::Retry)
            }
            Err(error) => Err(error),
        }
    }

    async fn patch(&self, item: &Item, lower: &Lower, mut wanted: Value) -> Result<Outcome, Error> {
        // The mark of the virtual node that made it stays.
        if let Some(labels) = wanted.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.remove(label::VIRTUAL_NODE);
            let stale = lower.object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
            for (name, _) in stale.filter(|(name, _)| name.as_str() != label::VIRTUAL_NODE) {
                labels.entry(name.clone()).or_insert(Value::Null);
            }
        }
        wanted["metadata"]["uid"] = json!(lower.uid);
        match self.below(item).patch(&item.key().name, &PatchParams::default(), &Patch::Merge(&wanted)).await {
            Ok(now) => {
                self.note(item, &now);
                Ok(Outcome::Done)
            }
            // Another by now, or gone: the watch tells.
            Err(Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Outcome::Retry),
            Err(error) => Err(error),
        }
    }

    /// Nothing above stands for it any more; that is asked for live, and whether pods that use it are left.
    async fn retire(&self, item: &Item, lower: &Lower) -> Result<Outcome, Error> {
        let namespace = &item.key().namespace;
        let (used, known) = {
            let store = self.store.lock();
            (store.is_used(namespace), store.knows(item))
        };
        if !used {
            let left = self.has_pods(namespace).await?;
            return if left { Ok(Outcome::Requeue(RECHECK)) } else { self.delete(item, lower).await };
        }
        if known {
            // A slice whose Service is away below for a moment; it is made anew, or its place is found taken (`conflict`).
            return Ok(Outcome::Done);
        }
        let above = one(&self.above(item), item).await?;
        if above.is_some_and(|above| above.metadata.deletion_timestamp.is_none()) {
            return Ok(Outcome::Retry);
        }
        self.delete(item, lower).await
    }

    async fn delete(&self, item: &Item, lower: &Lower) -> Result<Outcome, Error> {
        let only_this = Preconditions { uid: Some(lower.uid.clone()), resource_version: None };
        let options = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        match self.below(item).delete(&item.key().name, &options).await {
            Ok(_) => {
                info!(?item, "removed from the lower cluster");
                Ok(Outcome::Done)
            }
            Err(Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Outcome::Done),
            Err(error) => Err(error),
        }
    }

    /// Whether pods of the upper namespace are left below, of whichever virtual node.
    async fn has_pods(&self, namespace: &str) -> Result<bool, Error> {
        let ours = format!("{}={}", label::UPPER_CLUSTER, self.settings.upper_cluster_uid);
        let pods: Api<Pod> = Api::namespaced(self.lower.clone(), &self.settings.namespaces.lower(namespace));
        let some = pods.list_metadata(&ListParams::default().labels(&ours).limit(1)).await?;
        Ok(!some.items.is_empty())
    }

    /// Somebody else has an object of that name: its user is told, and none of our endpoints stand under it.
    async fn conflict(&self, item: &Item, wanted: &Value) -> Result<(), Error> {
        let Item::Service(key) = item else { return Ok(()) };
        self.store.lock().displaced(key);
        self.changed.send_replace(());
        let lower = self.settings.namespaces.lower(&key.namespace);
        let uid = wanted.pointer("/metadata/labels").and_then(|labels| labels.get(label::UPPER_UID));
        let service = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: uid.and_then(Value::as_str).map(str::to_owned),
            ..ObjectReference::default()
        };
        let message = format!(
            "service {lower}/{} exists in lower cluster {} and is not ours; it is left alone, and pods there reach it in \
             place of this one. Delete or rename it there, or run the virtual-node with --namespaces=suffixed",
            key.name, self.settings.cluster_name
        );
        self.recorder.event(service, Severity::Warning, "NameConflict", message);
        // The place may have been ours until a moment ago.
        let slices = self.store.lock().slices_below(key);
        for (slice, lower) in slices {
            self.delete(&slice, &lower).await?;
        }
        Ok(())
    }

    /// Takes an answer into the store: the next comparison is with it, not with what a watch will tell a moment later.
    fn note(&self, item: &Item, object: &DynamicObject) {
        if let Ok(value) = serde_json::to_value(object) {
            // What else is to be looked at comes with the watch event.
            self.store.lock().note_lower(item.clone(), &object.metadata, &value);
        }
    }

    fn below(&self, item: &Item) -> Api<DynamicObject> {
        let namespace = self.settings.namespaces.lower(&item.key().namespace);
        Api::namespaced_with(self.lower.clone(), &namespace, &resource(item))
    }

    fn above(&self, item: &Item) -> Api<DynamicObject> {
        // Every node may read Services; EndpointSlices it may not.
        let client = match item {
            Item::Service(_) => &self.upper.node,
            Item::Slice(_) => &self.upper.account,
        };
        Api::namespaced_with(client.clone(), &item.key().namespace, &resource(item))
    }
}

/// Reads one object by a list, past every cache: the right to list is there already.
async fn one(api: &Api<DynamicObject>, item: &Item) -> Result<Option<DynamicObject>, Error> {
    let named = ListParams::default().fields(&format!("metadata.name={}", item.key().name));
    Ok(api.list(&named).await?.items.into_iter().next())
}

fn resource(item: &Item) -> ApiResource {
    match item {
        Item::Service(_) => ApiResource::erase::<Service>(&()),
        Item::Slice(_) => ApiResource::erase::<EndpointSlice>(&()),
    }
}
