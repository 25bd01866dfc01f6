//! gRPC between tensile's services: a server and a client with mutual TLS, deadlines and limits.

mod callers;
mod client;
mod listener;
mod server;

pub use callers::Callers;
pub use client::{ChannelError, ChannelOptions, ClientTls, channel};
pub use listener::PeerInfo;
pub use server::{GrpcArgs, GrpcError, GrpcServer};

#[cfg(test)]
mod tests;
