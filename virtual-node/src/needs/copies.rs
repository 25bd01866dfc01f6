//! Keeping one ConfigMap or Secret equal below while pods need it, and taking it away after the last.
//!
//! One task for each object is its only writer, so no two writes cross. It is level-triggered: what was seen above, or
//! touched below, leads to one look at both sides and one decision ([`super::plan`]).

use std::{pin::pin, sync::Arc, time::Duration};

use kube::{
    Api,
    api::{DeleteParams, PartialObjectMeta, PostParams, Preconditions},
};
use tensile_chassis::retry::Backoff;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::{
    book::{Entry, NeedKey, Refused, Standing},
    mirrored::Mirrored,
    plan::{self, Action, Ownership},
    shared::{GRACE, RETRY_INITIAL, RETRY_MAX, STANDBY_INTERVAL, Shared, purpose},
    trouble::{self, Trouble},
    upper_watch::{Follower, Seen},
};
use crate::names::{Key, NamespaceMapping};

/// Failures shorter than this are not told: the Node authorizer lags behind a new pod, and a namespace may be just being
/// made.
const LOUD_AFTER: Duration = Duration::from_secs(3);

/// When an object is looked at again that a pod below still uses, though none of ours above: soon at first, for that pod
/// may be about to go; seldom later, for it may be another virtual node's.
const USED_LOOK_INITIAL: Duration = Duration::from_secs(1);
const USED_LOOK_MAX: Duration = Duration::from_mins(5);

/// Looks at both sides before a race counts as a failure and waits.
const RACES_MAX: usize = 4;

/// A time so far away that it never comes, for sleeps that are not wanted.
const NEVER: Duration = Duration::from_hours(365 * 24);

/// Runs until the object has no users and its copy is gone.
pub(super) async fn run<K: Mirrored>(shared: Arc<Shared>, entry: Arc<Entry>) {
    loop {
        if entry.idle_since().is_none() || entry.standing() != Standing::Unknown {
            keep_equal::<K>(&shared, &entry).await;
        }
        if take_away::<K>(&shared, &entry).await {
            return;
        }
    }
}

/// Keeps the copy equal until nobody has used it for the grace period.
async fn keep_equal<K: Mirrored>(shared: &Shared, entry: &Entry) {
    let mut upper = Follower::<K>::new(shared.pool.clone(), &entry.key.namespace, &entry.key.name);
    let mut unsettled: Option<Seen<K>> = None;
    let mut retry_at = Instant::now();
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
    let mut failing_since: Option<Instant> = None;
    // The copy was touched. Content is not kept in memory, so it is compared with a fresh read.
    let mut drifted = false;
    loop {
        let idle_at = entry.idle_since().map_or_else(|| Instant::now() + NEVER, |since| since + GRACE);
        let due = if drifted || unsettled.is_some() { retry_at } else { Instant::now() + NEVER };
        let mut failure = None;
        tokio::select! {
            () = sleep_until(idle_at) => return,
            () = sleep_until(due) => {}
            () = entry.nudge.notified() => {
                if entry.take_drifted() && !drifted {
                    drifted = true;
                    retry_at = Instant::now();
                }
                // Else users came or went: only the time of the next wake-up changes.
                continue;
            }
            seen = upper.next() => match seen {
                Ok(seen) => {
                    unsettled = Some(seen);
                    backoff.reset();
                }
                Err(message) => failure = Some(("FailedMount", message)),
            }
        }
        if drifted && unsettled.is_none() {
            match upper.read().await {
                Ok(seen) => unsettled = Some(seen),
                Err(error) => {
                    retry_at = Instant::now() + backoff.next_delay();
                    failure = Some(("FailedMount", trouble::message(&error)));
                }
            }
        }
        if let Some(seen) = &unsettled {
            drifted = false;
            match settle(shared, entry, seen).await {
                Ok(standing) => {
                    failing_since = None;
                    if matches!(standing, Standing::Refused(_)) {
                        // No watch tells when a foreign object goes away, so it is looked at again and again.
                        retry_at = Instant::now() + backoff.next_delay();
                    } else {
                        unsettled = None;
                        backoff.reset();
                    }
                    shared.publish(entry, standing);
                }
                Err(Unsettled::Later(wait)) => retry_at = Instant::now() + wait,
                Err(Unsettled::Failed(reason, message)) => {
                    retry_at = Instant::now() + backoff.next_delay();
                    failure = Some((reason, message));
                }
            }
        }
        if let Some((reason, message)) = failure {
            let since = *failing_since.get_or_insert_with(Instant::now);
            debug!(kind = K::WORD, namespace = entry.key.namespace, name = entry.key.name, %message, "not kept equal yet");
            if since.elapsed() >= LOUD_AFTER {
                shared.publish_unless_ready(entry, reason, message);
            }
        }
    }
}

