//! What a pod needs to exist in the lower cluster before it can run there.
//!
//! Found by walking the whole spec. Pods that mount `kube-root-ca.crt` need [`ROOT_CA_CONFIG_MAP`](super::ROOT_CA_CONFIG_MAP)
//! instead, which holds the upper CA.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, LocalObjectReference, Pod, Volume, VolumeProjection};

use super::{
    KUBE_ROOT_CA_CONFIG_MAP,
    volumes::{TOKEN_EXPIRATION_SECONDS_DEFAULT, token_secret_key, token_secret_name},
};

/// Everything that a pod refers to by name in its namespace, and the tokens it is to be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// ConfigMaps by name; `kube-root-ca.crt` is not among them, see [`Needs::root_ca`].
    pub config_maps: BTreeMap<String, Need>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Need>,
    /// One entry for each projected token file.
    pub tokens: Vec<TokenNeed>,
    /// Whether the upper cluster's CA bundle is needed.
    pub root_ca: bool,
    /// PersistentVolumeClaims by name.
    pub claims: BTreeSet<String>,
}

impl Needs {
    /// Whether the pod needs nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a named object is needed. When it is used in many places, the strictest and then the first one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The pod starts without it.
    pub optional: bool,
    /// Where it is used; the kubelet words its events by it.
    pub used_by: UsedBy,
}

/// The place of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsedBy {
    /// The volume of this name (`FailedMount`).
    Volume(String),
    /// The environment of the container of this name (`CreateContainerConfigError`).
    Env(String),
    /// spec.imagePullSecrets (the kubelet warns and pulls without it, so such a need is optional).
    ImagePull,
}

/// A token file: a bound token of the upper pod's ServiceAccount, from the TokenRequest API of the upper cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenNeed {
    /// Name of the volume.
    pub volume: String,
    /// Name of the Secret below that holds it; all token files of one volume share it.
    pub secret: String,
    /// Key in the Secret.
    pub key: String,
    /// Path of the file in the volume.
    pub path: String,
    /// Audience; `None` is the upper API server's own.
    pub audience: Option<String>,
    /// Lifetime to ask for, in seconds.
    pub expiration_seconds: i64,
}

/// Walks the whole spec of an upper pod.
pub fn needs(upper: &Pod) -> Needs {
    let mut walk = Walk { uid: upper.metadata.uid.as_deref().unwrap_or_default(), found: Needs::default() };
    let Some(spec) = &upper.spec else { return walk.found };
    for secret in spec.image_pull_secrets.iter().flatten() {
        walk.secret(&secret.name, true, &UsedBy::ImagePull);
    }
    for volume in spec.volumes.iter().flatten() {
        walk.volume(volume);
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        walk.environment(&container.name, container.env.as_deref(), container.env_from.as_deref());
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        walk.environment(&container.name, container.env.as_deref(), container.env_from.as_deref());
    }
    walk.found
}

struct Walk<'a> {
    uid: &'a str,
    found: Needs,
}

impl Walk<'_> {
    fn config_map(&mut self, name: &str, optional: bool, used_by: &UsedBy) {
        if name == KUBE_ROOT_CA_CONFIG_MAP {
            self.found.root_ca = true;
        } else {
            note(&mut self.found.config_maps, name, optional, used_by);
        }
    }

    fn secret(&mut self, name: &str, optional: bool, used_by: &UsedBy) {
        note(&mut self.found.secrets, name, optional, used_by);
    }

    fn volume(&mut self, volume: &Volume) {
        let used_by = UsedBy::Volume(volume.name.clone());
        if let Some(source) = &volume.config_map {
            self.config_map(&source.name, source.optional.unwrap_or(false), &used_by);
        }
        if let Some(source) = &volume.secret {
            self.secret(source.secret_name.as_deref().unwrap_or_default(), source.optional.unwrap_or(false), &used_by);
        }
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            self.projection(&volume.name, source);
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            self.found.claims.insert(claim.claim_name.clone());
        }
        // Sources whose driver on the node reads a Secret of the pod's namespace.
        let by_driver: [Option<&LocalObjectReference>; 8] = [
            volume.csi.as_ref().and_then(|source| source.node_publish_secret_ref.as_ref()),
            volume.flex_volume.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.cephfs.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.rbd.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.iscsi.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.scale_io.as_ref().map(|source| &source.secret_ref),
            volume.storageos.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.cinder.as_ref().and_then(|source| source.secret_ref.as_ref()),
        ];
        for reference in by_driver.into_iter().flatten() {
            self.secret(&reference.name, false, &used_by);
        }
        if let Some(source) = &volume.azure_file {
            self.secret(&source.secret_name, false, &used_by);
        }
    }

    fn projection(&mut self, volume: &str, source: &VolumeProjection) {
        let used_by = UsedBy::Volume(volume.to_owned());
        if let Some(source) = &source.config_map {
            self.config_map(&source.name, source.optional.unwrap_or(false), &used_by);
        }
        if let Some(source) = &source.secret {
            self.secret(&source.name, source.optional.unwrap_or(false), &used_by);
        }
        if let Some(source) = &source.service_account_token {
            self.found.tokens.push(TokenNeed {
                volume: volume.to_owned(),
                secret: token_secret_name(self.uid, volume),
                key: token_secret_key(&source.path),
                path: source.path.clone(),
                audience: source.audience.clone().filter(|audience| !audience.is_empty()),
                expiration_seconds: source.expiration_seconds.unwrap_or(TOKEN_EXPIRATION_SECONDS_DEFAULT),
            });
        }
    }

    fn environment(&mut self, container: &str, env: Option<&[EnvVar]>, env_from: Option<&[EnvFromSource]>) {
        let used_by = UsedBy::Env(container.to_owned());
        for source in env.into_iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            if let Some(key) = &source.config_map_key_ref {
                self.config_map(&key.name, key.optional.unwrap_or(false), &used_by);
            }
            if let Some(key) = &source.secret_key_ref {
                self.secret(&key.name, key.optional.unwrap_or(false), &used_by);
            }
        }
        for source in env_from.into_iter().flatten() {
            if let Some(source) = &source.config_map_ref {
                self.config_map(&source.name, source.optional.unwrap_or(false), &used_by);
            }
            if let Some(source) = &source.secret_ref {
                self.secret(&source.name, source.optional.unwrap_or(false), &used_by);
            }
        }
    }
}

