//! The chart, and the program helm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tensile_e2e::{Tool, Tools};

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// The chart's folder.
pub fn chart() -> PathBuf {
    repository("charts/virtual-node")
}

/// The value sets that checks go over: `minimal`, `full` and so on.
pub fn value_sets() -> Vec<PathBuf> {
    let mut sets: Vec<_> = fs::read_dir(chart().join("ci")).unwrap().map(|entry| entry.unwrap().path()).collect();
    sets.sort();
    assert!(sets.len() > 3, "{sets:?}");
    sets
}

/// The value set of this name.
pub fn value_set(name: &str) -> PathBuf {
    chart().join("ci").join(name).with_extension("yaml")
}

/// helm, ready for arguments. It reads nothing of the person who runs the tests.
pub async fn helm() -> Command {
    let nowhere = std::env::temp_dir().join("tensile-no-helm-home");
    let mut command = Command::new(Tools::get(Tool::Helm).await.unwrap());
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, &nowhere);
    }
    command.env_remove("KUBECONFIG").current_dir(repository(""));
    command
}

/// What the chart renders as release `east` in namespace `tensile-system`, or why it does not.
pub async fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = chart().display().to_string();
    let mut command = helm().await;
    command.args(["template", "east", &chart, "--namespace", "tensile-system"]).args(arguments);
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a value set renders.
pub async fn rendered(values: &Path) -> String {
    template(&["--values", values.to_str().unwrap()]).await.unwrap()
}

/// The objects of a rendered text.
pub fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(yaml);
    let all = documents.map(|document| serde::Deserialize::deserialize(document).unwrap());
    all.filter(|object: &Value| !object.is_null()).collect()
}

/// The one object of a kind.
pub fn only(yaml: &str, kind: &str) -> Value {
    let mut found: Vec<_> = objects(yaml).into_iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind} in:\n{yaml}");
    found.remove(0)
}
