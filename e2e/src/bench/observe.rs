//! What a watcher sees of a burst of pods.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, ListParams, WatchParams},
    core::{Object, WatchEvent},
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{sync::Notify, task::JoinHandle};

/// Only what is looked at is decoded: this program shares two cores with what it measures.
type Glance = Object<GlanceSpec, GlanceStatus>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GlanceSpec {
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct GlanceStatus {
    #[serde(default)]
    conditions: Vec<GlanceCondition>,
}

#[derive(Clone, Debug, Deserialize)]
struct GlanceCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// When things were seen of one pod.
#[derive(Clone, Copy, Debug)]
struct Times {
    created: Instant,
    scheduled: Option<Instant>,
    ready: Option<Instant>,
}

#[derive(Debug, Default)]
struct Seen {
    pods: HashMap<String, Times>,
    scheduled: usize,
    ready: usize,
    deleted: usize,
    broken: Option<String>,
}

/// A watch on the pods of one namespace.
pub(super) struct Observer {
    seen: Arc<Mutex<Seen>>,
    news: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a burst looked like, in seconds from its start.
#[derive(Clone, Debug, Default)]
pub(super) struct Burst {
    pub all_created_s: f64,
    pub all_scheduled_s: f64,
    pub all_ready_s: f64,
    pub ready_p50_s: f64,
    pub ready_p99_s: f64,
}

impl Observer {
    /// Watches from now on; the namespace must hold no pods.
    pub(super) async fn start(client: Client, namespace: &str) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let list = pods.list_metadata(&ListParams::default().limit(1)).await.context("listing pods")?;
        if !list.items.is_empty() {
            bail!("namespace {namespace} is not empty");
        }
        let version = list.metadata.resource_version.unwrap_or_default();
        let glances: Api<Glance> = Api::namespaced_with(client, namespace, &ApiResource::erase::<Pod>(&()));
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let news: Arc<Notify> = Arc::default();
        let (into, bell) = (seen.clone(), news.clone());
        let task = tokio::spawn(async move {
            let ended = async {
                // A watch lasts 290 s at most; the next goes on where it ended.
                let mut version = version;
                loop {
                    let mut events = std::pin::pin!(glances.watch(&WatchParams::default(), &version).await?);
                    while let Some(event) = events.try_next().await? {
                        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) = &event {
                            version = pod.resource_version().unwrap_or_default();
                        }
                        into.lock().take_in(event);
                        bell.notify_one();
                    }
                }
            }
            .await;
            let Err::<std::convert::Infallible, anyhow::Error>(error) = ended;
            into.lock().broken = Some(format!("the watch ended: {error:#}"));
            bell.notify_one();
        });
        Ok(Self { seen, news, task })
    }

    /// Waits until `count` pods were seen Ready.
    pub(super) async fn until_ready(&self, count: usize, start: Instant, limit: Duration) -> Result<Burst> {
        self.until("Ready", count, limit, |seen| seen.ready).await?;
        Ok(self.seen.lock().burst(start))
    }

    /// Waits until `count` pods were seen to go.
    pub(super) async fn until_deleted(&self, count: usize, limit: Duration) -> Result<()> {
        self.until("gone", count, limit, |seen| seen.deleted).await
    }

    async fn until(&self, what: &str, count: usize, limit: Duration, of: impl Fn(&Seen) -> usize) -> Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let (now, broken) = {
                let seen = self.seen.lock();
                (of(&seen), seen.broken.clone())
            };
            if now >= count {
                return Ok(());
            }
            if let Some(broken) = broken {
                bail!("{now} of {count} pods {what}; {broken}");
            }
            if tokio::time::timeout_at(deadline, self.news.notified()).await.is_err() {
                bail!("only {now} of {count} pods {what} after {limit:?}");
            }
        }
    }
}

impl Seen {
    fn take_in(&mut self, event: WatchEvent<Glance>) {
        let now = Instant::now();
        match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                let times =
                    self.pods.entry(pod.name_any()).or_insert(Times { created: now, scheduled: None, ready: None });
                if times.scheduled.is_none() && pod.spec.node_name.is_some() {
                    times.scheduled = Some(now);
                    self.scheduled += 1;
                }
                let ready = pod
                    .status
                    .iter()
                    .flat_map(|status| &status.conditions)
                    .any(|c| c.kind == "Ready" && c.status == "True");
                if times.ready.is_none() && ready {
                    times.ready = Some(now);
                    self.ready += 1;
                }
            }
            WatchEvent::Deleted(_) => self.deleted += 1,
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(error) => self.broken = Some(error.to_string()),
        }
    }

    fn burst(&self, start: Instant) -> Burst {
        let last = |of: fn(&Times) -> Option<Instant>| {
            self.pods.values().filter_map(of).max().map_or(0.0, |at| (at - start).as_secs_f64())
        };
        let mut waits: Vec<f64> = self
            .pods
            .values()
            .filter_map(|times| times.ready.map(|ready| (ready - times.created).as_secs_f64()))
            .collect();
        waits.sort_by(f64::total_cmp);
        Burst {
            all_created_s: last(|times| Some(times.created)),
            all_scheduled_s: last(|times| times.scheduled),
            all_ready_s: last(|times| times.ready),
            ready_p50_s: quantile(&waits, 50),
            ready_p99_s: quantile(&waits, 99),
        }
    }
}

/// The value below which `percent` of a sorted list lies (nearest rank).
pub(super) fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((quantile(&values, 50) - 50.0).abs() < f64::EPSILON);
        assert!((quantile(&values, 99) - 99.0).abs() < f64::EPSILON);
        assert!(quantile(&[], 99).abs() < f64::EPSILON);
    }
}
