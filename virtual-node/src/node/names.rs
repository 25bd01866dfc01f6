//! Rules for what an operator may name: node, cluster, labels and taints of the Node.
//!
//! The API server would refuse bad names too, but only after the start, for the Node as a whole, and without naming
//! the flag.

use k8s_openapi::api::core::v1::Taint;
use tensile_proto::vocabulary::{foreign, label};

/// Longest label value, and longest name part of a label key (apimachinery `pkg/util/validation`).
const LABEL_LENGTH_MAX: usize = 63;

/// Longest DNS subdomain: prefix of a label key.
const SUBDOMAIN_LENGTH_MAX: usize = 253;

/// Labels of the `kubernetes.io` families that a node may set on itself (`k8s.io/kubelet` `well_known_labels.go`);
/// the NodeRestriction admission plugin forbids all others.
const NODE_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

/// Prefixes that a node may use freely, with their subdomains.
const NODE_LABEL_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Labels that say what the Node is: no flag may say otherwise.
const OWN_LABELS: [&str; 4] =
    [foreign::NODE_TYPE_LABEL, label::CLUSTER, "kubernetes.io/hostname", foreign::EXCLUDE_FROM_LOAD_BALANCERS];

/// Effects of a taint.
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// A name that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Node name.
    #[error(
        "node name `{name}`: must be a DNS subdomain (lowercase letters, digits, `-` and `.`, beginning and ending \
         with a letter or digit) of at most 63 characters, since it is the value of the label kubernetes.io/hostname"
    )]
    Node {
        /// As given.
        name: String,
    },
    /// Cluster name.
    #[error("cluster name `{name}`: {rule}, since it is the value of the label {}", label::CLUSTER)]
    Cluster {
        /// As given.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// Not `KEY=VALUE`.
    #[error("label `{text}`: must be KEY=VALUE")]
    LabelForm {
        /// As given.
        text: String,
    },
    /// Key of a label or taint.
    #[error("key `{key}`: {rule}")]
    Key {
        /// As given.
        key: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// Value of a label or taint.
    #[error("value `{value}` of `{key}`: {rule}")]
    Value {
        /// Whose value.
        key: String,
        /// As given.
        value: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A label that the API server lets no node set.
    #[error(
        "label `{key}`: the NodeRestriction admission plugin lets no node set it on itself; allowed with `kubernetes.io` \
         or `k8s.io` are {}, and any under {}", NODE_LABELS.join(", "), NODE_LABEL_PREFIXES.join("/ and ")
    )]
    Restricted {
        /// As given.
        key: String,
    },
    /// A label that is ours.
    #[error("label `{key}`: is set by the virtual-node itself and cannot be given")]
    Own {
        /// As given.
        key: String,
    },
    /// A taint's form or effect.
    #[error("taint `{text}`: must be KEY[=VALUE]:EFFECT with EFFECT one of {}", EFFECTS.join(", "))]
    TaintForm {
        /// As given.
        text: String,
    },
}

const KEY_RULE: &str = "must be [PREFIX/]NAME: NAME of 1 to 63 letters, digits, `-`, `_` and `.`, beginning and ending \
                        with a letter or digit; PREFIX a DNS subdomain of at most 253 characters";
const VALUE_RULE: &str = "must be empty or of at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a \
                          letter or digit";

/// A node's name must also be a label value.
pub fn check_node_name(name: &str) -> Result<(), BadName> {
    if name.len() <= LABEL_LENGTH_MAX && is_subdomain(name) {
        Ok(())
    } else {
        Err(BadName::Node { name: name.to_owned() })
    }
}

/// A cluster's name must be a label value, and not empty.
pub fn check_cluster_name(name: &str) -> Result<(), BadName> {
    if is_qualified(name) {
        Ok(())
    } else {
        let rule = "must be of 1 to 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit";
        Err(BadName::Cluster { name: name.to_owned(), rule })
    }
}

