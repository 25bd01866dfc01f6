//! Making sure of one lower namespace while pods need it.
//!
//! A namespace that we made is not removed after its last pod: it may hold what users of the lower cluster put there.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::PostParams};
use tensile_chassis::retry::Backoff;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::{
    book::{Entry, Refused, Standing},
    plan::{self, NamespaceAction},
    shared::{GRACE, RETRY_INITIAL, RETRY_MAX, STANDBY_INTERVAL, Shared},
    trouble::{self, Trouble},
};

/// How often a namespace in use is looked at again: somebody may have deleted it or taken its label off.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// Failures shorter than this are not told.
const LOUD_AFTER: Duration = Duration::from_secs(3);

/// Runs until nobody has needed the namespace for the grace period.
pub(super) async fn run(shared: Arc<Shared>, entry: Arc<Entry>) {
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
    let mut failing_since: Option<Instant> = None;
    loop {
        let wait = match look(&shared, &entry.key.namespace).await {
            Ok(Some(standing)) => {
                failing_since = None;
                let ready = standing == Standing::Ready;
                shared.publish(&entry, standing);
                if ready {
                    shared.namespace_used(&entry.key.namespace, true);
                    backoff.reset();
                    LOOK_INTERVAL
                } else {
                    backoff.next_delay()
                }
            }
            Ok(None) => STANDBY_INTERVAL,
            Err(error) => {
                let since = *failing_since.get_or_insert_with(Instant::now);
                let lower = shared.settings.namespaces.lower(&entry.key.namespace);
                debug!(lower, error = trouble::message(&error), "namespace not ensured yet");
                if let Trouble::Refused(message) = Trouble::of(&error) {
                    shared.publish(&entry, Standing::Refused(refused(&shared, &lower, &message)));
                } else if since.elapsed() >= LOUD_AFTER {
                    let message = trouble::message(&error);
                    shared.publish_unless_ready(
                        &entry,
                        "NamespaceNotReady",
                        format!(
                            "namespace {lower} is not ready in lower cluster {} yet: {message}",
                            shared.settings.cluster_name
                        ),
                    );
                }
                backoff.next_delay()
            }
        };
        let wake_at = Instant::now() + wait;
        loop {
            let idle_at = entry.idle_since().map(|since| since + GRACE);
            tokio::select! {
                () = sleep_until(idle_at.unwrap_or(wake_at).min(wake_at)) => {
                    if idle_at.is_some_and(|at| at <= Instant::now()) && shared.book.remove_if_unused(&entry) {
                        shared.namespace_used(&entry.key.namespace, false);
                        return;
                    }
                    break;
                }
                () = entry.nudge.notified() => if entry.take_drifted() { break },
            }
        }
    }
}

fn refused(shared: &Shared, lower: &str, message: &str) -> Refused {
    Refused {
        reason: "NamespaceNotCreated",
        message: format!(
            "lower cluster {} refuses namespace {lower}: {message}. Create it there yourself, labelled {}={}, or let \
             the virtual node's lower account get and create namespaces",
            shared.settings.cluster_name,
            tensile_proto::vocabulary::label::UPPER_CLUSTER,
            shared.settings.upper_cluster_uid
        ),
    }
}

/// One look, and the creation where it is missing. `None`: it is missing, and another replica leads.
async fn look(shared: &Shared, upper_namespace: &str) -> Result<Option<Standing>, kube::Error> {
    let Ok(_permit) = shared.room.acquire().await else { return Ok(None) };
    let lower = shared.settings.namespaces.lower(upper_namespace);
    let api: Api<Namespace> = Api::all(shared.lower.clone());
    let observed = api.get_opt(&lower).await?;
    Ok(Some(match plan::namespace(upper_namespace, &shared.settings, observed.as_ref()) {
        NamespaceAction::Use => Standing::Ready,
        NamespaceAction::Create(_) if !(shared.may_write)() => return Ok(None),
        NamespaceAction::Create(namespace) => {
            let created = api.create(&PostParams::default(), &namespace).await;
            match created {
                Ok(_) => info!(namespace = lower, "made in the lower cluster"),
                // Somebody may have been faster: the next look shows what was made.
                Err(error) => return Err(error),
            }
            Standing::Ready
        }
        NamespaceAction::WaitUntilGone => Standing::Refused(Refused {
            reason: "NamespaceTerminating",
            message: format!(
                "namespace {lower} is being deleted in lower cluster {}; pods go on when it can be made anew (kubectl get namespace {lower} -o yaml shows what holds it)",
                shared.settings.cluster_name
            ),
        }),
        NamespaceAction::Conflict(message) => Standing::Refused(Refused { reason: "NamespaceConflict", message }),
    }))
}
