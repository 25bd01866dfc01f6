//! The command lines of a cluster's control plane. Pure: files and ports in, commands out.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::builder::ClusterBuilder;

/// Programs, files and addresses of one control plane.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The folder of certificates and keys; names are fixed, see [`Layout::pki`].
    pub(crate) pki_dir: PathBuf,
    /// The cluster's folder.
    pub(crate) dir: PathBuf,
    /// The address that the API server listens on, and that its clients use.
    pub(crate) address: std::net::IpAddr,
    pub(crate) apiserver_port: u16,
    pub(crate) etcd_port: u16,
    pub(crate) etcd_peer_port: u16,
    /// The address written into the `kubernetes` Service's endpoints; may not be loopback.
    pub(crate) advertise_address: std::net::IpAddr,
}

impl Layout {
    fn pki(&self, file: &str) -> String {
        self.pki_dir.join(file).display().to_string()
    }

    fn file(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }

    /// The API server's URL.
    pub(crate) fn server_url(&self) -> String {
        format!("https://{}:{}", self.address, self.apiserver_port)
    }

    /// The audit log's path.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.dir.join("log-audit.jsonl")
    }
}

/// Etcd without fsync: a test's data need not survive a power cut, and a slow disk would
/// be the bottleneck of every test.
pub(crate) fn etcd(program: &PathBuf, layout: &Layout) -> Command {
    let client = format!("http://127.0.0.1:{}", layout.etcd_port);
    let peer = format!("http://127.0.0.1:{}", layout.etcd_peer_port);
    let mut command = Command::new(program);
    command
        .arg("--name=testbed")
        .arg(format!("--data-dir={}", layout.file("etcd")))
        .arg("--unsafe-no-fsync")
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=testbed={peer}"))
        // 8 GiB: a bench writes thousands of pods, and the default of 2 GiB has no compaction in time.
        .arg("--quota-backend-bytes=8589934592")
        .arg("--log-level=warn");
    command
}

pub(crate) fn apiserver(program: &PathBuf, layout: &Layout, wanted: &ClusterBuilder) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{}", layout.etcd_port))
        .arg(format!("--bind-address={}", layout.address))
        .arg(format!("--secure-port={}", layout.apiserver_port))
        .arg(format!("--advertise-address={}", layout.advertise_address))
        .arg(format!("--tls-cert-file={}", layout.pki("apiserver.crt")))
        .arg(format!("--tls-private-key-file={}", layout.pki("apiserver.key")))
        .arg(format!("--client-ca-file={}", layout.pki("ca.crt")))
        // With these the ConfigMap extension-apiserver-authentication is complete, from which
        // aggregated servers and our virtual nodes learn whom to trust.
        .arg(format!("--requestheader-client-ca-file={}", layout.pki("front-proxy-ca.crt")))
        .arg("--requestheader-allowed-names=front-proxy-client")
        .arg("--requestheader-extra-headers-prefix=X-Remote-Extra-")
        .arg("--requestheader-group-headers=X-Remote-Group")
        .arg("--requestheader-username-headers=X-Remote-User")
        .arg(format!("--proxy-client-cert-file={}", layout.pki("front-proxy-client.crt")))
        .arg(format!("--proxy-client-key-file={}", layout.pki("front-proxy-client.key")))
        .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
        .arg(format!("--service-account-key-file={}", layout.pki("tokens.pub")))
        .arg(format!("--service-account-signing-key-file={}", layout.pki("tokens.key")))
        .arg(format!("--service-cluster-ip-range={}", wanted.service_cidr))
        .arg("--authorization-mode=Node,RBAC")
        .arg("--enable-admission-plugins=NodeRestriction")
        .arg(format!("--kubelet-client-certificate={}", layout.pki("kubelet-client.crt")))
        .arg(format!("--kubelet-client-key={}", layout.pki("kubelet-client.key")))
        // Else it tries to resolve node names.
        .arg("--kubelet-preferred-address-types=InternalIP")
        // It dials webhook and aggregated endpoints itself: there is no kube-proxy on its side.
        .arg("--enable-aggregator-routing=true")
        .arg("--allow-privileged=true")
        .arg("--v=1");
    if wanted.audit {
        command
            .arg(format!("--audit-policy-file={}", layout.file("audit-policy.yaml")))
            .arg(format!("--audit-log-path={}", layout.audit_log().display()));
    }
    if wanted.verify_kubelets {
        command.arg(format!("--kubelet-certificate-authority={}", layout.pki("ca.crt")));
    }
    for gate in &wanted.feature_gates {
        command.arg(format!("--feature-gates={gate}=true"));
    }
    if let Some(seconds) = wanted.default_toleration_seconds {
        command
            .arg(format!("--default-not-ready-toleration-seconds={seconds}"))
            .arg(format!("--default-unreachable-toleration-seconds={seconds}"));
    }
    if !wanted.controller_manager {
        // Without the node controllers nothing takes a new node's not-ready taint away, and without
        // the service account controller no pod could be created.
        command.arg("--disable-admission-plugins=TaintNodesByCondition,ServiceAccount");
    }
    command.args(&wanted.apiserver_args);
    command
}

