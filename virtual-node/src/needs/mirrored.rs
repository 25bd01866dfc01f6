//! What of a ConfigMap or Secret is carried down.
//!
//! Content only. Labels and annotations stay above: `kubectl apply` keeps a whole Secret in an annotation, and
//! controllers of the lower cluster would act on labels that were not meant for them.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};

/// The Secret type that the lower cluster's token controller owns: it fills in tokens of the lower cluster, and deletes
/// Secrets whose ServiceAccount it does not have (`K pkg/controller/serviceaccount/tokens_controller.go`).
const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";

/// What a Secret without type gets from the API server.
const OPAQUE: &str = "Opaque";

/// A kind of object whose content is kept equal in the lower cluster.
pub(super) trait Mirrored:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The resource as a kubelet's messages write it.
    const WORD: &'static str;

    /// Content and nothing else, as it has to stand below.
    fn content(&self) -> Self;

    /// Puts the content in place of that of `self`; metadata stays.
    fn set_content(&mut self, content: Self);

    /// Whether two objects hold the same content.
    fn same_content(&self, other: &Self) -> bool;

    /// Whether the API server lets `self` be changed into `wanted`, or it must be deleted and made anew.
    fn can_become(&self, wanted: &Self) -> bool;

    /// `immutable: true`.
    fn is_immutable(&self) -> bool;

    /// The keys whose values are text, such as `envFrom` reads.
    fn keys(&self) -> Vec<String>;
}

impl Mirrored for ConfigMap {
    const WORD: &'static str = "configmap";

    fn content(&self) -> Self {
        Self {
            data: self.data.clone(),
            binary_data: self.binary_data.clone(),
            immutable: self.immutable,
            ..Self::default()
        }
    }

    fn set_content(&mut self, content: Self) {
        self.data = content.data;
        self.binary_data = content.binary_data;
        self.immutable = content.immutable;
    }

    fn same_content(&self, other: &Self) -> bool {
        same_map(self.data.as_ref(), other.data.as_ref())
            && same_map(self.binary_data.as_ref(), other.binary_data.as_ref())
            && self.is_immutable() == other.is_immutable()
    }

    fn can_become(&self, wanted: &Self) -> bool {
        !self.is_immutable() || self.same_content(wanted)
    }

    fn is_immutable(&self) -> bool {
        self.immutable.unwrap_or(false)
    }

    fn keys(&self) -> Vec<String> {
        self.data.iter().flat_map(|data| data.keys().cloned()).collect()
    }
}

impl Mirrored for Secret {
    const WORD: &'static str = "secret";

    fn content(&self) -> Self {
        Self {
            data: self.data.clone(),
            type_: Some(lower_type(self.type_.as_deref())),
            immutable: self.immutable,
            ..Self::default()
        }
    }

    fn set_content(&mut self, content: Self) {
        self.data = content.data;
        self.type_ = content.type_;
        self.immutable = content.immutable;
    }

    fn same_content(&self, other: &Self) -> bool {
        same_map(self.data.as_ref(), other.data.as_ref())
            && self.type_.as_deref().unwrap_or(OPAQUE) == other.type_.as_deref().unwrap_or(OPAQUE)
            && self.is_immutable() == other.is_immutable()
    }

    fn can_become(&self, wanted: &Self) -> bool {
        self.type_.as_deref().unwrap_or(OPAQUE) == wanted.type_.as_deref().unwrap_or(OPAQUE)
            && (!self.is_immutable() || self.same_content(wanted))
    }

    fn is_immutable(&self) -> bool {
        self.immutable.unwrap_or(false)
    }

    fn keys(&self) -> Vec<String> {
        self.data.iter().flat_map(|data| data.keys().cloned()).collect()
    }
}

fn lower_type(upper: Option<&str>) -> String {
    match upper {
        Some(SERVICE_ACCOUNT_TOKEN) | None => OPAQUE.to_owned(),
        Some(other) => other.to_owned(),
    }
}

/// An API server may leave an empty map out.
fn same_map<K: PartialEq, V: PartialEq>(
    one: Option<&std::collections::BTreeMap<K, V>>,
    other: Option<&std::collections::BTreeMap<K, V>>,
) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        (Some(some), None) | (None, Some(some)) => some.is_empty(),
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn secret(type_: &str, immutable: bool) -> Secret {
        Secret { type_: Some(type_.into()), immutable: Some(immutable), ..Secret::default() }
    }

    #[test]
    fn metadata_stays_above() {
        let upper = ConfigMap {
            metadata: ObjectMeta {
                annotations: Some(BTreeMap::from([("kubectl".into(), "all of it".into())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([("a".into(), "1".into())])),
            ..ConfigMap::default()
        };
        assert_eq!(upper.content().metadata, ObjectMeta::default());
        assert!(upper.content().same_content(&upper));
    }

    #[test]
    fn a_service_account_token_secret_is_opaque_below() {
        assert_eq!(secret(SERVICE_ACCOUNT_TOKEN, false).content().type_.as_deref(), Some("Opaque"));
        assert_eq!(
            secret("kubernetes.io/dockerconfigjson", false).content().type_.as_deref(),
            Some("kubernetes.io/dockerconfigjson")
        );
    }

    #[test]
    fn type_and_immutable_content_cannot_be_changed_in_place() {
        assert!(!secret("Opaque", false).can_become(&secret("kubernetes.io/tls", false)));
        assert!(!secret("Opaque", true).can_become(&secret("Opaque", false)));
        assert!(secret("Opaque", false).can_become(&secret("Opaque", true)));
    }

    #[test]
    fn an_empty_map_equals_none() {
        let empty = ConfigMap { data: Some(BTreeMap::new()), ..ConfigMap::default() };
        assert!(empty.same_content(&ConfigMap::default()));
    }
}