/// Reads `KEY=VALUE` of a label that a node may carry.
pub fn parse_label(text: &str) -> Result<(String, String), BadName> {
    let (key, value) = text.split_once('=').ok_or_else(|| BadName::LabelForm { text: text.to_owned() })?;
    check_key(key)?;
    check_value(key, value)?;
    if OWN_LABELS.contains(&key) {
        return Err(BadName::Own { key: key.to_owned() });
    }
    if !node_may_set(key) {
        return Err(BadName::Restricted { key: key.to_owned() });
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads `KEY[=VALUE]:EFFECT`.
pub fn parse_taint(text: &str) -> Result<Taint, BadName> {
    let form = || BadName::TaintForm { text: text.to_owned() };
    let (rest, effect) = text.rsplit_once(':').ok_or_else(form)?;
    if !EFFECTS.contains(&effect) {
        return Err(form());
    }
    let (key, value) = rest.split_once('=').map_or((rest, None), |(k, v)| (k, Some(v)));
    check_key(key)?;
    check_value(key, value.unwrap_or_default())?;
    Ok(Taint { key: key.to_owned(), value: value.map(str::to_owned), effect: effect.to_owned(), time_added: None })
}

fn check_key(key: &str) -> Result<(), BadName> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    if is_qualified(name) && prefix.is_none_or(is_subdomain) {
        Ok(())
    } else {
        Err(BadName::Key { key: key.to_owned(), rule: KEY_RULE })
    }
}

fn check_value(key: &str, value: &str) -> Result<(), BadName> {
    if value.is_empty() || is_qualified(value) {
        Ok(())
    } else {
        Err(BadName::Value { key: key.to_owned(), value: value.to_owned(), rule: VALUE_RULE })
    }
}

/// Whether NodeRestriction lets a node set this label on itself.
fn node_may_set(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return true };
    let under = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.'));
    if under("node-restriction.kubernetes.io") {
        return false;
    }
    let kubernetes = under("kubernetes.io") || under("k8s.io");
    !kubernetes || NODE_LABELS.contains(&key) || NODE_LABEL_PREFIXES.iter().any(|p| under(p))
}

/// Name part of a key, or a non-empty label value.
fn is_qualified(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_LENGTH_MAX && ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|b| inner(*b))
}

/// RFC 1123 subdomain.
fn is_subdomain(text: &str) -> bool {
    let label = |part: &str| {
        let ends = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = part.as_bytes();
        ends(bytes.first())
            && ends(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    text.len() <= SUBDOMAIN_LENGTH_MAX && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn labels_that_a_node_may_carry_are_taken() {
        for text in [
            "team=a",
            "example.com/team=",
            "topology.kubernetes.io/region=eu-1",
            "node.kubernetes.io/pool=gpu",
            "sub.kubelet.kubernetes.io/x=y",
        ] {
            assert!(parse_label(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn labels_are_refused_by_the_rule_they_break() {
        assert!(matches!(parse_label("team"), Err(BadName::LabelForm { .. })));
        assert!(matches!(parse_label("-team=a"), Err(BadName::Key { .. })));
        assert!(matches!(parse_label("Example.com/team=a"), Err(BadName::Key { .. })));
        assert!(matches!(parse_label("team=a b"), Err(BadName::Value { .. })));
        assert!(matches!(parse_label(&format!("team={}", "a".repeat(64))), Err(BadName::Value { .. })));
        assert!(matches!(parse_label("node-role.kubernetes.io/agent="), Err(BadName::Restricted { .. })));
        assert!(matches!(parse_label("node-restriction.kubernetes.io/x=y"), Err(BadName::Restricted { .. })));
        assert!(matches!(parse_label("a.node-restriction.kubernetes.io/x=y"), Err(BadName::Restricted { .. })));
        assert!(matches!(parse_label("type=metal"), Err(BadName::Own { .. })));
    }

    #[test]
    fn taints_have_an_effect_and_perhaps_a_value() {
        let taint = parse_taint("gpu=yes:NoSchedule").unwrap();
        assert_eq!(
            (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
            ("gpu", Some("yes"), "NoSchedule")
        );
        assert_eq!(parse_taint("example.com/gpu:NoExecute").unwrap().value, None);
        assert!(matches!(parse_taint("gpu=yes"), Err(BadName::TaintForm { .. })));
        assert!(matches!(parse_taint("gpu:Never"), Err(BadName::TaintForm { .. })));
    }

    #[test]
    fn node_names_are_subdomains_short_enough_for_a_label() {
        assert!(check_node_name("vn-east.1").is_ok());
        for name in ["", "East", "a..b", "-a", &"a".repeat(64)] {
            assert!(check_node_name(name).is_err(), "{name}");
        }
        assert!(check_cluster_name("East_1").is_ok());
        assert!(check_cluster_name("").is_err());
    }
}
