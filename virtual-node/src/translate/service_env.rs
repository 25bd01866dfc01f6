//! The environment variables by which containers find Services (enableServiceLinks), as a kubelet makes them
//! (`K pkg/kubelet/envvars/envvars.go`).

use std::net::Ipv6Addr;

use k8s_openapi::api::core::v1::EnvVar;

use super::containers::literal;

/// What the variables of a Service are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Its name.
    pub name: String,
    /// Its cluster IP; Services without one have no variables.
    pub cluster_ip: String,
    /// Its ports, in the order of its spec.
    pub ports: Vec<ServicePortFacts>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortFacts {
    /// Its name; only a single port may have none.
    pub name: Option<String>,
    /// Its number.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// The variables of some Services, in their order.
pub fn service_variables<'a>(services: impl IntoIterator<Item = &'a ServiceFacts>) -> Vec<EnvVar> {
    let mut variables = Vec::new();
    for service in services {
        add(&mut variables, service);
    }
    variables
}

fn add(variables: &mut Vec<EnvVar>, service: &ServiceFacts) {
    let Some(first) = service.ports.first() else { return };
    let prefix = variable_name(&service.name);
    let mut put = |name: String, value: &str| variables.push(literal(&name, value));
    put(format!("{prefix}_SERVICE_HOST"), &service.cluster_ip);
    put(format!("{prefix}_SERVICE_PORT"), &first.port.to_string());
    for port in &service.ports {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            put(format!("{prefix}_SERVICE_PORT_{}", variable_name(name)), &port.port.to_string());
        }
    }
    // The form of Docker's links.
    put(format!("{prefix}_PORT"), &url(service, first));
    for port in &service.ports {
        let prefix = format!("{prefix}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        put(prefix.clone(), &url(service, port));
        put(format!("{prefix}_PROTO"), &port.protocol.to_lowercase());
        put(format!("{prefix}_PORT"), &port.port.to_string());
        put(format!("{prefix}_ADDR"), &service.cluster_ip);
    }
}

fn url(service: &ServiceFacts, port: &ServicePortFacts) -> String {
    let (host, protocol, port) = (&service.cluster_ip, port.protocol.to_lowercase(), port.port);
    if host.parse::<Ipv6Addr>().is_ok() {
        format!("{protocol}://[{host}]:{port}")
    } else {
        format!("{protocol}://{host}:{port}")
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn port(name: Option<&str>, port: u16, protocol: &str) -> ServicePortFacts {
        ServicePortFacts { name: name.map(str::to_owned), port, protocol: protocol.into() }
    }

    fn lines(service: &ServiceFacts) -> Vec<String> {
        let variables = service_variables([service]);
        variables.into_iter().map(|each| format!("{}={}", each.name, each.value.unwrap())).collect()
    }

    /// The case "abc-123" of `K pkg/kubelet/envvars/envvars_test.go`, and a named port.
    #[test]
    fn a_service_has_the_variables_that_a_kubelet_gives_it() {
        let service = ServiceFacts {
            name: "abc-123".into(),
            cluster_ip: "5.6.7.8".into(),
            ports: vec![port(Some("u-d-p"), 8081, "UDP"), port(Some("t-c-p"), 8082, "TCP")],
        };
        assert_eq!(
            lines(&service),
            [
                "ABC_123_SERVICE_HOST=5.6.7.8",
                "ABC_123_SERVICE_PORT=8081",
                "ABC_123_SERVICE_PORT_U_D_P=8081",
                "ABC_123_SERVICE_PORT_T_C_P=8082",
                "ABC_123_PORT=udp://5.6.7.8:8081",
                "ABC_123_PORT_8081_UDP=udp://5.6.7.8:8081",
                "ABC_123_PORT_8081_UDP_PROTO=udp",
                "ABC_123_PORT_8081_UDP_PORT=8081",
                "ABC_123_PORT_8081_UDP_ADDR=5.6.7.8",
                "ABC_123_PORT_8082_TCP=tcp://5.6.7.8:8082",
                "ABC_123_PORT_8082_TCP_PROTO=tcp",
                "ABC_123_PORT_8082_TCP_PORT=8082",
                "ABC_123_PORT_8082_TCP_ADDR=5.6.7.8",
            ]
        );
    }

    #[test]
    fn an_address_of_version_6_stands_in_brackets_where_a_port_follows() {
        let service =
            ServiceFacts { name: "six".into(), cluster_ip: "2001:db8::1".into(), ports: vec![port(None, 80, "TCP")] };
        assert_eq!(
            lines(&service)[..3],
            ["SIX_SERVICE_HOST=2001:db8::1", "SIX_SERVICE_PORT=80", "SIX_PORT=tcp://[2001:db8::1]:80",]
        );
    }

    #[test]
    fn a_service_without_ports_has_none() {
        let service = ServiceFacts { name: "x".into(), cluster_ip: "10.0.0.1".into(), ports: Vec::new() };
        assert!(lines(&service).is_empty());
    }
}
