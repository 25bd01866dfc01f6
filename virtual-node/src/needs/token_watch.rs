//! Watching the token Secrets below, metadata only: one that somebody deletes or edits is put right at once, for a pod
//! whose token is gone cannot start its next container.
//!
//! Our own writes are heard here too, often before their answer is. So what is heard is compared with what was written
//! once no write is under way, and a difference is only a doubt: a live read resolves it.

use std::collections::HashSet;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{ObjectMeta, PartialObjectMeta},
    runtime::watcher::{self, Event, watcher},
};
use tensile_chassis::retry::Backoff;
use tensile_proto::vocabulary::label;
use tracing::{debug, info, warn};

use super::{
    lower_watch::{BACKOFF_INITIAL, BACKOFF_MAX, WATCH_SECONDS_MAX},
    plan::Purpose,
    shared::Shared,
    token_plan::{self, Schedule},
    token_writes,
    tokens::{Tokens, Volume, Written},
    trouble,
};
use crate::{names::Key, owner::OwnerMark};

/// Doubts resolved at once.
const READS_MAX: usize = 8;

/// What was heard of a token Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It stands there in this version.
    Version(Option<String>),
    /// It is gone.
    Gone,
}

/// Runs for ever.
pub(super) async fn run(shared: &Shared) {
    let api: Api<PartialObjectMeta<Secret>> = Api::all(shared.lower.clone());
    let selector = format!(
        "{}={},{}={},{}={}",
        label::UPPER_CLUSTER,
        shared.settings.upper_cluster_uid,
        label::VIRTUAL_NODE,
        shared.settings.node_name,
        label::NEED,
        Purpose::Token.as_str()
    );
    let config = watcher::Config::default().labels(&selector).timeout(WATCH_SECONDS_MAX);
    let begin = || Box::pin(watcher(api.clone(), config.clone()));
    let mut events = begin();
    let mut backoff = Backoff::new(BACKOFF_INITIAL, BACKOFF_MAX);
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // `Init` comes before the list is asked for, so it is no answer.
                if backoff.failures() > 0 && !matches!(event, Event::Init) {
                    debug!("the watch on our tokens is back");
                    backoff.reset();
                }
                take(&shared.tokens, &mut listed, event);
            }
            Err(error) => {
                if backoff.failures() == 0 {
                    warn!(%error, "the watch on our tokens in the lower cluster failed; it is tried again");
                }
                tokio::time::sleep(backoff.next_delay()).await;
                // With a list, as in `lower_watch`.
                events = begin();
            }
        }
    }
}

fn take(tokens: &Tokens, listed: &mut HashSet<Key>, event: Event<PartialObjectMeta<Secret>>) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => {
            listed.insert(place(&object.metadata));
            tokens.hear(&object.metadata, Heard::Version(object.metadata.resource_version.clone()));
        }
        Event::InitDone => {
            tokens.hear_missing(listed);
            listed.clear();
        }
        Event::Apply(object) => {
            tokens.hear(&object.metadata, Heard::Version(object.metadata.resource_version.clone()));
        }
        Event::Delete(object) => tokens.hear(&object.metadata, Heard::Gone),
    }
}

