//! A strategic merge as the API server does it, for the fields of a pod that our patches touch
//! (`k8s.io/apimachinery/pkg/util/strategicpatch`). Tests apply patches with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// The patch merge keys of `k8s.io/api/core/v1/types.go`; lists that are not here are replaced.
const MERGE_KEYS: [(&str, &str); 6] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("conditions", "type"),
    ("podIPs", "ip"),
    ("hostIPs", "ip"),
];

/// Applies a patch to an API object.
pub(super) fn patched<T: Serialize + DeserializeOwned>(object: &T, patch: &Value) -> T {
    let mut value = serde_json::to_value(object).unwrap();
    merge(&mut value, patch);
    serde_json::from_value(value).unwrap()
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { panic!("a patch is an object: {patch}") };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let target = target.as_object_mut().unwrap();
    for (field, change) in patch {
        match change {
            Value::Null => {
                target.remove(field);
            }
            Value::Object(_) => merge(target.entry(field.clone()).or_insert(Value::Null), change),
            Value::Array(items) => match MERGE_KEYS.iter().find(|(list, _)| list == field) {
                Some((_, key)) => {
                    let list = target.entry(field.clone()).or_insert_with(|| Value::Array(Vec::new()));
                    merge_list(list.as_array_mut().unwrap(), items, key);
                }
                None => {
                    target.insert(field.clone(), change.clone());
                }
            },
            _ => {
                target.insert(field.clone(), change.clone());
            }
        }
    }
}

fn merge_list(list: &mut Vec<Value>, changes: &[Value], key: &str) {
    for change in changes {
        match change.get("$patch").and_then(Value::as_str) {
            Some("replace") => list.clear(),
            Some("delete") => list.retain(|item| item[key] != change[key]),
            Some(other) => panic!("unknown directive {other}"),
            None => {
                if let Some(item) = list.iter_mut().find(|item| item[key] == change[key]) {
                    merge(item, change);
                } else {
                    let mut item = Value::Null;
                    merge(&mut item, change);
                    list.push(item);
                }
            }
        }
    }
}
