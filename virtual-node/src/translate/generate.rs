//! Pods for the property tests: every list is some of many written-out candidates, so that each rule of the translation
//! meets others in all combinations. Names of ConfigMaps start with `cm-`, of Secrets with `sec-`, of claims nowhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, net::Ipv4Addr};

use k8s_openapi::api::core::v1::{EnvVar, Pod, PodStatus};
use proptest::{option, prelude::*, sample::subsequence};
use serde_json::{Map, Value, json};

use super::label_keys;
use crate::{context::Settings, names::NamespaceMapping};

/// Settings of a virtual node `vn-1` for cluster `lower-1`, namespaces suffixed so that mapping shows.
pub(super) fn settings() -> Settings {
    Settings {
        node_name: "vn-1".into(),
        cluster_name: "lower-1".into(),
        upper_cluster_uid: "1f0e3dad-9990-4444-8888-000000000000".into(),
        lower_cluster_uid: "2f0e3dad-9990-4444-8888-000000000000".into(),
        namespaces: NamespaceMapping::Suffixed { short_id: "1f0e3dad".into() },
        adopt_namespaces: BTreeSet::new(),
        lower_scheduler_name: None,
        upper_api_for_pods: Some(("203.0.113.7".into(), 6443)),
        node_address: Ipv4Addr::new(192, 0, 2, 10).into(),
    }
}

/// Service variables of the upper namespace, none or some.
pub(super) fn services_env() -> impl Strategy<Value = Vec<EnvVar>> {
    let variable = |name: &str| EnvVar { name: name.into(), value: Some("10.0.0.9".into()), value_from: None };
    some(vec![variable("WEB_SERVICE_HOST"), variable("KUBERNETES_SERVICE_HOST")])
}

fn some<T: Clone + std::fmt::Debug + 'static>(candidates: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    let count = candidates.len();
    subsequence(candidates, 0..=count)
}

fn list(candidates: Value) -> impl Strategy<Value = Value> {
    let Value::Array(candidates) = candidates else { panic!("a list of candidates") };
    some(candidates).prop_map(Value::Array)
}

/// Some of an object's entries.
fn object(candidates: Value) -> impl Strategy<Value = Value> {
    let Value::Object(candidates) = candidates else { panic!("an object of candidates") };
    some(candidates.into_iter().collect::<Vec<_>>()).prop_map(|some| Value::Object(some.into_iter().collect()))
}

fn env() -> impl Strategy<Value = Value> {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    list(json!([
        {"name": "PLAIN", "value": "x"},
        {"name": "KUBERNETES_SERVICE_HOST", "value": "own.example"},
        field("NAME", "metadata.name"),
        field("NAMESPACE", "metadata.namespace"),
        field("UID", "metadata.uid"),
        field("NODE", "spec.nodeName"),
        field("ACCOUNT", "spec.serviceAccountName"),
        field("LABEL", "metadata.labels['app']"),
        field("POD_IP", "status.podIP"),
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "cm-env", "key": "k"}}},
        {"name": "CA", "valueFrom": {"configMapKeyRef": {"name": "kube-root-ca.crt", "key": "ca.crt"}}},
        {"name": "SEC", "valueFrom": {"secretKeyRef": {"name": "sec-env", "key": "k", "optional": true}}},
    ]))
}

fn env_from() -> impl Strategy<Value = Value> {
    list(json!([
        {"configMapRef": {"name": "cm-env-from"}},
        {"prefix": "X_", "configMapRef": {"name": "kube-root-ca.crt"}},
        {"secretRef": {"name": "sec-env-from"}},
    ]))
}

fn container(name: String) -> impl Strategy<Value = Value> {
    let more = object(json!({
        "command": ["sh", "-c"],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 10},
        "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
        "securityContext": {"runAsUser": 1000},
        "volumeMounts": [{"name": "v-empty", "mountPath": "/data"}],
        "restartPolicy": "Always",
    }));
    ("[a-c]{1}", env(), env_from(), more).prop_map(move |(image, env, env_from, more)| {
        merged([
            json!({"name": name, "image": format!("registry.example/{image}:1"), "ports": [{"containerPort": 80}]}),
            more,
            json!({"env": env, "envFrom": env_from}),
        ])
    })
}

fn containers(prefix: &'static str, count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Value>> {
    count.prop_flat_map(move |count| (0..count).map(|at| container(format!("{prefix}-{at}"))).collect::<Vec<_>>())
}