fn place(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Whether what was heard, if anything, differs from what was written.
fn is_doubtful(volume: &mut Volume) -> bool {
    if volume.writing {
        return false;
    }
    match (volume.heard.take(), &volume.written) {
        (None, _) | (_, None) => false,
        (Some(Heard::Gone), Some(written)) => written.uid.is_some(),
        (Some(Heard::Version(version)), Some(written)) => version != written.version,
    }
}

impl Tokens {
    /// Takes in what happened to a token Secret.
    fn hear(&self, meta: &ObjectMeta, heard: Heard) {
        let Some(mark) = OwnerMark::read(meta) else { return };
        let secret = place(meta);
        self.with_volume(&mark.uid, &secret, |volume| volume.heard = Some(heard));
    }

    /// Takes in a whole list: what is not in it may be gone, or newer than it.
    fn hear_missing(&self, listed: &HashSet<Key>) {
        let missing: Vec<(String, Key)> = {
            let pods = self.pods.lock();
            let volumes = pods.iter().flat_map(|(uid, tokens)| tokens.volumes.iter().map(move |volume| (uid, volume)));
            let missing = volumes.filter(|(_, volume)| !listed.contains(&volume.secret));
            missing.map(|(uid, volume)| (uid.clone(), volume.secret.clone())).collect()
        };
        for (uid, secret) in missing {
            self.with_volume(&uid, &secret, |volume| volume.heard = Some(Heard::Gone));
        }
    }

    /// A write begins: what is heard meanwhile is compared with its outcome.
    pub(super) fn begin_write(&self, pod_uid: &str, secret: &Key) {
        self.with_volume(pod_uid, secret, |volume| volume.writing = true);
    }

    /// A write has ended; `None` when nothing is known to have been written. False when nobody uses the Secret any more.
    pub(super) fn end_write(&self, pod_uid: &str, secret: &Key, written: Option<Written>) -> bool {
        self.with_volume(pod_uid, secret, |volume| {
            volume.writing = false;
            if written.is_some() {
                volume.written = written;
            }
        })
    }

    /// Changes a volume, and notes a doubt where one comes of it. False when there is no such volume.
    fn with_volume(&self, pod_uid: &str, secret: &Key, change: impl FnOnce(&mut Volume)) -> bool {
        let mut pods = self.pods.lock();
        let volumes = pods.get_mut(pod_uid).map(|tokens| tokens.volumes.iter_mut());
        let Some(volume) = volumes.into_iter().flatten().find(|volume| volume.secret == *secret) else { return false };
        change(volume);
        if is_doubtful(volume) {
            self.doubts.lock().insert((pod_uid.to_owned(), secret.clone()));
            self.doubted.notify_one();
        }
        true
    }

    /// Looks at the Secrets in doubt. What is not there, or not as written, is due at once.
    pub(super) async fn resolve_doubts(&self, shared: &Shared) {
        let doubts = std::mem::take(&mut *self.doubts.lock());
        futures::stream::iter(doubts)
            .for_each_concurrent(READS_MAX, |(pod_uid, secret)| async move {
                if !self.knows(&pod_uid) {
                    return;
                }
                match token_writes::read(shared, &secret).await {
                    Ok(found) => self.looked_at(&pod_uid, &secret, found.as_ref()),
                    Err(error) => {
                        debug!(%secret, error = trouble::message(&error), "could not look at a token yet");
                        // Without a word to the loop, which comes back by itself.
                        self.doubts.lock().insert((pod_uid, secret));
                    }
                }
            })
            .await;
    }

    fn looked_at(&self, pod_uid: &str, secret: &Key, found: Option<&Secret>) {
        let now = self.clock.now();
        self.with_volume(pod_uid, secret, |volume| {
            if volume.writing {
                return;
            }
            let Some(written) = &mut volume.written else { return };
            match found {
                Some(found) if is_as_written(found, written) => {
                    written.uid.clone_from(&found.metadata.uid);
                    written.version.clone_from(&found.metadata.resource_version);
                    // Who wants new tokens at once says so there.
                    if let Some(schedule) = Schedule::read(&found.metadata) {
                        written.schedule = schedule;
                    }
                }
                Some(_) => {
                    info!(%secret, "a token was changed in the lower cluster by somebody; it is written anew");
                    written.schedule.refresh = now;
                }
                None => {
                    info!(%secret, "a token is gone from the lower cluster; it is made anew");
                    *written = Written::lost(Schedule { expires: now, refresh: now });
                }
            }
        });
    }
}

/// Whether a Secret holds what was written; where that is not known, it is believed.
fn is_as_written(found: &Secret, written: &Written) -> bool {
    let same_content = match (&written.digest, &found.data) {
        (None, _) => true,
        (Some(digest), Some(data)) => token_plan::digest(data) == *digest,
        (Some(_), None) => false,
    };
    let same_object = written.uid.is_none() || written.uid == found.metadata.uid;
    same_content && same_object
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn volume() -> Volume {
        let now = Timestamp::UNIX_EPOCH;
        let mut written = Written::lost(Schedule { expires: now, refresh: now });
        written.uid = Some("u".to_owned());
        written.version = Some("5".to_owned());
        Volume {
            secret: Key::new("team", "tensile-token-1"),
            needs: Vec::new(),
            written: Some(written),
            writing: false,
            heard: None,
        }
    }

    fn version(version: &str) -> Heard {
        Heard::Version(Some(version.to_owned()))
    }

    #[test]
    fn what_was_written_is_no_doubt_and_all_else_is() {
        for (heard, doubtful) in [(version("5"), false), (version("6"), true), (Heard::Gone, true)] {
            let mut volume = Volume { heard: Some(heard.clone()), ..volume() };
            assert_eq!(is_doubtful(&mut volume), doubtful, "{heard:?}");
            assert!(!is_doubtful(&mut volume), "said once");
        }
    }

    #[test]
    fn what_is_heard_during_a_write_is_judged_by_its_outcome() {
        let mut volume = Volume { writing: true, heard: Some(version("6")), ..volume() };
        assert!(!is_doubtful(&mut volume));
        volume.writing = false;
        if let Some(written) = &mut volume.written {
            written.version = Some("6".to_owned());
        }
        assert!(!is_doubtful(&mut volume));
    }

    #[test]
    fn a_secret_that_is_known_to_be_gone_is_not_gone_again() {
        let now = Timestamp::UNIX_EPOCH;
        let lost = Some(Written::lost(Schedule { expires: now, refresh: now }));
        assert!(!is_doubtful(&mut Volume { heard: Some(Heard::Gone), written: lost, ..volume() }));
    }
}
