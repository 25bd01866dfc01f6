//! Undoes what an API server merges into label selectors (KEP-3243, KEP-3633).
//!
//! At creation it appends `key In (value)` for every key of matchLabelKeys that the pod has as a label, and
//! `key NotIn (value)` for mismatchLabelKeys (`K pkg/registry/core/pod/strategy.go`). The lower API server would append
//! them again and then refuse the pod, because a key may not stand in both.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Removes merged expressions from a selector in place, so that merging again with `labels` gives the same selector.
///
/// Where a label changed since the upper pod was created, merging again would give another selector: then the
/// expression stays and the key goes.
pub(super) fn unmerge(
    selector: &mut Option<LabelSelector>,
    match_keys: &mut Option<Vec<String>>,
    mismatch_keys: &mut Option<Vec<String>>,
    labels: &BTreeMap<String, String>,
) {
    // Without a selector nothing was merged.
    let Some(selector) = selector else { return };
    // The opposite order of merging, so that the last expression is always the one looked for.
    unmerge_keys(selector, mismatch_keys, "NotIn", labels);
    unmerge_keys(selector, match_keys, "In", labels);
    if selector.match_expressions.as_ref().is_some_and(Vec::is_empty) {
        selector.match_expressions = None;
    }
}

fn unmerge_keys(
    selector: &mut LabelSelector,
    keys: &mut Option<Vec<String>>,
    operator: &str,
    labels: &BTreeMap<String, String>,
) {
    let Some(listed) = keys else { return };
    let mut remaining = Vec::with_capacity(listed.len());
    for key in listed.drain(..).rev() {
        let expressions = selector.match_expressions.get_or_insert_default();
        let merged = expressions.iter().rposition(|each| {
            each.key == key && each.operator == operator && each.values.as_ref().is_some_and(|values| values.len() == 1)
        });
        match merged {
            Some(at) if expressions[at].values.as_ref().and_then(|values| values.first()) == labels.get(&key) => {
                expressions.remove(at);
                remaining.push(key);
            }
            Some(_) => {}
            // Not merged: the API server is older than that, or the pod has no such label.
            None => remaining.push(key),
        }
    }
    remaining.reverse();
    *keys = (!remaining.is_empty()).then_some(remaining);
}

/// What the API server does at creation; the opposite of [`unmerge`], for tests.
#[cfg(test)]
pub(super) fn merge(
    selector: &mut Option<LabelSelector>,
    match_keys: Option<&[String]>,
    mismatch_keys: Option<&[String]>,
    labels: &BTreeMap<String, String>,
) {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
    let Some(selector) = selector else { return };
    for (keys, operator) in [(match_keys, "In"), (mismatch_keys, "NotIn")] {
        for key in keys.into_iter().flatten() {
            let Some(value) = labels.get(key) else { continue };
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn unmerged(selector: Value, match_keys: Value, mismatch_keys: Value, labels: Value) -> (Value, Value, Value) {
        let mut selector = serde_json::from_value(selector).unwrap();
        let mut match_keys = serde_json::from_value(match_keys).unwrap();
        let mut mismatch_keys = serde_json::from_value(mismatch_keys).unwrap();
        unmerge(&mut selector, &mut match_keys, &mut mismatch_keys, &serde_json::from_value(labels).unwrap());
        (json!(selector), json!(match_keys), json!(mismatch_keys))
    }

    #[test]
    fn merged_expressions_go_and_keys_stay() {
        let merged = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]},
            {"key": "hash", "operator": "In", "values": ["1"]},
            {"key": "team", "operator": "NotIn", "values": ["x"]}]});
        assert_eq!(
            unmerged(merged, json!(["hash"]), json!(["team"]), json!({"hash": "1", "team": "x"})),
            (
                json!({"matchLabels": {"app": "web"}, "matchExpressions": [
                    {"key": "tier", "operator": "In", "values": ["a", "b"]}]}),
                json!(["hash"]),
                json!(["team"])
            )
        );
    }

    #[test]
    fn a_label_changed_since_keeps_the_expression() {
        let merged = json!({"matchExpressions": [{"key": "hash", "operator": "In", "values": ["1"]}]});
        assert_eq!(
            unmerged(merged.clone(), json!(["hash"]), json!(null), json!({"hash": "2"})),
            (merged, json!(null), json!(null))
        );
    }

    #[test]
    fn nothing_merged_nothing_removed() {
        let own = json!({"matchLabels": {"app": "web"}});
        assert_eq!(
            unmerged(own.clone(), json!(["hash"]), json!(null), json!({"hash": "1"})),
            (own, json!(["hash"]), json!(null))
        );
        assert_eq!(
            unmerged(json!(null), json!(["hash"]), json!(null), json!({"hash": "1"})),
            (json!(null), json!(["hash"]), json!(null))
        );
    }

    #[test]
    fn an_equal_expression_of_the_users_own_stays() {
        let own = json!({"key": "team", "operator": "NotIn", "values": ["x"]});
        let merged = json!({"matchExpressions": [own, own]});
        assert_eq!(
            unmerged(merged, json!(null), json!(["team"]), json!({"team": "x"})).0,
            json!({ "matchExpressions": [own] })
        );
    }
}