fn volumes() -> impl Strategy<Value = Value> {
    let file = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    list(json!([
        {"name": "v-empty", "emptyDir": {}},
        {"name": "v-host", "hostPath": {"path": "/x"}},
        {"name": "v-cm", "configMap": {"name": "cm-volume", "defaultMode": 420}},
        {"name": "v-ca", "configMap": {"name": "kube-root-ca.crt"}},
        {"name": "v-secret", "secret": {"secretName": "sec-volume", "optional": true}},
        {"name": "v-down", "downwardAPI": {"items": [
            file("namespace", "metadata.namespace"), file("name", "metadata.name"), file("labels", "metadata.labels"),
            {"path": "cpu", "resourceFieldRef": {"containerName": "main-0", "resource": "limits.cpu"}}]}},
        {"name": "kube-api-access-x", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [file("namespace", "metadata.namespace")]}}]}},
        {"name": "v-projected", "projected": {"sources": [
            {"secret": {"name": "sec-projected"}}, {"configMap": {"name": "cm-projected", "optional": true}},
            {"serviceAccountToken": {"path": "vault/token", "audience": "vault"}},
            {"downwardAPI": {"items": [file("annotations", "metadata.annotations"), file("uid", "metadata.uid")]}}]}},
        {"name": "v-csi", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "sec-csi"}}},
        {"name": "v-flex", "flexVolume": {"driver": "d", "secretRef": {"name": "sec-flex"}}},
        {"name": "v-azure", "azureFile": {"secretName": "sec-azure", "shareName": "s"}},
        {"name": "v-ceph", "cephfs": {"monitors": ["m"], "secretRef": {"name": "sec-ceph"}}},
        {"name": "v-iscsi", "iscsi": {"targetPortal": "10.0.0.1:3260", "iqn": "iqn.2026-01.example:x", "lun": 0, "secretRef": {"name": "sec-iscsi"}}},
    ]))
}

fn node_term() -> impl Strategy<Value = Value> {
    let expressions = list(json!([
        {"key": "type", "operator": "In", "values": ["virtual-kubelet"]},
        {"key": "tensile.dev/cluster", "operator": "In", "values": ["lower-1", "lower-2"]},
        {"key": "tensile.dev/cluster", "operator": "NotIn", "values": ["lower-1"]},
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["vn-2"]},
        {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
        {"key": "gpu", "operator": "Exists"},
    ]));
    let fields = list(json!([{"key": "metadata.name", "operator": "In", "values": ["vn-1"]}]));
    (expressions, fields)
        .prop_map(|(expressions, fields)| json!({"matchExpressions": expressions, "matchFields": fields}))
}

fn pod_term() -> impl Strategy<Value = Value> {
    let topology =
        prop::sample::select(vec!["kubernetes.io/hostname", "topology.kubernetes.io/zone", "tensile.dev/cluster"]);
    let more = object(json!({
        "matchLabelKeys": ["pod-template-hash"], "mismatchLabelKeys": ["team"],
        "namespaces": ["team-a", "team-b"], "namespaceSelector": {"matchLabels": {"x": "y"}},
    }));
    (topology, more, any::<bool>()).prop_map(|(topology, more, selects)| {
        let selector = if selects { json!({"labelSelector": {"matchLabels": {"app": "web"}}}) } else { json!({}) };
        merged([json!({"topologyKey": topology}), selector, more])
    })
}

fn affinity() -> impl Strategy<Value = Value> {
    let terms = || prop::collection::vec(pod_term(), 0..3);
    let pods = move || {
        (terms(), terms()).prop_map(|(required, preferred)| {
            let preferred: Vec<_> = preferred.into_iter().map(|term| json!({"weight": 5, "podAffinityTerm": term})).collect();
            json!({"requiredDuringSchedulingIgnoredDuringExecution": required, "preferredDuringSchedulingIgnoredDuringExecution": preferred})
        })
    };
    let nodes = (prop::collection::vec(node_term(), 0..3), prop::collection::vec(node_term(), 0..2)).prop_map(
        |(required, preferred)| {
            let preferred: Vec<_> =
                preferred.into_iter().map(|term| json!({"weight": 5, "preference": term})).collect();
            let mut rules = json!({"preferredDuringSchedulingIgnoredDuringExecution": preferred});
            if !required.is_empty() {
                rules["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": required});
            }
            rules
        },
    );
    (option::of(nodes), option::of(pods()), option::of(pods())).prop_map(|(nodes, pods, anti)| {
        let mut affinity = Map::new();
        for (key, rules) in [("nodeAffinity", nodes), ("podAffinity", pods), ("podAntiAffinity", anti)] {
            if let Some(rules) = rules {
                affinity.insert(key.into(), rules);
            }
        }
        Value::Object(affinity)
    })
}

