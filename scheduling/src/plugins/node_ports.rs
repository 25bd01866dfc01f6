//! NodePorts: host ports must be free.

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use crate::name::Name;

pub(crate) const NAME: &str = "NodePorts";
pub(crate) const REASON: &str = "node(s) didn't have free ports for the requested pod ports";
const ANY_ADDRESS: &str = "0.0.0.0";
const TCP: &str = "TCP";

/// A port of the host that a container takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    address: Name,
    protocol: Name,
    port: i32,
}

impl HostPort {
    /// The host ports of a pod: of its containers and sidecars, which run at the same time.
    pub fn of_pod(pod: &Pod) -> Vec<Self> {
        let Some(spec) = &pod.spec else { return Vec::new() };
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let containers = sidecars.chain(&spec.containers);
        containers.flat_map(|container| container.ports.iter().flatten()).filter_map(Self::of).collect()
    }

    fn of(port: &ContainerPort) -> Option<Self> {
        let number = port.host_port.filter(|port| *port > 0)?;
        let or =
            |text: Option<&String>, default| Name::new(text.filter(|text| !text.is_empty()).map_or(default, |t| t));
        Some(Self {
            address: or(port.host_ip.as_ref(), ANY_ADDRESS),
            protocol: or(port.protocol.as_ref(), TCP),
            port: number,
        })
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address
                || self.address.as_str() == ANY_ADDRESS
                || other.address.as_str() == ANY_ADDRESS)
    }
}

/// Whether all that are wanted are free.
pub(crate) fn passes<'a>(wanted: &[HostPort], mut taken: impl Iterator<Item = &'a HostPort>) -> bool {
    wanted.is_empty() || taken.all(|taken| !wanted.iter().any(|wanted| wanted.conflicts(taken)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn ports(ports: &serde_json::Value) -> Vec<HostPort> {
        let pod = json!({"spec": {"containers": [{"name": "c", "ports": ports}]}});
        HostPort::of_pod(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn ports_conflict_by_number_protocol_and_address() {
        let taken = ports(
            &json!([{"containerPort": 1, "hostPort": 80}, {"containerPort": 1, "hostPort": 81, "hostIP": "10.0.0.1"}]),
        );
        for (wanted, free) in [
            (json!([{"containerPort": 1, "hostPort": 82}]), true),
            (json!([{"containerPort": 1, "hostPort": 80}]), false),
            (json!([{"containerPort": 1, "hostPort": 80, "protocol": "UDP"}]), true),
            (json!([{"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.9"}]), false),
            (json!([{"containerPort": 1, "hostPort": 81, "hostIP": "10.0.0.2"}]), true),
            (json!([{"containerPort": 1, "hostPort": 81}]), false),
            (json!([{"containerPort": 80}]), true),
        ] {
            assert_eq!(passes(&ports(&wanted), taken.iter()), free, "{wanted}");
        }
    }

    #[test]
    fn sidecars_count_and_init_containers_do_not() {
        let pod = json!({"spec": {"containers": [], "initContainers": [
            {"name": "a", "restartPolicy": "Always", "ports": [{"containerPort": 1, "hostPort": 1}]},
            {"name": "b", "ports": [{"containerPort": 1, "hostPort": 2}]},
        ]}});
        assert_eq!(HostPort::of_pod(&serde_json::from_value(pod).unwrap()).len(), 1);
    }
}
