//! Steps towards the upper cluster: status, conditions, the end of a pod.

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodStatus, apimachinery::pkg::apis::meta::v1::Time};
use serde_json::{Value, json};
use tensile_proto::vocabulary::condition;
use tracing::{debug, info};

use super::{
    index::View,
    reading::{disruption_condition, is_terminal},
    requests,
    sync::{Progress, Syncer, retry},
};
use crate::{
    events::{PodRef, Severity},
    names::Key,
    translate::{self, Cause},
};

impl Syncer {
    /// Writes the lower pod's status to the upper pod, if it differs.
    pub(super) async fn write_status(&self, key: &Key, view: View) -> Progress {
        let Some(upper_uid) = view.upper_uid.as_deref() else { return Progress::Idle };
        let Some(lower) = view.lower_pod else {
            // Only the fact is known that it must be compared again, not the status itself.
            return self.prove_lower(key).await;
        };
        let Some(status) = translate::status_up(view.upper_status.as_deref(), &lower, &self.translation()) else {
            self.index.lower_status_written(key, &lower);
            return Progress::Again;
        };
        match self.patch_upper_status(key, upper_uid, &status).await {
            Ok(()) => {
                self.index.lower_status_written(key, &lower);
                Progress::Again
            }
            Err(error) => retry("could not write the pod's status", &error),
        }
    }

    /// The lower cluster took the pod away: its status above becomes final, with the reason.
    pub(super) async fn fail(&self, key: &Key, view: &View) -> Progress {
        // After a restart in the middle of it, only the upper pod's status tells the reason.
        let told = view.lower_pod.as_deref().map_or(view.upper_status.as_deref(), |lower| lower.status.as_ref());
        let cause = told.map_or_else(|| taken_away("Evicted", ""), cause_of);
        match self.write_terminal(key, view, Some(&cause)).await {
            Ok(()) => {
                info!(cause.reason, "the lower cluster took the pod away; it is Failed");
                Progress::Again
            }
            Err(progress) => progress,
        }
    }

    /// A kubelet's last two writes: the final status, then a delete with grace 0.
    pub(super) async fn finish(&self, key: &Key, view: &View) -> Progress {
        let Some(upper_uid) = view.upper_uid.as_deref() else { return Progress::Idle };
        if let Err(progress) = self.write_terminal(key, view, None).await {
            return progress;
        }
        match requests::delete(&self.upper.node, key, upper_uid, Some(0)).await {
            Ok(()) => {
                self.index.upper_finished(key, upper_uid);
                Progress::Awaiting
            }
            Err(error) => retry("could not finish the pod's deletion", &error),
        }
    }

    /// Writes a final status, unless the pod has one.
    async fn write_terminal(&self, key: &Key, view: &View, cause: Option<&Cause>) -> Result<(), Progress> {
        let Some(upper_uid) = view.upper_uid.as_deref() else { return Ok(()) };
        if view.upper_status.as_deref().is_some_and(is_terminal) {
            return Ok(());
        }
        let mut upper = self.whole_upper(key, view).await?;
        upper.status = view.upper_status.as_deref().cloned();
        let now = Time(Timestamp::now());
        let lower = view.lower_pod.as_deref();
        let Some(status) = translate::terminal_status(&upper, lower, cause, &now, &self.translation()) else {
            return Ok(());
        };
        let written = self.patch_upper_status(key, upper_uid, &status).await;
        written.map_err(|error| retry("could not write the pod's last status", &error))
    }

    /// The lower pod was deleted by somebody else: the upper pod follows, so that its controller replaces it.
    pub(super) async fn delete_upper(&self, key: &Key, view: &View) -> Progress {
        let Some(upper_uid) = view.upper_uid.as_deref() else { return Progress::Idle };
        let subject = PodRef { namespace: &key.namespace, name: &key.name, uid: upper_uid };
        self.recorder.pod(
            subject,
            Severity::Warning,
            "LowerPodDeleted",
            format!(
                "pod {} was deleted in lower cluster {} by somebody else; this pod is deleted too, so that its \
                 controller replaces it",
                self.lower_key(key),
                self.settings.cluster_name
            ),
        );
        match requests::delete(&self.upper.node, key, upper_uid, None).await {
            Ok(()) => Progress::Awaiting,
            Err(error) => retry("could not delete the pod", &error),
        }
    }

    /// The pod runs after all: the condition says so.
    pub(super) async fn clear_stuck(&self, key: &Key, view: &View) -> Progress {
        match self.set_offloaded(key, view, true, "Offloaded", "").await {
            Ok(()) => Progress::Again,
            Err(error) => retry("could not write the condition tensile.dev/Offloaded", &error),
        }
    }

    /// Writes the condition `tensile.dev/Offloaded`, unless it says so already.
    pub(super) async fn set_offloaded(
        &self,
        key: &Key,
        view: &View,
        offloaded: bool,
        reason: &str,
        message: &str,
    ) -> Result<(), kube::Error> {
        let Some(upper_uid) = view.upper_uid.as_deref() else { return Ok(()) };
        let status = if offloaded { "True" } else { "False" };
        let before = view
            .upper_status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .find(|before| before.type_ == condition::OFFLOADED);
        if before.is_some_and(|before| {
            before.status == status
                && before.reason.as_deref() == Some(reason)
                && before.message.as_deref().unwrap_or_default() == message
        }) {
            return Ok(());
        }
        let since = before
            .filter(|before| before.status == status)
            .and_then(|before| before.last_transition_time.clone())
            .unwrap_or(Time(Timestamp::now()));
        let patch = json!({ "conditions": [{
            "type": condition::OFFLOADED,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since,
        }]});
        self.patch_upper_status(key, upper_uid, &patch).await
    }

    /// Patches the upper pod's status and takes the answer into the index, so that the next comparison is with what the
    /// API server holds and not with what a watch will tell a moment later.
    async fn patch_upper_status(&self, key: &Key, upper_uid: &str, status: &Value) -> Result<(), kube::Error> {
        if let Some(answer) = requests::patch_status(&self.upper.node, key, upper_uid, status).await? {
            let version = answer.metadata.resource_version.as_deref();
            self.index.upper_status_written(key, upper_uid, version, answer.status.as_ref());
        } else {
            debug!("the pod went away before its status was written");
            self.upper_gone(key, Some(upper_uid));
        }
        Ok(())
    }
}

/// Why the lower cluster took a pod away, in its own words.
fn cause_of(status: &PodStatus) -> Cause {
    if let Some(reason) = &status.reason {
        return taken_away(reason, status.message.as_deref().unwrap_or_default());
    }
    let target = disruption_condition(status);
    let reason = target.and_then(|target| target.reason.as_deref()).unwrap_or("Evicted");
    taken_away(reason, target.and_then(|target| target.message.as_deref()).unwrap_or_default())
}

fn taken_away(reason: &str, message: &str) -> Cause {
    let message = if message.is_empty() { "the lower cluster took the pod away" } else { message };
    Cause { reason: reason.to_owned(), message: message.to_owned() }
}
