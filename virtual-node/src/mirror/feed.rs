//! What is heard of both clusters goes into the store; what that changes is queued.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::Serialize;
use tensile_chassis::{
    queue::WorkQueue,
    watch::{Event, Watch},
};
use tokio::sync::watch as signal;
use tracing::warn;

use super::{
    keeper::Keeper,
    store::{Item, Store, marked},
    translate::{key_of, service_down, slice_down},
};
use crate::{context::Settings, names::Key};

pub(super) struct Feed {
    pub keeper: Arc<Keeper>,
    pub queue: WorkQueue<Item>,
}

/// A kind that is mirrored.
pub(super) trait Mirrored: Resource<DynamicType = ()> + Serialize {
    fn item(key: Key) -> Item;
    fn want(store: &mut Store, key: Key, upper: Option<&Self>, settings: &Settings);
}

impl Mirrored for Service {
    fn item(key: Key) -> Item {
        Item::Service(key)
    }

    fn want(store: &mut Store, key: Key, upper: Option<&Self>, settings: &Settings) {
        store.set_service(key, upper.and_then(|upper| service_down(upper, settings)).as_ref());
    }
}

impl Mirrored for EndpointSlice {
    fn item(key: Key) -> Item {
        Item::Slice(key)
    }

    fn want(store: &mut Store, key: Key, upper: Option<&Self>, settings: &Settings) {
        store.set_slice(key, upper.and_then(|upper| slice_down(upper, settings)).as_ref());
    }
}

impl Feed {
    /// Follows which namespaces have pods below.
    pub async fn namespaces(&self, mut used: signal::Receiver<BTreeSet<String>>) {
        loop {
            let now = used.borrow_and_update().clone();
            let changed = self.keeper.store.lock().use_namespaces(now);
            self.add(changed);
            if used.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Follows objects of the upper cluster.
    pub async fn above<K: Mirrored>(&self, mut events: Watch<K>, place: usize) {
        let settings = &self.keeper.settings;
        let mut unseen: HashSet<Key> = HashSet::new();
        let mut known: HashSet<Key> = HashSet::new();
        let set = |key: Key, upper: Option<&K>| {
            K::want(&mut self.keeper.store.lock(), key.clone(), upper, settings);
            self.queue.add(K::item(key));
        };
        while let Some(event) = events.next().await {
            match event {
                Event::Restarted { .. } => unseen = known.clone(),
                Event::Listed(upper) | Event::Applied(upper) => {
                    let key = key_of(upper.meta());
                    unseen.remove(&key);
                    known.insert(key.clone());
                    set(key, Some(&upper));
                }
                Event::Deleted(upper) => {
                    let key = key_of(upper.meta());
                    known.remove(&key);
                    set(key, None);
                }
                Event::ListDone => {
                    for key in unseen.drain() {
                        known.remove(&key);
                        set(key, None);
                    }
                    self.keeper.listed[place].send_replace(true);
                }
                // It exists: what was known of it stands.
                Event::Malformed { namespace, name, error } => {
                    warn!(?namespace, %name, %error, "an object cannot be read; what stands of it below stays");
                    unseen.remove(&Key::new(namespace.unwrap_or_default(), name));
                }
            }
        }
    }

    /// Follows our objects in the lower cluster.
    pub async fn below<K: Mirrored>(&self, mut events: Watch<K>, place: usize) {
        let uid = &self.keeper.settings.upper_cluster_uid;
        let mut unseen: HashSet<Item> = HashSet::new();
        let mut known: HashSet<Item> = HashSet::new();
        let set = |item: Item, lower: &K, object: Option<&serde_json::Value>| {
            let next = self.keeper.store.lock().set_lower(item, lower.meta(), object);
            self.add(next);
            self.keeper.changed.send_replace(());
        };
        while let Some(event) = events.next().await {
            match event {
                Event::Restarted { .. } => unseen = known.clone(),
                Event::Listed(lower) | Event::Applied(lower) => {
                    let Some(item) = self.ours(&lower, uid) else { continue };
                    unseen.remove(&item);
                    known.insert(item.clone());
                    set(item, &lower, serde_json::to_value(&lower).ok().as_ref());
                }
                Event::Deleted(lower) => {
                    let Some(item) = self.ours(&lower, uid) else { continue };
                    known.remove(&item);
                    set(item, &lower, None);
                }
                Event::ListDone => {
                    for item in unseen.drain() {
                        known.remove(&item);
                        let next = self.keeper.store.lock().set_lower(item, &ObjectMeta::default(), None);
                        self.add(next);
                    }
                    self.keeper.listed[place].send_replace(true);
                    self.keeper.changed.send_replace(());
                }
                Event::Malformed { namespace, name, error } => {
                    warn!(?namespace, %name, %error, "an object of ours in the lower cluster cannot be read");
                }
            }
        }
    }

    fn add(&self, items: impl IntoIterator<Item = Item>) {
        for item in items {
            self.queue.add(item);
        }
    }

    /// What a lower object stands for; `None` for a copy that somebody made of it elsewhere.
    fn ours<K: Mirrored>(&self, lower: &K, uid: &str) -> Option<Item> {
        let key = marked(lower.meta(), uid)?;
        let place = Key::new(self.keeper.settings.namespaces.lower(&key.namespace), key.name.clone());
        (key_of(lower.meta()) == place).then(|| K::item(key))
    }
}