/// Why an object is not settled.
enum Unsettled {
    /// Something else comes first: the namespace, or the leadership. To be looked at again after this time.
    Later(Duration),
    /// A request failed; reason and message for those who wait.
    Failed(&'static str, String),
}

/// Makes the lower side what the upper side says.
async fn settle<K: Mirrored>(shared: &Shared, entry: &Entry, seen: &Seen<K>) -> Result<Standing, Unsettled> {
    let key = &entry.key;
    if !(shared.may_write)() {
        return Err(Unsettled::Later(STANDBY_INTERVAL));
    }
    if !shared.namespace_ready(&key.namespace).await {
        return Err(Unsettled::Later(RETRY_INITIAL));
    }
    let Ok(_permit) = shared.room.acquire().await else { return Err(Unsettled::Later(RETRY_INITIAL)) };
    // The wait may have been long.
    if !(shared.may_write)() {
        return Err(Unsettled::Later(STANDBY_INTERVAL));
    }
    let lower = shared.lower_key(key);
    let api: Api<K> = Api::namespaced(shared.lower.clone(), &lower.namespace);
    let mut last = String::new();
    for _ in 0..RACES_MAX {
        let tried = match seen {
            Seen::Object(upper) => write(shared, entry, &lower, &api, upper).await,
            Seen::Absent => look_for_foreign::<K>(shared, key, &lower).await,
        };
        match tried {
            Ok(standing) => return Ok(standing),
            Err(error) => match Trouble::of(&error) {
                Trouble::Raced => last = trouble::message(&error),
                Trouble::NamespaceGone => {
                    shared.namespace_changed(&key.namespace);
                    return Err(Unsettled::Later(RETRY_INITIAL));
                }
                // Told at once, also of an update: pods that start now are to find what stands above.
                Trouble::Refused(message) => {
                    let message = refused::<K>(shared, &lower, &message);
                    return Ok(Standing::Refused(Refused { reason: "FailedToCopy", message }));
                }
                Trouble::Passing(message) => {
                    return Err(Unsettled::Failed(
                        "FailedToCopy",
                        format!(
                            "{} {lower} is not written to lower cluster {} yet: {message}",
                            K::WORD,
                            shared.settings.cluster_name
                        ),
                    ));
                }
            },
        }
    }
    Err(Unsettled::Failed("FailedToCopy", refused::<K>(shared, &lower, &last)))
}

fn refused<K: Mirrored>(shared: &Shared, lower: &Key, message: &str) -> String {
    format!(
        "lower cluster {} refuses {} {lower}: {message}; it is tried again until it is taken",
        shared.settings.cluster_name,
        K::WORD
    )
}

/// One look at the copy and at most one change of it.
async fn write<K: Mirrored>(
    shared: &Shared,
    entry: &Entry,
    lower: &Key,
    api: &Api<K>,
    upper: &K,
) -> Result<Standing, kube::Error> {
    let key = &entry.key;
    let uid = upper.meta().uid.as_deref().unwrap_or_default();
    let mark = shared.mark(Key::new(&key.namespace, &key.name), uid);
    let observed = api.get_opt(&lower.name).await?;
    let written = match plan::copy(upper, &mark, purpose(key.kind), lower, observed.as_ref()) {
        Action::Keep => None,
        Action::Create(object) => {
            let written = api.create(&PostParams::default(), &object).await?;
            info!(kind = K::WORD, %lower, "copied to the lower cluster");
            Some(written)
        }
        Action::Replace(object) => {
            let written = api.replace(&lower.name, &PostParams::default(), &object).await?;
            info!(kind = K::WORD, %lower, "the copy in the lower cluster follows its original");
            Some(written)
        }
        Action::Recreate(object) => {
            if let Some(observed) = &observed {
                delete_seen(api, &lower.name, observed.meta()).await?;
            }
            let written = api.create(&PostParams::default(), &object).await?;
            info!(kind = K::WORD, %lower, "the copy in the lower cluster could not be changed and is made anew");
            Some(written)
        }
        Action::WaitUntilGone => {
            return Ok(Standing::Refused(Refused {
                reason: "FailedToCopy",
                message: format!(
                    "{} {lower} is being deleted in lower cluster {}; it is made anew when that is done (see its finalizers)",
                    K::WORD,
                    shared.settings.cluster_name
                ),
            }));
        }
        Action::Clash(why) => return Ok(Standing::Refused(clash::<K>(shared, lower, &why))),
    };
    entry.keys_are(upper.keys());
    entry.lower_is(written.or(observed).and_then(|object| object.meta().resource_version.clone()));
    Ok(Standing::Ready)
}

fn clash<K: Mirrored>(shared: &Shared, lower: &Key, why: &str) -> Refused {
    let suffixed = match shared.settings.namespaces {
        NamespaceMapping::Same => ", or map namespaces `suffixed` so that no names meet",
        NamespaceMapping::Suffixed { .. } => "",
    };
    Refused {
        reason: "NameConflict",
        message: format!(
            "lower cluster {} has a {word} {lower} that is not ours to touch: {why}. Rename one of the two, delete the \
             lower one (kubectl delete {word} {} -n {}){suffixed}",
            shared.settings.cluster_name,
            lower.name,
            lower.namespace,
            word = K::WORD,
        ),
    }
}

/// What is absent above may be there below under another owner, and a pod with an optional reference would mount that.
async fn look_for_foreign<K: Mirrored>(shared: &Shared, key: &NeedKey, lower: &Key) -> Result<Standing, kube::Error> {
    let api: Api<K> = Api::namespaced(shared.lower.clone(), &lower.namespace);
    let Some(found) = api.get_metadata_opt(&lower.name).await? else { return Ok(Standing::Absent) };
    let mark = shared.mark(Key::new(&key.namespace, &key.name), "");
    Ok(match plan::ownership(&found.metadata, &mark, purpose(key.kind)) {
        // Running pods keep the last value, as under a kubelet; it goes with the last of them.
        Ownership::Ours | Ownership::OursOlder => Standing::Absent,
        Ownership::Foreign(why) => Standing::Refused(clash::<K>(shared, lower, &why)),
    })
}

/// Takes the copy away once it is certain that no pod uses it. True when the entry is struck off; false when somebody
/// came to use it again.
async fn take_away<K: Mirrored>(shared: &Shared, entry: &Arc<Entry>) -> bool {
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
    let mut looks = Backoff::new(USED_LOOK_INITIAL, USED_LOOK_MAX);
    // What was listed before this time has been looked at.
    let mut looked: Option<Instant> = None;
    loop {
        // From here on nobody takes the copy for granted; whoever comes waits until it is kept equal again.
        shared.publish(entry, Standing::Unknown);
        let Some(idle_since) = entry.idle_since() else { return false };
        let since = looked.map_or(idle_since, |at| at.max(idle_since));
        let wait = match delete_unused::<K>(shared, &entry.key, since).await {
            Ok(true) if shared.book.remove_if_unused(entry) => return true,
            Ok(true) => return false,
            Ok(false) => {
                looked = Some(Instant::now());
                looks.next_delay()
            }
            Err(error) => {
                debug!(kind = K::WORD, name = entry.key.name, error = trouble::message(&error), "not taken away yet");
                backoff.next_delay()
            }
        };
        let wake_at = Instant::now() + wait;
        let mut sleep = pin!(sleep_until(wake_at));
        while entry.idle_since().is_some() {
            tokio::select! {
                () = &mut sleep => break,
                () = entry.nudge.notified() => {}
            }
        }
    }
}

/// True when there is nothing left of ours below; false when a pod still refers to it, or we may not write now.
async fn delete_unused<K: Mirrored>(shared: &Shared, key: &NeedKey, idle_since: Instant) -> Result<bool, kube::Error> {
    if !(shared.may_write)() {
        return Ok(false);
    }
    let lower = shared.lower_key(key);
    let api: Api<K> = Api::namespaced(shared.lower.clone(), &lower.namespace);
    let Ok(_permit) = shared.room.acquire().await else { return Ok(false) };
    let found: Option<PartialObjectMeta<K>> = api.get_metadata_opt(&lower.name).await?;
    let Some(found) = found else { return Ok(true) };
    let mark = shared.mark(Key::new(&key.namespace, &key.name), "");
    if matches!(plan::ownership(&found.metadata, &mark, purpose(key.kind)), Ownership::Foreign(_)) {
        return Ok(true);
    }
    if shared.in_use.refers(&lower.namespace, key.kind, &lower.name, idle_since).await? {
        debug!(kind = K::WORD, %lower, "kept: a pod in the lower cluster still refers to it");
        return Ok(false);
    }
    match delete_seen(&api, &lower.name, &found.metadata).await {
        Ok(()) => info!(kind = K::WORD, %lower, "removed from the lower cluster: no pod needs it any more"),
        Err(error) if trouble::is_not_found(&error) => {}
        Err(error) => {
            warn!(kind = K::WORD, %lower, error = trouble::message(&error), "could not remove an unused copy; it is tried again");
            return Err(error);
        }
    }
    Ok(true)
}

/// Deletes exactly what was looked at.
async fn delete_seen<K: Mirrored>(
    api: &Api<K>,
    name: &str,
    seen: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Result<(), kube::Error> {
    let preconditions = Preconditions { uid: seen.uid.clone(), resource_version: seen.resource_version.clone() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    api.delete(name, &params).await.map(|_| ())
}
