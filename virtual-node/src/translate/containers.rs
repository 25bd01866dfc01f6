//! Environments of containers below: the upper pod's metadata, the upper CA, and the upper API server's address.

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, PodSpec};

use super::{Context, downward, volumes};

/// What in-cluster configuration reads (client-go `rest/config.go`); the lower kubelet sets them for the lower cluster.
const SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";
const SERVICE_PORT: &str = "KUBERNETES_SERVICE_PORT";

/// The variables that every container of one pod is given.
pub(super) struct Given(Vec<EnvVar>);

impl Given {
    /// Decided by the settings and, for service variables, by the pod's enableServiceLinks.
    pub(super) fn of(spec: &PodSpec, ctx: &Context<'_>) -> Self {
        let mut given = Vec::new();
        if let Some((host, port)) = &ctx.settings.upper_api_for_pods {
            given.push(literal(SERVICE_HOST, host));
            given.push(literal(SERVICE_PORT, &port.to_string()));
        }
        if replaces_service_links(spec, ctx) {
            let ours = given.len();
            for variable in ctx.services_env {
                if given[..ours].iter().all(|each| each.name != variable.name) {
                    given.push(variable.clone());
                }
            }
        }
        Self(given)
    }
}

/// Whether the upper cluster's service variables take the place of the lower kubelet's.
pub(super) fn replaces_service_links(spec: &PodSpec, ctx: &Context<'_>) -> bool {
    !ctx.services_env.is_empty() && spec.enable_service_links != Some(false)
}

/// Translates the environment of one container in place.
///
/// Given variables come first, so that the pod's own may refer to them with `$(NAME)` as they may to a kubelet's; one
/// that the pod sets by name itself is left to it. Variables from `envFrom` are not known here and yield to given ones.
pub(super) fn map_environment(env: &mut Option<Vec<EnvVar>>, env_from: Option<&mut Vec<EnvFromSource>>, given: &Given) {
    for variable in env.iter_mut().flatten() {
        downward::map_variable(variable);
        let config_map = variable.value_from.as_mut().and_then(|source| source.config_map_key_ref.as_mut());
        if let Some(key) = config_map {
            volumes::map_config_map_name(&mut key.name);
        }
    }
    for config_map in env_from.into_iter().flatten().filter_map(|source| source.config_map_ref.as_mut()) {
        volumes::map_config_map_name(&mut config_map.name);
    }
    let own = env.as_deref().unwrap_or_default();
    let missing: Vec<EnvVar> =
        given.0.iter().filter(|each| own.iter().all(|variable| variable.name != each.name)).cloned().collect();
    if !missing.is_empty() {
        env.get_or_insert_default().splice(0..0, missing);
    }
}

fn literal(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}
