//! Property tests over generated pods.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Map, Value, json};
use tensile_proto::vocabulary::annotation;

use super::{
    Context, ROOT_CA_CONFIG_MAP,
    carried::is_carried,
    carried_digest,
    fields::{FIELDS, Field, Treatment},
    generate::{merge_label_keys, services_env, settings, status, upper_pod},
    needs, pod_down, pod_update,
    status::KUBELET_CONDITIONS,
    status_up,
    strategic::patched,
    update::{Subresource, Update},
};

/// Cases of the property that also proves that every entry of the table is met: enough that each comes up many times.
const TABLE_CASES: u32 = 1000;

#[test]
fn exactly_the_listed_fields_differ() {
    let met = Mutex::new(BTreeSet::new());
    let mut runner = TestRunner::new(ProptestConfig { cases: TABLE_CASES, ..ProptestConfig::default() });
    runner
        .run(&(upper_pod(), services_env()), |(upper, services_env)| {
            let settings = settings();
            let lower = pod_down(&upper, &Context { services_env: &services_env, ..Context::new(&settings) }).unwrap();
            let (upper, lower) = (json!(upper), json!(lower));
            let mut differing = Vec::new();
            differences("", Some(&pruned(&upper)), Some(&pruned(&lower)), &mut differing);
            for (path, below) in differing {
                let Some(field) = covering(&path) else {
                    return Err(TestCaseError::fail(format!("{path} differs and is not listed: {lower}")));
                };
                prop_assert!(
                    field.treatment != Treatment::Stripped || below.is_none(),
                    "{path} is not stripped: {below:?}"
                );
                met.lock().unwrap().insert(field.path);
            }
            Ok(())
        })
        .unwrap();
    let met = met.into_inner().unwrap();
    let unmet: Vec<_> = FIELDS.iter().map(|field| field.path).filter(|path| !met.contains(path)).collect();
    assert!(unmet.is_empty(), "entries of the table that no generated pod met: {unmet:?}");
}

/// The entry that covers a path; the most specific one.
fn covering(path: &str) -> Option<&'static Field> {
    let covers = |field: &&Field| {
        path.strip_prefix(field.path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
    };
    FIELDS.iter().filter(covers).max_by_key(|field| field.path.len())
}

/// Every path at which two values differ, with the lower value. Lists of different length differ as a whole.
fn differences(path: &str, upper: Option<&Value>, lower: Option<&Value>, found: &mut Vec<(String, Option<Value>)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (upper, lower) {
        (Some(Value::Object(upper)), Some(Value::Object(lower))) => {
            let keys: BTreeSet<_> = upper.keys().chain(lower.keys()).collect();
            for key in keys {
                differences(&below(key), upper.get(key), lower.get(key), found);
            }
        }
        (Some(Value::Array(upper)), Some(Value::Array(lower))) if upper.len() == lower.len() => {
            for (upper, lower) in upper.iter().zip(lower) {
                differences(&format!("{path}[]"), Some(upper), Some(lower), found);
            }
        }
        // What one side has whole is looked at field by field, for the table names fields.
        (Some(Value::Object(fields)), None) => {
            fields.iter().for_each(|(key, value)| differences(&below(key), Some(value), None, found));
        }
        (None, Some(Value::Object(fields))) => {
            fields.iter().for_each(|(key, value)| differences(&below(key), None, Some(value), found));
        }
        (upper, lower) if upper != lower => found.push((path.to_owned(), lower.cloned())),
        _ => {}
    }
}

/// Without empty objects and lists: to the API they are the same as absent ones.
fn pruned(value: &Value) -> Value {
    let empty =
        |value: &Value| value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().map(|(key, value)| (key.clone(), pruned(value)));
            // An empty source is a volume source all the same.
            Value::Object(kept.filter(|(key, value)| !empty(value) || key == "emptyDir").collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(pruned).collect()),
        other => other.clone(),
    }
}

/// What the lower API server makes of a pod that is POSTed.
fn created(mut lower: Pod) -> Pod {
    merge_label_keys(&mut lower);
    lower.metadata.uid = Some("lower-uid".into());
    lower.metadata.generation = Some(1);
    lower.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
    lower
}