pub(crate) fn controller_manager(program: &PathBuf, layout: &Layout, wanted: &ClusterBuilder) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--kubeconfig={}", layout.file("controller-manager.kubeconfig")))
        .arg("--leader-elect=false")
        // Its own port serves nothing that a test reads.
        .arg("--secure-port=0")
        .arg("--controllers=*")
        .arg("--use-service-account-credentials=true")
        .arg(format!("--service-account-private-key-file={}", layout.pki("tokens.key")))
        .arg(format!("--root-ca-file={}", layout.pki("ca.crt")))
        .arg(format!("--cluster-signing-cert-file={}", layout.pki("ca.crt")))
        .arg(format!("--cluster-signing-key-file={}", layout.pki("ca.key")))
        .arg("--allocate-node-cidrs=false")
        .arg("--v=1");
    if let Some(grace) = wanted.node_monitor_grace {
        command
            .arg(format!("--node-monitor-grace-period={}", go_duration(grace)))
            // Looks often enough to notice within a tenth of the grace.
            .arg(format!("--node-monitor-period={}", go_duration(grace / 10)));
    }
    let rate = wanted.client_rate.unwrap_or(CONTROLLERS_RATE);
    command.arg(format!("--kube-api-qps={}", rate.qps)).arg(format!("--kube-api-burst={}", rate.burst));
    command.args(&wanted.controller_manager_args);
    command
}

pub(crate) fn scheduler(program: &PathBuf, layout: &Layout, wanted: &ClusterBuilder) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--config={}", layout.file("scheduler.yaml")))
        .arg("--secure-port=0")
        .arg("--v=1")
        .args(&wanted.scheduler_args);
    command
}

/// The scheduler's configuration file (its rate flags are deprecated and ignored beside a file).
pub(crate) fn scheduler_config(layout: &Layout, wanted: &ClusterBuilder) -> String {
    let rate = wanted.client_rate.unwrap_or(SCHEDULER_RATE);
    format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\n\
         kind: KubeSchedulerConfiguration\n\
         leaderElection: {{leaderElect: false}}\n\
         clientConnection: {{kubeconfig: {}, qps: {}, burst: {}}}\n",
        layout.file("scheduler.kubeconfig"),
        rate.qps,
        rate.burst
    )
}

/// How many requests per second a component may send to the API server, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientRate {
    /// Requests per second, sustained.
    pub qps: u32,
    /// Requests at once.
    pub burst: u32,
}

/// The controllers' rate. The stock 20 per second makes their start alone take 4 s: three requests for
/// each of some 35 controllers, for a token of its own.
const CONTROLLERS_RATE: ClientRate = ClientRate { qps: 100, burst: 200 };

/// The scheduler's stock rate.
const SCHEDULER_RATE: ClientRate = ClientRate { qps: 50, burst: 100 };

fn go_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// Who is audited. The policy format knows exact user names and groups only, so those are left out who
/// are known and noisy, and everybody else (our accounts of any name, and nodes) is recorded.
pub(crate) const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    users:
      - kubernetes-admin
      - kwok-controller
      - system:apiserver
      - system:kube-controller-manager
      - system:kube-scheduler
      - kube-apiserver-kubelet-client
  - level: None
    userGroups: ['system:serviceaccounts:kube-system', 'system:unauthenticated']
  - level: Metadata
";
