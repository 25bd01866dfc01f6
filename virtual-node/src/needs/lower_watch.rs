//! Watching the copies below, metadata only: what somebody edits or deletes there is put right.

use std::{collections::HashSet, time::Duration};

use futures::StreamExt;
use kube::{
    Api,
    api::PartialObjectMeta,
    runtime::watcher::{self, Event, watcher},
};
use tensile_chassis::retry::Backoff;
use tensile_proto::vocabulary::label;
use tracing::{debug, warn};

use super::{
    book::{Kind, NeedKey, Standing},
    leftovers::need_key,
    mirrored::Mirrored,
    plan::Purpose,
    shared::Shared,
};

/// A watch is renewed within this time: Azure's balancers cut idle connections at 240 s.
pub(super) const WATCH_SECONDS_MAX: u32 = 200;

/// The first wait after a watch failed.
pub(super) const BACKOFF_INITIAL: Duration = Duration::from_millis(200);

/// The longest wait after a watch failed.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Runs for ever.
pub(super) async fn run<K: Mirrored>(shared: &Shared, kinds: &[Kind]) {
    let api: Api<PartialObjectMeta<K>> = Api::all(shared.lower.clone());
    // Tokens are left out: `token_watch` sees to those of this virtual node.
    let selector = format!(
        "{}={},{} in ({},{})",
        label::UPPER_CLUSTER,
        shared.settings.upper_cluster_uid,
        label::NEED,
        Purpose::Copy.as_str(),
        Purpose::RootCa.as_str()
    );
    let config = watcher::Config::default().labels(&selector).timeout(WATCH_SECONDS_MAX);
    let begin = || Box::pin(watcher(api.clone(), config.clone()));
    let mut events = begin();
    let mut backoff = Backoff::new(BACKOFF_INITIAL, BACKOFF_MAX);
    let mut listed: HashSet<NeedKey> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // `Init` comes before the list is asked for: it says nothing of the API server, and taking it for an
                // answer would ask one that refuses again without a pause.
                if backoff.failures() > 0 && !matches!(event, Event::Init) {
                    debug!(kind = K::WORD, "the watch on our copies is back");
                    backoff.reset();
                }
                take(shared, kinds, &mut listed, event);
            }
            Err(error) => {
                if backoff.failures() == 0 {
                    warn!(kind = K::WORD, %error, "the watch on our copies in the lower cluster failed; it is tried again");
                }
                tokio::time::sleep(backoff.next_delay()).await;
                // With a list: after a restore from a backup the API server would take a watch from a version that it has
                // not reached again, and be silent.
                events = begin();
            }
        }
    }
}

fn take<K: Mirrored>(
    shared: &Shared,
    kinds: &[Kind],
    listed: &mut HashSet<NeedKey>,
    event: Event<PartialObjectMeta<K>>,
) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => {
            seen(shared, &object, false);
            listed.extend(need_key(K::WORD, &object.metadata));
        }
        Event::InitDone => {
            // What was taken for present and is not in the list was deleted while nobody watched.
            for entry in shared.book.of_kind(kinds) {
                if entry.standing() == Standing::Ready && !listed.contains(&entry.key) {
                    entry.lower_seen(None);
                }
            }
            listed.clear();
        }
        Event::Apply(object) => seen(shared, &object, false),
        Event::Delete(object) => seen(shared, &object, true),
    }
}

fn seen<K: Mirrored>(shared: &Shared, object: &PartialObjectMeta<K>, deleted: bool) {
    let Some(entry) = need_key(K::WORD, &object.metadata).and_then(|key| shared.book.entry(&key)) else { return };
    let version = if deleted { None } else { object.metadata.resource_version.as_deref() };
    entry.lower_seen(version);
}
