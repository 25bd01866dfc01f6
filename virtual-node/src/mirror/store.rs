//! What is known of Services and EndpointSlices in both clusters. No I/O.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::translate::{Network, SERVICE_NAME, reachable};
use crate::{names::Key, owner::OwnerMark, packed::Packed};

/// What is worked on: an object of the upper cluster, by its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A Service.
    Service(Key),
    /// An EndpointSlice.
    Slice(Key),
}

impl Item {
    /// Its namespace and name above.
    pub fn key(&self) -> &Key {
        match self {
            Self::Service(key) | Self::Slice(key) => key,
        }
    }
}

/// An object of ours below.
#[derive(Clone, Debug)]
pub struct Lower {
    /// UID.
    pub uid: String,
    /// As it is.
    pub object: Value,
}

#[derive(Debug)]
struct UpperSlice {
    service: Key,
    wanted: Packed<EndpointSlice>,
}

/// Everything known.
#[derive(Debug, Default)]
pub struct Store {
    /// Namespaces of the upper cluster with pods below.
    used: BTreeSet<String>,
    services: HashMap<Key, Packed<Service>>,
    slices: HashMap<Key, UpperSlice>,
    slices_of: HashMap<Key, BTreeSet<String>>,
    lower: HashMap<Item, (String, Packed<Value>)>,
}

impl Store {
    /// These namespaces have pods below. Answers what that changes.
    pub fn use_namespaces(&mut self, used: BTreeSet<String>) -> Vec<Item> {
        let before = std::mem::replace(&mut self.used, used);
        let changed: HashSet<&String> = before.symmetric_difference(&self.used).collect();
        self.items().into_iter().filter(|item| changed.contains(&item.key().namespace)).collect()
    }

    /// Everything that is known in either cluster.
    pub fn items(&self) -> HashSet<Item> {
        let services = self.services.keys().cloned().map(Item::Service);
        let slices = self.slices.keys().cloned().map(Item::Slice);
        services.chain(slices).chain(self.lower.keys().cloned()).collect()
    }

    /// Sets what is wanted of a Service; `None`: nothing.
    pub fn set_service(&mut self, key: Key, wanted: Option<&Service>) {
        match wanted.and_then(Packed::of) {
            Some(wanted) => drop(self.services.insert(key, wanted)),
            None => drop(self.services.remove(&key)),
        }
    }

    /// Sets what is wanted of a slice; `None`: nothing.
    pub fn set_slice(&mut self, key: Key, wanted: Option<&EndpointSlice>) {
        if let Some(before) = self.slices.remove(&key)
            && let Some(names) = self.slices_of.get_mut(&before.service)
        {
            names.remove(&key.name);
            if names.is_empty() {
                self.slices_of.remove(&before.service);
            }
        }
        let Some(wanted) = wanted else { return };
        let Some(service) = wanted.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else { return };
        let service = Key::new(key.namespace.clone(), service.clone());
        if let Some(wanted) = Packed::of(wanted) {
            self.slices_of.entry(service.clone()).or_default().insert(key.name.clone());
            self.slices.insert(key, UpperSlice { service, wanted });
        }
    }

    /// Notes an object of ours below. Answers what else to look at: slices wait for their Service.
    pub fn set_lower(&mut self, item: Item, meta: &ObjectMeta, object: Option<&Value>) -> Vec<Item> {
        let mut next = Vec::new();
        if let Item::Service(key) = &item
            && object.is_some() != self.lower.contains_key(&item)
        {
            next.extend(
                self.slices_of
                    .get(key)
                    .into_iter()
                    .flatten()
                    .map(|name| Item::Slice(Key::new(key.namespace.clone(), name.clone()))),
            );
        }
        match object.and_then(Packed::of) {
            Some(object) => drop(self.lower.insert(item.clone(), (meta.uid.clone().unwrap_or_default(), object))),
            None => drop(self.lower.remove(&item)),
        }
        next.push(item);
        next
    }

    /// Takes in what an API server answered; slices are looked at when the watch tells of their Service.
    pub fn note_lower(&mut self, item: Item, meta: &ObjectMeta, object: &Value) {
        // A Service must be new to `set_lower`, or nobody looks at its slices.
        if self.lower.contains_key(&item) || matches!(item, Item::Slice(_)) {
            self.set_lower(item, meta, Some(object));
        }
    }

    /// Whether the upper object is known and travels.
    pub fn knows(&self, item: &Item) -> bool {
        match item {
            Item::Service(key) => self.services.contains_key(key),
            Item::Slice(key) => self.slices.contains_key(key),
        }
    }

    /// What is below.
    pub fn lower(&self, item: &Item) -> Option<Lower> {
        let (uid, object) = self.lower.get(item)?;
        Some(Lower { uid: uid.clone(), object: object.unpack()? })
    }

    /// Whether pods of this upper namespace are below.
    pub fn is_used(&self, namespace: &str) -> bool {
        self.used.contains(namespace)
    }

    /// What should be below.
    pub fn wanted(&self, item: &Item, network: Network, node_name: &str) -> Option<Value> {
        if !self.is_used(&item.key().namespace) {
            return None;
        }
        match item {
            Item::Service(key) => serde_json::to_value(self.services.get(key)?.unpack()?).ok(),
            Item::Slice(key) => {
                let slice = self.slices.get(key)?;
                // Never under a Service that is somebody else's: it would get our endpoints.
                if !self.lower.contains_key(&Item::Service(slice.service.clone())) {
                    return None;
                }
                serde_json::to_value(reachable(slice.wanted.unpack()?, network, node_name)).ok()
            }
        }
    }
}

/// The upper object that a lower one stands for, if it is of this upper cluster.
pub fn marked(meta: &ObjectMeta, upper_cluster_uid: &str) -> Option<Key> {
    OwnerMark::read(meta).filter(|mark| mark.cluster == upper_cluster_uid).map(|mark| mark.key)
}
