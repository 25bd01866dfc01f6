//! What to do about one lower object: a pure decision over what is wanted and what is there.

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use tensile_proto::vocabulary::{annotation, foreign, label};

use super::mirrored::Mirrored;
use crate::{
    context::Settings,
    names::{Key, NamespaceMapping},
    owner::OwnerMark,
};

/// What a lower object of ours is for: the value of the label `tensile.dev/need`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A copy of an upper object of the same name.
    Copy,
    /// The upper cluster's CA bundle.
    RootCa,
    /// Tokens of one volume of one pod.
    Token,
}

impl Purpose {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::RootCa => "root-ca",
            Self::Token => "token",
        }
    }

    pub(super) fn read(meta: &ObjectMeta) -> Option<Self> {
        match meta.labels.as_ref()?.get(label::NEED)?.as_str() {
            "copy" => Some(Self::Copy),
            "root-ca" => Some(Self::RootCa),
            "token" => Some(Self::Token),
            _ => None,
        }
    }
}

/// Marks an object as ours and as being for something.
pub(super) fn sign(meta: &mut ObjectMeta, mark: &OwnerMark, purpose: Purpose) {
    mark.write(meta);
    let labels = meta.labels.get_or_insert_default();
    labels.insert(label::NEED.into(), purpose.as_str().into());
    labels.insert(foreign::MANAGED_BY_LABEL.into(), foreign::PROVIDER.into());
}

/// Whose a lower object is, seen from an upper one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// It stands for this very upper object.
    Ours,
    /// It stands for an earlier upper object of the same namespace and name.
    OursOlder,
    /// It is somebody else's; why.
    Foreign(String),
}

/// Reads the owner mark of a lower object. The virtual node in it does not matter: pools of one upper cluster share.
pub(super) fn ownership(meta: &ObjectMeta, mark: &OwnerMark, purpose: Purpose) -> Ownership {
    let Some(found) = OwnerMark::read(meta) else {
        return Ownership::Foreign("it carries no owner mark of tensile".into());
    };
    if found.cluster != mark.cluster {
        return Ownership::Foreign(format!("it belongs to another upper cluster ({})", found.cluster));
    }
    if found.key != mark.key || Purpose::read(meta) != Some(purpose) {
        return Ownership::Foreign(format!("it stands for another object of the upper cluster ({})", found.key));
    }
    if found.uid == mark.uid { Ownership::Ours } else { Ownership::OursOlder }
}

/// What to do about the lower copy of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action<K> {
    /// It is as it should be.
    Keep,
    /// It is not there.
    Create(Box<K>),
    /// It differs; the object carries the resourceVersion that was seen.
    Replace(Box<K>),
    /// It differs in what the API server never lets change: delete the one of this UID and resourceVersion, then create.
    Recreate(Box<K>),
    /// It is being deleted; try again when it is gone.
    WaitUntilGone,
    /// Somebody else's object has the name; why it is not ours.
    Clash(String),
}

/// The decision for one copy.
pub(super) fn copy<K: Mirrored>(
    upper: &K,
    mark: &OwnerMark,
    purpose: Purpose,
    lower: &Key,
    observed: Option<&K>,
) -> Action<K> {
    let fresh = |virtual_node: &str| {
        let mut object = upper.content();
        let meta = object.meta_mut();
        meta.namespace = Some(lower.namespace.clone());
        meta.name = Some(lower.name.clone());
        sign(meta, &OwnerMark { virtual_node: virtual_node.to_owned(), ..mark.clone() }, purpose);
        object
    };
    let Some(observed) = observed else {
        return Action::Create(Box::new(fresh(&mark.virtual_node)));
    };
    let owner = match ownership(observed.meta(), mark, purpose) {
        Ownership::Foreign(why) => return Action::Clash(why),
        owner => owner,
    };
    if observed.meta().deletion_timestamp.is_some() {
        return Action::WaitUntilGone;
    }
    let wanted = upper.content();
    if owner == Ownership::Ours && observed.same_content(&wanted) {
        return Action::Keep;
    }
    // The creator stays the one that is written on it, or two pools would take it from each other for ever.
    let creator = OwnerMark::read(observed.meta()).map_or_else(|| mark.virtual_node.clone(), |mark| mark.virtual_node);
    if !observed.can_become(&wanted) {
        return Action::Recreate(Box::new(fresh(&creator)));
    }
    let mut object = observed.clone();
    object.set_content(wanted);
    let meta = object.meta_mut();
    meta.managed_fields = None;
    sign(meta, &OwnerMark { virtual_node: creator, ..mark.clone() }, purpose);
    Action::Replace(Box::new(object))
}

/// What to do about a lower namespace.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NamespaceAction {
    /// It may be used.
    Use,
    /// It is not there.
    Create(Box<Namespace>),
    /// It is being deleted; it comes back when that is done.
    WaitUntilGone,
    /// It may not be used; what is wrong and the cure.
    Conflict(String),
}

