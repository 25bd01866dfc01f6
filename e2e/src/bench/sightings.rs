//! What a watcher of one cluster's pods sees, and when.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, WatchParams},
    core::WatchEvent,
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::offload::NAMESPACE;

/// What is waited for takes a fraction of a second, or a lease's duration.
const POD_DEADLINE: Duration = Duration::from_mins(1);

/// Events that may wait to be looked at.
const EVENTS_MAX: usize = 10_000;

/// What a watcher of one cluster's pods sees, with the moment at which it did.
pub(super) struct Sightings {
    events: mpsc::Receiver<(Instant, WatchEvent<Pod>)>,
    task: JoinHandle<()>,
}

impl Drop for Sightings {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sightings {
    /// Watches from now on.
    pub(super) async fn start(client: Client) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let list = pods.list_metadata(&ListParams::default().limit(1)).await.context("listing pods")?;
        let mut version = list.metadata.resource_version.unwrap_or_default();
        let (send, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(async move {
            let ended = async {
                loop {
                    // The server ends each watch after some minutes; the next one goes on where it was.
                    let mut watch = std::pin::pin!(pods.watch(&WatchParams::default(), &version).await?);
                    while let Some(event) = watch.try_next().await? {
                        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) = &event {
                            version = pod.resource_version().unwrap_or_default();
                        }
                        send.send((Instant::now(), event)).await?;
                    }
                }
            };
            let ended: Result<()> = ended.await;
            if let Err(error) = ended {
                eprintln!("a watch of the bench ended: {error:#}");
            }
        });
        Ok(Self { events, task })
    }

    /// Milliseconds from when the pod appeared to when it was Ready.
    pub(super) async fn ready_after(&mut self, name: &str) -> Result<f64> {
        let created = self.until(name, "there", |_| true).await?;
        let ready = self.until(name, "Ready", is_ready).await?;
        Ok(millis(ready - created))
    }

    /// The moment at which the pod first was as wanted, among events not looked at before.
    pub(super) async fn until(&mut self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Result<Instant> {
        let found = |event: &WatchEvent<Pod>| match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod.name_any() == name && wanted(pod),
            _ => false,
        };
        self.until_event(name, what, found).await
    }

    /// Waits until the pod is gone.
    pub(super) async fn until_gone(&mut self, name: &str) -> Result<()> {
        let gone = |event: &WatchEvent<Pod>| matches!(event, WatchEvent::Deleted(pod) if pod.name_any() == name);
        self.until_event(name, "gone", gone).await.map(drop)
    }

    async fn until_event(
        &mut self,
        name: &str,
        what: &str,
        found: impl Fn(&WatchEvent<Pod>) -> bool,
    ) -> Result<Instant> {
        let look = async {
            while let Some((at, event)) = self.events.recv().await {
                if let WatchEvent::Error(error) = &event {
                    bail!("the watch failed: {error}");
                }
                if found(&event) {
                    return Ok(at);
                }
            }
            bail!("the watch has ended")
        };
        let seen = tokio::time::timeout(POD_DEADLINE, look).await;
        seen.with_context(|| format!("pod {name} was not seen to be {what} in {POD_DEADLINE:?}"))?
    }
}

/// Whether the pod is Ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True")
}

/// In milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// How often the pod's containers were restarted.
pub(super) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).sum()
}
