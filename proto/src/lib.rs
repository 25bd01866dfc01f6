//! The contract between tensile's services: gRPC messages, and the vocabulary of names and codecs that travel in Kubernetes objects.
//!
//! ```text
//!  tensile/v1/*.proto ──build.rs──▶ v1          messages, clients and servers
//!  vocabulary                                   names of labels, annotations, taints, finalizers, conditions
//!  codec                                        what stands in those annotations, typed
//! ```

pub mod codec;
pub mod vocabulary;

/// Version 1 of the services. The docs of every message and field are those of `tensile/v1/*.proto`.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("tensile.v1");
}

/// The compiled `.proto` files (a `google.protobuf.FileDescriptorSet`), for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tensile.bin"));