/// What lower admission may do on top: a mirror for images, defaults for resources, labels, tolerations.
fn admitted(lower: &mut Pod) {
    let labels = lower.metadata.labels.get_or_insert_default();
    labels.insert("injected".into(), "yes".into());
    labels.insert("topology.kubernetes.io/zone".into(), "lower-zone".into());
    let spec = lower.spec.as_mut().unwrap();
    for container in &mut spec.containers {
        container.image = container.image.as_ref().map(|image| image.replace("registry.example", "mirror.example"));
        let resources = container.resources.get_or_insert_default();
        let limits = resources.limits.get_or_insert_default();
        limits.insert("cpu".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("2".into()));
    }
    spec.tolerations.get_or_insert_default().push(
        serde_json::from_value(
            json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}),
        )
        .unwrap(),
    );
}

/// Sends an update as the engine does.
fn sent(lower: &Pod, update: &Update) -> Pod {
    let mut after = lower.clone();
    if let Some(patch) = &update.patch {
        after = patched(&after, patch);
    }
    let mut accepted = Vec::new();
    for (patch, subresource) in [
        (&update.resize, Subresource::Resize),
        (&update.ephemeral, Subresource::Ephemeral),
        (&update.status, Subresource::Status),
    ] {
        if let Some(patch) = patch {
            after = patched(&after, patch);
            accepted.push(subresource);
        }
    }
    if let Some(claim) = update.claim(&accepted) {
        after = patched(&after, &claim);
    }
    if after.spec != lower.spec {
        after.metadata.generation = after.metadata.generation.map(|generation| generation + 1);
    }
    after
}

/// The second state of an upper pod: what may be updated is another pod's, the rest stays.
fn updated(upper: &Pod, other: &Pod) -> Pod {
    let mut pod = upper.clone();
    pod.metadata.labels.clone_from(&other.metadata.labels);
    pod.metadata.annotations.clone_from(&other.metadata.annotations);
    pod.metadata.generation = Some(4);
    let (spec, other) = (pod.spec.as_mut().unwrap(), other.spec.as_ref().unwrap());
    for (container, other) in spec.containers.iter_mut().zip(&other.containers) {
        container.image.clone_from(&other.image);
        if other.resources.is_some() {
            container.resources.clone_from(&other.resources);
        }
    }
    for toleration in other.tolerations.iter().flatten() {
        let own = spec.tolerations.get_or_insert_default();
        if !own.contains(toleration) {
            own.push(toleration.clone());
        }
    }
    spec.ephemeral_containers.clone_from(&other.ephemeral_containers);
    if spec.active_deadline_seconds.is_none() {
        spec.active_deadline_seconds = other.active_deadline_seconds;
    }
    pod
}

/// Rounds of updates after which nothing may be left: one for the change, one for the generation it got.
const ROUNDS_MAX: usize = 2;

