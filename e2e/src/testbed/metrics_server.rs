//! metrics-server beside a cluster: what `kubectl top` and HorizontalPodAutoscalers ask.
//!
//! It runs as a process like the control plane. The API server finds it by an APIService whose Service has the address of
//! the run's bridge as its endpoint.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;
use crate::claim::PortClaim;
use crate::eventually::{Seen, eventually};
use crate::process::Supervised;
use crate::tools::{Tool, Tools};

/// The API answers some seconds after the start.
const SERVED_DEADLINE: Duration = Duration::from_mins(1);

/// How often nodes are asked; metrics-server accepts nothing shorter.
const RESOLUTION: &str = "10s";

/// As metrics-server's own manifests grant.
const RIGHTS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: metrics-server, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: 'system:metrics-server'}
rules:
  - {apiGroups: [''], resources: [nodes/metrics], verbs: [get]}
  - {apiGroups: [''], resources: [pods, nodes], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: 'system:metrics-server'}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:metrics-server'}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: 'metrics-server:system:auth-delegator'}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:auth-delegator'}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: metrics-server-auth-reader, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: kube-system}]
";

/// A running metrics-server. Dropping it ends it; its API stays registered, and unavailable.
#[derive(Debug)]
pub struct MetricsServer {
    process: Supervised,
    port: PortClaim,
}

impl MetricsServer {
    /// Installs and starts one beside a cluster on the bridge (an endpoint may not be loopback), and waits until the API
    /// server hands requests on to it. It has figures once it has asked the nodes twice, ten seconds apart.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let program = Tools::get(Tool::MetricsServer).await?;
        cluster.apply_yaml(RIGHTS).await.context("rights of metrics-server")?;
        let kubeconfig = cluster.service_account_kubeconfig("kube-system", "metrics-server").await?;
        let port = PortClaim::new()?;
        let address = cluster.host_address();
        let flag = |name: &str| format!("--{name}={}", kubeconfig.display());
        let mut command = Command::new(program);
        command
            .args(["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"].map(flag))
            .arg(format!("--bind-address={address}"))
            .arg(format!("--secure-port={}", port.port()))
            .arg(format!("--cert-dir={}", cluster.dir().join("metrics-server").display()))
            .arg(format!("--metric-resolution={RESOLUTION}"))
            // It must be shorter.
            .arg("--kubelet-request-timeout=8s")
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg("--kubelet-use-node-status-port")
            // The kubelets' certificates are signed by nobody.
            .arg("--kubelet-insecure-tls")
            // Says which nodes it could not read, and why.
            .arg("--v=2");
        let process = Supervised::spawn("metrics-server", &command, cluster.dir())?;
        let server = Self { process, port };
        // Only then it is registered: an API that does not answer troubles every client that asks what APIs there are.
        let listens = std::net::SocketAddr::new(address, server.port.port());
        eventually("metrics-server listens", SERVED_DEADLINE, || async {
            // Its end is final: no use in waiting on.
            if let Err(ended) = server.ensure_running() {
                return Ok(Seen::Done(Err(ended)));
            }
            let connected = tokio::net::TcpStream::connect(listens).await;
            Ok(connected.map_or_else(|error| Seen::NotYet(error.to_string()), |_| Seen::Done(Ok(()))))
        })
        .await??;
        let service = format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: metrics-server, namespace: kube-system}}
spec: {{ports: [{{name: https, port: 443}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: metrics-server, namespace: kube-system, labels: {{kubernetes.io/service-name: metrics-server}}}}
addressType: IPv4
endpoints: [{{addresses: ['{address}'], conditions: {{ready: true}}}}]
ports: [{{name: https, port: {port}, protocol: TCP}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: v1beta1.metrics.k8s.io}}
spec:
  group: metrics.k8s.io
  version: v1beta1
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
  service: {{name: metrics-server, namespace: kube-system}}
",
            port = server.port.port()
        );
        cluster.apply_yaml(&service).await.context("the APIService of metrics-server")?;
        eventually("the API server hands requests on to metrics-server", SERVED_DEADLINE, || async {
            if let Err(ended) = server.ensure_running() {
                return Ok(Seen::Done(Err(ended)));
            }
            let request = http::Request::get("/apis/metrics.k8s.io/v1beta1").body(Vec::new())?;
            let answer = cluster.client().request_text(request).await;
            Ok(answer.map_or_else(|error| Seen::NotYet(error.to_string()), |_| Seen::Done(Ok(()))))
        })
        .await??;
        Ok(server)
    }

    fn ensure_running(&self) -> Result<()> {
        match self.process.exited() {
            Some(status) => anyhow::bail!("metrics-server has ended ({status}): {}", self.process.log_tail(20)),
            None => Ok(()),
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.process.log_tail(lines)
    }
}
