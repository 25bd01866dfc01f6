//! Metrics of the kubelet API, and the bound on open streams.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    kind: &'static str,
}

/// Counts requests and open streams.
#[derive(Clone, Default)]
pub struct KubeletMetrics {
    requests: Family<RequestLabels, Counter>,
    streams: Family<StreamLabels, Gauge>,
}

impl KubeletMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "tensile_kubelet_requests",
            "Requests to the kubelet API, by kind and status code",
            metrics.requests.clone(),
        );
        registry.register(
            "tensile_kubelet_streams_open",
            "Logs, execs, attaches and port-forwards open now, by kind",
            metrics.streams.clone(),
        );
        metrics
    }

    /// Counts an answered request.
    pub fn answered(&self, kind: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabels { kind, code: code.into() }).inc();
    }
}

/// Lets a bounded number of streams in.
pub struct Streams {
    permits: Arc<Semaphore>,
    metrics: KubeletMetrics,
}

impl Streams {
    /// At most `streams_max` at once.
    pub fn new(streams_max: u32, metrics: KubeletMetrics) -> Self {
        Self { permits: Arc::new(Semaphore::new(streams_max as usize)), metrics }
    }

    /// A place for one more stream; `None` when all are taken.
    pub fn open(&self, kind: &'static str) -> Option<OpenStream> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let gauge = self.metrics.streams.get_or_create(&StreamLabels { kind }).clone();
        gauge.inc();
        Some(OpenStream { gauge, _permit: permit })
    }
}

/// A place among the open streams, given back when dropped.
pub struct OpenStream {
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn streams_are_bounded_counted_and_given_back() {
        let mut registry = Registry::default();
        let metrics = KubeletMetrics::register(&mut registry);
        let streams = Streams::new(2, metrics.clone());
        let one = streams.open("exec").unwrap();
        let two = streams.open("logs").unwrap();
        assert!(streams.open("exec").is_none());
        drop(one);
        let three = streams.open("logs").unwrap();
        metrics.answered("logs", 200);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("tensile_kubelet_streams_open{kind=\"logs\"} 2"), "{text}");
        assert!(text.contains("tensile_kubelet_streams_open{kind=\"exec\"} 0"), "{text}");
        assert!(text.contains("tensile_kubelet_requests_total{kind=\"logs\",code=\"200\"} 1"), "{text}");
        drop((two, three));
    }
}
