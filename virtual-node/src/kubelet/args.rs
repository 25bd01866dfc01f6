//! Arguments of the kubelet API server.

use std::{net::SocketAddr, path::PathBuf};

/// Where and with what limits the kubelet API is served.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Kubelet API")]
pub struct KubeletArgs {
    /// Address and port on which the upper API server reaches logs, exec, attach and port-forward. The port becomes
    /// the node's status.daemonEndpoints.kubeletEndpoint; 0 picks a free one.
    #[arg(long, default_value = "0.0.0.0:10250", value_name = "ADDRESS:PORT")]
    pub kubelet_address: SocketAddr,

    /// PEM file with the serving certificate and its intermediates, read again when it changes. Without it a
    /// self-signed certificate is made at each start, which an API server accepts unless it runs with
    /// --kubelet-certificate-authority.
    #[arg(long, requires = "kubelet_tls_key_file", value_name = "FILE")]
    pub kubelet_tls_cert_file: Option<PathBuf>,

    /// PEM file with the key of --kubelet-tls-cert-file.
    #[arg(long, requires = "kubelet_tls_cert_file", value_name = "FILE")]
    pub kubelet_tls_key_file: Option<PathBuf>,

    /// Logs, execs, attaches and port-forwards open at once; further ones are answered 429. Each takes up to 512 KiB.
    #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub kubelet_streams_max: u32,

    /// Seconds that open streams get to end by themselves when the process is told to stop.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub kubelet_drain_seconds: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        kubelet: KubeletArgs,
    }

    #[test]
    fn the_port_of_a_kubelet_is_the_default() {
        let args = Command::try_parse_from(["virtual-node"]).unwrap().kubelet;
        assert_eq!(args.kubelet_address.port(), 10250);
        assert_eq!(args.kubelet_streams_max, 1000);
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let error = Command::try_parse_from(["virtual-node", "--kubelet-tls-cert-file", "a.pem"]).unwrap_err();
        assert!(error.to_string().contains("--kubelet-tls-key-file"), "{error}");
    }
}
