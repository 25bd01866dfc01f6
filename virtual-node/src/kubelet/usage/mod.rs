//! CPU and memory of this node and its pods, for metrics-server, `kubectl top` and Prometheus.
//!
//! ```text
//!  metrics-server above ──▶ /metrics/resource ──▶ book (totals) ◀── metrics.k8s.io of the lower cluster
//! ```
//!
//! The lower cluster's metrics API is asked when somebody asks us, at most once in [`FRESH`]; nobody asks, nothing is
//! done. Where it has no answer we have none: no figure is ever made up, least of all a zero.

mod book;
mod counter;
mod exposition;
mod fetch;
mod sample;
mod summary;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::{
    fmt::Display,
    mem::{Discriminant, discriminant},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use tensile_proto::vocabulary::label;
use tokio::sync::Mutex;
use tracing::{info, warn};

use self::{
    book::{Book, Report},
    fetch::{Unavailable, list_nodes, list_pods},
    sample::Read,
};
use super::{
    PodLookup,
    reply::{Reply, text, with_body},
};
use crate::context::Settings;

/// For how long an answer of the lower cluster serves all who ask. metrics-server asks every 15 s, and the lower one has
/// something new as often.
const FRESH: Duration = Duration::from_secs(5);

/// For how long an answer serves while no newer one is to be had: a hiccup below shall not make `kubectl top` forget
/// everything for half a minute. The figures carry their own times.
const STALE_MAX: Duration = Duration::from_mins(1);

/// Knows what is used by this node's pods.
pub struct Usage {
    lower: kube::Client,
    lookup: Arc<dyn PodLookup>,
    node_name: String,
    /// Chooses our pods among the lower cluster's.
    label_selector: String,
    since: Timestamp,
    /// Held over a request to the lower cluster: who asks meanwhile waits for the same answer.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    book: Book,
    last: Option<(Instant, Result<Arc<Report>, Unavailable>)>,
    good: Option<(Instant, Arc<Report>)>,
    said: Said,
}

/// What the log was told, so that it is told once and not at every scrape.
#[derive(Default)]
struct Said {
    pods: Option<Discriminant<Unavailable>>,
    nodes: Option<Discriminant<Unavailable>>,
    unreadable: Option<String>,
}

impl Usage {
    /// For the node and the upper cluster that `settings` name.
    pub fn new(lower: kube::Client, lookup: Arc<dyn PodLookup>, settings: &Settings) -> Self {
        let (cluster, node) = (&settings.upper_cluster_uid, &settings.node_name);
        Self {
            lower,
            lookup,
            node_name: node.clone(),
            label_selector: format!("{}={cluster},{}={node}", label::UPPER_CLUSTER, label::VIRTUAL_NODE),
            since: Timestamp::now(),
            state: Mutex::default(),
        }
    }

    /// Answers `/metrics/resource`. Where there are no figures it says so as a kubelet does: with 200, no series, and
    /// `resource_scrape_error` set.
    pub async fn resource_metrics(&self) -> Reply {
        let text = match self.report().await {
            Ok(report) => exposition::figures(&report),
            Err(why) => exposition::nothing(&why.to_string()),
        };
        let content_type = HeaderValue::from_static(exposition::CONTENT_TYPE);
        text.map_or_else(failed, |text| with_body(StatusCode::OK, content_type, Bytes::from(text)))
    }

    /// Answers `/stats/summary`; where there are no figures with a kubelet's 500.
    pub async fn summary(&self) -> Reply {
        match self.report().await {
            Ok(report) => summary::json(&self.node_name, self.since, &report).map_or_else(failed, |json| {
                with_body(StatusCode::OK, HeaderValue::from_static("application/json"), Bytes::from(json))
            }),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {why}")),
        }
    }

    async fn report(&self) -> Result<Arc<Report>, Unavailable> {
        let mut state = self.state.lock().await;
        if let Some((at, last)) = &state.last
            && at.elapsed() < FRESH
        {
            return last.clone();
        }
        let asked = tokio::join!(list_pods(&self.lower, &self.label_selector), list_nodes(&self.lower));
        let report = state.take_in(asked, &*self.lookup);
        let now = Instant::now();
        if let Ok(report) = &report {
            state.good = Some((now, report.clone()));
        }
        let answer = match (report, &state.good) {
            (Err(_), Some((at, report))) if at.elapsed() < STALE_MAX => Ok(report.clone()),
            (report, _) => report,
        };
        state.last = Some((now, answer.clone()));
        answer
    }
}

impl State {
    fn take_in(
        &mut self,
        (pods, nodes): (Result<Read<sample::PodSample>, Unavailable>, Result<Read<sample::NodeSample>, Unavailable>),
        lookup: &dyn PodLookup,
    ) -> Result<Arc<Report>, Unavailable> {
        self.said.pods(pods.as_ref().err());
        let pods = pods?;
        self.said.nodes(nodes.as_ref().err());
        // The node's own figures alone may be missing: its pods' stand without them.
        let nodes = nodes.unwrap_or(Read { samples: Vec::new(), unreadable: None });
        self.said.unreadable(pods.unreadable.as_ref().or(nodes.unreadable.as_ref()));
        let running = |lower: &_, uid: Option<&str>| lookup.running(lower, uid);
        Ok(Arc::new(self.book.take_in(&pods.samples, &nodes.samples, running, Timestamp::now())))
    }
}

impl Said {
    fn pods(&mut self, error: Option<&Unavailable>) {
        match (changed(&mut self.pods, error.map(discriminant)), error) {
            (true, Some(error)) => warn!(%error, "no CPU and memory of pods for metrics-server and kubectl top"),
            (true, None) => info!("the lower cluster's metrics API answers again"),
            (false, _) => {}
        }
    }

    fn nodes(&mut self, error: Option<&Unavailable>) {
        match (changed(&mut self.nodes, error.map(discriminant)), error) {
            (true, Some(error)) => warn!(%error, "no CPU and memory of the node for metrics-server and kubectl top"),
            (true, None) => info!("the lower cluster's metrics API answers for nodes again"),
            (false, _) => {}
        }
    }

    fn unreadable(&mut self, unreadable: Option<&(usize, String)>) {
        if changed(&mut self.unreadable, unreadable.map(|(_, why)| why.clone()))
            && let Some((count, why)) = unreadable
        {
            warn!(
                count,
                why, "metrics of the lower cluster cannot be read and are left out; the first one's reason is told"
            );
        }
    }
}

/// Remembers what is to be said, and answers whether it is new.
fn changed<T: PartialEq>(said: &mut Option<T>, now: Option<T>) -> bool {
    let new = *said != now;
    *said = now;
    new
}

fn failed(error: impl Display) -> Reply {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: cannot write the figures down: {error}"))
}
