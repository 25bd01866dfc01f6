//! From the bytes of an answer to objects. Pure.
//!
//! The whole answer is decoded in one pass; only when that fails are its objects taken apart one by one.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::{Resource, core::response::Status};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::managed_fields::{Shape, blank_out};

/// One object that was received.
#[derive(Debug)]
pub(super) enum Received<K> {
    Object(K),
    Malformed { namespace: Option<String>, name: String, error: String },
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum Line<K> {
    Applied(Received<K>, Option<String>),
    Deleted(Received<K>, Option<String>),
    Bookmark(Option<String>),
    Error(Box<Status>),
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page<K> {
    pub(super) items: Vec<Received<K>>,
    pub(super) resource_version: Option<String>,
    /// Where the next page begins.
    pub(super) next: Option<String>,
}

#[derive(Deserialize)]
struct RawLine<'a, T> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    object: T,
}

#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct RawPage<T> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Option<Vec<T>>,
}

/// As little of an object as possible, so that it is found in a malformed one too.
#[derive(Deserialize, Default)]
struct Named {
    #[serde(default)]
    metadata: Names,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Names {
    namespace: Option<String>,
    name: Option<String>,
    resource_version: Option<String>,
}

/// Decodes one line of a watch. Fails only when the line as a whole is not an event.
pub(super) fn line<K>(text: &mut [u8]) -> Result<Line<K>, String>
where
    K: Resource + DeserializeOwned,
{
    blank_out(text, Shape::WatchEvent);
    if let Ok(RawLine { kind, object }) = serde_json::from_slice::<RawLine<'_, K>>(text)
        && let Some(deleted) = is_deletion(&kind)
    {
        let version = object.meta().resource_version.clone();
        return Ok(object_line(deleted, Received::Object(object), version));
    }
    let raw: RawLine<'_, &RawValue> = serde_json::from_slice(text).map_err(|error| without_values(&error))?;
    match (raw.kind.as_ref(), is_deletion(&raw.kind)) {
        (_, Some(deleted)) => {
            let version = names(raw.object).resource_version;
            Ok(object_line(deleted, apart(raw.object), version))
        }
        ("BOOKMARK", _) => Ok(Line::Bookmark(names(raw.object).resource_version)),
        ("ERROR", _) => serde_json::from_str(raw.object.get()).map(Line::Error).map_err(|error| without_values(&error)),
        (other, _) => Err(format!("there is no watch event of type {other:?}")),
    }
}

/// Decodes one page of a list. Fails only when the page as a whole is not a list.
pub(super) fn page<K>(text: &mut [u8]) -> Result<Page<K>, String>
where
    K: Resource + DeserializeOwned,
{
    blank_out(text, Shape::List);
    let (metadata, items) = if let Ok(whole) = serde_json::from_slice::<RawPage<K>>(text) {
        (whole.metadata, whole.items.unwrap_or_default().into_iter().map(Received::Object).collect())
    } else {
        let raw: RawPage<&RawValue> = serde_json::from_slice(text).map_err(|error| without_values(&error))?;
        (raw.metadata, raw.items.unwrap_or_default().into_iter().map(apart).collect())
    };
    let next = metadata.continue_.filter(|token| !token.is_empty());
    Ok(Page { items, resource_version: metadata.resource_version, next })
}

fn is_deletion(kind: &str) -> Option<bool> {
    match kind {
        "ADDED" | "MODIFIED" => Some(false),
        "DELETED" => Some(true),
        _ => None,
    }
}

fn object_line<K>(deleted: bool, object: Received<K>, version: Option<String>) -> Line<K> {
    if deleted { Line::Deleted(object, version) } else { Line::Applied(object, version) }
}

fn apart<K: DeserializeOwned>(raw: &RawValue) -> Received<K> {
    match serde_json::from_str(raw.get()) {
        Ok(object) => Received::Object(object),
        Err(error) => {
            let Names { namespace, name, .. } = names(raw);
            let name = name.unwrap_or_else(|| "(without a name)".to_owned());
            Received::Malformed { namespace, name, error: without_values(&error) }
        }
    }
}

fn names(raw: &RawValue) -> Names {
    serde_json::from_str::<Named>(raw.get()).unwrap_or_default().metadata
}

/// serde quotes the string it did not expect, and in a Secret that is the secret: double-quoted text is left out.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match (text.find('"'), text.rfind('"')) {
        (Some(first), Some(last)) if last > first => format!("{}\"...\"{}", &text[..first], &text[last + 1..]),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_decoded_without_its_managed_fields() {
        let text = json!({"type": "MODIFIED", "object": {"kind": "Pod", "apiVersion": "v1", "metadata":
            {"name": "p", "resourceVersion": "5", "managedFields": [{"manager": "m"}]}}});
        let Line::Applied(Received::Object(pod), version) =
            line::<Pod>(&mut serde_json::to_vec(&text).unwrap()).unwrap()
        else {
            panic!("not an applied object")
        };
        assert_eq!(version.as_deref(), Some("5"));
        assert_eq!(pod.metadata.managed_fields, None);
        assert_eq!(pod.metadata.name.as_deref(), Some("p"));
    }

