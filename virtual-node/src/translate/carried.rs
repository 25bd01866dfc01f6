//! Bookkeeping on the lower pod: what of the upper pod was sent down, so that an update carries only what changed.
//!
//! Comparing the two pods would not do: lower admission may have changed images and resources (a registry mirror, a
//! LimitRange), and undoing that on every sync would never end. So the lower pod carries a digest of each *part* of the
//! upper pod as it was last sent; only a part whose digest changed is sent again. The two parts that are maps also carry
//! short hashes of the keys sent, for a key that vanished above must vanish below while keys of lower admission stay.
//!
//! Generations: the annotation [`annotation::GENERATION`] holds `<upper>/<lower>`, which says: a lower pod of
//! generation `<lower>` or later contains everything of upper generation `<upper>`. It is written only together with, or
//! after, a state in which that is true, so a status that has observed `<lower>` has observed `<upper>`.

use std::{fmt, io::Write};

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tensile_proto::vocabulary::{DOMAIN, annotation, foreign, label};

use super::{affinity, downward};

/// Version of the format; another one counts as nothing sent, which sends everything once more.
const FORMAT: &str = "1";
/// Hex digits of a part's digest: an update is missed with a probability of 2^-40.
const DIGEST_DIGITS: usize = 10;
/// Hex digits of a key's hash: a foreign key is taken for one of ours, and removed, only if ours vanish and 24 bits agree.
const KEY_DIGITS: usize = 6;

/// Holds the spec as kubectl last applied it: noise below, and up to half of the annotation size limit.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Labels that the API server copies from the node at binding (PodTopologyLabels admission): each cluster sets its own.
const TOPOLOGY_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// A part of the upper pod that may change after creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// metadata.labels.
    Labels,
    /// metadata.annotations.
    Annotations,
    /// Images of containers and init containers.
    Images,
    /// tolerations, activeDeadlineSeconds, terminationGracePeriodSeconds.
    Limits,
    /// Resources of containers, init containers and the pod; through `pods/resize`.
    Resources,
    /// Ephemeral containers; through `pods/ephemeralcontainers`.
    Ephemeral,
    /// Conditions that readiness gates name; through `pods/status`.
    Gates,
}

impl Part {
    /// Every part with its letter in the annotation.
    pub(super) const ALL: [(Self, char); 7] = [
        (Self::Labels, 'l'),
        (Self::Annotations, 'a'),
        (Self::Images, 'i'),
        (Self::Limits, 't'),
        (Self::Resources, 'r'),
        (Self::Ephemeral, 'e'),
        (Self::Gates, 'g'),
    ];
}

/// What was sent, part by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried([String; Part::ALL.len()]);

impl Carried {
    /// Everything of the upper pod as it is now.
    pub(super) fn of(upper: &Pod) -> Self {
        let spec = upper.spec.as_ref();
        let whole = spec.map(downward::whole_maps).unwrap_or_default();
        let mut carried = Self::default();
        let labels: Vec<_> = labels_down(upper).collect();
        carried.set(Part::Labels, keyed(&labels, labels.iter().map(|(key, _)| key.as_str())));
        let annotations: Vec<_> = annotations_down(upper).collect();
        let keys = annotations.iter().map(|(key, _)| key.as_str());
        if whole.annotations {
            carried.set(Part::Annotations, keyed(&upper.metadata.annotations, keys));
        } else {
            carried.set(Part::Annotations, keyed(&annotations, keys));
        }
        let containers =
            || spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
        let images: Vec<_> = containers().map(|container| (&container.name, &container.image)).collect();
        carried.set(Part::Images, digest(&images));
        let tolerations: Vec<_> = spec
            .into_iter()
            .flat_map(|spec| spec.tolerations.iter().flatten())
            .filter(|each| affinity::passes(each))
            .collect();
        let deadline = spec.and_then(|spec| spec.active_deadline_seconds);
        let grace = spec.and_then(|spec| spec.termination_grace_period_seconds);
        carried.set(Part::Limits, digest(&(tolerations, deadline, grace)));
        let resources: Vec<_> = containers().map(resources_of).collect();
        carried.set(Part::Resources, digest(&(resources, spec.and_then(|spec| spec.resources.as_ref()))));
        let ephemeral: Vec<_> = spec
            .into_iter()
            .flat_map(|spec| spec.ephemeral_containers.iter().flatten())
            .map(|container| &container.name)
            .collect();
        carried.set(Part::Ephemeral, digest(&ephemeral));
        carried.set(Part::Gates, digest(&gates(upper).collect::<Vec<_>>()));
        carried
    }

    /// What a creation carries: all but what only subresources take.
    pub(super) fn at_creation(upper: &Pod) -> Self {
        let mut carried = Self::of(upper);
        let nothing = digest(&[(); 0]);
        carried.set(Part::Ephemeral, nothing.clone());
        carried.set(Part::Gates, nothing);
        carried
    }

