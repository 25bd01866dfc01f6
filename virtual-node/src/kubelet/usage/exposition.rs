//! `/metrics/resource`: names, labels and units as a kubelet's (`K pkg/kubelet/metrics/collectors/resource_metrics.go`).

use std::fmt::{self, Write};

use jiff::Timestamp;

use super::book::{Figures, PodFigures, Report};

/// The text format of Prometheus, as a kubelet serves it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bytes of a container's three lines together with its share of its pod's two.
const CONTAINER_BYTES: usize = 640;

/// One metric: what a kubelet says about it, and its line for a container, a pod or the node.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

const NODE_CPU: Metric = Metric {
    name: "node_cpu_usage_seconds_total",
    kind: "counter",
    help: "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
};
const NODE_MEMORY: Metric = Metric {
    name: "node_memory_working_set_bytes",
    kind: "gauge",
    help: "[STABLE] Current working set of the node in bytes",
};
const CONTAINER_START: Metric = Metric {
    name: "container_start_time_seconds",
    kind: "gauge",
    help: "[STABLE] Start time of the container since unix epoch in seconds",
};
const CONTAINER_CPU: Metric = Metric {
    name: "container_cpu_usage_seconds_total",
    kind: "counter",
    help: "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
};
const CONTAINER_MEMORY: Metric = Metric {
    name: "container_memory_working_set_bytes",
    kind: "gauge",
    help: "[STABLE] Current working set of the container in bytes",
};
const POD_CPU: Metric = Metric {
    name: "pod_cpu_usage_seconds_total",
    kind: "counter",
    help: "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
};
const POD_MEMORY: Metric = Metric {
    name: "pod_memory_working_set_bytes",
    kind: "gauge",
    help: "[STABLE] Current working set of the pod in bytes",
};
const ERROR: Metric = Metric {
    name: "resource_scrape_error",
    kind: "gauge",
    help: "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
};

/// What there is to tell.
pub fn figures(report: &Report) -> Result<String, fmt::Error> {
    let containers: usize = report.pods.iter().map(|pod| pod.containers.len()).sum();
    let mut text = String::with_capacity(1024 + containers * CONTAINER_BYTES);
    of_containers(&mut text, &CONTAINER_CPU, report, cpu)?;
    of_containers(&mut text, &CONTAINER_MEMORY, report, memory)?;
    of_containers(&mut text, &CONTAINER_START, report, |text, figures| {
        // Without a time, as a kubelet writes it.
        seconds(text, figures.began.as_nanosecond())?;
        text.write_char('\n')
    })?;
    for (metric, value) in [(NODE_CPU, cpu as Value), (NODE_MEMORY, memory)] {
        head(&mut text, &metric)?;
        if let Some(node) = &report.node {
            write!(text, "{} ", metric.name)?;
            value(&mut text, node)?;
        }
    }
    for (metric, value) in [(POD_CPU, cpu as Value), (POD_MEMORY, memory)] {
        head(&mut text, &metric)?;
        for pod in &report.pods {
            write!(text, "{}{{namespace=\"{}\",pod=\"{}\"}} ", metric.name, pod.key.namespace, pod.key.name)?;
            value(&mut text, &pod.whole)?;
        }
    }
    error(&mut text, 0)?;
    Ok(text)
}

/// That there is nothing to tell, and why: no series rather than zeros, and the metric by which a kubelet says so.
pub fn nothing(why: &str) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for line in why.lines() {
        writeln!(text, "# {line}")?;
    }
    error(&mut text, 1)?;
    Ok(text)
}

type Value = fn(&mut String, &Figures) -> fmt::Result;

fn of_containers(text: &mut String, metric: &Metric, report: &Report, value: Value) -> fmt::Result {
    head(text, metric)?;
    for PodFigures { key, containers, .. } in &report.pods {
        for (name, figures) in containers {
            // Names of objects and containers hold nothing that would need escaping.
            let (metric, namespace, pod) = (metric.name, &key.namespace, &key.name);
            write!(text, "{metric}{{container=\"{name}\",namespace=\"{namespace}\",pod=\"{pod}\"}} ")?;
            value(text, figures)?;
        }
    }
    Ok(())
}

fn head(text: &mut String, metric: &Metric) -> fmt::Result {
    let Metric { name, kind, help } = metric;
    write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n")
}

fn cpu(text: &mut String, figures: &Figures) -> fmt::Result {
    seconds(text, figures.core_nanos.into())?;
    time(text, figures.at)
}

fn memory(text: &mut String, figures: &Figures) -> fmt::Result {
    write!(text, "{}", figures.used.memory_bytes)?;
    time(text, figures.at)
}

/// Nanoseconds as seconds, all digits.
fn seconds(text: &mut String, nanos: i128) -> fmt::Result {
    let nanos = nanos.max(0);
    write!(text, "{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

fn time(text: &mut String, at: Timestamp) -> fmt::Result {
    writeln!(text, " {}", at.as_millisecond())
}

fn error(text: &mut String, value: u8) -> fmt::Result {
    head(text, &ERROR)?;
    writeln!(text, "{} {value}", ERROR.name)
}
