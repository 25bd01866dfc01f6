//! The Services of the upper cluster, as far as containers are told of them in their environment (enableServiceLinks).
//!
//! A kubelet keeps all Services of the cluster for that. Here only names, addresses and ports stay in memory, and the
//! variables of a namespace are made once for all its pods. Addresses are those of the Services below (see
//! [`crate::mirror`]): the upper cluster's lead nowhere there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{EnvVar, Service};
use kube::Api;
use parking_lot::Mutex;
use tensile_chassis::{
    readiness::Gate,
    watch::{Event, Watch, WatchHealth, WatchOptions, watch},
};
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

use crate::{
    names::Key,
    translate::{ServiceFacts, ServicePortFacts, service_variables},
};

/// The API server's own Service. Where pods find the API server is a setting, so it is left out.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// The cluster IP of a headless Service.
const HEADLESS: &str = "None";

/// What is known of the upper cluster's Services. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Services {
    namespaces: Arc<Mutex<HashMap<String, Namespace>>>,
    listed: signal::Sender<bool>,
    health: WatchHealth,
}

#[derive(Debug, Default)]
struct Namespace {
    services: BTreeMap<String, ServiceFacts>,
    /// Their variables, once a pod has asked for them.
    variables: Option<Variables>,
}

#[derive(Debug)]
struct Variables {
    /// The addresses that they were made of.
    addresses: HashMap<String, String>,
    made: Arc<[EnvVar]>,
}

/// The watch that fills [`Services`].
#[derive(Debug)]
pub struct ServicesWatch {
    events: Watch<Service>,
    services: Services,
    /// Services not seen yet in the list under way.
    unseen: HashSet<Key>,
}

impl ServicesWatch {
    /// A watch of all Services; `gate` opens with the first list. `upper` may be a node: every node may read Services.
    #[must_use]
    pub fn new(upper: kube::Client, options: WatchOptions, gate: Gate) -> Self {
        let events = watch(Api::<Service>::all(upper), options, gate);
        let services =
            Services { namespaces: Arc::default(), listed: signal::Sender::new(false), health: events.health() };
        Self { events, services, unseen: HashSet::new() }
    }

    /// What it fills.
    #[must_use]
    pub fn services(&self) -> Services {
        self.services.clone()
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while let Some(Some(event)) = shutdown.run_until_cancelled(self.events.next()).await {
            self.take_in(event);
        }
    }

    fn take_in(&mut self, event: Event<Service>) {
        match event {
            Event::Restarted { .. } => self.unseen = self.services.keys(),
            Event::Listed(service) | Event::Applied(service) => {
                let key = key_of(&service);
                self.unseen.remove(&key);
                self.services.set(&key, facts(service));
            }
            Event::Deleted(service) => self.services.set(&key_of(&service), None),
            Event::ListDone => {
                for key in std::mem::take(&mut self.unseen) {
                    self.services.set(&key, None);
                }
                self.services.listed.send_replace(true);
            }
            // It exists: what was known of it stands.
            Event::Malformed { namespace, name, error } => {
                tracing::warn!(?namespace, %name, %error, "a Service cannot be decoded; what was known of it stands");
                self.unseen.remove(&Key::new(namespace.unwrap_or_default(), name));
            }
        }
    }
}

