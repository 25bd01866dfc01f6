//! The configuration files of one node's programs. Pure: names and paths in, texts out.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::PAUSE_IMAGE;

/// containerd with everything of its own below the node's folder.
pub(super) fn containerd(dir: &Path, cni_bin: &Path, snapshotter: &str) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/containerd/root"
state = "{dir}/containerd/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE no score can be lowered, and every sandbox would die of trying.
  restrict_oom_score_adj = true
  # So that the pods' namespaces are found, and removed, below our folder.
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{dir}/cni"
"#,
        cni_bin = cni_bin.display(),
        socket = socket(Path::new(&dir.to_string())),
    )
}

/// containerd's socket in the node's folder.
pub(super) fn socket(dir: &Path) -> String {
    dir.join("containerd.sock").display().to_string()
}

/// Point-to-point links with addresses of the node's own range: a flat network, no tunnel, no NAT.
pub(super) fn cni(dir: &Path, pod_cidr: &str) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "tensile",
        "plugins": [
            {"type": "ptp", "ipam": {
                "type": "host-local",
                "dataDir": dir.join("cni-addresses"),
                "ranges": [[{"subnet": pod_cidr}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// The kubelet's configuration, with the limits of CI machines in mind: cgroup v1, swap,
/// a disk that others fill.
pub(super) fn kubelet(dir: &Path, pki: &Path, cgroup: &str, feature_gates: &[String]) -> Value {
    let feature_gates: BTreeMap<&str, bool> = feature_gates.iter().map(|gate| (gate.as_str(), true)).collect();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", socket(dir)),
        "podLogsDir": dir.join("log-pods"),
        "volumePluginDir": dir.join("volume-plugins"),
        "resolvConf": dir.join("resolv.conf"),
        "clusterDomain": "cluster.local",
        "tlsCertFile": dir.join("kubelet.crt"),
        "tlsPrivateKeyFile": dir.join("kubelet.key"),
        "authentication": {
            "x509": {"clientCAFile": pki.join("ca.crt")},
            "webhook": {"enabled": true},
            "anonymous": {"enabled": false},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        // The disk belongs to the machine, not to the test.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        // A log that is turned over begins empty: whoever follows it from then on sees nothing of what was written.
        "containerLogMaxSize": "1Gi",
        // Tests wait for an edited ConfigMap; the default of one minute plus jitter is their time.
        "syncFrequency": "5s",
        "featureGates": feature_gates,
        "logging": {"verbosity": 1},
    })
}

/// kube-proxy in its own network namespace: iptables rules there touch nobody else.
pub(super) fn kube_proxy(dir: &Path, node: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": dir.join("kube-proxy.kubeconfig")},
        "hostnameOverride": node,
        "mode": "iptables",
        // A namespace may not change the machine's connection table.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        // The ptp plugin names the node's ends so.
        "detectLocalMode": "InterfaceNamePrefix",
        "detectLocal": {"interfaceNamePrefix": "veth"},
    })
}
