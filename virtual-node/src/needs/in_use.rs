//! What the pods that live in the lower cluster refer to: the proof before a copy is deleted.
//!
//! Our own count of users does not know the pods of other virtual nodes of the same upper cluster, nor twins whose
//! upper pod was force-deleted while we were away. So the lower pods are listed live, once for all copies of a
//! namespace that fell out of use together.

use std::{collections::HashMap, collections::HashSet, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use parking_lot::Mutex;
use tensile_proto::vocabulary::label;
use tokio::time::Instant;

use super::book::Kind;
use crate::translate;

/// Pods in one page: about 2.5 MB of JSON.
const PAGE_PODS_MAX: u32 = 250;

/// Namespaces whose list is remembered.
const NAMESPACES_MAX: usize = 64;

type References = HashSet<(Kind, String)>;

/// One list of a namespace's pods.
struct List {
    /// When it was begun: it proves nothing about what happened later.
    at: Instant,
    references: Arc<References>,
}

/// Lists pods, at most once at a time for each namespace.
pub(super) struct InUse {
    client: Client,
    selector: String,
    lists: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<List>>>>>,
}

impl InUse {
    pub(super) fn new(client: Client, upper_cluster_uid: &str) -> Self {
        Self { client, selector: format!("{}={upper_cluster_uid}", label::UPPER_CLUSTER), lists: Mutex::default() }
    }

    /// Whether a pod of our upper cluster in this lower namespace referred to the object at some time after `since`.
    pub(super) async fn refers(
        &self,
        lower_namespace: &str,
        kind: Kind,
        name: &str,
        since: Instant,
    ) -> Result<bool, kube::Error> {
        let list = self.list(lower_namespace);
        // Whoever comes while a list is made waits here, and finds it made after his object fell out of use.
        let mut list = list.lock().await;
        let references = match &*list {
            Some(made) if made.at > since => made.references.clone(),
            _ => {
                let at = Instant::now();
                let references = Arc::new(self.references(lower_namespace).await?);
                *list = Some(List { at, references: references.clone() });
                references
            }
        };
        let kind = if kind == Kind::Secret { Kind::Secret } else { Kind::ConfigMap };
        Ok(references.contains(&(kind, name.to_owned())))
    }

    fn list(&self, lower_namespace: &str) -> Arc<tokio::sync::Mutex<Option<List>>> {
        let mut lists = self.lists.lock();
        if lists.len() >= NAMESPACES_MAX && !lists.contains_key(lower_namespace) {
            lists.clear();
        }
        lists.entry(lower_namespace.to_owned()).or_default().clone()
    }

    async fn references(&self, lower_namespace: &str) -> Result<References, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), lower_namespace);
        let mut params = ListParams::default().labels(&self.selector).limit(PAGE_PODS_MAX);
        let mut references = References::new();
        loop {
            let page = api.list(&params).await?;
            for pod in page.items.iter().filter(|pod| !is_over(pod)) {
                let needs = translate::needs(pod);
                references.extend(needs.config_maps.into_keys().map(|name| (Kind::ConfigMap, name)));
                references.extend(needs.secrets.into_keys().map(|name| (Kind::Secret, name)));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(references),
            }
        }
    }
}

/// A pod that ran to completion mounts nothing any more.
fn is_over(pod: &Pod) -> bool {
    translate::is_terminal(pod.status.as_ref().and_then(|status| status.phase.as_deref()))
}