    #[test]
    fn a_malformed_object_is_named_and_its_values_are_not_shown() {
        let text = json!({"type": "ADDED", "object": {"metadata":
            {"namespace": "n", "name": "s", "resourceVersion": "6"}, "data": "a \"quoted\" hunter2"}});
        let decoded = line::<Secret>(&mut serde_json::to_vec(&text).unwrap()).unwrap();
        let Line::Applied(Received::Malformed { namespace, name, error }, version) = decoded else {
            panic!("{decoded:?}")
        };
        assert_eq!((namespace.as_deref(), name.as_str(), version.as_deref()), (Some("n"), "s", Some("6")));
        assert!(error.contains("expected a map") && !error.contains("hunter2") && !error.contains("quoted"), "{error}");
    }

    #[test]
    fn one_malformed_object_of_a_page_stalls_nothing_but_itself() {
        let text = json!({"metadata": {"resourceVersion": "9", "continue": "more"}, "items": [
            {"metadata": {"name": "good"}}, {"metadata": {"name": "bad", "labels": [1]}}, {"metadata": {"name": "fine"}}]});
        let page = page::<ConfigMap>(&mut serde_json::to_vec(&text).unwrap()).unwrap();
        let names: Vec<String> = page
            .items
            .iter()
            .map(|item| match item {
                Received::Object(map) => map.metadata.name.clone().unwrap(),
                Received::Malformed { name, .. } => format!("malformed {name}"),
            })
            .collect();
        assert_eq!(names, ["good", "malformed bad", "fine"]);
        assert_eq!((page.resource_version.as_deref(), page.next.as_deref()), (Some("9"), Some("more")));
    }

    #[test]
    fn bookmarks_and_errors_are_told_apart_from_objects() {
        let text = json!({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1",
            "metadata": {"resourceVersion": "12"}, "spec": {"containers": null}}});
        let decoded = line::<Pod>(&mut serde_json::to_vec(&text).unwrap()).unwrap();
        assert!(matches!(decoded, Line::Bookmark(Some(version)) if version == "12"));
        let text = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
            "code": 410, "reason": "Expired", "message": "too old resource version"}});
        let decoded = line::<Pod>(&mut serde_json::to_vec(&text).unwrap()).unwrap();
        assert!(matches!(decoded, Line::Error(status) if status.code == 410));
    }

    #[test]
    fn half_a_line_and_unknown_types_are_refused() {
        assert!(line::<Pod>(&mut b"{\"type\":\"ADDED\",\"object\":{\"meta".to_vec()).is_err());
        let error = line::<Pod>(&mut b"{\"type\":\"RENAMED\",\"object\":{}}".to_vec()).unwrap_err();
        assert!(error.contains("RENAMED"), "{error}");
    }

    #[test]
    fn an_empty_list_may_have_no_items_at_all() {
        let page =
            page::<Pod>(&mut b"{\"metadata\":{\"resourceVersion\":\"1\",\"continue\":\"\"},\"items\":null}".to_vec())
                .unwrap();
        assert!(page.items.is_empty() && page.next.is_none());
    }
}
