//! Arguments of the Node object, checked before anything is asked of an API server.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::Taint;

use super::names::{self, BadName};

/// What happens to the pods while the lower API server cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnreachablePolicy {
    /// Nothing moves and nothing is deleted: the Node stays Ready, with a condition and a NoSchedule taint that say so.
    Hold,
    /// The Node turns NotReady after `--evict-after`, and Kubernetes' own eviction follows.
    Evict,
}

/// Arguments of the Node object.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    /// Label of the Node as KEY=VALUE, may be repeated; region, zone, os and arch win over what the lower nodes say
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = names::parse_label)]
    pub labels: Vec<(String, String)>,

    /// Taint of the Node as KEY[=VALUE]:EFFECT, beside `virtual-kubelet.io/provider=tensile:NoSchedule`; may be repeated
    #[arg(long = "node-taint", value_name = "KEY[=VALUE]:EFFECT", value_parser = names::parse_taint)]
    pub taints: Vec<Taint>,

    /// What happens to pods while the lower API server cannot be reached
    #[arg(long = "lower-unreachable", value_enum, default_value = "hold", env = "TENSILE_LOWER_UNREACHABLE")]
    pub unreachable: UnreachablePolicy,

    /// How long the lower API server may be away before the Node turns NotReady (with --lower-unreachable=evict)
    #[arg(long, value_name = "DURATION", default_value = "300s", value_parser = parse_duration)]
    pub evict_after: Duration,
}

/// What of the Node object is fixed by arguments, checked.
#[derive(Clone, Debug)]
pub struct NodeProfile {
    /// Labels beyond our own.
    pub labels: BTreeMap<String, String>,
    /// Taints beyond our own.
    pub taints: Vec<Taint>,
    /// When the Node turns NotReady; `None` under policy `hold`.
    pub evict_after: Option<Duration>,
}

impl NodeArgs {
    /// Checks the names together with those given elsewhere: the Node's and the lower cluster's.
    pub fn profile(&self, node_name: &str, cluster_name: &str) -> Result<NodeProfile, BadName> {
        names::check_node_name(node_name)?;
        names::check_cluster_name(cluster_name)?;
        Ok(NodeProfile {
            labels: self.labels.iter().cloned().collect(),
            taints: self.taints.clone(),
            evict_after: (self.unreachable == UnreachablePolicy::Evict).then_some(self.evict_after),
        })
    }
}

/// Reads `300s`, `5m`, `1h 30m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text.parse().map_err(|e| format!("{e}; write it as 300s or 5m"))?;
    Duration::try_from(signed).map_err(|_| "must not be negative".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        node: NodeArgs,
    }

    fn parse(args: &[&str]) -> Result<NodeArgs, String> {
        let args = std::iter::once("virtual-node").chain(args.iter().copied());
        Command::try_parse_from(args).map(|c| c.node).map_err(|e| e.to_string())
    }

    #[test]
    fn hold_is_the_default_and_evicts_never() {
        let profile = parse(&[]).unwrap().profile("vn-a", "east").unwrap();
        assert_eq!(profile.evict_after, None);
    }

    #[test]
    fn evict_takes_its_time_from_the_flag() {
        let args = parse(&["--lower-unreachable=evict", "--evict-after=5m"]).unwrap();
        assert_eq!(args.profile("vn-a", "east").unwrap().evict_after, Some(Duration::from_mins(5)));
        let refusal = parse(&["--evict-after=soon"]).err().unwrap();
        assert!(refusal.contains("300s or 5m"), "{refusal}");
    }

    #[test]
    fn a_bad_label_is_named_with_the_rule_it_breaks() {
        let refusal = parse(&["--node-label=team/=x"]).err().unwrap();
        assert!(refusal.contains("team/") && refusal.contains("63"), "{refusal}");
    }
}
