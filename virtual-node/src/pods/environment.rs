//! What the containers of one pod find in their environment besides what its spec says.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{EnvVar, Pod};
use tokio::time::{Instant, timeout};

use super::sync::Syncer;
use crate::{
    context::Settings,
    names::Key,
    translate::{self, EnvFromKeys, Refusal},
};

/// How long a pod holds its worker while the Services are listed for the first time. Later it is tried again.
const SERVICES_WAIT: Duration = Duration::from_secs(2);

/// How long pods of a namespace do not wait for its Services, after one waited in vain.
const GIVEN_UP_FOR: Duration = Duration::from_mins(1);

/// The variables of Services, and what they must not cover.
#[derive(Default)]
pub(super) struct Environment {
    services: Option<Arc<[EnvVar]>>,
    env_from: EnvFromKeys,
}

impl Environment {
    /// What the pod is translated with.
    pub(super) fn context<'a>(&'a self, settings: &'a Settings) -> translate::Context<'a> {
        translate::Context {
            services_env: self.services.as_deref().unwrap_or_default(),
            env_from: &self.env_from,
            ..translate::Context::new(settings)
        }
    }
}

impl Syncer {
    /// The environment for what an update may add: an ephemeral container. Most have none, and wait for nothing.
    ///
    /// # Errors
    /// As [`Self::environment`].
    pub(super) async fn environment_of_update(&self, key: &Key, upper: &Pod) -> Result<Environment, Refusal> {
        let ephemeral = upper.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_ref());
        if ephemeral.is_none_or(Vec::is_empty) {
            return Ok(Environment::default());
        }
        self.environment(key, upper).await
    }

    /// Looks the environment up: without a request, once the Services are listed and stand below.
    ///
    /// # Errors
    /// The Services are wanted and not listed yet.
    pub(super) async fn environment(&self, key: &Key, upper: &Pod) -> Result<Environment, Refusal> {
        let spec = upper.spec.as_ref();
        let mut services = None;
        if spec.is_some_and(translate::wants_service_links) {
            // An elapsed limit leaves them unknown, which is told below.
            let _ = timeout(SERVICES_WAIT, self.services.listed()).await;
            self.await_services(&key.namespace).await;
            let addresses = self.mirror.as_ref().map(|mirror| mirror.addresses(&key.namespace)).unwrap_or_default();
            let found = self.services.variables(&key.namespace, &addresses).map_err(|why| Refusal {
                reason: "ServicesNotRead",
                message: format!(
                    "the pod's containers are to find the Services of their namespace in their environment, and the \
                     virtual node has not read the upper cluster's Services yet ({why}); it goes on when it has. A \
                     ServiceAccount needs list and watch on services (see its ClusterRole); a pod that sets \
                     enableServiceLinks: false needs none"
                ),
            });
            services = Some(found?);
        }
        let env_from = spec.map(|spec| self.needs.env_from_keys(&key.namespace, spec)).unwrap_or_default();
        Ok(Environment { services, env_from })
    }

    /// Gives the Services of a namespace, whose first pod this may be, a moment to stand below. Where that fails, pods do
    /// not wait for it one after the other.
    async fn await_services(&self, namespace: &str) {
        let Some(mirror) = &self.mirror else { return };
        let given_up = |at: &Instant| at.elapsed() < GIVEN_UP_FOR;
        if self.given_up_services.lock().get(namespace).is_some_and(given_up) {
            return;
        }
        if timeout(SERVICES_WAIT, mirror.settled(namespace)).await.is_err() {
            self.given_up_services.lock().insert(namespace.to_owned(), Instant::now());
        }
    }
}
