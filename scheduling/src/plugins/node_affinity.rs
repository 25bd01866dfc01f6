//! NodeAffinity: node selector, and required and preferred node affinity.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

pub(crate) const NAME: &str = "NodeAffinity";
pub(crate) const REASON: &str = "node(s) didn't match Pod's node affinity/selector";
pub(crate) const REASON_NOT_NAMED: &str = "node(s) didn't satisfy plugin(s) [NodeAffinity]";
pub(crate) const REASON_CONFLICT: &str = "pod affinity terms conflict";
/// The one field of a node that terms may match.
const FIELD_NAME: &str = "metadata.name";

/// What a pod says about the nodes that it wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Affinity {
    /// `spec.nodeSelector`.
    selector: Vec<(String, String)>,
    /// Required terms, ORed. `None`: nothing is required.
    required: Option<Vec<Term>>,
    preferred: Vec<(i64, Term)>,
    /// The nodes that every required term names, when each of them names some: others are not looked at. Empty: the terms
    /// contradict themselves.
    named: Option<BTreeSet<String>>,
}

/// Requirements, ANDed. One that cannot be read makes the whole term match nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Term {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
    readable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
}

impl Affinity {
    pub fn of(spec: &PodSpec) -> Self {
        let rules = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = rules.and_then(|rules| rules.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred = rules.and_then(|rules| rules.preferred_during_scheduling_ignored_during_execution.as_ref());
        Self {
            selector: spec.node_selector.clone().unwrap_or_default().into_iter().collect(),
            // Empty terms match nothing.
            required: required.map(|selector| {
                selector.node_selector_terms.iter().filter(|term| !is_empty(term)).map(Term::of).collect()
            }),
            preferred: preferred
                .into_iter()
                .flatten()
                .filter(|preferred| preferred.weight != 0 && !is_empty(&preferred.preference))
                .map(|preferred| (i64::from(preferred.weight), Term::of(&preferred.preference)))
                .filter(|(_, term)| term.readable)
                .collect(),
            named: required.and_then(|selector| named(&selector.node_selector_terms)),
        }
    }

    /// Whether the required terms contradict themselves in the names that they ask for.
    pub fn conflicts(&self) -> bool {
        self.named.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Whether a node of this name is looked at.
    pub fn names(&self, node: &str) -> bool {
        self.named.as_ref().is_none_or(|named| named.contains(node))
    }

    /// Whether selector and required terms match a node.
    pub fn matches<'a>(&self, name: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.selector.iter().all(|(key, value)| label(key) == Some(value))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, &label)))
    }

    /// The sum of the weights of the preferred terms that match.
    pub fn preferred<'a>(&self, name: &str, label: impl Fn(&str) -> Option<&'a str>) -> i64 {
        self.preferred.iter().filter(|(_, term)| term.matches(name, &label)).map(|(weight, _)| weight).sum()
    }

    /// Whether the verdict on two nodes of one class may differ by their names.
    pub fn reads_names(&self) -> bool {
        self.named.is_some() || self.terms().any(|term| !term.fields.is_empty())
    }

    /// Whether a label is read.
    pub fn reads_label(&self, key: &str) -> bool {
        self.selector.iter().any(|(own, _)| own == key)
            || self.terms().any(|term| term.labels.iter().any(|requirement| requirement.key == key))
    }

    fn terms(&self) -> impl Iterator<Item = &Term> {
        self.required.iter().flatten().chain(self.preferred.iter().map(|(_, term)| term))
    }
}

/// The nodes that all terms name together, as kube-scheduler's PreFilter finds them. `None` when a term names none.
fn named(terms: &[NodeSelectorTerm]) -> Option<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for term in terms {
        let by_name = term.match_fields.iter().flatten();
        let by_name = by_name.filter(|field| field.key == FIELD_NAME && field.operator == "In");
        let sets = by_name.map(|field| field.values.iter().flatten().cloned().collect::<BTreeSet<_>>());
        all.extend(sets.reduce(|both, set| both.intersection(&set).cloned().collect())?);
    }
    (!terms.is_empty()).then_some(all)
}

fn is_empty(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.as_ref().is_none_or(Vec::is_empty) && term.match_fields.as_ref().is_none_or(Vec::is_empty)
}

impl Term {
    fn of(term: &NodeSelectorTerm) -> Self {
        let read = |list: Option<&Vec<NodeSelectorRequirement>>, test: fn(&NodeSelectorRequirement) -> Option<Test>| {
            let each = list.into_iter().flatten();
            each.map(|requirement| Some(Requirement { key: requirement.key.clone(), test: test(requirement)? }))
                .collect()
        };
        let labels: Option<Vec<_>> = read(term.match_expressions.as_ref(), Test::of_label);
        let fields: Option<Vec<_>> = read(term.match_fields.as_ref(), Test::of_field);
        let readable = labels.is_some() && fields.is_some();
        Self { labels: labels.unwrap_or_default(), fields: fields.unwrap_or_default(), readable }
    }

