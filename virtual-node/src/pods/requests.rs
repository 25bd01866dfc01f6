//! The requests that the pod workers make, each with a precondition that keeps it from hitting another pod of that name.
//!
//! Answers are asked for as `PartialObjectMetadata` where nothing else of them is read: the API server then sends, and
//! we parse, a fraction of the pod.

use http::{Request, header};
use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Error, api::ListParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::names::Key;

const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
/// Pods in one answer, as client-go pages.
const LIST_PAGE: u32 = 500;
const JSON: &str = "application/json";

/// An API server checks each field of each request by default, only to warn about unknown ones (KEP-2885). What we send
/// was read from an API server, and a burst is bound by what API servers spend on each request.
const LENIENT: &str = "fieldValidation=Ignore";
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";

/// Metadata of an answer.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// Metadata.
    pub metadata: ObjectMeta,
}

/// Metadata and status of an answer; the spec is skipped without being built.
#[derive(Debug, Deserialize)]
pub struct StatusAnswer {
    /// Metadata.
    pub metadata: VersionOnly,
    /// Status.
    pub status: Option<PodStatus>,
}

/// The version of an answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionOnly {
    /// Resource version.
    pub resource_version: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeleteOptions<'a> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    grace_period_seconds: Option<i64>,
    preconditions: Preconditions<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Preconditions<'a> {
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
}

fn pod_path(key: &Key) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", key.namespace, key.name)
}

fn request(
    method: http::Method,
    path: &str,
    accept: &str,
    content_type: &str,
    body: &impl Serialize,
) -> Result<Request<Vec<u8>>, Error> {
    let body = serde_json::to_vec(body).map_err(Error::SerdeError)?;
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, accept)
        .header(header::CONTENT_TYPE, content_type)
        .body(body)
        .map_err(|error| Error::BuildRequest(kube::core::request::Error::BuildRequest(error)))
}

/// Creates a pod.
pub async fn create(client: &Client, pod: &Pod) -> Result<ObjectMeta, Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{namespace}/pods?{LENIENT}");
    let answer: Answer = client.request(request(http::Method::POST, &path, METADATA_ONLY, JSON, pod)?).await?;
    Ok(answer.metadata)
}

/// Deletes the pod of this UID; gone already is as good.
pub async fn delete(client: &Client, key: &Key, uid: &str, grace: Option<i64>) -> Result<(), Error> {
    let options = DeleteOptions {
        api_version: "v1",
        kind: "DeleteOptions",
        grace_period_seconds: grace,
        preconditions: Preconditions { uid, resource_version: None },
    };
    let request = request(http::Method::DELETE, &pod_path(key), METADATA_ONLY, JSON, &options)?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        // Conflict: the UID is another's, so the one meant is gone.
        Err(Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes a pod that was read, at once and only if nothing of it has changed since. Whether it was deleted.
pub async fn delete_as_read(client: &Client, key: &Key, read: &ObjectMeta) -> Result<bool, Error> {
    let options = DeleteOptions {
        api_version: "v1",
        kind: "DeleteOptions",
        grace_period_seconds: Some(0),
        preconditions: Preconditions {
            uid: read.uid.as_deref().unwrap_or_default(),
            resource_version: read.resource_version.as_deref(),
        },
    };
    let request = request(http::Method::DELETE, &pod_path(key), METADATA_ONLY, JSON, &options)?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Patches the status of the pod of this UID. `None` when that pod is gone.
pub async fn patch_status(
    client: &Client,
    key: &Key,
    uid: &str,
    status: &Value,
) -> Result<Option<StatusAnswer>, Error> {
    let patch = json!({ "metadata": { "uid": uid }, "status": status });
    let path = format!("{}/status?{LENIENT}", pod_path(key));
    let request = request(http::Method::PATCH, &path, JSON, STRATEGIC_MERGE, &patch)?;
    match client.request(request).await {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes finalizers off the pod of this UID, leaving `remaining`. Gone already is as good.
pub async fn set_finalizers(
    client: &Client,
    key: &Key,
    uid: &str,
    version: Option<&str>,
    remaining: &[String],
) -> Result<(), Error> {
    let patch = json!({ "metadata": { "uid": uid, "resourceVersion": version, "finalizers": remaining } });
    let request = request(http::Method::PATCH, &pod_path(key), METADATA_ONLY, MERGE, &patch)?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sends a strategic merge patch to a pod, or to one of its subresources.
pub async fn patch(client: &Client, key: &Key, subresource: Option<&str>, patch: &Value) -> Result<(), Error> {
    let path = match subresource {
        Some(subresource) => format!("{}/{subresource}", pod_path(key)),
        None => pod_path(key),
    };
    client.request::<Value>(request(http::Method::PATCH, &path, METADATA_ONLY, STRATEGIC_MERGE, patch)?).await?;
    Ok(())
}

/// Reads a lower pod from the API server, past every cache.
pub async fn read_lower(client: &Client, key: &Key) -> Result<Option<Pod>, Error> {
    Api::<Pod>::namespaced(client.clone(), &key.namespace).get_opt(&key.name).await
}

/// Lists all upper pods of ours from the API server, past every cache.
pub async fn list_upper(client: &Client, node_name: &str) -> Result<Vec<Pod>, Error> {
    let api = Api::<Pod>::all(client.clone());
    let mut params = ListParams::default().fields(&format!("spec.nodeName={node_name}")).limit(LIST_PAGE);
    let mut pods = Vec::new();
    loop {
        let page = api.list(&params).await?;
        pods.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(pods),
        }
    }
}

/// Reads an upper pod of ours from the API server, past every cache.
///
/// This is a list that names the node, for the Node authorizer answers Forbidden, not NotFound, to a get of a pod that
/// is gone (K plugin/pkg/auth/authorizer/node). A list without a resourceVersion is a quorum read.
pub async fn read_upper(client: &Client, key: &Key, node_name: &str) -> Result<Option<Pod>, Error> {
    let fields = format!("spec.nodeName={node_name},metadata.name={}", key.name);
    let found =
        Api::<Pod>::namespaced(client.clone(), &key.namespace).list(&ListParams::default().fields(&fields)).await?;
    Ok(found.items.into_iter().next())
}