impl Services {
    /// Waits until all Services were listed once; the caller sets the time limit.
    pub async fn listed(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// The variables of a namespace's Services; an error says why they are not known yet. `addresses` are the Services'
    /// cluster IPs where the pods run; what has none there has no variables.
    ///
    /// # Errors
    /// What stopped the watch, for people.
    pub fn variables(&self, namespace: &str, addresses: &HashMap<String, String>) -> Result<Arc<[EnvVar]>, String> {
        if !*self.listed.borrow() {
            return Err(self.health.failing().map_or_else(|| "no answer yet".to_owned(), |failing| failing.detail));
        }
        let mut namespaces = self.namespaces.lock();
        let Some(namespace) = namespaces.get_mut(namespace) else { return Ok(Arc::new([])) };
        if let Some(variables) = namespace.variables.as_ref().filter(|made| made.addresses == *addresses) {
            return Ok(variables.made.clone());
        }
        let reachable: Vec<ServiceFacts> = namespace
            .services
            .values()
            .filter_map(|service| {
                Some(ServiceFacts { cluster_ip: addresses.get(&service.name)?.clone(), ..service.clone() })
            })
            .collect();
        let made: Arc<[EnvVar]> = service_variables(&reachable).into();
        namespace.variables = Some(Variables { addresses: addresses.clone(), made: made.clone() });
        Ok(made)
    }

    fn keys(&self) -> HashSet<Key> {
        let namespaces = self.namespaces.lock();
        let keys = namespaces.iter().flat_map(|(namespace, known)| {
            known.services.keys().map(move |name| Key::new(namespace.clone(), name.clone()))
        });
        keys.collect()
    }

    fn set(&self, key: &Key, facts: Option<ServiceFacts>) {
        let mut namespaces = self.namespaces.lock();
        let known = namespaces.entry(key.namespace.clone()).or_default();
        match facts {
            // Status and labels change without a word for containers.
            Some(facts) if known.services.get(&key.name) == Some(&facts) => return,
            Some(facts) => known.services.insert(key.name.clone(), facts),
            None => known.services.remove(&key.name),
        };
        known.variables = None;
        if known.services.is_empty() {
            namespaces.remove(&key.namespace);
        }
    }
}

fn key_of(service: &Service) -> Key {
    let meta = &service.metadata;
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// What containers are told of a Service; `None` where that is nothing.
fn facts(service: Service) -> Option<ServiceFacts> {
    let key = key_of(&service);
    let spec = service.spec?;
    let cluster_ip = spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != HEADLESS)?;
    if (key.namespace.as_str(), key.name.as_str()) == API_SERVER {
        return None;
    }
    let ports = spec.ports.unwrap_or_default().into_iter().filter_map(|port| {
        Some(ServicePortFacts {
            name: port.name,
            port: u16::try_from(port.port).ok()?,
            protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
        })
    });
    Some(ServiceFacts { name: key.name, cluster_ip, ports: ports.collect() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::json;
    use tensile_chassis::{
        readiness::Readiness,
        testing::{Reply, ScriptedServer},
    };

    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]}}))
        .unwrap()
    }

    async fn watching() -> ServicesWatch {
        tensile_chassis::tls::install_crypto_provider();
        let server = ScriptedServer::start(|_| Reply::error(503, "not asked")).await.unwrap();
        let client = kube::Client::try_from(server.config()).unwrap();
        ServicesWatch::new(client, WatchOptions::new("services"), Readiness::new().gate("services"))
    }

    /// Where the pods run, each Service has an address of its own.
    fn below(names: &[&str]) -> HashMap<String, String> {
        names.iter().map(|name| ((*name).to_owned(), format!("10.9.{name}"))).collect()
    }

    fn hosts(services: &Services, namespace: &str) -> Vec<String> {
        let variables = services.variables(namespace, &below(&["web", "db", "kubernetes"])).unwrap();
        let hosts = variables.iter().filter(|each| each.name.ends_with("_HOST"));
        hosts.map(|each| format!("{}={}", each.name, each.value.as_deref().unwrap())).collect()
    }

    #[tokio::test]
    async fn nothing_is_said_before_the_first_list_and_then_only_of_the_namespaces_own_services() {
        let mut watch = watching().await;
        let services = watch.services();
        watch.take_in(Event::Restarted { decides_until: 0 });
        watch.take_in(Event::Listed(service("team", "web", "10.0.0.1")));
        assert!(services.variables("team", &below(&["web"])).is_err(), "half a list");
        for other in [
            service("team", "headless", "None"),
            service("team", "outside", ""),
            service("other", "db", "10.0.0.2"),
            service("default", "kubernetes", "10.0.0.3"),
        ] {
            watch.take_in(Event::Listed(other));
        }
        watch.take_in(Event::ListDone);
        assert_eq!(hosts(&services, "team"), ["WEB_SERVICE_HOST=10.9.web"]);
        assert!(hosts(&services, "default").is_empty());
        assert!(hosts(&services, "nowhere").is_empty());
        let elsewhere = services.variables("team", &below(&["db"])).unwrap();
        assert!(elsewhere.is_empty(), "not below, and so of no use there: {elsewhere:?}");
    }

    #[tokio::test]
    async fn changes_are_followed_and_what_a_new_list_lacks_is_gone() {
        let mut watch = watching().await;
        let services = watch.services();
        watch.take_in(Event::Restarted { decides_until: 0 });
        watch.take_in(Event::Listed(service("team", "web", "10.0.0.1")));
        watch.take_in(Event::ListDone);
        assert_eq!(hosts(&services, "team"), ["WEB_SERVICE_HOST=10.9.web"]);
        watch.take_in(Event::Applied(service("team", "web", "10.0.0.9")));
        watch.take_in(Event::Applied(service("team", "db", "10.0.0.2")));
        assert_eq!(hosts(&services, "team"), ["DB_SERVICE_HOST=10.9.db", "WEB_SERVICE_HOST=10.9.web"]);
        watch.take_in(Event::Restarted { decides_until: 0 });
        watch.take_in(Event::Malformed { namespace: Some("team".into()), name: "web".into(), error: "odd".into() });
        assert_eq!(hosts(&services, "team").len(), 2, "not before the list is done");
        watch.take_in(Event::ListDone);
        assert_eq!(hosts(&services, "team"), ["WEB_SERVICE_HOST=10.9.web"]);
        watch.take_in(Event::Deleted(service("team", "web", "10.0.0.9")));
        assert!(hosts(&services, "team").is_empty());
    }
}
