//! The requests that tokens take: asking for them above, writing and deleting their Secrets below.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tensile_proto::vocabulary::label;
use tracing::info;

use super::{
    Missing, Retry,
    plan::{self, Ownership, Purpose},
    shared::Shared,
    token_plan::{self, Issued, Schedule},
    tokens::{Deletion, Volume, Written},
    trouble::{self, Trouble},
    wording,
};
use crate::{names::Key, owner::OwnerMark};

/// Why a token is not below.
pub(super) enum Failure {
    /// The upper API server did not issue it.
    Issue(String),
    /// It never will: the request itself is wrong.
    Final(String),
    /// The lower cluster did not take it.
    Write(Missing),
}

/// Gets the tokens of one volume of a pod (`pod`, `uid`) and writes them down.
pub(super) async fn write(
    shared: &Shared,
    pod: &Key,
    uid: &str,
    account: &str,
    volume: &Volume,
) -> Result<Written, Failure> {
    if !(shared.may_write)() {
        return Err(Failure::Write(wording::pending("a token")));
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(shared.upper.node.clone(), &pod.namespace);
    let mut tokens: Vec<Issued> = Vec::with_capacity(volume.needs.len());
    for need in &volume.needs {
        let request = token_plan::request(need, pod, uid);
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|error| issue_failure(&error))?;
        let issued = token_plan::issued(need, answer)
            .ok_or_else(|| Failure::Issue("the API server answered without a token".into()))?;
        shared.tokens.clock.learn(Timestamp::now(), issued.life_seconds, issued.expires);
        tokens.push(issued);
    }
    let schedule =
        Schedule::of(&tokens, rand::random()).ok_or_else(|| Failure::Final("the volume asks for no token".into()))?;
    let name = volume.needs.first().map_or("", |need| need.volume.as_str());
    let data = token_plan::data(tokens);
    let digest = token_plan::digest(&data);
    let secret = token_plan::secret(&volume.secret, &shared.mark(pod.clone(), uid), name, schedule, data);
    let below = put(shared, pod, &volume.secret, volume.written.as_ref(), secret).await?;
    Ok(Written { uid: below.uid, version: below.resource_version, digest: Some(digest), schedule })
}

/// The Secret as it stands below now.
pub(super) async fn read(shared: &Shared, place: &Key) -> Result<Option<Secret>, kube::Error> {
    Api::<Secret>::namespaced(shared.lower.clone(), &place.namespace).get_opt(&place.name).await
}

fn issue_failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => Failure::Final(status.message.clone()),
        _ => Failure::Issue(trouble::message(error)),
    }
}

/// Writes the Secret and gives its metadata.
async fn put(
    shared: &Shared,
    pod: &Key,
    place: &Key,
    written: Option<&Written>,
    secret: Secret,
) -> Result<ObjectMeta, Failure> {
    let Ok(_permit) = shared.room.acquire().await else {
        return Err(Failure::Write(wording::pending("a token")));
    };
    let api: Api<Secret> = Api::namespaced(shared.lower.clone(), &place.namespace);
    let refused = |error: &kube::Error| {
        if Trouble::of(error) == Trouble::NamespaceGone {
            shared.namespace_changed(&pod.namespace);
        }
        Failure::Write(Missing {
            reason: "FailedToCopy",
            message: format!(
                "lower cluster {} does not take the token Secret {place}: {}",
                shared.settings.cluster_name,
                trouble::message(error)
            ),
            retry: Retry::Waits,
            quiet: matches!(Trouble::of(error), Trouble::Raced | Trouble::NamespaceGone),
        })
    };
    if let Some(uid) = written.and_then(|written| written.uid.as_deref()) {
        // One request, good only for the Secret that we made: a UID in a patch is a precondition.
        let patch = Patch::Merge(json!({
            "metadata": { "uid": uid, "annotations": secret.metadata.annotations },
            "data": secret.data,
        }));
        match api.patch_metadata(&place.name, &PatchParams::default(), &patch).await {
            Ok(found) => return Ok(found.metadata),
            // Somebody deleted it: it is made anew.
            Err(error) if Trouble::of(&error) == Trouble::Raced => {}
            Err(error) => return Err(refused(&error)),
        }
    }
    match api.create(&PostParams::default(), &secret).await {
        Ok(created) => return Ok(created.metadata),
        Err(error) if Trouble::of(&error) == Trouble::Raced => {}
        Err(error) => return Err(refused(&error)),
    }
    // It is there: from an earlier try whose answer was lost, or from somebody else.
    let found = api.get_metadata(&place.name).await.map_err(|error| refused(&error))?;
    let Some(mark) = OwnerMark::read(&secret.metadata) else { return Ok(ObjectMeta::default()) };
    if plan::ownership(&found.metadata, &mark, Purpose::Token) != Ownership::Ours {
        return Err(Failure::Write(Missing {
            reason: "NameConflict",
            message: format!(
                "lower cluster {} has a Secret {place} that is not ours to touch, where a token is to be: delete it \
                 (kubectl delete secret {} -n {})",
                shared.settings.cluster_name, place.name, place.namespace
            ),
            retry: Retry::Waits,
            quiet: false,
        }));
    }
    let mut secret = secret;
    secret.metadata.resource_version.clone_from(&found.metadata.resource_version);
    let replaced = api.replace(&place.name, &PostParams::default(), &secret).await.map_err(|error| refused(&error))?;
    Ok(replaced.metadata)
}

/// True when the Secret is gone; false when the pod that it is for still lives below.
pub(super) async fn delete(shared: &Shared, deletion: &Deletion) -> Result<bool, kube::Error> {
    let secret = &deletion.secret;
    if let Some(pod_uid) = &deletion.only_after {
        if shared.tokens.knows(pod_uid) {
            return Ok(false);
        }
        let pods: Api<Pod> = Api::namespaced(shared.lower.clone(), &secret.namespace);
        let params = ListParams::default().labels(&format!("{}={pod_uid}", label::UPPER_UID)).limit(1);
        if !pods.list_metadata(&params).await?.items.is_empty() {
            return Ok(false);
        }
        info!(%secret, "token of a pod that is gone, left over from an earlier run, is deleted");
    }
    let secrets: Api<Secret> = Api::namespaced(shared.lower.clone(), &secret.namespace);
    let params = DeleteParams { preconditions: Some(deletion.exactly.clone()), ..DeleteParams::default() };
    match secrets.delete(&secret.name, &params).await {
        Ok(_) => Ok(true),
        // Not found, or another one than ours has the name by now: either way ours is gone.
        Err(error) if matches!(Trouble::of(&error), Trouble::Raced | Trouble::NamespaceGone) => Ok(true),
        Err(error) => Err(error),
    }
}
