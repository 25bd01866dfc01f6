//! NodeResourcesFit: what a pod requests must be left, and a place among the node's pods.
//!
//! A resource that is not requested is not looked at: a node that is overcommitted in memory still takes a pod that asks for
//! CPU only.

use crate::resources::PODS;

pub(crate) const NAME: &str = "NodeResourcesFit";

/// The words for a resource that does not suffice.
pub(crate) fn reason(resource: &str) -> String {
    if resource == PODS { "Too many pods".to_owned() } else { format!("Insufficient {resource}") }
}
