//! What the metrics API of the lower cluster says (`metrics.k8s.io/v1beta1`), read from JSON.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde_json::value::RawValue;
use tensile_proto::vocabulary::label;
use tensile_scheduling::quantity::Amount;

use crate::names::Key;

/// One lower pod within one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSample {
    /// Namespace and name of the lower pod.
    pub lower: Key,
    /// UID of the upper pod that its label names, where the answer has labels.
    pub upper_uid: Option<String>,
    /// The end of the window.
    pub at: Timestamp,
    /// The window's length.
    pub window: SignedDuration,
    /// Name and use of each container.
    pub containers: Vec<(String, Used)>,
}

/// One lower node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSample {
    /// The end of the window.
    pub at: Timestamp,
    /// Its use.
    pub used: Used,
}

/// CPU and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Nanoseconds of one core in each second, over the window.
    pub nanocores: u64,
    /// The working set at the window's end.
    pub memory_bytes: u64,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    timestamp: Time,
    window: String,
    #[serde(default)]
    containers: Vec<Container>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    usage: Usage,
}

#[derive(Default, Deserialize)]
struct Usage {
    cpu: Option<String>,
    memory: Option<String>,
}

/// What was read, and how many items could not be.
#[derive(Debug)]
pub struct Read<T> {
    /// The items.
    pub samples: Vec<T>,
    /// Items left out, and why the first of them was.
    pub unreadable: Option<(usize, String)>,
}

/// Reads a `PodMetricsList`. An item that cannot be read costs no other.
pub fn pods(body: &[u8]) -> Result<Read<PodSample>, serde_json::Error> {
    read(body, |item| {
        let containers = item
            .containers
            .iter()
            .map(|container| Ok((container.name.clone(), container.usage.read()?)))
            .collect::<Result<_, String>>()?;
        Ok(PodSample {
            upper_uid: item.metadata.labels.get(label::UPPER_UID).cloned(),
            lower: Key::new(item.metadata.namespace, item.metadata.name),
            at: item.timestamp.0,
            window: item.window.parse().map_err(|error| format!("its window {:?}: {error}", item.window))?,
            containers,
        })
    })
}

/// Reads a `NodeMetricsList`.
pub fn nodes(body: &[u8]) -> Result<Read<NodeSample>, serde_json::Error> {
    read(body, |item| Ok(NodeSample { at: item.timestamp.0, used: item.usage.read()? }))
}

fn read<T>(body: &[u8], of: impl Fn(Item) -> Result<T, String>) -> Result<Read<T>, serde_json::Error> {
    let list: List<'_> = serde_json::from_slice(body)?;
    let mut read = Read { samples: Vec::with_capacity(list.items.len()), unreadable: None };
    for item in list.items {
        match serde_json::from_str(item.get()).map_err(|error| error.to_string()).and_then(&of) {
            Ok(sample) => read.samples.push(sample),
            Err(why) => read.unreadable.get_or_insert((0, why)).0 += 1,
        }
    }
    Ok(read)
}

impl Usage {
    /// Both or nothing: a missing amount is not zero.
    fn read(&self) -> Result<Used, String> {
        let amount = |name: &str, text: &Option<String>| {
            let text = text.as_deref().ok_or_else(|| format!("it has no usage of {name}"))?;
            Amount::parse(text).map_err(|error| format!("its usage of {name}: {error}"))
        };
        let nanocores = u64::try_from(amount("cpu", &self.cpu)?.nanos());
        let memory_bytes = u64::try_from(amount("memory", &self.memory)?.units());
        match (nanocores, memory_bytes) {
            (Ok(nanocores), Ok(memory_bytes)) => Ok(Used { nanocores, memory_bytes }),
            _ => Err("its usage is negative, or more than a number can hold".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pods_are_read_as_metrics_server_writes_them() {
        let body = r#"{"kind":"PodMetricsList","apiVersion":"metrics.k8s.io/v1beta1","metadata":{},"items":[
            {"metadata":{"name":"web-0","namespace":"shop","creationTimestamp":"2026-11-24T11:00:20Z",
                "labels":{"app":"web","tensile.dev/upper-uid":"u1"}},
             "timestamp":"2026-11-24T11:00:05Z","window":"14.931s",
             "containers":[{"name":"main","usage":{"cpu":"1234567n","memory":"2048Ki"}},
                           {"name":"side","usage":{"cpu":"0","memory":"1536"}}]}]}"#;
        let read = pods(body.as_bytes()).unwrap();
        let used = |nanocores, memory_bytes| Used { nanocores, memory_bytes };
        assert_eq!(
            read.samples,
            [PodSample {
                lower: Key::new("shop", "web-0"),
                upper_uid: Some("u1".into()),
                at: "2026-11-24T11:00:05Z".parse().unwrap(),
                window: SignedDuration::new(14, 931_000_000),
                containers: vec![("main".into(), used(1_234_567, 2_097_152)), ("side".into(), used(0, 1_536))],
            }]
        );
        assert!(read.unreadable.is_none());
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_never_read_as_zero() {
        let body = r#"{"items":[
            {"metadata":{"name":"a"},"timestamp":"2026-11-24T11:00:05Z","window":"15s","usage":{"cpu":"1","memory":"1Gi"}},
            {"metadata":{"name":"b"},"timestamp":"2026-11-24T11:00:05Z","window":"15s","usage":{"memory":"1Gi"}},
            {"metadata":{"name":"c"},"timestamp":"2026-11-24T11:00:05Z","window":"15s","usage":{"cpu":"-1","memory":"1Gi"}},
            {"metadata":{},"timestamp":"never"}]}"#;
        let read = nodes(body.as_bytes()).unwrap();
        assert_eq!(read.samples.len(), 1);
        assert_eq!(read.samples[0].used.nanocores, 1_000_000_000);
        let (count, why) = read.unreadable.unwrap();
        assert_eq!(count, 3);
        assert!(why.contains("no usage of cpu"), "{why}");
    }

    #[test]
    fn windows_of_more_than_a_minute_are_read() {
        let body = r#"{"items":[{"metadata":{"name":"a","namespace":"n"},"timestamp":"2026-11-24T11:00:05Z",
            "window":"1m30.5s","containers":[]}]}"#;
        assert_eq!(pods(body.as_bytes()).unwrap().samples[0].window, SignedDuration::new(90, 500_000_000));
    }
}