fn spread() -> impl Strategy<Value = Value> {
    list(json!([
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
         "labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["pod-template-hash"]},
        {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
         "labelSelector": {"matchLabels": {"app": "web"}}},
        {"maxSkew": 1, "topologyKey": "tensile.dev/cluster", "whenUnsatisfiable": "DoNotSchedule",
         "labelSelector": {"matchLabels": {"app": "web"}}},
    ]))
}

fn metadata() -> impl Strategy<Value = Value> {
    let labels = object(json!({
        "app": "web", "pod-template-hash": "5d4f", "team": "red",
        "topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1",
    }));
    let moved = json!({
        "nodeSelector": {"moved": "yes"}, "tolerations": [{"key": "moved", "operator": "Exists"}], "hostNetwork": true,
        "hostPorts": [
            {"container": "main-0", "containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"},
            {"container": "init-0", "containerPort": 80, "hostPort": 8081, "hostIP": "10.0.0.1"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "moved", "operator": "Exists"}]}]}}},
    });
    let theirs = json!({"nodeSelector": {"theirs": "yes"}});
    let annotations = object(json!({
        "note": "a \"quoted\"\nvalue", "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "tensile.dev/traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tensile.dev/reserved-node": "worker-7",
        "tensile.dev/cluster-selector": moved.to_string(), "clusterSelector": theirs.to_string(),
    }));
    let more = object(json!({
        "resourceVersion": "17", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 3, "generateName": "web-",
        "selfLink": "/api/v1/x", "deletionTimestamp": "2026-01-02T00:00:00Z", "deletionGracePeriodSeconds": 30,
        "managedFields": [{"manager": "kubectl", "operation": "Update"}],
        "finalizers": ["batch.kubernetes.io/job-tracking"],
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "9"}],
    }));
    (labels, annotations, more).prop_map(|(labels, annotations, more)| {
        let fixed = json!({"name": "web-1", "namespace": "team-a", "uid": "7c1e", "labels": labels, "annotations": annotations});
        merged([fixed, more])
    })
}

fn pod_fields() -> impl Strategy<Value = Value> {
    object(json!({
        "priority": 1000, "priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority",
        "overhead": {"cpu": "10m"}, "runtimeClassName": "gvisor", "nodeName": "vn-1", "schedulerName": "multi-scheduler",
        "serviceAccountName": "builder", "serviceAccount": "builder", "automountServiceAccountToken": true,
        "restartPolicy": "Never", "activeDeadlineSeconds": 600, "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"]}, "enableServiceLinks": true,
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["x"]}], "hostname": "h", "subdomain": "s",
        "imagePullSecrets": [{"name": "sec-pull"}], "securityContext": {"fsGroup": 7}, "hostNetwork": true,
        "readinessGates": [{"conditionType": "example.com/gate"}], "schedulingGates": [{"name": "g"}],
        "schedulingGroup": {"podGroupName": "pg"}, "resources": {"requests": {"cpu": "1"}}, "os": {"name": "linux"},
    }))
}

