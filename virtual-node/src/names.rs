//! Where an upper object lives in the lower cluster.
//!
//! Objects keep their name; only namespaces are mapped. See "Names" in docs/ARCHITECTURE.md.

use sha2::{Digest, Sha256};

/// A namespace name is an RFC 1123 label: at most 63 characters.
const NAMESPACE_LENGTH_MAX: usize = 63;

/// Hex digits of the hash that stands for a namespace name too long to carry the suffix: 40 bits, so two of 1,000 such
/// namespaces collide with a probability below one in a million.
const HASH_DIGITS: usize = 10;

/// How namespaces of the upper cluster map into the lower one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceMapping {
    /// The same name, so that `service.namespace` keeps working. One upper cluster per lower namespace.
    Same,
    /// `<namespace>-<short id>`, so that several upper clusters share a lower one.
    Suffixed {
        /// Short id of the upper cluster: lowercase letters and digits.
        short_id: String,
    },
}

impl NamespaceMapping {
    /// The lower namespace of an upper one.
    pub fn lower(&self, upper: &str) -> String {
        match self {
            Self::Same => upper.to_owned(),
            Self::Suffixed { short_id } => {
                let plain = format!("{upper}-{short_id}");
                if plain.len() <= NAMESPACE_LENGTH_MAX {
                    return plain;
                }
                let hash = hex::encode(Sha256::digest(upper.as_bytes()));
                let keep = NAMESPACE_LENGTH_MAX - short_id.len() - HASH_DIGITS - 2;
                format!("{}-{}-{short_id}", upper[..keep].trim_end_matches('-'), &hash[..HASH_DIGITS])
            }
        }
    }
}

/// The short id of an upper cluster: the first eight hex digits of its UID.
pub fn short_id(upper_cluster_uid: &str) -> String {
    upper_cluster_uid.chars().filter(char::is_ascii_hexdigit).take(8).collect::<String>().to_ascii_lowercase()
}

/// An object's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key of its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_keeps_the_name() {
        assert_eq!(NamespaceMapping::Same.lower("team-a"), "team-a");
    }

    #[test]
    fn suffixed_adds_the_short_id() {
        let mapping = NamespaceMapping::Suffixed { short_id: short_id("1f0e3dad-9990-4444-8888-000000000000") };
        assert_eq!(mapping.lower("team-a"), "team-a-1f0e3dad");
    }

    #[test]
    fn long_names_stay_labels_and_apart() {
        let mapping = NamespaceMapping::Suffixed { short_id: "1f0e3dad".into() };
        let one = mapping.lower(&"a".repeat(63));
        let two = mapping.lower(&format!("{}b", "a".repeat(62)));
        assert!(one.len() <= 63 && two.len() <= 63);
        assert_ne!(one, two);
        assert!(one.ends_with("-1f0e3dad"));
    }
}
