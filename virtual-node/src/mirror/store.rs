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
    /// Cluster IPs of our Services below, by namespace and name above.
    addresses: HashMap<String, HashMap<String, String>>,
    /// Services whose place below is a stranger's.
    displaced: HashSet<Key>,
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
        if let Item::Service(key) = &item {
            self.note_address(key, object);
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

    fn note_address(&mut self, key: &Key, object: Option<&Value>) {
        let address = object.and_then(|object| object.pointer("/spec/clusterIP")).and_then(Value::as_str);
        let of_namespace = self.addresses.entry(key.namespace.clone()).or_default();
        match address {
            Some(address) => drop(of_namespace.insert(key.name.clone(), address.to_owned())),
            None => drop(of_namespace.remove(&key.name)),
        }
        if of_namespace.is_empty() {
            self.addresses.remove(&key.namespace);
        }
        if object.is_some() {
            self.displaced.remove(key);
        }
    }

    /// The place of a Service below is a stranger's.
    pub fn displaced(&mut self, key: &Key) {
        self.displaced.insert(key.clone());
    }

    /// Our slices below that belong to a Service.
    pub fn slices_below(&self, service: &Key) -> Vec<(Item, Lower)> {
        let names = self.slices_of.get(service).into_iter().flatten();
        let slices = names.map(|name| Item::Slice(Key::new(service.namespace.clone(), name.clone())));
        slices.filter_map(|slice| self.lower(&slice).map(|lower| (slice, lower))).collect()
    }

    /// Cluster IPs of a namespace's Services below, by name.
    pub fn addresses(&self, namespace: &str) -> HashMap<String, String> {
        self.addresses.get(namespace).cloned().unwrap_or_default()
    }

    /// Whether a Service of the namespace is to be below, can be, and is not yet.
    pub fn is_missing_any(&self, namespace: &str) -> bool {
        self.services.keys().any(|key| {
            key.namespace == namespace
                && !self.displaced.contains(key)
                && !self.lower.contains_key(&Item::Service(key.clone()))
        })
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "team", "name": name}})).unwrap()
    }

    fn slice(service: &str) -> EndpointSlice {
        serde_json::from_value(json!({"metadata": {"labels": {SERVICE_NAME: service}}, "addressType": "IPv4"})).unwrap()
    }

    fn made(name: &str, address: &str) -> (Item, Value) {
        (Item::Service(Key::new("team", name)), json!({"metadata": {"uid": name}, "spec": {"clusterIP": address}}))
    }

    fn store() -> Store {
        let mut store = Store::default();
        store.set_service(Key::new("team", "web"), Some(&service("web")));
        store.set_slice(Key::new("team", "web-1"), Some(&slice("web")));
        store
    }

    #[test]
    fn nothing_is_wanted_without_pods_and_no_slice_before_its_service_is_below() {
        let mut store = store();
        let (item, object) = made("web", "10.9.0.1");
        let slice = Item::Slice(Key::new("team", "web-1"));
        let wanted = |store: &Store, item: &Item| store.wanted(item, Network::Flat, "vn").is_some();
        assert!(!wanted(&store, &item));
        assert_eq!(store.use_namespaces(["team".to_owned()].into()).len(), 2, "both are looked at");
        assert!(wanted(&store, &item) && !wanted(&store, &slice));
        let next = store.set_lower(item, &ObjectMeta::default(), Some(&object));
        assert!(next.contains(&slice), "its turn has come");
        assert!(wanted(&store, &slice));
    }

    #[test]
    fn addresses_are_those_below_and_nobody_waits_for_what_cannot_be() {
        let mut store = store();
        assert!(store.is_missing_any("team") && !store.is_missing_any("other"));
        let (item, object) = made("web", "10.9.0.1");
        store.set_lower(item.clone(), &ObjectMeta::default(), Some(&object));
        assert!(!store.is_missing_any("team"));
        assert_eq!(store.addresses("team"), [("web".to_owned(), "10.9.0.1".to_owned())].into());
        store.set_lower(item.clone(), &ObjectMeta::default(), None);
        assert!(store.addresses("team").is_empty());
        store.displaced(item.key());
        assert!(!store.is_missing_any("team"), "a stranger has its place");
    }
}
