//! What every tensile service process needs and none should write twice.
//!
//! | module | what it is |
//! |---|---|
//! | [`telemetry`] | log lines, for people or as JSON |
//! | [`admin`] | the port for probes and metrics |
//! | [`readiness`] | gates: what must be in order before work is sent here |
//! | [`shutdown`] | an orderly end, also when a part fails |
//! | [`kube_client`] | clients of API servers: limits, retries, HTTP/2 |
//! | [`watch`] | watches that recover |
//! | [`queue`] | work by key, never twice at once |
//! | [`lease`] | leader election, and the fence before a leader's writes |
//! | [`tls`] | certificates that change while we run |
//! | [`grpc`] | server and client between our services |
//! | [`retry`] | how long to wait before the next try |
//!
//! A service's `main` in short: [`tls::install_crypto_provider`], parse arguments, [`telemetry::LogArgs::init`],
//! [`shutdown::Shutdown::on_signals`], spawn the parts, [`shutdown::Shutdown::drain`].

pub mod admin;
pub mod grpc;
pub mod kube_client;
pub mod lease;
pub mod queue;
pub mod readiness;
pub mod retry;
pub mod shutdown;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod watch;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_certs;
