//! The contract between tensile's services: gRPC messages, and the vocabulary of names and codecs that travel in Kubernetes objects.

pub mod vocabulary;