    fn matches<'a>(&self, name: &str, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        self.readable
            && self.labels.iter().all(|requirement| requirement.test.holds(label(&requirement.key)))
            && self.fields.iter().all(|requirement| {
                // A field that does not exist reads as empty.
                requirement.test.holds(Some(if requirement.key == FIELD_NAME { name } else { "" }))
            })
    }
}

impl Test {
    fn of_label(requirement: &NodeSelectorRequirement) -> Option<Self> {
        let values = requirement.values.clone().unwrap_or_default();
        let number = || if let [value] = values.as_slice() { value.parse().ok() } else { None };
        match requirement.operator.as_str() {
            "In" if !values.is_empty() => Some(Self::In(values)),
            "NotIn" if !values.is_empty() => Some(Self::NotIn(values)),
            "Exists" if values.is_empty() => Some(Self::Exists),
            "DoesNotExist" if values.is_empty() => Some(Self::DoesNotExist),
            "Gt" => number().map(Self::Gt),
            "Lt" => number().map(Self::Lt),
            _ => None,
        }
    }

    /// Fields know two operators, and one value.
    fn of_field(requirement: &NodeSelectorRequirement) -> Option<Self> {
        let values = requirement.values.clone().filter(|values| values.len() == 1)?;
        match requirement.operator.as_str() {
            "In" => Some(Self::In(values)),
            "NotIn" => Some(Self::NotIn(values)),
            _ => None,
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|each| each == value));
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(values) => among(values),
            Self::NotIn(values) => !among(values),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::Gt(bound) => number().is_some_and(|number| number > *bound),
            Self::Lt(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn affinity(spec: Value) -> Affinity {
        let mut spec = spec;
        spec["containers"] = json!([]);
        Affinity::of(&serde_json::from_value(spec).unwrap())
    }

    fn required(terms: &Value) -> Affinity {
        let rules = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        affinity(json!({"affinity": {"nodeAffinity": rules}}))
    }

    fn matches(affinity: &Affinity) -> bool {
        let label = |key: &str| match key {
            "zone" => Some("a"),
            "cores" => Some("8"),
            _ => None,
        };
        affinity.names("n1") && affinity.matches("n1", label)
    }

    #[test]
    fn selectors_and_each_operator_are_judged_as_labels() {
        assert!(matches(&affinity(json!({"nodeSelector": {"zone": "a"}}))));
        assert!(!matches(&affinity(json!({"nodeSelector": {"zone": "a", "gpu": ""}}))));
        for (key, operator, values, expected) in [
            ("zone", "In", json!(["b", "a"]), true),
            ("zone", "NotIn", json!(["a"]), false),
            ("gpu", "NotIn", json!(["a"]), true),
            ("zone", "Exists", json!([]), true),
            ("gpu", "DoesNotExist", json!([]), true),
            ("cores", "Gt", json!(["7"]), true),
            ("cores", "Lt", json!(["8"]), false),
            ("zone", "Gt", json!(["1"]), false),
            // What cannot be read matches nothing.
            ("gpu", "NotIn", json!([]), false),
            ("zone", "Exists", json!(["a"]), false),
            ("cores", "Gt", json!(["1", "2"]), false),
            ("zone", "Like", json!(["a"]), false),
        ] {
            let expression = json!({"key": key, "operator": operator, "values": values});
            assert_eq!(matches(&required(&json!([{"matchExpressions": [expression]}]))), expected, "{key} {operator}");
        }
    }

    #[test]
    fn terms_are_ored_and_empty_ones_match_nothing() {
        let zone = |value: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [value]}]});
        assert!(matches(&required(&json!([zone("b"), zone("a")]))));
        assert!(!matches(&required(&json!([zone("b"), {}]))));
        assert!(!matches(&required(&json!([]))));
    }

    #[test]
    fn names_narrow_the_search_and_may_contradict_each_other() {
        let name =
            |operator: &str, values: Value| json!({"key": "metadata.name", "operator": operator, "values": values});
        assert!(matches(&required(&json!([{"matchFields": [name("In", json!(["n1"]))]}]))));
        let other = required(&json!([{"matchFields": [name("In", json!(["n2"]))]}]));
        assert!(!other.names("n1") && !other.conflicts());
        let both = json!([name("In", json!(["n1"])), name("In", json!(["n2"]))]);
        assert!(required(&json!([{"matchFields": both}])).conflicts());
        assert!(!matches(&required(&json!([{"matchFields": [name("NotIn", json!(["n1"]))]}]))));
    }
}