/// The decision for the lower namespace of an upper one.
pub(super) fn namespace(upper: &str, settings: &Settings, observed: Option<&Namespace>) -> NamespaceAction {
    let lower = settings.namespaces.lower(upper);
    let cluster = &settings.upper_cluster_uid;
    let Some(observed) = observed else {
        return NamespaceAction::Create(Box::new(new_namespace(upper, &lower, settings)));
    };
    if observed.metadata.deletion_timestamp.is_some() {
        return NamespaceAction::WaitUntilGone;
    }
    if settings.adopt_namespaces.contains(&lower) {
        return NamespaceAction::Use;
    }
    let cures = || {
        let suffixed = match settings.namespaces {
            NamespaceMapping::Same => ", or map namespaces `suffixed` so that each upper cluster has its own",
            NamespaceMapping::Suffixed { .. } => "",
        };
        format!(
            "label it in the lower cluster (kubectl label --overwrite namespace {lower} {}={cluster}), \
             or start the virtual node with --adopt-namespace={lower}{suffixed}",
            label::UPPER_CLUSTER
        )
    };
    let found = observed.metadata.labels.as_ref().and_then(|labels| labels.get(label::UPPER_CLUSTER));
    match found {
        None => NamespaceAction::Conflict(format!(
            "namespace {lower} exists in lower cluster {} and is not this upper cluster's: {}",
            settings.cluster_name,
            cures()
        )),
        Some(other) if other != cluster => NamespaceAction::Conflict(format!(
            "namespace {lower} of lower cluster {} belongs to another upper cluster ({other}): {}",
            settings.cluster_name,
            cures()
        )),
        Some(_) => {
            let stands_for =
                observed.metadata.annotations.as_ref().and_then(|all| all.get(annotation::UPPER_NAMESPACE));
            match stands_for {
                Some(other) if other != upper => NamespaceAction::Conflict(format!(
                    "namespace {lower} of lower cluster {} stands for the upper namespace {other}: \
                     rename one of the two upper namespaces, or remove its annotation {}",
                    settings.cluster_name,
                    annotation::UPPER_NAMESPACE
                )),
                _ => NamespaceAction::Use,
            }
        }
    }
}