fn tolerations() -> impl Strategy<Value = Value> {
    list(json!([
        {"key": "virtual-kubelet.io/provider", "operator": "Exists"},
        {"key": "tensile.dev/unreachable", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        {"key": "gpu", "operator": "Equal", "value": "yes"},
        {"operator": "Exists"},
    ]))
}

/// An upper pod as the upper API server shows it: label keys are merged into selectors.
pub(super) fn upper_pod() -> impl Strategy<Value = Pod> {
    let selector = object(json!({
        "type": "virtual-kubelet", "tensile.dev/cluster": "lower-1", "kubernetes.io/hostname": "vn-1", "disk": "ssd",
    }));
    let scheduling = (selector, tolerations(), affinity(), spread());
    let running = (containers("main", 1..3), containers("init", 1..3), containers("debug", 0..2), volumes());
    (metadata(), scheduling, running, pod_fields()).prop_map(
        |(metadata, (selector, tolerations, affinity, spread), (main, init, mut debug, volumes), fields)| {
            for container in &mut debug {
                // Ephemeral containers have none of these (`K pkg/apis/core/validation`).
                for field in ["resources", "livenessProbe", "lifecycle", "ports", "restartPolicy"] {
                    container.as_object_mut().unwrap().remove(field);
                }
            }
            let spec = json!({
                "containers": main, "initContainers": init, "ephemeralContainers": debug, "volumes": volumes,
                "nodeSelector": selector, "tolerations": tolerations, "affinity": affinity, "topologySpreadConstraints": spread,
            });
            let status = json!({"phase": "Pending", "qosClass": "Burstable"});
            let value = json!({"metadata": metadata, "spec": merged([spec, fields]), "status": status});
            let mut pod: Pod = serde_json::from_value(value).unwrap();
            merge_label_keys(&mut pod);
            pod
        },
    )
}

/// What an API server does to a pod's selectors at creation.
pub(super) fn merge_label_keys(pod: &mut Pod) {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let Some(spec) = &mut pod.spec else { return };
    for each in spec.topology_spread_constraints.iter_mut().flatten() {
        label_keys::merge(&mut each.label_selector, each.match_label_keys.as_deref(), None, &labels);
    }
    let Some(affinity) = &mut spec.affinity else { return };
    let attract = affinity.pod_affinity.iter_mut().flat_map(|rules| {
        let preferred = rules.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        let required = rules.required_during_scheduling_ignored_during_execution.iter_mut().flatten();
        required.chain(preferred.map(|weighted| &mut weighted.pod_affinity_term))
    });
    let repel = affinity.pod_anti_affinity.iter_mut().flat_map(|rules| {
        let preferred = rules.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        let required = rules.required_during_scheduling_ignored_during_execution.iter_mut().flatten();
        required.chain(preferred.map(|weighted| &mut weighted.pod_affinity_term))
    });
    for term in attract.chain(repel) {
        let (keys, mismatch) = (term.match_label_keys.as_deref(), term.mismatch_label_keys.as_deref());
        label_keys::merge(&mut term.label_selector, keys, mismatch, &labels);
    }
}

/// A status as a kubelet, or an upper cluster's other writers, would leave it.
pub(super) fn status() -> impl Strategy<Value = PodStatus> {
    let phase = prop::sample::select(vec!["Pending", "Running", "Succeeded", "Failed"]);
    let conditions = list(json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "Ready", "status": "True", "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:02Z"},
        {"type": "Initialized", "status": "False", "reason": "ContainersNotInitialized", "message": "m"},
        {"type": "PodResizePending", "status": "True", "reason": "Deferred"},
        {"type": "example.com/gate", "status": "True"},
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
    ]));
    let flipped = any::<bool>();
    let more = object(json!({
        "reason": "Evicted", "message": "low on disk", "startTime": "2026-01-01T00:00:01Z", "hostIP": "198.51.100.4",
        "hostIPs": [{"ip": "198.51.100.4"}], "qosClass": "Guaranteed", "observedGeneration": 2,
        "nominatedNodeName": "worker", "resize": "Proposed", "allocatedResources": {"cpu": "1", "memory": "1Gi"},
        "resources": {"requests": {"cpu": "1"}},
        "resourceClaimStatuses": [{"name": "c", "resourceClaimName": "x"}],
        "initContainerStatuses": [{"name": "init-0", "image": "i", "imageID": "", "ready": true, "restartCount": 0}],
        "ephemeralContainerStatuses": [{"name": "debug-0", "image": "i", "imageID": "", "ready": false, "restartCount": 0}],
    }));
    let restarts = option::of(0..3i32);
    let ips = list(json!([{"ip": "10.1.0.3"}, {"ip": "fd00::3"}]));
    (phase, conditions, flipped, more, restarts, ips).prop_map(|(phase, mut conditions, flipped, more, restarts, ips)| {
        for condition in conditions.as_array_mut().unwrap() {
            if flipped && condition["type"] != "PodScheduled" {
                condition["status"] = json!("Unknown");
                condition["message"] = json!("flipped");
            }
        }
        let mut status = merged([json!({"phase": phase, "conditions": conditions}), more]);
        if let Some(restarts) = restarts {
            status["containerStatuses"] = json!([{"name": "main-0", "image": "i", "imageID": "sha256:1", "ready": true,
                "restartCount": restarts, "state": {"running": {"startedAt": "2026-01-01T00:00:03Z"}}}]);
        }
        if let Some(first) = ips.get(0) {
            status["podIP"] = first["ip"].clone();
            status["podIPs"] = ips;
        }
        serde_json::from_value(status).unwrap()
    })
}

fn merged<const N: usize>(objects: [Value; N]) -> Value {
    let mut all = Map::new();
    for each in objects {
        let Value::Object(each) = each else { panic!("an object") };
        all.extend(each);
    }
    Value::Object(all)
}
