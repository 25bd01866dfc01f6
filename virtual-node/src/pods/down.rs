//! Steps towards the lower cluster: create, update, delete, release.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tensile_proto::vocabulary::finalizer;
use tracing::{debug, info, warn};

use super::{
    index::View,
    refusal::{self, Lasts},
    requests,
    sync::{Progress, Syncer, retry},
};
use crate::{
    events::{PodRef, Severity},
    names::Key,
    needs::PodNeed,
    owner::OwnerMark,
    packed::Packed,
    translate::{self, Subresource},
};

impl Syncer {
    /// Creates the lower pod, with everything that it needs.
    pub(super) async fn create(&self, key: &Key, view: View) -> Progress {
        let upper = match self.whole_upper(key, &view).await {
            Ok(upper) => upper,
            Err(progress) => return progress,
        };
        if let Err(refusal) = translate::admissible(&upper) {
            self.recorder.pod(PodRef::of(&upper), Severity::Warning, refusal.reason, refusal.message);
            return Progress::Idle;
        }
        if let Err(refusal) = translate::refuse_unsupported(&upper) {
            return self.stuck(key, &view, refusal.reason, &refusal.message, Lasts::Final).await;
        }
        if let Err(missing) = self.needs.ensure(&pod_need(key, &upper)).await {
            debug!(missing.reason, missing.message, "the pod waits for what it needs");
            // The event is told already, in the kubelet's words; the key comes back when what is missing appears.
            if !missing.quiet
                && let Err(error) = self.set_offloaded(key, &view, false, missing.reason, &missing.message).await
            {
                return retry("could not write the condition that says why the pod waits", &error);
            }
            return Progress::Idle;
        }
        let environment = match self.environment(key, &upper).await {
            Ok(environment) => environment,
            Err(refusal) => {
                return self.stuck(key, &view, refusal.reason, &refusal.message, Lasts::UntilMended).await;
            }
        };
        let translated = translate::pod_down(&self.reservations.pinned(&upper), &environment.context(&self.settings));
        let pod = match translated {
            Ok(pod) => pod,
            Err(refusal) => return self.stuck(key, &view, refusal.reason, &refusal.message, Lasts::Final).await,
        };
        // What it needs may have taken a while: the lease is looked at once more right before the pod begins to exist.
        if self.fence.check().is_err() {
            return Progress::Retry;
        }
        match requests::create(&self.lower.api, &pod).await {
            Ok(_) => {
                self.index.lower_announced(key, view.upper_uid.as_deref().unwrap_or_default());
                Progress::Awaiting
            }
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                self.occupied(key, &view).await
            }
            Err(error) => {
                let refused = refusal::judge(&error);
                if let Some(reason) = refused.reason {
                    return self.stuck(key, &view, reason, &refused.message, refused.lasts).await;
                }
                if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                    self.needs.namespace_changed(&key.namespace);
                }
                retry("could not create the lower pod", &error)
            }
        }
    }

    /// A pod of that name is there already: ours of an earlier try, a predecessor's, or a stranger's.
    async fn occupied(&self, key: &Key, view: &View) -> Progress {
        let lower = self.lower_key(key);
        match requests::read_lower(&self.lower.api, &lower).await {
            Ok(None) => Progress::Again,
            Ok(Some(pod)) => match OwnerMark::read(&pod.metadata) {
                Some(mark) if self.is_ours(&mark) => {
                    self.index.lower_read(pod, mark);
                    Progress::Again
                }
                _ => {
                    let message = format!(
                        "pod {lower} exists in the lower cluster and is not ours; it is left alone. Delete or rename it \
                         there, or run the virtual-node with --namespaces=suffixed"
                    );
                    self.stuck(key, view, "NameConflict", &message, Lasts::UntilMended).await
                }
            },
            Err(error) => retry("could not read the lower pod", &error),
        }
    }

    /// Sends changed fields down.
    pub(super) async fn update(&self, key: &Key, view: View) -> Progress {
        let upper = match self.whole_upper(key, &view).await {
            Ok(upper) => upper,
            Err(progress) => return progress,
        };
        let lower_key = self.lower_key(key);
        let lower = match requests::read_lower(&self.lower.api, &lower_key).await {
            Ok(Some(pod)) => pod,
            Ok(None) => {
                self.index.lower_proven_absent(key);
                return Progress::Again;
            }
            Err(error) => return retry("could not read the lower pod", &error),
        };
        let environment = match self.environment_of_update(key, &upper).await {
            Ok(environment) => environment,
            Err(refusal) => {
                self.recorder.pod(PodRef::of(&upper), Severity::Warning, refusal.reason, refusal.message);
                return Progress::Retry;
            }
        };
        let update = match translate::pod_update(&upper, &lower, &environment.context(&self.settings)) {
            Ok(update) => update,
            Err(refusal) => return self.stuck(key, &view, refusal.reason, &refusal.message, Lasts::Final).await,
        };
        let lower_uid = lower.metadata.uid.as_deref().unwrap_or_default();
        if update.is_empty() {
            self.index.lower_updated(key, lower_uid);
            return Progress::Again;
        }
        if let Some(patch) = &update.patch
            && let Err(error) = self.patch_lower(&lower_key, None, patch).await
        {
            return self.update_refused(&upper, None, &error);
        }
        let mut accepted = Vec::new();
        let mut refused = None;
        for (subresource, patch) in [
            (Subresource::Resize, &update.resize),
            (Subresource::Ephemeral, &update.ephemeral),
            (Subresource::Status, &update.status),
        ] {
            let Some(patch) = patch else { continue };
            match self.patch_lower(&lower_key, Some(subresource), patch).await {
                Ok(()) => accepted.push(subresource),
                Err(error) => refused = Some((subresource, error)),
            }
        }
        if let Some(patch) = update.claim(&accepted)
            && let Err(error) = self.patch_lower(&lower_key, None, &patch).await
        {
            return self.update_refused(&upper, None, &error);
        }
        match refused {
            Some((subresource, error)) => self.update_refused(&upper, Some(subresource), &error),
            None => Progress::Awaiting,
        }
    }

    async fn patch_lower(&self, key: &Key, part: Option<Subresource>, patch: &Value) -> Result<(), kube::Error> {
        requests::patch(&self.lower.api, key, part.map(subresource_path), patch).await
    }

    /// The lower cluster did not take a change: its user is told, and it is tried again with growing pauses.
    fn update_refused(&self, upper: &Pod, part: Option<Subresource>, error: &kube::Error) -> Progress {
        let refused = refusal::judge(error);
        debug!(%error, ?part, "could not update the lower pod");
        if refused.lasts != Lasts::Passing {
            let reason = match part {
                Some(Subresource::Resize) => "LowerResizeFailed",
                _ => refused.reason.unwrap_or("LowerUpdateFailed"),
            };
            self.recorder.pod(PodRef::of(upper), Severity::Warning, reason, refused.message);
        }
        Progress::Retry
    }

    /// Deletes the lower pod.
    pub(super) async fn delete_lower(&self, key: &Key, view: &View, grace: Option<i64>) -> Progress {
        let Some(uid) = view.lower_uid.as_deref() else { return Progress::Idle };
        if view.upper_uid.is_some() && view.upper_uid != view.lower_owner {
            // It goes because its upper pod was followed by another of the same name. That UID is asked for live: our
            // cache may be behind the lower cluster's.
            match requests::read_upper(&self.upper.node, key, &self.settings.node_name).await {
                Ok(Some(pod)) if pod.metadata.uid == view.upper_uid => {}
                Ok(Some(pod)) => {
                    self.upper_applied(pod);
                    return Progress::Again;
                }
                Ok(None) => {
                    self.upper_gone(key, None);
                    return Progress::Again;
                }
                Err(error) => return retry("could not ask the upper API server for the pod", &error),
            }
        }
        match requests::delete(&self.lower.api, &self.lower_key(key), uid, grace).await {
            Ok(()) => Progress::Awaiting,
            Err(error) => retry("could not delete the lower pod", &error),
        }
    }

    /// Takes our finalizer off the lower pod.
    pub(super) async fn release_result(&self, key: &Key, view: &View) -> Progress {
        let Some(uid) = view.lower_uid.as_deref() else { return Progress::Idle };
        let lower_key = self.lower_key(key);
        // Others may have added finalizers of theirs: read, and write with the version read.
        let pod = match requests::read_lower(&self.lower.api, &lower_key).await {
            Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(uid) => pod,
            Ok(_) => {
                self.index.lower_proven_absent(key);
                return Progress::Again;
            }
            Err(error) => return retry("could not read the lower pod", &error),
        };
        let remaining: Vec<String> =
            pod.metadata.finalizers.iter().flatten().filter(|name| *name != finalizer::RESULT).cloned().collect();
        let version = pod.metadata.resource_version.as_deref();
        match requests::set_finalizers(&self.lower.api, &lower_key, uid, version, &remaining).await {
            Ok(()) => Progress::Awaiting,
            Err(error) => retry("could not release the lower pod", &error),
        }
    }

    /// The whole upper pod: the one we hold, or read again.
    pub(super) async fn whole_upper(&self, key: &Key, view: &View) -> Result<Box<Pod>, Progress> {
        if let Some(pod) = view.upper_whole.as_ref().and_then(Packed::unpack) {
            return Ok(Box::new(pod));
        }
        match requests::read_upper(&self.upper.node, key, &self.settings.node_name).await {
            Ok(Some(pod)) if pod.metadata.uid == view.upper_uid => Ok(Box::new(pod)),
            Ok(Some(pod)) => {
                self.upper_applied(pod);
                Err(Progress::Again)
            }
            Ok(None) => {
                self.upper_gone(key, view.upper_uid.as_deref());
                Err(Progress::Again)
            }
            Err(error) => Err(retry("could not read the upper pod", &error)),
        }
    }

    /// Tells the user why the pod does not run: an event, and the condition `tensile.dev/Offloaded`.
    async fn stuck(&self, key: &Key, view: &View, reason: &str, message: &str, lasts: Lasts) -> Progress {
        let Some(uid) = view.upper_uid.as_deref() else { return Progress::Idle };
        let subject = PodRef { namespace: &key.namespace, name: &key.name, uid };
        self.recorder.pod(subject, Severity::Warning, reason, message);
        info!(reason, message, "the pod cannot be offloaded");
        if let Err(error) = self.set_offloaded(key, view, false, reason, message).await {
            warn!(%error, "could not write the condition that says why the pod does not run");
        }
        match lasts {
            Lasts::Final => Progress::Idle,
            Lasts::Passing | Lasts::UntilMended => Progress::Retry,
        }
    }

    pub(super) fn translation(&self) -> translate::Context<'_> {
        translate::Context::new(&self.settings)
    }
}

fn subresource_path(part: Subresource) -> &'static str {
    match part {
        Subresource::Resize => "resize",
        Subresource::Ephemeral => "ephemeralcontainers",
        Subresource::Status => "status",
    }
}

/// What a pod needs below.
pub(super) fn pod_need(key: &Key, upper: &Pod) -> PodNeed {
    let service_account = upper.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    PodNeed {
        key: key.clone(),
        uid: upper.metadata.uid.clone().unwrap_or_default(),
        service_account: service_account.unwrap_or_default(),
        needs: translate::needs(upper),
    }
}
