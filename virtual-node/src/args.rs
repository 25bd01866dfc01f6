//! Arguments of the `virtual-node` command.

use std::{net::IpAddr, path::PathBuf};

use clap::{Parser, ValueEnum};
use tensile_chassis::{
    admin::AdminArgs,
    grpc::GrpcArgs,
    kube_client::ClientOptions,
    lease::LeaseArgs,
    telemetry::{LogArgs, LogError},
};

use crate::{
    contract::ContractArgs, identity::IdentityArgs, kubelet::KubeletArgs, mirror::Network, node::NodeArgs,
    pods::LowerEvents,
};

/// Stands for one Kubernetes cluster (the lower one) as a node of another (the upper one).
///
/// Pods that the upper cluster binds to this node run in the lower cluster, with logs, exec, config and secrets as if
/// they were local.
#[derive(Debug, Parser)]
// The last of several counts, as with Kubernetes' own programs: a chart's extra arguments override its own.
#[command(name = "virtual-node", version, max_term_width = 100, args_override_self = true)]
pub struct Args {
    /// Name of the Node in the upper cluster
    #[arg(long, env = "TENSILE_NODE_NAME", value_name = "NAME")]
    pub node_name: String,

    /// Name of the lower cluster, the value of label tensile.dev/cluster; the default is the node's name
    #[arg(long, env = "TENSILE_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,

    /// The virtual node's own address: InternalIP of the Node and hostIP of its pods. The upper API server must reach
    /// the kubelet API there
    #[arg(long, env = "TENSILE_NODE_ADDRESS", value_name = "IP")]
    pub node_address: IpAddr,

    #[command(flatten)]
    pub(crate) upper: UpperArgs,

    #[command(flatten)]
    pub(crate) lower: LowerArgs,

    #[command(flatten)]
    pub(crate) pods: PodArgs,

    #[command(flatten)]
    pub(crate) node: NodeArgs,

    #[command(flatten)]
    pub(crate) identity: IdentityArgs,

    #[command(flatten)]
    pub(crate) kubelet: KubeletArgs,

    #[command(flatten)]
    pub(crate) grpc: GrpcArgs,

    #[command(flatten)]
    pub(crate) contract: ContractArgs,

    #[command(flatten)]
    pub(crate) lease: LeaseArgs,

    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

impl Args {
    /// Starts logging as the arguments say.
    pub fn init_log(&self) -> Result<(), LogError> {
        self.log.init()
    }
}

/// The upper cluster.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Upper cluster")]
pub(crate) struct UpperArgs {
    /// Kubeconfig of our ServiceAccount in the upper cluster; the default is the one that the pod we run in is given. It
    /// is followed when it changes
    #[arg(long, env = "TENSILE_UPPER_KUBECONFIG", value_name = "FILE")]
    pub upper_kubeconfig: Option<PathBuf>,

    /// Context of that kubeconfig; the default is its current one
    #[arg(long, value_name = "NAME")]
    pub upper_context: Option<String>,

    /// Requests each second to the upper API server; 0 means no limit
    #[arg(long, default_value_t = ClientOptions::default().qps, value_name = "COUNT")]
    pub upper_qps: f32,

    /// Requests to the upper API server that may start at once after a quiet time
    #[arg(long, default_value_t = ClientOptions::default().burst, value_name = "COUNT")]
    pub upper_burst: u32,
}

/// The lower cluster.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Lower cluster")]
pub(crate) struct LowerArgs {
    /// Kubeconfig of the account in the lower cluster. It is followed when it changes, as are the files that it names;
    /// but never to another cluster
    #[arg(long, env = "TENSILE_LOWER_KUBECONFIG", value_name = "FILE")]
    pub lower_kubeconfig: PathBuf,

    /// Context of that kubeconfig; the default is its current one
    #[arg(long, value_name = "NAME")]
    pub lower_context: Option<String>,

    /// Requests each second to the lower API server; 0 means no limit
    #[arg(long, default_value_t = ClientOptions::default().qps, value_name = "COUNT")]
    pub lower_qps: f32,

    /// Requests to the lower API server that may start at once after a quiet time
    #[arg(long, default_value_t = ClientOptions::default().burst, value_name = "COUNT")]
    pub lower_burst: u32,

    /// Which events of lower pods appear on the upper pods
    #[arg(long, value_enum, default_value = "warnings")]
    pub lower_events: LowerEvents,

    /// How far the lower cluster's pods reach: pods of all clusters by their addresses (`flat`), or only those of their own
    /// cluster (`isolated`). It decides which endpoints of a Service are told below
    #[arg(long, value_enum, default_value = "flat")]
    pub network: Network,
}

/// How pods go down.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pods")]
pub(crate) struct PodArgs {
    /// How namespaces map: `same` name, or `suffixed` with the upper cluster's short id so that several upper clusters
    /// share the lower one
    #[arg(long, value_enum, default_value = "same")]
    pub namespaces: NamespaceMode,

    /// Lower namespace that may be used although it was not made by tensile; may be repeated. Foreign objects in it
    /// are never touched
    #[arg(long = "adopt-namespace", value_name = "NAMESPACE")]
    pub adopt_namespaces: Vec<String>,

    /// schedulerName of lower pods; the default leaves it to the lower cluster
    #[arg(long, value_name = "NAME")]
    pub lower_scheduler_name: Option<String>,

    /// Address of the upper API server as lower pods reach it, for in-cluster configuration; the default leaves
    /// KUBERNETES_SERVICE_HOST and _PORT as the lower cluster sets them
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub upper_api_for_pods: Option<(String, u16)>,

    /// Pods that are worked on at once
    #[arg(long, default_value_t = 64, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub pod_workers: u16,
}

/// How namespaces map; see [`crate::names::NamespaceMapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NamespaceMode {
    Same,
    Suffixed,
}

/// Reads `host:port`, `[v6]:port`.
fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("{text:?} is not HOST:PORT, for instance 10.0.0.5:6443 or [fd00::5]:6443");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().map_err(|_| wrong())?;
    if host.is_empty() || port == 0 { Err(wrong()) } else { Ok((host.to_owned(), port)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_split() {
        assert_eq!(host_and_port("10.0.0.5:6443").unwrap(), ("10.0.0.5".into(), 6443));
        assert_eq!(host_and_port("[fd00::5]:443").unwrap(), ("fd00::5".into(), 443));
        assert!(host_and_port("10.0.0.5").unwrap_err().contains("HOST:PORT"));
    }

    #[test]
    fn the_last_of_several_counts_and_lists_grow() {
        let args = ["--node-name=a", "--node-address=192.0.2.1", "--lower-kubeconfig=f", "--pod-workers=1"];
        let more = ["--pod-workers=2", "--node-label=x=1", "--node-label=y=2"];
        let args = Args::try_parse_from([&["virtual-node"], &args[..], &more].concat()).unwrap();
        assert_eq!((args.pods.pod_workers, args.node.labels.len()), (2, 2));
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
