//! Kubernetes Events on the objects that a user looks at, without ever holding up the work that reports them.
//!
//! Reports go into a bounded queue and are written by one task. Equal reports are aggregated into a series, as
//! client-go does, so that a pod that waits for an hour leaves one Event with a count and not a thousand.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod},
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Reports that may wait to be written. A burst beyond that is dropped and counted: events are best effort everywhere
/// in Kubernetes, and memory is not.
const QUEUE_LENGTH_MAX: usize = 4096;

/// The API server refuses longer notes (events.k8s.io/v1).
const NOTE_BYTES_MAX: usize = 1024;

/// A series is forgotten when it was silent for this long; client-go uses the same six minutes.
const SERIES_IDLE_MAX: Duration = Duration::from_mins(6);

/// A series is written at most this often: its count is for people, who do not read faster.
const SERIES_WRITE_INTERVAL: Duration = Duration::from_secs(10);

/// Series remembered at once; beyond it the memory is started anew, which costs nothing but aggregation.
const SERIES_COUNT_MAX: usize = 8192;

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// For information.
    Normal,
    /// Somebody may have to act.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One report.
#[derive(Debug)]
struct Report {
    regarding: ObjectReference,
    severity: Severity,
    reason: String,
    note: String,
}

/// Reports events; cheap to clone, never blocks, never fails.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Report>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// A recorder, and the writer that must be run for its events to be seen.
    ///
    /// `component` names the reporting controller (`tensile-virtual-node`), `instance` this replica.
    pub fn new(client: Client, component: &str, instance: &str) -> (Self, Writer) {
        let (queue, reports) = mpsc::channel(QUEUE_LENGTH_MAX);
        let writer = Writer {
            client,
            component: component.to_owned(),
            instance: instance.to_owned(),
            reports,
            series: HashMap::new(),
            serial: 0,
        };
        (Self { queue, dropped: Arc::default() }, writer)
    }

    /// Reports something about an object.
    pub fn event(
        &self,
        regarding: ObjectReference,
        severity: Severity,
        reason: impl Into<String>,
        note: impl Into<String>,
    ) {
        let report = Report { regarding, severity, reason: reason.into(), note: truncated(note.into()) };
        if self.queue.try_send(report).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                warn!(dropped, "events dropped: more were reported than the upper API server takes");
            }
        }
    }

    /// Reports something about a pod of the upper cluster.
    pub fn pod(&self, pod: PodRef<'_>, severity: Severity, reason: impl Into<String>, note: impl Into<String>) {
        self.event(pod.object_reference(), severity, reason, note);
    }
}

/// Names an upper pod as the subject of an event.
#[derive(Clone, Copy, Debug)]
pub struct PodRef<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// UID; `kubectl describe` finds events by it.
    pub uid: &'a str,
}

impl<'a> PodRef<'a> {
    /// The subject that a pod object is.
    pub fn of(pod: &'a Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
            name: pod.metadata.name.as_deref().unwrap_or_default(),
            uid: pod.metadata.uid.as_deref().unwrap_or_default(),
        }
    }

    fn object_reference(self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(self.namespace.into()),
            name: Some(self.name.into()),
            uid: Some(self.uid.into()),
            ..ObjectReference::default()
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    reason: String,
    note: String,
}

#[derive(Debug)]
struct Series {
    event_name: String,
    count: i32,
    unwritten: bool,
    written: Instant,
    seen: Instant,
}

/// Writes what recorders report.
pub struct Writer {
    client: Client,
    component: String,
    instance: String,
    reports: mpsc::Receiver<Report>,
    series: HashMap<SeriesKey, Series>,
    serial: u64,
}

impl Writer {
    /// Runs until the process is told to stop; what is queued then is still written, as far as the API server takes it at once.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(SERIES_WRITE_INTERVAL);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                report = self.reports.recv() => match report {
                    Some(report) => self.write(report).await,
                    None => return,
                },
                _ = tick.tick() => self.write_series().await,
            }
        }
        while let Ok(report) = self.reports.try_recv() {
            self.write(report).await;
        }
    }

    async fn write(&mut self, report: Report) {
        let key = SeriesKey {
            kind: report.regarding.kind.clone(),
            namespace: report.regarding.namespace.clone(),
            name: report.regarding.name.clone(),
            uid: report.regarding.uid.clone(),
            reason: report.reason.clone(),
            note: report.note.clone(),
        };
        let now = Instant::now();
        if let Some(series) = self.series.get_mut(&key) {
            series.count = series.count.saturating_add(1);
            series.seen = now;
            series.unwritten = true;
            return;
        }
        if self.series.len() >= SERIES_COUNT_MAX {
            self.series.clear();
        }
        self.serial += 1;
        let at = Timestamp::now();
        let event_name = format!(
            "{}.{:x}{:x}",
            report.regarding.name.as_deref().unwrap_or(&self.component),
            at.as_nanosecond(),
            self.serial
        );
        // Events about cluster-scoped objects live in `default`, as client-go puts them.
        let namespace = report.regarding.namespace.clone().unwrap_or_else(|| "default".into());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(event_name.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(report.reason.clone()),
            reason: Some(report.reason),
            event_time: Some(MicroTime(at)),
            regarding: Some(report.regarding),
            note: Some(report.note),
            reporting_controller: Some(self.component.clone()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(report.severity.as_str().into()),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            debug!(%error, %namespace, name = event_name, "could not write an event");
            return;
        }
        self.series.insert(key, Series { event_name, count: 1, unwritten: false, written: now, seen: now });
    }

    /// Writes the counts that grew, and forgets series that fell silent.
    async fn write_series(&mut self) {
        let now = Instant::now();
        self.series.retain(|_, series| series.unwritten || now.duration_since(series.seen) < SERIES_IDLE_MAX);
        for (key, series) in &mut self.series {
            if !series.unwritten || now.duration_since(series.written) < SERIES_WRITE_INTERVAL {
                continue;
            }
            let count = EventSeries { count: series.count, last_observed_time: MicroTime(Timestamp::now()) };
            let events: Api<Event> =
                Api::namespaced(self.client.clone(), key.namespace.as_deref().unwrap_or("default"));
            let patch = Patch::Merge(json!({ "series": count }));
            if let Err(error) = events.patch(&series.event_name, &PatchParams::default(), &patch).await {
                debug!(%error, name = series.event_name, "could not count an event");
            }
            series.unwritten = false;
            series.written = now;
        }
    }
}

/// Cuts a note at the API server's limit, on a character boundary.
fn truncated(mut note: String) -> String {
    if note.len() > NOTE_BYTES_MAX {
        let mut end = NOTE_BYTES_MAX - 3;
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push_str("...");
    }
    note
}

#[cfg(test)]
mod tests {
    use super::truncated;

    #[test]
    fn a_note_is_cut_on_a_character_boundary() {
        let note = truncated("ä".repeat(600));
        assert!(note.len() <= 1024 && note.ends_with("..."));
        assert_eq!(truncated("short".into()), "short");
    }
}
