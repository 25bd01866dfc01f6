//! How to reach one cluster and as whom, while both change.
//!
//! ```text
//!  files, plugin, issuer ──▶ Kept (looks, proves, takes) ──▶ Snapshot ◀── Endpoint of each client, for each request
//! ```
//!
//! Clients are made once and hand-me-downs of them live everywhere; what changes is the snapshot that they look up. A
//! request that is refused with 401 asks for a newer snapshot, and is sent again if there is one.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use http::{HeaderMap, Uri};
use jiff::{SignedDuration, Timestamp};
use kube::Config;
use parking_lot::Mutex;

use super::{
    BuildError,
    connect::{Connector, HttpVersions, Pings},
    credential::{CredentialError, Means, Obtained, Pair, Parts, headers_of},
    kept::Kept,
};

/// How long before its end a credential is replaced, at most; a fifth of its life if that is less.
const RENEW_AHEAD_MAX: SignedDuration = SignedDuration::from_secs(60);
const RENEW_AHEAD_SHARE: i32 = 5;

/// A way to a cluster. It never changes; a newer one takes its place.
pub(super) struct Snapshot {
    /// Grows with each that takes another's place.
    pub(super) number: u64,
    /// Address, trust and client certificate. Shared by snapshots that differ in headers only, and so are connections.
    pub(super) connector: Arc<Connector>,
    /// Token and impersonation.
    pub(super) headers: HeaderMap,
    pair: Option<Pair>,
    expires: Option<Timestamp>,
    /// When to look for another.
    pub(super) renew_at: Option<Timestamp>,
}

/// Why there is no way to a cluster.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl Snapshot {
    /// The first one, or the one after `before`.
    pub(super) fn new(parts: &Parts, obtained: Obtained, before: Option<&Self>) -> Result<Self, Unusable> {
        let headers = headers_of(parts, &obtained)?;
        let same = before.filter(|before| before.connector.same_place(&parts.config) && before.pair == obtained.pair);
        let connector = match same {
            Some(before) => before.connector.clone(),
            None => Arc::new(connector(&parts.config, obtained.pair.as_ref())?),
        };
        let now = Timestamp::now();
        let renew_at = obtained.expires.map(|end| {
            let ahead = (end.duration_since(now) / RENEW_AHEAD_SHARE).min(RENEW_AHEAD_MAX);
            end.checked_sub(ahead).unwrap_or(end)
        });
        let number = before.map_or(0, |before| before.number + 1);
        Ok(Self { number, connector, headers, pair: obtained.pair, expires: obtained.expires, renew_at })
    }

    /// Whether nothing would change for requests.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connector, &other.connector) && self.headers == other.headers && self.expires == other.expires
    }

    /// Whether both lead to one place.
    pub(super) fn same_place(&self, other: &Self) -> bool {
        self.connector.same_place(other.connector.config())
    }
}

/// Checks that connections can be made, by making a pool.
fn connector(config: &Config, pair: Option<&Pair>) -> Result<Connector, BuildError> {
    let mut config = config.clone();
    config.auth_info = pair.map(Pair::auth_info).unwrap_or_default();
    let connector = Connector::new(config)?;
    connector.transport(HttpVersions::Http1, Pings::default())?;
    Ok(connector)
}

/// A way to a cluster that is followed as it changes. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Access {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) current: ArcSwap<Snapshot>,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// Never changes.
    Fixed,
    /// Read from files; renewed.
    Kept(Box<Kept>),
    /// Another's place with a certificate of its own.
    Derived(Derived),
}

/// The place of `parent` with another certificate.
pub(super) struct Derived {
    parent: Access,
    /// The certificate, and the parent's connector that the present snapshot is made from.
    state: Mutex<(Pair, Arc<Connector>)>,
}

impl Access {
    /// A way that never changes. Its credentials must be at hand: a plugin or an issuer is not asked.
    pub(super) fn fixed(config: Config) -> Result<Self, BuildError> {
        let unusable = |error: Unusable| match error {
            Unusable::Build(error) => error,
            Unusable::Credential(error) => BuildError::Credential(error),
        };
        let parts = Parts::of(config).map_err(BuildError::Credential)?;
        let Means::Known(known) = &parts.means else { return Err(BuildError::Asks) };
        let snapshot = Snapshot::new(&parts, known.clone(), None).map_err(unusable)?;
        Ok(Self::with(snapshot, Kind::Fixed))
    }

