//! `scripts/lower-account`: the account of virtual nodes in a lower cluster, and its kubeconfig.

use std::{path::Path, process::Command};

use tensile_e2e::{Tool, Tools};

use crate::helm::repository;

/// The script, with the testbed's kubectl and this administrator.
pub async fn script(kubeconfig: &Path) -> Command {
    let kubectl = Tools::get(Tool::Kubectl).await.unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(repository("scripts/lower-account"));
    command.env("PATH", format!("{}:{path}", kubectl.parent().unwrap().display())).env("KUBECONFIG", kubeconfig);
    command
}

#[tokio::test]
async fn what_it_does_not_understand_it_says_and_does_nothing() {
    for (arguments, wanted) in
        [(&["--contxt", "east"][..], "unknown argument --contxt; --help"), (&["--context"], "--context needs a value")]
    {
        let output = script(Path::new("/nonexistent")).await.args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(wanted), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
    let help = script(Path::new("/nonexistent")).await.arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("--server URL") && !help.contains("set -"), "{help}");
}
