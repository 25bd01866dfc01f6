//! The pure half of tokens: what to ask for, when to ask again, and how the Secret below looks.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use sha2::{Digest, Sha256};
use tensile_proto::vocabulary::annotation;

use super::plan::{Purpose, sign};
use crate::{names::Key, owner::OwnerMark, translate::TokenNeed};

/// A token is replaced when this part of its life is left (`K pkg/kubelet/token/token_manager.go`).
const REFRESH_LEFT_PERCENT: i64 = 20;

/// A token is replaced after a day, however long it may live (same source).
const AGE_SECONDS_MAX: i64 = 24 * 3600;

/// Refreshes are spread over this time, so that pods of one burst do not come back in one (same source).
const JITTER_SECONDS_MAX: f64 = 10.0;

/// A token that the upper API server issued, with the time it is good until.
pub(super) struct Issued {
    /// Key in the Secret.
    pub(super) key: String,
    /// The token. Never logged: this type has no Debug.
    pub(super) token: String,
    /// Life that was granted, in seconds; the API server may shorten or lengthen what was asked for.
    pub(super) life_seconds: i64,
    /// When it expires.
    pub(super) expires: Timestamp,
}

/// When the tokens of one Secret end and are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// When the first of them expires.
    pub(super) expires: Timestamp,
    /// When to ask for new ones.
    pub(super) refresh: Timestamp,
}

impl Schedule {
    /// The schedule of tokens that live in one Secret: that of the one that is due first. `None` without tokens.
    /// `random` is uniform in 0..1.
    pub(super) fn of(tokens: &[Issued], random: f64) -> Option<Self> {
        let jitter = SignedDuration::from_secs_f64(JITTER_SECONDS_MAX * random);
        let due = |token: &Issued| {
            let life = SignedDuration::from_secs(token.life_seconds);
            let by_life = token.expires - SignedDuration::from_secs(token.life_seconds * REFRESH_LEFT_PERCENT / 100);
            let by_age = token.expires - life + SignedDuration::from_secs(AGE_SECONDS_MAX);
            by_life.min(by_age) - jitter
        };
        Some(Self { expires: tokens.iter().map(|token| token.expires).min()?, refresh: tokens.iter().map(due).min()? })
    }

    /// Reads what a Secret below says.
    pub(super) fn read(meta: &ObjectMeta) -> Option<Self> {
        let annotations = meta.annotations.as_ref()?;
        let time = |name: &str| annotations.get(name)?.parse().ok();
        Some(Self { expires: time(annotation::TOKEN_EXPIRES)?, refresh: time(annotation::TOKEN_REFRESH)? })
    }

    /// What the Secret below says, as annotations.
    pub(super) fn annotations(&self) -> [(String, String); 2] {
        [
            (annotation::TOKEN_EXPIRES.into(), self.expires.to_string()),
            (annotation::TOKEN_REFRESH.into(), self.refresh.to_string()),
        ]
    }
}

/// The request for one token, bound to the upper pod: it dies with the pod.
pub(super) fn request(need: &TokenNeed, pod: &Key, uid: &str) -> TokenRequest {
    TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: need.audience.clone().map(|audience| vec![audience]),
            expiration_seconds: Some(need.expiration_seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name.clone()),
                uid: Some(uid.to_owned()),
            }),
        }),
        ..TokenRequest::default()
    }
}

/// Reads the answer; `None` when it holds no token.
pub(super) fn issued(need: &TokenNeed, answer: TokenRequest) -> Option<Issued> {
    let status = answer.status?;
    let granted = answer.spec.and_then(|spec| spec.expiration_seconds);
    Some(Issued {
        key: need.key.clone(),
        token: status.token?,
        life_seconds: granted.unwrap_or(need.expiration_seconds),
        expires: status.expiration_timestamp?.0,
    })
}

/// The data of the Secret.
pub(super) fn data(tokens: Vec<Issued>) -> BTreeMap<String, ByteString> {
    tokens.into_iter().map(|token| (token.key, ByteString(token.token.into_bytes()))).collect()
}

/// A digest of what is written, to know it again: the tokens themselves are not kept.
pub(super) fn digest(data: &BTreeMap<String, ByteString>) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in data.iter().flat_map(|(key, value)| [key.as_bytes(), &value.0]) {
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// The Secret below.
pub(super) fn secret(
    lower: &Key,
    mark: &OwnerMark,
    volume: &str,
    schedule: Schedule,
    data: BTreeMap<String, ByteString>,
) -> Secret {
    let mut meta = ObjectMeta {
        namespace: Some(lower.namespace.clone()),
        name: Some(lower.name.clone()),
        ..ObjectMeta::default()
    };
    sign(&mut meta, mark, Purpose::Token);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(annotation::TOKEN_VOLUME.into(), volume.to_owned());
    annotations.extend(schedule.annotations());
    Secret { metadata: meta, data: Some(data), type_: Some("Opaque".into()), ..Secret::default() }
}

/// The token files of a pod by the Secret that holds them.
pub(super) fn by_secret(needs: &[TokenNeed]) -> BTreeMap<&str, Vec<&TokenNeed>> {
    let mut secrets: BTreeMap<&str, Vec<&TokenNeed>> = BTreeMap::new();
    for need in needs {
        secrets.entry(&need.secret).or_default().push(need);
    }
    secrets
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn token(life_seconds: i64, expires: &str) -> Issued {
        Issued { key: "token".into(), token: "t".into(), life_seconds, expires: expires.parse().unwrap() }
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_due_when_a_fifth_of_its_life_is_left() {
        let schedule = Schedule::of(&[token(3600, "2026-01-01T01:00:00Z")], 0.0).unwrap();
        assert_eq!(schedule.refresh, time("2026-01-01T00:48:00Z"));
        assert_eq!(schedule.expires, time("2026-01-01T01:00:00Z"));
    }

    #[test]
    fn jitter_makes_it_earlier_and_never_later() {
        let schedule = Schedule::of(&[token(3600, "2026-01-01T01:00:00Z")], 1.0).unwrap();
        assert_eq!(schedule.refresh, time("2026-01-01T00:47:50Z"));
    }

    #[test]
    fn a_long_lived_token_is_due_after_a_day() {
        let schedule = Schedule::of(&[token(31 * 24 * 3600, "2026-02-01T00:00:00Z")], 0.0).unwrap();
        assert_eq!(schedule.refresh, time("2026-01-02T00:00:00Z"));
    }

    #[test]
    fn the_first_that_is_due_leads() {
        let tokens = [token(3600, "2026-01-01T01:00:00Z"), token(600, "2026-01-01T00:10:00Z")];
        let schedule = Schedule::of(&tokens, 0.0).unwrap();
        assert_eq!(schedule, Schedule { expires: time("2026-01-01T00:10:00Z"), refresh: time("2026-01-01T00:08:00Z") });
    }

    #[test]
    fn a_restart_reads_the_schedule_from_the_secret() {
        let schedule = Schedule::of(&[token(3600, "2026-01-01T01:00:00Z")], 0.5).unwrap();
        let mark = OwnerMark {
            cluster: "c".into(),
            uid: "u".into(),
            virtual_node: "n".into(),
            key: Key::new("team", "web-0"),
        };
        let secret = secret(&Key::new("team", "tensile-token-1"), &mark, "api", schedule, BTreeMap::new());
        assert_eq!(Schedule::read(&secret.metadata), Some(schedule));
        assert_eq!(OwnerMark::read(&secret.metadata), Some(mark));
        assert_eq!(Purpose::read(&secret.metadata), Some(Purpose::Token));
    }
}