proptest! {
    /// The selectors below are those above, once the lower API server has merged label keys.
    #[test]
    fn label_keys_are_merged_once(upper in upper_pod()) {
        let settings = settings();
        let lower = created(pod_down(&upper, &Context::new(&settings)).unwrap());
        let spread = |pod: &Pod| pod.spec.clone().unwrap().topology_spread_constraints.unwrap_or_default();
        let expected: Vec<_> =
            spread(&upper).into_iter().filter(|each| each.topology_key != "tensile.dev/cluster").collect();
        prop_assert_eq!(spread(&lower), expected);
        let terms = |pod: &Pod| {
            let rules = pod.spec.clone().unwrap().affinity.and_then(|affinity| affinity.pod_anti_affinity);
            rules.and_then(|rules| rules.required_during_scheduling_ignored_during_execution).unwrap_or_default()
        };
        let selectors = |terms: Vec<k8s_openapi::api::core::v1::PodAffinityTerm>| -> Vec<_> {
            terms.into_iter().filter(|term| term.topology_key != "tensile.dev/cluster").map(|term| term.label_selector).collect()
        };
        prop_assert_eq!(selectors(terms(&lower)), selectors(terms(&upper)));
    }

    /// What was just created lacks nothing but what creation cannot carry, and the same pod goes down the same way.
    #[test]
    fn a_created_pod_is_carried(mut upper in upper_pod(), services_env in services_env()) {
        upper.spec.as_mut().unwrap().ephemeral_containers = None;
        let settings = settings();
        let ctx = Context { services_env: &services_env, ..Context::new(&settings) };
        let posted = pod_down(&upper, &ctx).unwrap();
        prop_assert_eq!(&posted, &pod_down(&upper, &ctx).unwrap());
        let mut lower = created(posted);
        admitted(&mut lower);
        prop_assert!(is_carried(&upper, &lower));
        prop_assert!(pod_update(&upper, &lower, &ctx).unwrap().is_empty());
        let annotations = lower.metadata.annotations.unwrap();
        prop_assert_eq!(annotations.get(annotation::CARRIED), Some(&carried_digest(&upper)));
    }

    /// An update ends: what changed above is below, what lower admission did stays, and nothing is left to send.
    #[test]
    fn updates_arrive_and_end(upper in upper_pod(), other in upper_pod()) {
        let settings = settings();
        let ctx = Context::new(&settings);
        let mut lower = created(pod_down(&upper, &ctx).unwrap());
        admitted(&mut lower);
        let upper = updated(&upper, &other);
        let mut rounds = 0;
        while !is_carried(&upper, &lower) {
            prop_assert!(rounds < ROUNDS_MAX, "still not carried: {:?}", pod_update(&upper, &lower, &ctx).unwrap());
            lower = sent(&lower, &pod_update(&upper, &lower, &ctx).unwrap());
            rounds += 1;
        }
        prop_assert!(pod_update(&upper, &lower, &ctx).unwrap().is_empty());

        let labels = lower.metadata.labels.clone().unwrap();
        prop_assert_eq!(labels.get("injected").map(String::as_str), Some("yes"));
        prop_assert_eq!(labels.get("topology.kubernetes.io/zone").map(String::as_str), Some("lower-zone"));
        let own = |labels: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let foreign = |key: &str| key == "injected" || key.contains('/');
            labels.iter().filter(|(key, _)| !foreign(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        prop_assert_eq!(own(&labels), own(&upper.metadata.labels.clone().unwrap_or_default()));
        let (above, below) = (upper.spec.unwrap(), lower.spec.unwrap());
        prop_assert_eq!(above.active_deadline_seconds, below.active_deadline_seconds);
        let names = |list: Option<Vec<k8s_openapi::api::core::v1::EphemeralContainer>>| -> BTreeSet<String> {
            list.into_iter().flatten().map(|each| each.name).collect()
        };
        prop_assert!(names(above.ephemeral_containers).is_subset(&names(below.ephemeral_containers)));
        let unreachable = |key: &Option<String>| key.as_deref() == Some("node.kubernetes.io/unreachable");
        prop_assert!(below.tolerations.unwrap().iter().any(|each| unreachable(&each.key)));
    }

    /// One status patch makes the kubelet's part of the upper status the lower one's, leaves the rest, and is the last.
    #[test]
    fn status_reaches_a_fixpoint(above in status(), below in status()) {
        let settings = settings();
        let ctx = Context::new(&settings);
        let mut lower = Pod { status: Some(below.clone()), ..Pod::default() };
        lower.metadata.annotations = Some([(annotation::GENERATION.to_owned(), "9/2".to_owned())].into());
        let patch = status_up(Some(&above), &lower, &ctx);
        let after = match &patch {
            Some(patch) => patched(&above, patch),
            None => above.clone(),
        };
        prop_assert_eq!(status_up(Some(&after), &lower, &ctx), None);
        prop_assert_eq!(&after.qos_class, &above.qos_class);
        prop_assert_eq!(&after.nominated_node_name, &above.nominated_node_name);
        prop_assert_eq!(&after.resource_claim_statuses, &above.resource_claim_statuses);
        if matches!(above.phase.as_deref(), Some("Succeeded" | "Failed")) && above.phase != below.phase {
            prop_assert_eq!(patch, None);
            return Ok(());
        }
        prop_assert_eq!(&after.phase, &below.phase);
        prop_assert_eq!(&after.container_statuses, &below.container_statuses);
        prop_assert_eq!(&after.pod_ip, &below.pod_ip);
        prop_assert_eq!(after.pod_ips.unwrap_or_default(), below.pod_ips.clone().unwrap_or_default());
        prop_assert_eq!(after.allocated_resources.unwrap_or_default(), below.allocated_resources.clone().unwrap_or_default());
        let (kubelets, others) = split(after.conditions);
        let (mirrored, mut below_others) = split(below.conditions);
        prop_assert_eq!(kubelets.keys().collect::<Vec<_>>(), mirrored.keys().collect::<Vec<_>>());
        for (type_, condition) in &kubelets {
            prop_assert_eq!((&condition.status, &condition.message), (&mirrored[type_].status, &mirrored[type_].message));
        }
        let (_, mut expected) = split(above.conditions);
        if let Some(target) = below_others.remove("DisruptionTarget").filter(|target| target.status == "True") {
            expected.entry(target.type_.clone()).and_modify(|own| {
                if own.status != "True" {
                    own.clone_from(&target);
                }
            }).or_insert(target);
        }
        let statuses = |conditions: BTreeMap<String, k8s_openapi::api::core::v1::PodCondition>| -> Vec<_> {
            conditions.into_iter().map(|(type_, condition)| (type_, condition.status)).collect()
        };
        prop_assert_eq!(statuses(others), statuses(expected));
    }

    /// No reference below leads to the lower cluster's own identity, and what takes its place is asked for by `needs`.
    #[test]
    fn nothing_below_shows_the_lower_identity(upper in upper_pod(), other in upper_pod()) {
        let settings = settings();
        let ctx = Context::new(&settings);
        let mut lower = created(pod_down(&upper, &ctx).unwrap());
        let upper = updated(&upper, &other);
        lower = sent(&lower, &pod_update(&upper, &lower, &ctx).unwrap());
        let mut names = BTreeSet::new();
        strings(&json!(lower.spec), &mut names);
        for foreign in ["kube-root-ca.crt", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations",
            "spec.nodeName", "spec.serviceAccountName"] {
            prop_assert!(!names.contains(foreign), "{foreign} in {}", json!(lower.spec));
        }
        prop_assert!(!json!(lower.spec).to_string().contains("serviceAccountToken"));
        let found = needs(&upper);
        prop_assert_eq!(found.root_ca, names.contains(ROOT_CA_CONFIG_MAP));
        prop_assert!(found.tokens.iter().all(|token| names.contains(&token.secret) && names.contains(&token.key)));
    }

    /// Every reference that the generator placed is found, wherever it stands.
    #[test]
    fn needs_finds_every_reference(upper in upper_pod()) {
        let found = needs(&upper);
        let mut names = BTreeSet::new();
        strings(&json!(upper.spec), &mut names);
        let of = |prefix: &str| -> Vec<&str> {
            names.iter().map(String::as_str).filter(|name| name.starts_with(prefix)).collect()
        };
        prop_assert_eq!(found.config_maps.keys().map(String::as_str).collect::<Vec<_>>(), of("cm-"));
        prop_assert_eq!(found.secrets.keys().map(String::as_str).collect::<Vec<_>>(), of("sec-"));
        prop_assert_eq!(found.root_ca, names.contains("kube-root-ca.crt"));
        let text = json!(upper.spec).to_string();
        prop_assert_eq!(found.tokens.len(), text.matches("serviceAccountToken\":").count());
    }
}

type Conditions = BTreeMap<String, k8s_openapi::api::core::v1::PodCondition>;

/// The kubelet's conditions, and the others.
fn split(conditions: Option<Vec<k8s_openapi::api::core::v1::PodCondition>>) -> (Conditions, Conditions) {
    let all = conditions.into_iter().flatten().map(|condition| (condition.type_.clone(), condition));
    all.partition(|(type_, _)| KUBELET_CONDITIONS.contains(&type_.as_str()))
}

fn strings(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            found.insert(text.clone());
        }
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| strings(field, found)),
        _ => {}
    }
}
