//! What each tool is: its Go package, its module, the version that is wanted.

/// A program that the testbed runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tool {
    /// The API server.
    KubeApiserver,
    /// All built-in controllers.
    KubeControllerManager,
    /// The stock scheduler.
    KubeScheduler,
    /// The node agent of real nodes.
    Kubelet,
    /// Services on real nodes.
    KubeProxy,
    /// The command line client.
    Kubectl,
    /// The command line client of an older Kubernetes, for users are slow to change theirs.
    KubectlOld,
    /// The API server's store.
    Etcd,
    /// Simulated nodes and pods.
    Kwok,
    /// The chart installer.
    Helm,
    /// What `kubectl top` and autoscalers ask.
    MetricsServer,
    /// Names of Services, for pods on real nodes.
    CoreDns,
}

impl Tool {
    /// Every tool.
    pub const ALL: [Self; 12] = [
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Kubectl,
        Self::KubectlOld,
        Self::Etcd,
        Self::Kwok,
        Self::Helm,
        Self::MetricsServer,
        Self::CoreDns,
    ];

    /// The program's file name.
    pub fn binary(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl | Self::KubectlOld => "kubectl",
            Self::Etcd => "etcd",
            Self::Kwok => "kwok",
            Self::Helm => "helm",
            Self::MetricsServer => "metrics-server",
            Self::CoreDns => "coredns",
        }
    }

    /// The folder under `e2e/tools` whose go.mod pins the version.
    pub(super) fn module(self) -> &'static str {
        match self {
            Self::Etcd | Self::Kwok => "cluster",
            Self::Helm => "helm",
            Self::MetricsServer => "metrics-server",
            Self::CoreDns => "coredns",
            Self::KubectlOld => "kubectl-1.32",
            _ => "kubernetes",
        }
    }

    pub(super) fn package(self) -> &'static str {
        match self {
            Self::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::KubeControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::KubeScheduler => "k8s.io/kubernetes/cmd/kube-scheduler",
            Self::Kubelet => "k8s.io/kubernetes/cmd/kubelet",
            Self::KubeProxy => "k8s.io/kubernetes/cmd/kube-proxy",
            Self::Kubectl | Self::KubectlOld => "k8s.io/kubernetes/cmd/kubectl",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::Kwok => "sigs.k8s.io/kwok/cmd/kwok",
            Self::Helm => "helm.sh/helm/v4/cmd/helm",
            Self::MetricsServer => "sigs.k8s.io/metrics-server/cmd/metrics-server",
            // A main package of ours: CoreDNS is put together from plugins.
            Self::CoreDns => ".",
        }
    }

    /// What a cold build takes on 2 cores, in seconds, measured once in the order of
    /// [`Self::ALL`] (the first one builds what the others share). Shown, never relied on.
    pub(super) fn build_seconds_expected(self) -> u64 {
        match self {
            Self::KubeApiserver => 224,
            Self::KubeControllerManager => 46,
            Self::Kwok | Self::CoreDns => 60,
            Self::Helm => 86,
            Self::MetricsServer => 120,
            Self::KubectlOld => 90,
            _ => 15,
        }
    }

    pub(super) fn version_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kubectl | Self::KubectlOld => &["version", "--client"],
            Self::Helm => &["version", "--short"],
            Self::CoreDns => &["-version"],
            _ => &["--version"],
        }
    }

    /// The version's beginning. Later patch releases of the same minor are as good.
    pub(super) fn version_wanted(self) -> &'static str {
        match self {
            Self::Etcd => "3.6.",
            Self::Kwok => "0.8.",
            Self::Helm => "4.",
            Self::MetricsServer => "0.9.",
            Self::CoreDns => "1.15.",
            Self::KubectlOld => "1.32.",
            _ => "1.36.",
        }
    }

    /// Whether the text that the program prints about its version names a wanted one. Google Cloud's `kubectl` is none of
    /// any version: it runs another one for each version of a server.
    pub(super) fn accepts_version(self, printed: &str) -> bool {
        let line = printed.lines().next().unwrap_or_default();
        let is_wanted = |word: &str| word.trim_start_matches('v').starts_with(self.version_wanted());
        line.split_ascii_whitespace().any(|word| is_wanted(word) && !word.ends_with("-dispatcher"))
    }
}

#[cfg(test)]
mod tests {
    use super::Tool;

    #[test]
    fn versions_are_read_as_the_programs_print_them() {
        assert!(Tool::KubeApiserver.accepts_version("Kubernetes v1.36.3\n"));
        assert!(!Tool::KubeApiserver.accepts_version("Kubernetes v1.35.4\n"));
        assert!(!Tool::KubeApiserver.accepts_version("Kubernetes v0.0.0-master+$Format:%H$\n"));
        assert!(Tool::Kubectl.accepts_version("Client Version: v1.36.3\nKustomize Version: v5.8.0\n"));
        assert!(Tool::KubectlOld.accepts_version("Client Version: v1.32.13\n"));
        assert!(!Tool::KubectlOld.accepts_version("Client Version: v1.32.4-dispatcher\n"));
        assert!(Tool::Etcd.accepts_version("etcd Version: 3.6.8\nGit SHA: x\nGo Version: go1.26.8\n"));
        assert!(!Tool::Etcd.accepts_version("etcd Version: 3.5.9\n"));
        assert!(Tool::Kwok.accepts_version("kwok version v0.8.0 go1.26.8 (linux/amd64)"));
        assert!(Tool::Helm.accepts_version("v4.3.1+gabcdef"));
        assert!(Tool::MetricsServer.accepts_version("v0.9.0\n"));
        assert!(!Tool::Helm.accepts_version(""));
    }
}
