//! What stands in our annotations, typed.
//!
//! A value is decoded strictly: an unknown field at any depth is an error with the field's path, never passed over. A
//! constraint that got lost on the way would place a pod where it must not run, while a pod that is held with a clear reason waits
//! only until its virtual node is of the same version as its webhook. (gRPC messages are the other way round: see
//! `tensile/v1/cluster.proto`.)

mod cluster_selector;
mod json;
mod trace_parent;

pub use cluster_selector::{ClusterSelector, HostPort};
pub use json::CodecError;
pub use trace_parent::{TraceParent, TraceParentError};
