//! Keeps totals over samples, and says what may be told of each pod. Pure.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::{
    counter::Counter,
    sample::{NodeSample, PodSample, Used},
};
use crate::{kubelet::RunningPod, names::Key};

/// Totals of a pod that no sample told of for this long are dropped: it is gone, or its node is.
const UNSEEN_MAX: SignedDuration = SignedDuration::from_mins(10);

/// Use of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The time that the figures are of.
    pub at: Timestamp,
    /// When the total was zero.
    pub began: Timestamp,
    /// CPU time since then, in nanoseconds of one core.
    pub core_nanos: u64,
    /// CPU and memory as the lower cluster tells them.
    pub used: Used,
}

/// Use of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFigures {
    /// Namespace and name of the upper pod.
    pub key: Key,
    /// Its UID.
    pub uid: String,
    /// All its containers together.
    pub whole: Figures,
    /// Each container, by name.
    pub containers: Vec<(String, Figures)>,
}

/// What may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// All lower nodes together; `None` when the lower cluster tells of none.
    pub node: Option<Figures>,
    /// Upper pods, by namespace and name.
    pub pods: Vec<PodFigures>,
}

/// Totals so far.
#[derive(Debug, Default)]
pub struct Book {
    /// Containers that started later have been counted from their start; what others used before is unknown.
    watched_since: Option<Timestamp>,
    /// By UID of the upper pod.
    pods: HashMap<String, PodTotals>,
    node: Option<Counter>,
}

#[derive(Debug)]
struct PodTotals {
    whole: Counter,
    containers: HashMap<String, ContainerTotal>,
    seen: Timestamp,
}

#[derive(Debug)]
struct ContainerTotal {
    /// The start of the run that is counted: a restarted container begins anew.
    started: Timestamp,
    counter: Counter,
}

impl Book {
    /// Takes samples in. `running` finds the upper pod of a lower one (with the UID that the sample names), or `None`
    /// when it is not ours or has no running containers.
    pub fn take_in(
        &mut self,
        pods: &[PodSample],
        nodes: &[NodeSample],
        running: impl Fn(&Key, Option<&str>) -> Option<RunningPod>,
        now: Timestamp,
    ) -> Report {
        let newest = pods.iter().map(|pod| pod.at).chain(nodes.iter().map(|node| node.at)).max();
        let watched_since = *self.watched_since.get_or_insert(newest.unwrap_or(now));
        let mut report = Report { node: self.node(nodes), pods: Vec::with_capacity(pods.len()) };
        for sample in pods {
            if let Some(pod) = running(&sample.lower, sample.upper_uid.as_deref()) {
                report.pods.extend(self.pod(sample, pod, watched_since, now));
            }
        }
        self.pods.retain(|_, totals| now.duration_since(totals.seen) < UNSEEN_MAX);
        report.pods.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        report
    }

    /// The sum over all lower nodes. Their samples come at times of their own, so the sum counts as of the newest.
    fn node(&mut self, nodes: &[NodeSample]) -> Option<Figures> {
        let at = nodes.iter().map(|node| node.at).max()?;
        let used = sum(nodes.iter().map(|node| node.used));
        let counter = self.node.get_or_insert_with(|| Counter::new(at));
        counter.advance(at, used.nanocores);
        Some(figures(counter, used))
    }

    /// All of a pod or nothing: a sum that lacks a container would be a wrong one.
    fn pod(
        &mut self,
        sample: &PodSample,
        pod: RunningPod,
        watched_since: Timestamp,
        now: Timestamp,
    ) -> Option<PodFigures> {
        let mut containers = Vec::with_capacity(sample.containers.len());
        let totals = self.pods.get_mut(&pod.uid).map(|totals| &mut totals.containers);
        let mut fresh = HashMap::new();
        let known = totals.unwrap_or(&mut fresh);
        known.retain(|name, _| pod.containers.iter().any(|(running, _)| running == name));
        let mut whole = true;
        for (name, used) in &sample.containers {
            // One that ended since: nobody counts it any more.
            let Some((_, started)) = pod.containers.iter().find(|(running, _)| running == name) else { continue };
            // The sample is of the container's run before this one.
            if sample.at <= *started {
                known.remove(name);
                whole = false;
                continue;
            }
            let total = known.get(name).filter(|total| total.started == *started).map(|total| total.counter);
            let mut counter = total.unwrap_or_else(|| Counter::new(began(sample, *started, watched_since)));
            counter.advance(sample.at, used.nanocores);
            known.insert(name.clone(), ContainerTotal { started: *started, counter });
            containers.push((name.clone(), figures(&counter, *used)));
        }
        let used = sum(containers.iter().map(|(_, figures)| figures.used));
        let earliest = containers.iter().map(|(_, figures)| figures.began).min()?;
        let totals = self.pods.entry(pod.uid.clone()).or_insert_with(|| PodTotals {
            whole: Counter::new(earliest),
            containers: fresh,
            seen: now,
        });
        totals.seen = now;
        totals.whole.advance(sample.at, used.nanocores);
        let figures = figures(&totals.whole, used);
        whole.then_some(PodFigures { key: pod.key, uid: pod.uid, whole: figures, containers })
    }
}

/// When the total of a container that is not known yet was zero.
///
/// Of one that has started since we watch, the window of its first sample is all there is. One that ran before may have
/// been told of by the process before this one: a total that begins at the sample, and a start as late as that, tells
/// metrics-server to forget what it had. It would take a smaller total for an error.
fn began(sample: &PodSample, started: Timestamp, watched_since: Timestamp) -> Timestamp {
    if started <= watched_since {
        return sample.at;
    }
    sample.at.checked_sub(sample.window).unwrap_or(started).max(started)
}

fn figures(counter: &Counter, used: Used) -> Figures {
    Figures { at: counter.at(), began: counter.began(), core_nanos: counter.core_nanos(), used }
}

fn sum(all: impl Iterator<Item = Used>) -> Used {
    all.fold(Used::default(), |sum, one| Used {
        nanocores: sum.nanocores.saturating_add(one.nanocores),
        memory_bytes: sum.memory_bytes.saturating_add(one.memory_bytes),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "book_tests.rs"]
mod tests;
