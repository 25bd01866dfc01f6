//! Counts, over the whole run, which lower pods ever existed for which upper pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    thread,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config, ResourceExt,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher,
};
use parking_lot::Mutex;
use tensile_e2e::{Seen, eventually};
use tensile_proto::vocabulary::label;

use crate::world::SOON;

/// UIDs of lower pods by the UID of the upper pod in their mark.
#[derive(Clone)]
pub struct Twins(Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>);

impl Twins {
    /// Watches the lower cluster from a thread of its own: it outlives the runtime of the test that was first.
    pub fn watch(kubeconfig: &Path) -> Self {
        let twins = Self(Arc::default());
        let (kubeconfig, seen) = (Kubeconfig::read_from(kubeconfig).unwrap(), twins.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        thread::spawn(move || {
            runtime.block_on(async {
                let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
                let pods: Api<Pod> = Api::all(Client::try_from(config).unwrap());
                let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()));
                while let Some(event) = events.next().await {
                    if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event
                        && let (Some(owner), Some(uid)) = (pod.labels().get(label::UPPER_UID), pod.uid())
                    {
                        seen.0.lock().entry(owner.clone()).or_default().insert(uid);
                    }
                }
            });
        });
        twins
    }

    /// The lower pods that stood for an upper pod, now and before.
    pub fn of(&self, upper_uid: &str) -> BTreeSet<String> {
        self.0.lock().get(upper_uid).cloned().unwrap_or_default()
    }

    /// Each of these upper pods ran below exactly once.
    pub async fn assert_one_each(&self, upper_uids: &[String]) {
        // The watch may be a moment behind; that a pod has a second twin stays true for ever.
        eventually("each upper pod has had a lower pod", SOON, || async {
            let missing: Vec<&String> = upper_uids.iter().filter(|uid| self.of(uid).is_empty()).collect();
            Ok(Seen::when(missing.is_empty(), format!("none for {missing:?}")))
        })
        .await
        .unwrap();
        for uid in upper_uids {
            assert_eq!(self.of(uid).len(), 1, "upper pod {uid} ran more than once below: {:?}", self.of(uid));
        }
    }
}
