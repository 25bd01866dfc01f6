//! Environments of containers below: the upper pod's metadata, the upper CA, the upper API server's address, and the
//! variables of the upper cluster's Services.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, PodSpec};

use super::{
    Context, downward,
    service_env::{ServiceFacts, ServicePortFacts, service_variables},
    volumes,
};

/// The Service of the API server; in-cluster configuration reads its variables (client-go `rest/config.go`), and the
/// lower kubelet sets them for the lower cluster.
const API_SERVICE: &str = "kubernetes";
const API_SERVICE_PORT: &str = "https";

/// The keys of ConfigMaps and Secrets that containers read whole (`envFrom`): what these set, nothing given may cover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFromKeys {
    config_maps: BTreeMap<String, Vec<String>>,
    secrets: BTreeMap<String, Vec<String>>,
}

impl EnvFromKeys {
    pub(super) const NONE: Self = Self { config_maps: BTreeMap::new(), secrets: BTreeMap::new() };

    /// Looks up the keys of everything that the containers of an upper pod read whole.
    pub fn of(
        spec: &PodSpec,
        config_map: impl Fn(&str) -> Option<Vec<String>>,
        secret: impl Fn(&str) -> Option<Vec<String>>,
    ) -> Self {
        let mut keys = Self::default();
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers).map(|each| &each.env_from);
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|each| &each.env_from);
        for source in containers.chain(ephemeral).flatten().flatten() {
            if let Some(name) = source.config_map_ref.as_ref().map(|source| &source.name)
                && let Some(found) = config_map(name)
            {
                keys.config_maps.insert(name.clone(), found);
            }
            if let Some(name) = source.secret_ref.as_ref().map(|source| &source.name)
                && let Some(found) = secret(name)
            {
                keys.secrets.insert(name.clone(), found);
            }
        }
        keys
    }

    /// Whether one of these sources sets this variable.
    fn set(&self, sources: &[EnvFromSource], variable: &str) -> bool {
        sources.iter().any(|source| {
            let config_map = source.config_map_ref.as_ref().and_then(|source| self.config_maps.get(&source.name));
            let secret = source.secret_ref.as_ref().and_then(|source| self.secrets.get(&source.name));
            let Some(key) = variable.strip_prefix(source.prefix.as_deref().unwrap_or_default()) else { return false };
            [config_map, secret].into_iter().flatten().flatten().any(|each| each == key)
        })
    }
}

/// The variables that every container of one pod is given.
pub(super) struct Given<'a> {
    variables: Vec<EnvVar>,
    keys: &'a EnvFromKeys,
}

impl<'a> Given<'a> {
    /// Decided by the settings and, for service variables, by the pod's enableServiceLinks.
    pub(super) fn of(spec: &PodSpec, ctx: &Context<'a>) -> Self {
        let mut variables = ctx.settings.upper_api_for_pods.as_ref().map(api_server).unwrap_or_default();
        if wants_service_links(spec) {
            let ours = variables.len();
            for variable in ctx.services_env {
                if variables[..ours].iter().all(|each| each.name != variable.name) {
                    variables.push(variable.clone());
                }
            }
        }
        Self { variables, keys: ctx.env_from }
    }
}

/// The variables of the Service `kubernetes`, leading to the upper API server.
fn api_server((host, port): &(String, u16)) -> Vec<EnvVar> {
    service_variables([&ServiceFacts {
        name: API_SERVICE.to_owned(),
        cluster_ip: host.clone(),
        ports: vec![ServicePortFacts {
            name: Some(API_SERVICE_PORT.to_owned()),
            port: *port,
            protocol: "TCP".to_owned(),
        }],
    }])
}

/// Whether a pod's containers are to find the Services of its namespace in their environment; so is the default.
pub fn wants_service_links(spec: &PodSpec) -> bool {
    spec.enable_service_links != Some(false)
}

/// Translates the environment of one container in place.
///
/// Given variables come first, so that the pod's own may refer to them with `$(NAME)` as they may to a kubelet's; one
/// that the container sets itself, by name or from a ConfigMap or Secret, is left to it.
pub(super) fn map_environment(
    env: &mut Option<Vec<EnvVar>>,
    mut env_from: Option<&mut Vec<EnvFromSource>>,
    given: &Given<'_>,
) {
    for variable in env.iter_mut().flatten() {
        downward::map_variable(variable);
        let config_map = variable.value_from.as_mut().and_then(|source| source.config_map_key_ref.as_mut());
        if let Some(key) = config_map {
            volumes::map_config_map_name(&mut key.name);
        }
    }
    let own = env.as_deref().unwrap_or_default();
    let sources = env_from.as_deref().map(Vec::as_slice).unwrap_or_default();
    let missing: Vec<EnvVar> = given
        .variables
        .iter()
        .filter(|each| own.iter().all(|variable| variable.name != each.name) && !given.keys.set(sources, &each.name))
        .cloned()
        .collect();
    if !missing.is_empty() {
        env.get_or_insert_default().splice(0..0, missing);
    }
    for config_map in env_from.iter_mut().flat_map(|all| all.iter_mut()).filter_map(|all| all.config_map_ref.as_mut()) {
        volumes::map_config_map_name(&mut config_map.name);
    }
}

pub(super) fn literal(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}
