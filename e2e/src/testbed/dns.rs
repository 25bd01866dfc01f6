//! CoreDNS beside a cluster with real nodes: what resolves the names of Services.
//!
//! It runs as a process like the control plane. Pods find it by a Service with the usual address, whose endpoint is this
//! machine.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::Cluster;
use crate::claim::PortClaim;
use crate::eventually::{Seen, eventually};
use crate::process::Supervised;
use crate::tools::{Tool, Tools};

/// It has listed Services and endpoints some seconds after the start.
const READY_DEADLINE: Duration = Duration::from_mins(1);

/// Where kubeadm, too, puts it in the range of Service addresses.
const HOST_IN_RANGE: u8 = 10;

const RIGHTS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: 'system:coredns'}
rules:
  - {apiGroups: [''], resources: [services, namespaces], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: 'system:coredns'}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:coredns'}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
";

/// The address of the name server in a range of Service addresses such as `10.96.0.0/16`.
pub(super) fn address(service_cidr: &str) -> Result<Ipv4Addr> {
    let base: Ipv4Addr = service_cidr
        .split('/')
        .next()
        .and_then(|base| base.parse().ok())
        .with_context(|| format!("{service_cidr} is no IPv4 range"))?;
    let [a, b, c, _] = base.octets();
    Ok(Ipv4Addr::new(a, b, c, HOST_IN_RANGE))
}

/// A running CoreDNS. Dropping it ends it.
#[derive(Debug)]
pub struct ClusterDns {
    process: Supervised,
    _ports: [PortClaim; 2],
}

impl ClusterDns {
    /// Starts one and waits until it answers. The cluster must have been built with `dns(true)`, or its pods ask nobody.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let program = Tools::get(Tool::CoreDns).await?;
        cluster.apply_yaml(RIGHTS).await.context("rights of CoreDNS")?;
        let kubeconfig = cluster.service_account_kubeconfig("kube-system", "coredns").await?;
        let (port, ready) = (PortClaim::new()?, PortClaim::new()?);
        let host = cluster.host_address();
        let dir = cluster.dir().join("coredns");
        fs::create_dir_all(&dir).context("making CoreDNS' folder")?;
        let corefile = format!(
            ".:{port} {{
    bind {host}
    errors
    ready 127.0.0.1:{ready}
    kubernetes cluster.local {{
        kubeconfig {kubeconfig}
        ttl 0
    }}
}}
",
            port = port.port(),
            ready = ready.port(),
            kubeconfig = kubeconfig.display()
        );
        fs::write(dir.join("Corefile"), corefile).context("writing the Corefile")?;
        let mut command = Command::new(program);
        command.arg("-conf").arg(dir.join("Corefile"));
        let process = Supervised::spawn("coredns", &command, &dir)?;
        cluster.apply_yaml(&service(address(&cluster.wanted.service_cidr)?, host, port.port())).await?;
        eventually("CoreDNS is ready", READY_DEADLINE, || async {
            if let Some(status) = process.exited() {
                let ended = Err(anyhow!("CoreDNS has ended ({status}): {}", process.log_tail(20)));
                return Ok(Seen::Done(ended));
            }
            let answer = crate::virtual_node::http_get(ready.port(), "/ready").await;
            let ready = answer.as_ref().is_ok_and(|text| text == "OK");
            Ok(if ready { Seen::Done(Ok(())) } else { Seen::NotYet(format!("{answer:?}")) })
        })
        .await??;
        Ok(Self { process, _ports: [port, ready] })
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.process.log_tail(lines)
    }
}

fn service(address: Ipv4Addr, host: IpAddr, port: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {address}
  ports:
    - {{name: dns, port: 53, protocol: UDP}}
    - {{name: dns-tcp, port: 53, protocol: TCP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns-1, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
ports:
  - {{name: dns, port: {port}, protocol: UDP}}
  - {{name: dns-tcp, port: {port}, protocol: TCP}}
endpoints: [{{addresses: ['{host}'], conditions: {{ready: true}}}}]
"
    )
}
