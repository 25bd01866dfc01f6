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
    /// The API server's store.
    Etcd,
    /// Simulated nodes and pods.
    Kwok,
    /// The chart installer.
    Helm,
}

impl Tool {
    /// Every tool.
    pub const ALL: [Self; 9] = [
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Kubectl,
        Self::Etcd,
        Self::Kwok,
        Self::Helm,
    ];

    /// The program's file name.
    pub fn binary(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Etcd => "etcd",
            Self::Kwok => "kwok",
            Self::Helm => "helm",
        }
    }

    /// The folder under `e2e/tools` whose go.mod pins the version.
    pub(super) fn module(self) -> &'static str {
        match self {
            Self::Etcd | Self::Kwok => "cluster",
            Self::Helm => "helm",
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
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::Kwok => "sigs.k8s.io/kwok/cmd/kwok",
            Self::Helm => "helm.sh/helm/v4/cmd/helm",
        }
    }

    /// What a cold build takes on 2 cores, in seconds, measured once in the order of
    /// [`Self::ALL`] (the first one builds what the others share). Shown, never relied on.
    pub(super) fn build_seconds_expected(self) -> u64 {
        match self {
            Self::KubeApiserver => 224,
            Self::KubeControllerManager => 46,
            Self::Kwok => 60,
            Self::Helm => 86,
            _ => 15,
        }
    }

    pub(super) fn version_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kubectl => &["version", "--client"],
            Self::Helm => &["version", "--short"],
            _ => &["--version"],
        }
    }

    /// The version's beginning. Later patch releases of the same minor are as good.
    pub(super) fn version_wanted(self) -> &'static str {
        match self {
            Self::Etcd => "3.6.",
            Self::Kwok => "0.8.",
            Self::Helm => "4.",
            _ => "1.36.",
        }
    }

    /// Whether the text that the program prints about its version names a wanted one.
    pub(super) fn accepts_version(self, printed: &str) -> bool {
        let line = printed.lines().next().unwrap_or_default();
        line.split_ascii_whitespace().any(|word| word.trim_start_matches('v').starts_with(self.version_wanted()))
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
        assert!(Tool::Etcd.accepts_version("etcd Version: 3.6.8\nGit SHA: x\nGo Version: go1.26.8\n"));
        assert!(!Tool::Etcd.accepts_version("etcd Version: 3.5.9\n"));
        assert!(Tool::Kwok.accepts_version("kwok version v0.8.0 go1.26.8 (linux/amd64)"));
        assert!(Tool::Helm.accepts_version("v4.3.1+gabcdef"));
        assert!(!Tool::Helm.accepts_version(""));
    }
}
