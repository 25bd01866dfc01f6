//! The chart and the program agree: on arguments, ports, versions, and what an API server takes.

use std::{fs, process::Stdio};

use clap::Parser as _;
use serde_json::{Value, json};
use tensile_e2e::Cluster;
use tensile_virtual_node::Args;

use crate::helm::{chart, helm, objects, only, rendered, repository, value_set, value_sets};

#[tokio::test]
async fn every_value_set_passes_helms_strict_lint() {
    for values in value_sets() {
        let output = helm().await.args(["lint", "--strict", "--values"]).arg(&values).arg(chart()).output().unwrap();
        assert!(output.status.success(), "{}:\n{}", values.display(), String::from_utf8_lossy(&output.stdout));
    }
}

#[tokio::test]
async fn the_program_takes_every_argument_that_the_chart_gives_it() {
    for values in value_sets() {
        let deployment = only(&rendered(&values).await, "Deployment");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let args: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
        // What the pod's environment says.
        let address = ["virtual-node".to_owned(), "--node-address=192.0.2.1".to_owned()];
        if let Err(error) = Args::try_parse_from(address.iter().chain(&args)) {
            panic!("{}: {error}", values.display());
        }
    }
}

#[tokio::test]
async fn the_value_sets_lead_to_every_argument_of_the_templates() {
    let template = fs::read_to_string(chart().join("templates/_args.tpl")).unwrap();
    let known: Vec<&str> = template.split(|c: char| !c.is_ascii_lowercase() && c != '-').collect();
    let known: std::collections::BTreeSet<_> = known.into_iter().filter(|word| word.starts_with("--")).collect();
    assert!(known.len() > 15, "{known:?}");
    let mut reached = String::new();
    for values in value_sets() {
        reached += &only(&rendered(&values).await, "Deployment").to_string();
    }
    let missed: Vec<_> = known.iter().filter(|flag| !reached.contains(&format!("\"{flag}="))).collect();
    assert!(missed.is_empty(), "no value set of charts/virtual-node/ci leads to {missed:?}");
}

#[tokio::test]
async fn the_container_may_do_nothing_that_it_need_not() {
    let deployment = only(&rendered(&value_set("minimal")).await, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
}

#[tokio::test]
async fn rights_for_a_certificate_are_granted_only_where_one_is_asked_for() {
    for (name, with_certificate) in [("minimal", true), ("service-account", false), ("host-network", false)] {
        let roles: Vec<Value> = objects(&rendered(&value_set(name)).await)
            .into_iter()
            .filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role")))
            .collect();
        let text = Value::from(roles).to_string();
        assert_eq!(text.contains("certificatesigningrequests"), with_certificate, "{name}: {text}");
        assert_eq!(text.contains("-identity"), with_certificate, "{name}: {text}");
        assert_eq!(text.contains("serviceaccounts/token"), name == "service-account", "{name}: {text}");
    }
}

#[tokio::test]
async fn without_certificates_nobody_can_call_by_grpc() {
    for (name, open) in [("minimal", false), ("full", true)] {
        let text = only(&rendered(&value_set(name)).await, "Deployment").to_string();
        assert_eq!(text.contains("--grpc-address=0.0.0.0:"), open, "{name}: {text}");
        assert_eq!(text.contains("--grpc-client-ca-file="), open, "{name}: {text}");
    }
}

#[test]
fn the_dockerfile_builds_with_the_pinned_compiler() {
    let pinned = fs::read_to_string(repository("rust-toolchain.toml")).unwrap();
    let version = pinned.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let dockerfile = fs::read_to_string(repository("virtual-node/Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{version}-")), "wanted {version} in:\n{dockerfile}");
}

#[test]
fn the_chart_is_of_the_programs_version() {
    let text = fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let chart: Value = serde_yaml_ng::from_str(&text).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_takes_what_every_value_set_renders() {
    tensile_e2e::install_crypto();
    let bare = Cluster::builder("chart-dry-run").controller_manager(false).scheduler(false).audit(false);
    let cluster = bare.start().await.unwrap();
    let created = cluster.kubectl().args(["create", "namespace", "tensile-system"]).output().unwrap();
    assert!(created.status.success(), "{created:?}");
    for values in value_sets() {
        // The Prometheus Operator's kind, which is not here.
        let known: Vec<Value> =
            objects(&rendered(&values).await).into_iter().filter(|object| object["kind"] != "ServiceMonitor").collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": known}).to_string();
        let mut kubectl = cluster.kubectl();
        kubectl.args(["apply", "--dry-run=server", "--validate=strict", "-f", "-"]).stdin(Stdio::piped());
        let mut child = kubectl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), list.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}: {}", values.display(), String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), known.len(), "{output:?}");
    }
    cluster.stop().await;
}
