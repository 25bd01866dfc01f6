//! What is made from the chart, and what must say the same as it: its README, its schema, and `virtual-node/deploy`.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use serde_json::Value;

use crate::helm::{chart, repository, template, value_set};

/// Stands for the node's name while the chart is rendered.
const NODE: &str = "name-of-the-node";

const UPPER: &str = "\
# Rights of one virtual node's ServiceAccount in the upper cluster (--identity=csr, the default).
#
# What a virtual node sees of pods, Secrets, ConfigMaps and tokens it sees as system:node:NAME, bounded by the Node
# authorizer and NodeRestriction like any kubelet. The account is for the little that no node may do. Replace
# {{NODE_NAME}} by the value of --node-name; apply once for each virtual node.
#
# Made from charts/virtual-node by `TENSILE_UPDATE_DOCS=1 cargo test -p tensile-e2e --test chart deploy`.
apiVersion: v1
kind: Namespace
metadata:
  name: tensile-system
";

const WIDE: &str = "\
# Further rights of the ServiceAccount where the node certificate is not to be had (--identity=service-account). Apply
# beside rbac-upper.yaml.
#
# These are wide: RBAC cannot say \"only what pods of my node refer to\", as the Node authorizer does. With them the
# account reads every Secret and ConfigMap of the cluster, makes tokens of every ServiceAccount and may change the status
# of every pod. Prefer --identity=csr, or a kubeconfig of a node (--identity=kubeconfig).
#
# Made from charts/virtual-node by `TENSILE_UPDATE_DOCS=1 cargo test -p tensile-e2e --test chart deploy`.
";

#[tokio::test]
async fn the_manifests_to_deploy_without_helm_are_the_charts() {
    let render = async |templates: &[&str], more: &[&str]| {
        let minimal = value_set("minimal").display().to_string();
        let node = format!("nodeName={NODE}");
        let mut arguments = vec!["--values", &minimal, "--set", &node, "--set", "serviceAccount.name=virtual-node"];
        arguments.extend(templates.iter().flat_map(|template| ["--show-only", template]));
        let text = template(&[&arguments, more].concat()).await.unwrap();
        // helm's own remarks, and its order by kind, are no part of a manifest.
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("# Source:"));
        let text = lines.fold(String::new(), |text, line| text + line + "\n");
        text.trim_start_matches("---\n").replace(NODE, "{{NODE_NAME}}")
    };
    let upper = render(&["templates/serviceaccount.yaml", "templates/rbac.yaml"], &[]).await;
    expect(&repository("virtual-node/deploy/rbac-upper.yaml"), &format!("{UPPER}---\n{upper}"));
    let wide = render(&["templates/rbac-wide.yaml"], &["--set", "identity.mode=service-account"]).await;
    expect(&repository("virtual-node/deploy/rbac-upper-service-account.yaml"), &format!("{WIDE}{wide}"));
}

#[test]
fn the_readme_lists_every_value_with_its_default() {
    let path = chart().join("README.md");
    let present = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- values -->\n", "<!-- end of values -->\n");
    let (head, rest) = present.split_once(begin).expect("a mark where the values begin");
    let (_, tail) = rest.split_once(end).expect("a mark where the values end");
    let mut table = "| value | default | meaning |\n|---|---|---|\n".to_owned();
    let values = values();
    for (name, meaning) in documented() {
        let pointer = format!("/{}", name.replace('.', "/"));
        let default = values.pointer(&pointer).unwrap();
        writeln!(table, "| `{name}` | `{default}` | {} |", meaning.replace('|', "\\|")).unwrap();
    }
    expect(&path, &format!("{head}{begin}{table}{end}{tail}"));
}

#[test]
fn every_value_has_a_comment_and_a_place_in_the_schema() {
    let documented: Vec<String> = documented().into_iter().map(|(name, _)| name).collect();
    let covered = |name: &str| documented.iter().any(|d| name == d || name.starts_with(&format!("{d}.")));
    let bare: Vec<_> = leaves("", &values()).into_iter().filter(|name| !covered(name)).collect();
    assert!(bare.is_empty(), "without a comment in values.yaml: {bare:?}");

    let schema = fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let in_schema = properties("", &serde_json::from_str(&schema).unwrap());
    let documented: BTreeSet<String> = documented.into_iter().chain(["global".to_owned()]).collect();
    assert_eq!(in_schema, documented, "values.schema.json and values.yaml must name the same values");
}

fn values() -> Value {
    serde_yaml_ng::from_str(&fs::read_to_string(chart().join("values.yaml")).unwrap()).unwrap()
}

/// The values of values.yaml that have a comment, with it, in order.
fn documented() -> Vec<(String, String)> {
    let text = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let mut found = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut path: Vec<(usize, &str)> = Vec::new();
    for line in text.lines() {
        let words = line.trim_start();
        if let Some(remark) = words.strip_prefix('#') {
            comment.push(remark.trim());
        } else if let Some((key, _)) = words.split_once(':') {
            let indent = line.len() - words.len();
            path.retain(|(outer, _)| *outer < indent);
            path.push((indent, key));
            if !comment.is_empty() {
                let name: Vec<&str> = path.iter().map(|(_, key)| *key).collect();
                found.push((name.join("."), comment.join(" ")));
            }
            comment.clear();
        } else {
            comment.clear();
        }
    }
    found
}

/// Names of all values that are no objects.
fn leaves(prefix: &str, value: &Value) -> Vec<String> {
    match value.as_object().filter(|object| !object.is_empty()) {
        Some(object) => object.iter().flat_map(|(key, inner)| leaves(&joined(prefix, key), inner)).collect(),
        None => vec![prefix.to_owned()],
    }
}

/// Names of all values that the schema knows, without those that hold others.
fn properties(prefix: &str, schema: &Value) -> BTreeSet<String> {
    match schema["properties"].as_object() {
        Some(inner) => inner.iter().flat_map(|(key, schema)| properties(&joined(prefix, key), schema)).collect(),
        None => [prefix.to_owned()].into(),
    }
}

fn joined(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// The file holds this text, or is written anew where that is asked for.
fn expect(path: &Path, text: &str) {
    if std::env::var_os("TENSILE_UPDATE_DOCS").is_some() {
        fs::write(path, text).unwrap();
    }
    let present = fs::read_to_string(path).unwrap();
    assert!(
        present == text,
        "{} is out of date; TENSILE_UPDATE_DOCS=1 cargo test -p tensile-e2e --test chart writes it anew. Wanted:\n{text}",
        path.display()
    );
}

#[test]
fn every_link_of_the_documents_leads_to_a_file() {
    let mut pages = vec![repository("README.md"), repository("CONTRIBUTING.md"), chart().join("README.md")];
    for folder in ["docs", "docs/user-guide"] {
        let files = fs::read_dir(repository(folder)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let mut broken = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let local = targets.filter(|target| !target.is_empty() && !target.contains("://"));
        let missing = local.filter(|target| !page.parent().unwrap().join(target).exists());
        broken.extend(missing.map(|target| format!("{}: {target}", page.display())));
    }
    assert!(broken.is_empty(), "links to nothing:\n{}", broken.join("\n"));
}