fn note(found: &mut BTreeMap<String, Need>, name: &str, optional: bool, used_by: &UsedBy) {
    // Names were optional in older APIs; an empty one refers to nothing.
    if name.is_empty() {
        return;
    }
    match found.get_mut(name) {
        Some(known) if known.optional && !optional => *known = Need { optional, used_by: used_by.clone() },
        Some(_) => {}
        None => {
            found.insert(name.to_owned(), Need { optional, used_by: used_by.clone() });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: &serde_json::Value) -> Needs {
        needs(&serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"}, "spec": spec})).unwrap())
    }

    fn names<T>(map: &BTreeMap<String, T>) -> Vec<&str> {
        map.keys().map(String::as_str).collect()
    }

    #[test]
    fn references_are_found_wherever_they_stand() {
        let env = |suffix: &str| {
            json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": format!("cm-{suffix}"), "key": "k"}}},
                   {"name": "B", "valueFrom": {"secretKeyRef": {"name": format!("s-{suffix}"), "key": "k"}}}])
        };
        let env_from = |suffix: &str| json!([{"configMapRef": {"name": format!("cmf-{suffix}")}}, {"secretRef": {"name": format!("sf-{suffix}")}}]);
        let container = |name: &str| json!({"name": name, "env": env(name), "envFrom": env_from(name)});
        let found = of(&json!({
            "containers": [container("main")], "initContainers": [container("init")],
            "ephemeralContainers": [container("debug")],
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "1", "configMap": {"name": "cm-v"}}, {"name": "2", "secret": {"secretName": "s-v"}},
                {"name": "3", "projected": {"sources": [
                    {"configMap": {"name": "cm-p"}}, {"secret": {"name": "s-p"}},
                    {"configMap": {"name": "kube-root-ca.crt"}},
                    {"serviceAccountToken": {"path": "token"}}]}},
                {"name": "4", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s-csi"}}},
                {"name": "5", "flexVolume": {"driver": "d", "secretRef": {"name": "s-flex"}}},
                {"name": "6", "azureFile": {"secretName": "s-azure", "shareName": "x"}},
                {"name": "7", "cephfs": {"monitors": [], "secretRef": {"name": "s-ceph"}}},
                {"name": "8", "rbd": {"monitors": [], "image": "x", "secretRef": {"name": "s-rbd"}}},
                {"name": "9", "iscsi": {"targetPortal": "", "iqn": "", "lun": 0, "secretRef": {"name": "s-iscsi"}}},
                {"name": "10", "scaleIO": {"gateway": "", "system": "", "secretRef": {"name": "s-scaleio"}}},
                {"name": "11", "storageos": {"secretRef": {"name": "s-storageos"}}},
                {"name": "12", "cinder": {"volumeID": "", "secretRef": {"name": "s-cinder"}}},
                {"name": "13", "persistentVolumeClaim": {"claimName": "data"}}]
        }));
        assert_eq!(
            names(&found.config_maps),
            ["cm-debug", "cm-init", "cm-main", "cm-p", "cm-v", "cmf-debug", "cmf-init", "cmf-main"]
        );
        assert_eq!(
            names(&found.secrets),
            [
                "pull",
                "s-azure",
                "s-ceph",
                "s-cinder",
                "s-csi",
                "s-debug",
                "s-flex",
                "s-init",
                "s-iscsi",
                "s-main",
                "s-p",
                "s-rbd",
                "s-scaleio",
                "s-storageos",
                "s-v",
                "sf-debug",
                "sf-init",
                "sf-main"
            ]
        );
        assert!(found.root_ca);
        assert_eq!(found.claims, BTreeSet::from(["data".to_owned()]));
        assert_eq!(found.tokens.len(), 1);
        assert_eq!(found.tokens[0].secret, token_secret_name("u", "3"));
        assert_eq!(found.tokens[0].expiration_seconds, 3600);
    }

    #[test]
    fn the_strictest_use_counts() {
        let found = of(&json!({
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "x"}}]}],
            "volumes": [{"name": "v", "configMap": {"name": "x", "optional": true}},
                        {"name": "w", "configMap": {"name": "y", "optional": true}}]
        }));
        assert_eq!(found.config_maps["x"], Need { optional: false, used_by: UsedBy::Env("c".into()) });
        assert_eq!(found.config_maps["y"], Need { optional: true, used_by: UsedBy::Volume("w".into()) });
    }

    #[test]
    fn a_pod_without_references_needs_nothing() {
        assert!(of(&json!({"containers": [{"name": "c", "image": "i"}]})).is_empty());
    }
}
