//! Volumes below: tokens, the CA and the pod's own metadata come from objects of ours; what has no counterpart is refused.

use k8s_openapi::api::core::v1::{KeyToPath, SecretProjection, Volume, VolumeProjection};
use sha2::{Digest, Sha256};

use super::{KUBE_ROOT_CA_CONFIG_MAP, ROOT_CA_CONFIG_MAP, Refusal, downward};

/// Lifetime of a projected token whose spec names none, in seconds (`K pkg/apis/core/v1/defaults.go`, 1 hour).
pub(super) const TOKEN_EXPIRATION_SECONDS_DEFAULT: i64 = 3600;

/// Hex digits of the hash in a token Secret's name: 40 bits keep 10,000 such Secrets of one namespace apart with a
/// probability above 0.9999; a clash would be refused by the owner mark, not overwritten.
const TOKEN_NAME_DIGITS: usize = 10;

/// Longest key of a Secret (a DNS subdomain).
const SECRET_KEY_LENGTH_MAX: usize = 253;

/// Name of the Secret below that holds the tokens of one volume of one upper pod.
pub fn token_secret_name(upper_uid: &str, volume: &str) -> String {
    format!("tensile-token-{}", short_hash(&format!("{upper_uid}{volume}")))
}

/// Key of a token file in its Secret: the path where that is a valid key, else a hash of it (paths may hold slashes).
pub fn token_secret_key(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = !path.is_empty() && !path.starts_with("..") && path != "." && path.len() <= SECRET_KEY_LENGTH_MAX;
    if valid && path.bytes().all(plain) { path.to_owned() } else { format!("path-{}", short_hash(path)) }
}

fn short_hash(text: &str) -> String {
    let mut digits = hex::encode(Sha256::digest(text.as_bytes()));
    digits.truncate(TOKEN_NAME_DIGITS);
    digits
}

/// Translates one volume in place.
///
/// # Errors
/// Reason `VolumesNotSupported` for sources that cannot mean the same thing below.
pub(super) fn map_volume(volume: &mut Volume, upper_uid: &str) -> Result<(), Refusal> {
    refuse_unsupported(volume)?;
    if let Some(source) = &mut volume.config_map {
        map_config_map_name(&mut source.name);
    }
    for file in volume.downward_api.iter_mut().flat_map(|source| source.items.iter_mut().flatten()) {
        downward::map_file(file);
    }
    let secret = token_secret_name(upper_uid, &volume.name);
    for source in volume.projected.iter_mut().flat_map(|projected| projected.sources.iter_mut().flatten()) {
        map_projection(source, &secret);
    }
    Ok(())
}

/// References to the cluster's CA go to the ConfigMap that holds the upper one.
pub(super) fn map_config_map_name(name: &mut String) {
    if name == KUBE_ROOT_CA_CONFIG_MAP {
        ROOT_CA_CONFIG_MAP.clone_into(name);
    }
}

fn map_projection(source: &mut VolumeProjection, token_secret: &str) {
    if let Some(config_map) = &mut source.config_map {
        map_config_map_name(&mut config_map.name);
    }
    for file in source.downward_api.iter_mut().flat_map(|downward| downward.items.iter_mut().flatten()) {
        downward::map_file(file);
    }
    if let Some(token) = source.service_account_token.take() {
        let item = KeyToPath { key: token_secret_key(&token.path), path: token.path, mode: None };
        source.secret =
            Some(SecretProjection { name: token_secret.to_owned(), items: Some(vec![item]), optional: None });
    }
}

/// Refuses sources that cannot mean the same thing below.
pub(super) fn refuse_unsupported(volume: &Volume) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new("VolumesNotSupported", message));
    if let Some(claim) = &volume.persistent_volume_claim {
        return refuse(format!(
            "volume {:?}: PersistentVolumeClaim {:?} cannot follow the pod into the lower cluster yet; use a volume that \
             the lower nodes mount themselves (csi, nfs, emptyDir, hostPath) or keep the pod off virtual nodes",
            volume.name, claim.claim_name
        ));
    }
    if volume.ephemeral.is_some() {
        return refuse(format!(
            "volume {:?}: generic ephemeral volumes are claims and cannot follow the pod into the lower cluster yet; use \
             emptyDir or an inline csi volume, or keep the pod off virtual nodes",
            volume.name
        ));
    }
    let certificate = |projection: &VolumeProjection| projection.pod_certificate.is_some();
    if volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()).any(certificate) {
        return refuse(format!(
            "volume {:?}: a projected podCertificate would be signed by the lower cluster for the lower pod's identity; \
             use a serviceAccountToken, which is the upper cluster's, or keep the pod off virtual nodes",
            volume.name
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mapped(volume: Value) -> Result<Value, Refusal> {
        let mut volume: Volume = serde_json::from_value(volume).unwrap();
        map_volume(&mut volume, "uid-1").map(|()| serde_json::to_value(volume).unwrap())
    }

    #[test]
    fn the_api_access_volume_points_to_our_objects() {
        let name = token_secret_name("uid-1", "kube-api-access-x");
        assert_eq!(
            mapped(json!({"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}}))
            .unwrap(),
            json!({"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
                {"secret": {"name": name, "items": [{"key": "token", "path": "token"}]}},
                {"configMap": {"name": "tensile-root-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1",
                    "fieldPath": "metadata.annotations['tensile.dev/upper-namespace']"}}]}}]}})
        );
    }

    #[test]
    fn token_names_depend_on_pod_and_volume() {
        let name = token_secret_name("uid-1", "v");
        assert_eq!(name, token_secret_name("uid-1", "v"));
        assert_ne!(name, token_secret_name("uid-2", "v"));
        assert_ne!(name, token_secret_name("uid-1", "w"));
        assert_eq!(name.len(), "tensile-token-".len() + TOKEN_NAME_DIGITS);
    }

    #[test]
    fn token_keys_are_valid_secret_keys() {
        assert_eq!(token_secret_key("token"), "token");
        assert!(token_secret_key("a/b").starts_with("path-"));
        assert_ne!(token_secret_key("a/b"), token_secret_key("a/c"));
        assert!(token_secret_key("..data").starts_with("path-"));
    }

    #[test]
    fn claims_are_refused_by_name() {
        let refusal = mapped(json!({"name": "v", "persistentVolumeClaim": {"claimName": "data-0"}})).unwrap_err();
        assert_eq!(refusal.reason, "VolumesNotSupported");
        assert!(refusal.message.contains("data-0"), "{refusal}");
        assert!(mapped(json!({"name": "v", "ephemeral": {}})).is_err());
        let certificate = json!({"signerName": "s", "keyType": "ECDSAP256"});
        assert!(mapped(json!({"name": "v", "projected": {"sources": [{"podCertificate": certificate}]}})).is_err());
    }

    #[test]
    fn other_volumes_pass() {
        for volume in [
            json!({"name": "v", "hostPath": {"path": "/x"}}),
            json!({"name": "v", "secret": {"secretName": "s", "optional": true}}),
            json!({"name": "v", "configMap": {"name": "c", "defaultMode": 292}}),
        ] {
            assert_eq!(mapped(volume.clone()).unwrap(), volume);
        }
    }
}
