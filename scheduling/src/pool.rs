//! Which lower nodes stand behind a virtual node.

use std::collections::BTreeMap;

/// A choice of lower nodes by labels, as a pod's `nodeSelector`: every pair must be on the node. Without pairs, all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    labels: BTreeMap<String, String>,
}

/// A pool as text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node pool {text:?}: {part:?} is not `key=value`; write labels separated by commas, such as kubernetes.io/arch=arm64,gpu=true"
)]
pub struct PoolError {
    /// The whole text.
    pub text: String,
    /// The part that is wrong.
    pub part: String,
}

impl Pool {
    /// All nodes.
    pub fn all() -> Self {
        Self::default()
    }

    /// Nodes with all these labels.
    pub fn of_labels(labels: BTreeMap<String, String>) -> Self {
        Self { labels }
    }

    /// Reads `key=value,key=value`; an empty text means all nodes.
    pub fn parse(text: &str) -> Result<Self, PoolError> {
        let mut labels = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => {
                    labels.insert(key.trim().to_owned(), value.trim().to_owned());
                }
                _ => return Err(PoolError { text: text.to_owned(), part: part.to_owned() }),
            }
        }
        Ok(Self { labels })
    }

    /// Whether a node whose labels `label` looks up belongs to the pool.
    pub fn holds<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.labels.iter().all(|(key, value)| label(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pool_holds_nodes_with_all_its_labels() {
        let pool = Pool::parse("arch=arm64, gpu=true").unwrap();
        assert!(!pool.holds(|key| (key == "arch").then_some("arm64")));
        assert!(pool.holds(|key| if key == "arch" { Some("arm64") } else { Some("true") }));
        assert!(Pool::parse("").unwrap().holds(|_| None));
    }

    #[test]
    fn a_part_that_is_no_pair_is_named() {
        assert_eq!(Pool::parse("a=b,gpu").unwrap_err().part, "gpu");
    }
}