fn new_namespace(upper: &str, lower: &str, settings: &Settings) -> Namespace {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(lower.to_owned());
    let labels = namespace.metadata.labels.get_or_insert_default();
    labels.insert(label::UPPER_CLUSTER.into(), settings.upper_cluster_uid.clone());
    labels.insert(foreign::MANAGED_BY_LABEL.into(), foreign::PROVIDER.into());
    let annotations = namespace.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::UPPER_NAMESPACE.into(), upper.to_owned());
    namespace
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;

    const CLUSTER: &str = "upper-1";

    fn settings() -> Settings {
        Settings {
            node_name: "vn-east".into(),
            cluster_name: "east".into(),
            upper_cluster_uid: CLUSTER.into(),
            lower_cluster_uid: "lower-1".into(),
            namespaces: NamespaceMapping::Same,
            adopt_namespaces: ["default".to_owned()].into(),
            lower_scheduler_name: None,
            upper_api_for_pods: None,
            node_address: Ipv4Addr::new(192, 0, 2, 1).into(),
        }
    }

    fn mark(uid: &str) -> OwnerMark {
        OwnerMark {
            cluster: CLUSTER.into(),
            uid: uid.into(),
            virtual_node: "vn-east".into(),
            key: Key::new("team", "settings"),
        }
    }

    fn upper(value: &str, immutable: bool) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta { uid: Some("u1".into()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([("key".into(), value.into())])),
            immutable: immutable.then_some(true),
            ..ConfigMap::default()
        }
    }

    fn lower_key() -> Key {
        Key::new("team", "settings")
    }

    fn decide(upper: &ConfigMap, mark: &OwnerMark, observed: Option<&ConfigMap>) -> Action<ConfigMap> {
        copy(upper, mark, Purpose::Copy, &lower_key(), observed)
    }

    /// What stands below after the copy of an upper object was made there.
    fn made(upper: &ConfigMap, mark: &OwnerMark) -> ConfigMap {
        let Action::Create(mut object) = decide(upper, mark, None) else { panic!("nothing is there") };
        object.metadata.resource_version = Some("7".into());
        object.metadata.uid = Some("lower-uid".into());
        *object
    }

    #[test]
    fn what_was_made_is_kept() {
        let there = made(&upper("1", false), &mark("u1"));
        assert_eq!(decide(&upper("1", false), &mark("u1"), Some(&there)), Action::Keep);
        assert_eq!(there.metadata.name.as_deref(), Some("settings"));
        assert_eq!(OwnerMark::read(&there.metadata), Some(mark("u1")));
    }

    #[test]
    fn changed_content_is_replaced_at_the_version_seen_and_foreign_labels_stay() {
        let mut there = made(&upper("1", false), &mark("u1"));
        there.metadata.labels.as_mut().unwrap().insert("backup".into(), "yes".into());
        let Action::Replace(object) = decide(&upper("2", false), &mark("u1"), Some(&there)) else { panic!() };
        assert_eq!(object.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(object.data.unwrap()["key"], "2");
        assert_eq!(object.metadata.labels.unwrap()["backup"], "yes");
    }

    #[test]
    fn immutable_content_is_made_anew_and_the_new_one_is_bound_to_no_version() {
        let there = made(&upper("1", true), &mark("u1"));
        let Action::Recreate(object) = decide(&upper("2", true), &mark("u2"), Some(&there)) else { panic!() };
        assert_eq!(object.metadata.resource_version, None);
        assert_eq!(OwnerMark::read(&object.metadata).unwrap().uid, "u2");
    }

    #[test]
    fn an_earlier_object_of_the_same_name_is_replaced_and_is_no_clash() {
        let there = made(&upper("1", false), &mark("u1"));
        let Action::Replace(object) = decide(&upper("1", false), &mark("u2"), Some(&there)) else { panic!() };
        assert_eq!(OwnerMark::read(&object.metadata).unwrap().uid, "u2");
    }

    #[test]
    fn the_copy_of_another_virtual_node_of_the_same_cluster_is_shared() {
        let other = OwnerMark { virtual_node: "vn-gpu".into(), ..mark("u1") };
        let there = made(&upper("1", false), &other);
        assert_eq!(decide(&upper("1", false), &mark("u1"), Some(&there)), Action::Keep);
        let Action::Replace(object) = decide(&upper("2", false), &mark("u1"), Some(&there)) else { panic!() };
        assert_eq!(OwnerMark::read(&object.metadata), Some(other), "its creator stays written on it");
    }

    #[test]
    fn what_is_not_ours_is_never_touched() {
        let unmarked = ConfigMap::default();
        let other_cluster = made(&upper("1", false), &OwnerMark { cluster: "upper-2".into(), ..mark("u1") });
        let other_object = made(&upper("1", false), &OwnerMark { key: Key::new("team", "else"), ..mark("u1") });
        let mut other_purpose = made(&upper("1", false), &mark("u1"));
        other_purpose.metadata.labels.as_mut().unwrap().insert(label::NEED.into(), "token".into());
        for foreign in [unmarked, other_cluster, other_object, other_purpose] {
            let decided = decide(&upper("2", false), &mark("u1"), Some(&foreign));
            assert!(matches!(decided, Action::Clash(_)), "{decided:?}");
        }
    }

    #[test]
    fn a_copy_that_is_being_deleted_is_waited_for() {
        let mut there = made(&upper("1", false), &mark("u1"));
        there.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(decide(&upper("1", false), &mark("u1"), Some(&there)), Action::WaitUntilGone);
    }

    fn lower_namespace(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Namespace {
        let map = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        Namespace {
            metadata: ObjectMeta { labels: map(labels), annotations: map(annotations), ..ObjectMeta::default() },
            ..Namespace::default()
        }
    }

    #[test]
    fn a_namespace_is_made_with_our_mark_and_then_used() {
        let NamespaceAction::Create(made) = namespace("team", &settings(), None) else { panic!() };
        assert_eq!(made.metadata.name.as_deref(), Some("team"));
        assert_eq!(namespace("team", &settings(), Some(&made)), NamespaceAction::Use);
    }

    #[test]
    fn a_namespace_that_a_user_labelled_or_named_is_used() {
        let labelled = lower_namespace(&[(label::UPPER_CLUSTER, CLUSTER)], &[]);
        assert_eq!(namespace("team", &settings(), Some(&labelled)), NamespaceAction::Use);
        let plain = lower_namespace(&[], &[]);
        assert_eq!(namespace("default", &settings(), Some(&plain)), NamespaceAction::Use);
    }

    #[test]
    fn a_foreign_namespace_is_refused_with_the_cure() {
        let plain = lower_namespace(&[], &[]);
        let other = lower_namespace(&[(label::UPPER_CLUSTER, "upper-2")], &[]);
        for foreign in [plain, other] {
            let NamespaceAction::Conflict(message) = namespace("team", &settings(), Some(&foreign)) else { panic!() };
            assert!(message.contains("kubectl label --overwrite namespace team tensile.dev/upper-cluster=upper-1"));
            assert!(message.contains("--adopt-namespace=team"));
        }
    }

    #[test]
    fn two_upper_namespaces_never_share_a_lower_one() {
        let taken = lower_namespace(&[(label::UPPER_CLUSTER, CLUSTER)], &[(annotation::UPPER_NAMESPACE, "else")]);
        assert!(matches!(namespace("team", &settings(), Some(&taken)), NamespaceAction::Conflict(_)));
    }

    #[test]
    fn a_namespace_that_is_being_deleted_is_waited_for() {
        let mut going = lower_namespace(&[(label::UPPER_CLUSTER, CLUSTER)], &[]);
        going.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(namespace("team", &settings(), Some(&going)), NamespaceAction::WaitUntilGone);
    }
}