    /// Reads a lower pod's annotation; parts that are missing or of another format count as not sent.
    pub(super) fn read(lower: &Pod) -> Self {
        let mut carried = Self::default();
        let Some(text) = lower.metadata.annotations.as_ref().and_then(|all| all.get(annotation::CARRIED)) else {
            return carried;
        };
        let mut parts = text.split(';');
        if parts.next() != Some(FORMAT) {
            return carried;
        }
        for part in parts {
            let Some((letter, value)) = part.split_once('=') else { continue };
            if let Some((known, _)) = Part::ALL.iter().find(|(_, own)| letter.chars().eq([*own])) {
                carried.set(*known, value.to_owned());
            }
        }
        carried
    }

    /// One part.
    pub(super) fn get(&self, part: Part) -> &str {
        &self.0[part as usize]
    }

    /// Sets one part.
    pub(super) fn set(&mut self, part: Part, value: String) {
        self.0[part as usize] = value;
    }

    /// Whether a key was sent as one of a map's.
    pub(super) fn sent_key(&self, part: Part, key: &str) -> bool {
        let hash = key_hash(key);
        self.get(part).split('.').skip(1).any(|sent| sent == hash)
    }
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FORMAT)?;
        for (part, letter) in Part::ALL {
            write!(f, ";{letter}={}", self.get(part))?;
        }
        Ok(())
    }
}

/// Digest of everything of the upper pod that may change after creation. Equal to the lower pod's annotation
/// `tensile.dev/carried` when nothing is to be sent.
pub fn carried_digest(upper: &Pod) -> String {
    Carried::of(upper).to_string()
}

/// Whether the lower pod carries everything of the upper pod, its generation included; if not, see
/// [`pod_update`](super::pod_update).
#[cfg(test)]
pub fn is_carried(upper: &Pod, lower: &Pod) -> bool {
    Carried::of(upper) == Carried::read(lower) && is_generation_carried(upper, lower)
}

/// Whether the lower pod's bookkeeping names the upper pod's generation (API servers before 1.33 set none).
pub(super) fn is_generation_carried(upper: &Pod, lower: &Pod) -> bool {
    upper.metadata.generation.is_none_or(|upper| read_generations(lower).is_some_and(|(sent, _)| sent == upper))
}

/// The annotation's value.
pub(super) fn generations(upper: i64, lower: i64) -> String {
    format!("{upper}/{lower}")
}

/// Upper and lower generation of the annotation.
pub(super) fn read_generations(lower: &Pod) -> Option<(i64, i64)> {
    let (upper, lower) = lower.metadata.annotations.as_ref()?.get(annotation::GENERATION)?.split_once('/')?;
    Some((upper.parse().ok()?, lower.parse().ok()?))
}

/// The labels that go down.
pub(super) fn labels_down(upper: &Pod) -> impl Iterator<Item = (&String, &String)> {
    upper.metadata.labels.iter().flatten().filter(|(key, _)| {
        !matches!(key.as_str(), label::UPPER_CLUSTER | label::UPPER_UID | label::VIRTUAL_NODE)
            && !TOPOLOGY_LABELS.contains(&key.as_str())
    })
}

/// The annotations that go down: all but ours (which the translation acts on, or writes itself) and kubectl's copy.
pub(super) fn annotations_down(upper: &Pod) -> impl Iterator<Item = (&String, &String)> {
    upper.metadata.annotations.iter().flatten().filter(|(key, _)| {
        let ours = key.split_once('/').is_some_and(|(prefix, _)| prefix == DOMAIN);
        (!ours || *key == annotation::TRACE_PARENT)
            && *key != LAST_APPLIED_ANNOTATION
            && *key != foreign::TENSILE_KUBE_CLUSTER_SELECTOR
    })
}

/// The conditions of the upper pod that its readiness gates name.
pub(super) fn gates(upper: &Pod) -> impl Iterator<Item = &PodCondition> {
    let gates = upper.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    gates.filter_map(|gate| {
        upper.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == gate.condition_type)
    })
}

fn resources_of(container: &Container) -> impl Serialize {
    (&container.name, container.resources.as_ref())
}

fn keyed<'a>(value: &impl Serialize, keys: impl Iterator<Item = &'a str>) -> String {
    let mut text = digest(value);
    for key in keys {
        text.push('.');
        text.push_str(&key_hash(key));
    }
    text
}

fn key_hash(key: &str) -> String {
    let mut digits = hex::encode(Sha256::digest(key.as_bytes()));
    digits.truncate(KEY_DIGITS);
    digits
}

fn digest(value: &impl Serialize) -> String {
    struct Sink(Sha256);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Sink(Sha256::new());
    // The sink takes everything and API types always serialise, so this cannot fail; if it ever did, the digest would
    // be of a prefix, and the same for the same pod.
    let _ = serde_json::to_writer(&mut sink, value);
    let mut digits = hex::encode(sink.0.finalize());
    digits.truncate(DIGEST_DIGITS);
    digits
}
