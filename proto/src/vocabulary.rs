//! Every label, annotation, taint, finalizer and condition name that tensile puts on an object, in one place.
//!
//! All names of our own live under `tensile.dev/`. Names of others that we honour (virtual-kubelet's taint and label,
//! tensile-kube's label and annotation) stand in [`foreign`].

/// The prefix of every name of our own.
pub const DOMAIN: &str = "tensile.dev";

/// Labels.
pub mod label {
    /// On lower objects: the upper cluster they belong to, as the UID of its `kube-system` namespace. First half of the owner mark.
    pub const UPPER_CLUSTER: &str = "tensile.dev/upper-cluster";
    /// On lower objects: the UID of the upper object they stand for. Second half of the owner mark.
    pub const UPPER_UID: &str = "tensile.dev/upper-uid";
    /// On lower objects: the virtual node (its Node name in the upper cluster) that manages them.
    pub const VIRTUAL_NODE: &str = "tensile.dev/virtual-node";
    /// On lower ConfigMaps and Secrets of ours: what they are for, `copy`, `root-ca` or `token`.
    pub const NEED: &str = "tensile.dev/need";
    /// On virtual nodes: the name of the lower cluster behind them. Also a topology key for spreading across clusters.
    pub const CLUSTER: &str = "tensile.dev/cluster";
    /// On namespaces and pods of the upper cluster: `enabled` opts in to the webhook.
    pub const OFFLOAD: &str = "tensile.dev/offload";
}

/// Annotations.
pub mod annotation {
    /// On lower objects: namespace of the upper object. The downward API reads it in place of `metadata.namespace`.
    pub const UPPER_NAMESPACE: &str = "tensile.dev/upper-namespace";
    /// On lower objects: name of the upper object.
    pub const UPPER_NAME: &str = "tensile.dev/upper-name";
    /// On lower pods: UID of the upper pod. The downward API reads it in place of `metadata.uid`.
    pub const UPPER_UID: &str = "tensile.dev/upper-uid";
    /// On lower pods: the ServiceAccount of the upper pod. The downward API reads it in place of `spec.serviceAccountName`.
    pub const UPPER_SERVICE_ACCOUNT: &str = "tensile.dev/upper-service-account";
    /// On lower pods: the virtual node's name. The downward API reads it in place of `spec.nodeName`.
    pub const UPPER_NODE: &str = "tensile.dev/upper-node";
    /// On lower pods: the upper pod's labels in the downward API's file format. Present only where a volume asks for them.
    pub const UPPER_LABELS: &str = "tensile.dev/upper-labels";
    /// On lower pods: the upper pod's annotations in the downward API's file format. Present only where a volume asks for them.
    pub const UPPER_ANNOTATIONS: &str = "tensile.dev/upper-annotations";
    /// On lower pods: digest of the updatable fields of the upper pod that were last sent down.
    pub const CARRIED: &str = "tensile.dev/carried";
    /// On lower token Secrets: the volume of the upper pod whose tokens they hold.
    pub const TOKEN_VOLUME: &str = "tensile.dev/token-volume";
    /// On lower token Secrets: when the first of their tokens expires (RFC 3339), so that a restart need not ask for new ones.
    pub const TOKEN_EXPIRES: &str = "tensile.dev/token-expires";
    /// On lower token Secrets: when they are due to be refreshed (RFC 3339).
    pub const TOKEN_REFRESH: &str = "tensile.dev/token-refresh";
    /// On lower pods: `metadata.generation` bookkeeping, `<upper generation>/<lower generation>` at the last update sent down.
    pub const GENERATION: &str = "tensile.dev/generation";
    /// On upper pods: constraints that the webhook moved out of the scheduler's way, restored in the lower cluster.
    pub const CLUSTER_SELECTOR: &str = "tensile.dev/cluster-selector";
    /// On upper pods: the lower node that a reservation holds for the pod.
    pub const RESERVED_NODE: &str = "tensile.dev/reserved-node";
    /// On pods: the W3C trace context under which the pod was admitted.
    pub const TRACE_PARENT: &str = "tensile.dev/traceparent";
    /// On virtual nodes: `host:port` of the gRPC endpoint of the leading replica.
    pub const ENDPOINT: &str = "tensile.dev/endpoint";
    /// On virtual nodes: the UID of the lower cluster's `kube-system` namespace.
    pub const LOWER_CLUSTER: &str = "tensile.dev/lower-cluster";
    /// On virtual nodes: keys of the labels that the virtual-node put there, joined by commas. A label that it no longer
    /// wants is removed; labels of others stay.
    pub const NODE_LABELS: &str = "tensile.dev/node-labels";
}

/// Taints, as keys.
pub mod taint {
    /// On a virtual node whose lower API server cannot be reached (effect NoSchedule).
    pub const UNREACHABLE: &str = "tensile.dev/unreachable";
}

/// Finalizers.
pub mod finalizer {
    /// On lower pods that may run to completion: kept until the result is written to the upper pod.
    pub const RESULT: &str = "tensile.dev/result";
}

/// Conditions.
pub mod condition {
    /// On virtual nodes: whether the lower API server answers.
    pub const LOWER_REACHABLE: &str = "tensile.dev/LowerReachable";
    /// In `tensile.v1.ClusterState`: whether `Cluster.Reserve` is open.
    pub const RESERVING: &str = "tensile.dev/Reserving";
    /// On upper pods: `False` with reason and cure while the pod cannot be created or updated in the lower cluster.
    pub const OFFLOADED: &str = "tensile.dev/Offloaded";
}

/// Names that others coined and we honour.
pub mod foreign {
    /// Node label of virtual nodes, as virtual-kubelet sets it: `type=virtual-kubelet`.
    pub const NODE_TYPE_LABEL: &str = "type";
    /// Value of [`NODE_TYPE_LABEL`].
    pub const NODE_TYPE_VIRTUAL: &str = "virtual-kubelet";
    /// Taint key of virtual nodes, as virtual-kubelet sets it.
    pub const PROVIDER_TAINT: &str = "virtual-kubelet.io/provider";
    /// Our value of [`PROVIDER_TAINT`].
    pub const PROVIDER: &str = "tensile";
    /// The recommended label that names the tool behind an object; ours is [`PROVIDER`].
    pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
    /// Keeps service controllers of clouds from adding virtual nodes to load balancers.
    pub const EXCLUDE_FROM_LOAD_BALANCERS: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
    /// tensile-kube's opt-in label on pods: `virtual-pod=true`.
    pub const TENSILE_KUBE_VIRTUAL_POD: &str = "virtual-pod";
    /// tensile-kube's annotation with moved constraints.
    pub const TENSILE_KUBE_CLUSTER_SELECTOR: &str = "clusterSelector";
}