    pub(super) fn with(first: Snapshot, kind: Kind) -> Self {
        Self { inner: Arc::new(Inner { current: ArcSwap::from_pointee(first), kind }) }
    }

    /// The same place, with this client certificate instead of this access's own credentials. It follows when the
    /// place changes (another address, another CA).
    pub fn with_certificate(&self, certificate_pem: &str, key_pem: &str) -> Result<Self, BuildError> {
        let pair = pair(certificate_pem, key_pem)?;
        let based_on = self.current().connector.clone();
        let snapshot = derived(based_on.config(), pair.clone(), None)?;
        let derived = Derived { parent: self.clone(), state: Mutex::new((pair, based_on)) };
        Ok(Self::with(snapshot, Kind::Derived(derived)))
    }

    /// Requests made from now on show this certificate. For an access of [`Access::with_certificate`].
    pub fn replace_certificate(&self, certificate_pem: &str, key_pem: &str) -> Result<(), BuildError> {
        let pair = pair(certificate_pem, key_pem)?;
        let Kind::Derived(of) = &self.inner.kind else { return Err(BuildError::NotDerived) };
        let mut state = of.state.lock();
        let snapshot = derived(state.1.config(), pair.clone(), Some(&self.inner.current.load_full()))?;
        state.0 = pair;
        self.inner.current.store(Arc::new(snapshot));
        Ok(())
    }

    /// The API server's address now.
    pub fn server(&self) -> Uri {
        self.current().connector.config().cluster_url.clone()
    }

    /// The namespace of the kubeconfig's context.
    pub(super) fn default_namespace(&self) -> String {
        self.current().connector.config().default_namespace.clone()
    }

    /// The way to take now.
    pub(super) fn current(&self) -> Arc<Snapshot> {
        if let Kind::Derived(of) = &self.inner.kind {
            self.follow(of);
        }
        self.inner.current.load_full()
    }

    fn follow(&self, of: &Derived) {
        let parent = of.parent.current();
        let mut state = of.state.lock();
        if Arc::ptr_eq(&state.1, &parent.connector) {
            return;
        }
        if !state.1.same_place(parent.connector.config()) {
            match derived(parent.connector.config(), state.0.clone(), Some(&self.inner.current.load_full())) {
                Ok(snapshot) => self.inner.current.store(Arc::new(snapshot)),
                Err(error) => tracing::error!(%error, "a certificate cannot be used at the new address of its cluster"),
            }
        }
        state.1 = parent.connector.clone();
    }

    /// Whether another credential may be had when this one is refused.
    pub(super) fn may_change(&self) -> bool {
        !matches!(self.inner.kind, Kind::Fixed)
    }

    /// The server refused the snapshot of this number with 401. A newer one, if there is one or can be had at once.
    pub(super) async fn after_refusal(&self, number: u64) -> Option<Arc<Snapshot>> {
        let newer = self.current();
        if newer.number > number {
            return Some(newer);
        }
        let Kind::Kept(_) = &self.inner.kind else { return None };
        // A task of its own: the request may be given up, but others wait for the same answer.
        let this = self.clone();
        tokio::spawn(async move { this.renew_refused(number).await }).await.ok().flatten()
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("server", &self.server()).finish_non_exhaustive()
    }
}

fn pair(certificate_pem: &str, key_pem: &str) -> Result<Pair, BuildError> {
    Pair::new(certificate_pem.as_bytes(), key_pem.as_bytes(), "this process")
        .map_err(|reason| BuildError::Credential(CredentialError::Unusable(reason)))
}

fn derived(place: &Config, pair: Pair, before: Option<&Snapshot>) -> Result<Snapshot, BuildError> {
    let connector = Arc::new(connector(place, Some(&pair))?);
    let number = before.map_or(0, |before| before.number + 1);
    let (pair, headers) = (Some(pair), HeaderMap::new());
    Ok(Snapshot { number, connector, headers, pair, expires: None, renew_at: None })
}

/// What [`super::build`] takes: an [`Access`], or a configuration that never changes.
pub trait IntoAccess {
    /// Makes it one.
    fn into_access(self) -> Result<Access, BuildError>;
}

impl IntoAccess for &Access {
    fn into_access(self) -> Result<Access, BuildError> {
        Ok(self.clone())
    }
}

impl IntoAccess for Config {
    fn into_access(self) -> Result<Access, BuildError> {
        Access::fixed(self)
    }
}

/// An error with its causes; hyper keeps the interesting part in them.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
