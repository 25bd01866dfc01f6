//! What a scrape gets, with a lower API server that answers by a list. The two requests of a scrape are answered in the
//! order pods, nodes.

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;

use super::*;
use crate::{
    kubelet::{
        Lookup, RunningPod,
        testing::{Answer, Answers, client_that_answers},
    },
    names::{Key, NamespaceMapping},
};

struct OnePod;

impl PodLookup for OnePod {
    fn lower_of(&self, _: &Key) -> Lookup {
        Lookup::Unknown
    }

    fn running(&self, lower: &Key, uid: Option<&str>) -> Option<RunningPod> {
        (*lower == Key::new("shop-below", "web") && uid == Some("u")).then(|| RunningPod {
            key: Key::new("shop", "web"),
            uid: "u".into(),
            containers: vec![("main".into(), "2026-11-24T11:00:00Z".parse().unwrap())],
        })
    }
}

fn usage(answers: &Answers) -> Usage {
    let settings = Settings {
        node_name: "edge".into(),
        cluster_name: "edge".into(),
        upper_cluster_uid: "c1".into(),
        lower_cluster_uid: "c2".into(),
        namespaces: NamespaceMapping::Same,
        adopt_namespaces: std::collections::BTreeSet::new(),
        lower_scheduler_name: None,
        upper_api_for_pods: None,
        node_address: [192, 0, 2, 1].into(),
    };
    Usage::new(client_that_answers(answers.clone()), Arc::new(OnePod), &settings)
}

fn ok(body: &'static str) -> Response<Body> {
    Response::new(Body::from(body.as_bytes().to_vec()))
}

fn pods(_: &Request<Body>) -> Response<Body> {
    ok(r#"{"items":[
        {"metadata":{"name":"web","namespace":"shop-below","labels":{"tensile.dev/upper-uid":"u"}},
         "timestamp":"2026-11-24T12:00:00Z","window":"15s",
         "containers":[{"name":"main","usage":{"cpu":"250m","memory":"2Mi"}}]},
        {"metadata":{"name":"foreign","namespace":"shop-below"},"timestamp":"2026-11-24T12:00:00Z","window":"15s",
         "containers":[{"name":"main","usage":{"cpu":"1","memory":"1Gi"}}]}]}"#)
}

fn later_pods(_: &Request<Body>) -> Response<Body> {
    ok(r#"{"items":[
        {"metadata":{"name":"web","namespace":"shop-below","labels":{"tensile.dev/upper-uid":"u"}},
         "timestamp":"2026-11-24T12:00:16Z","window":"16s",
         "containers":[{"name":"main","usage":{"cpu":"500m","memory":"3Mi"}}]}]}"#)
}

fn nodes(_: &Request<Body>) -> Response<Body> {
    ok(r#"{"items":[{"metadata":{"name":"n"},"timestamp":"2026-11-24T12:00:03Z","window":"15s",
        "usage":{"cpu":"3","memory":"4Gi"}}]}"#)
}

fn status<const CODE: u16>(_: &Request<Body>) -> Response<Body> {
    Response::builder().status(CODE).body(Body::empty()).unwrap()
}

async fn body(reply: Reply) -> (u16, String) {
    let (parts, body) = reply.into_parts();
    (parts.status.as_u16(), String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// As if the last answer were old.
async fn let_it_age(usage: &Usage, by: Duration) {
    let mut state = usage.state.lock().await;
    state.last = None;
    if let Some((at, _)) = &mut state.good {
        *at = at.checked_sub(by).unwrap();
    }
}

async fn scrape(answers: Vec<Answer>) -> (u16, String) {
    body(usage(&Answers::new(answers)).resource_metrics().await).await
}

#[tokio::test]
async fn a_scrape_has_the_names_labels_units_and_times_of_a_kubelets() {
    let answers = Answers::new(vec![pods, nodes, later_pods, nodes]);
    let usage = usage(&answers);
    usage.resource_metrics().await;
    let_it_age(&usage, Duration::ZERO).await;
    let (status, text) = body(usage.resource_metrics().await).await;
    assert_eq!(status, 200);
    let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        series,
        [
            r#"container_cpu_usage_seconds_total{container="main",namespace="shop",pod="web"} 8.000001000 1795521616000"#,
            r#"container_memory_working_set_bytes{container="main",namespace="shop",pod="web"} 3145728 1795521616000"#,
            r#"container_start_time_seconds{container="main",namespace="shop",pod="web"} 1795521600.000000000"#,
            "node_cpu_usage_seconds_total 0.000001000 1795521603000",
            "node_memory_working_set_bytes 4294967296 1795521603000",
            r#"pod_cpu_usage_seconds_total{namespace="shop",pod="web"} 8.000001000 1795521616000"#,
            r#"pod_memory_working_set_bytes{namespace="shop",pod="web"} 3145728 1795521616000"#,
            "resource_scrape_error 0",
        ]
    );
    assert!(text.contains("# TYPE container_cpu_usage_seconds_total counter\n"), "{text}");
    assert_eq!(
        answers.paths()[..2],
        [
            "/apis/metrics.k8s.io/v1beta1/pods?labelSelector=tensile.dev%2Fupper-cluster%3Dc1%2Ctensile.dev%2Fvirtual-node%3Dedge",
            "/apis/metrics.k8s.io/v1beta1/nodes"
        ]
    );
}

#[tokio::test]
async fn the_summary_has_the_shape_of_a_kubelets() {
    let usage = usage(&Answers::new(vec![pods, nodes]));
    let (status, text) = body(usage.summary().await).await;
    assert_eq!(status, 200, "{text}");
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cpu =
        |time, rate, total| serde_json::json!({"time": time, "usageNanoCores": rate, "usageCoreNanoSeconds": total});
    let memory = |time, bytes| serde_json::json!({"time": time, "workingSetBytes": bytes});
    let then = "2026-11-24T12:00:00Z";
    assert_eq!(
        summary,
        serde_json::json!({
            "node": {
                "nodeName": "edge", "startTime": "2026-11-24T12:00:03Z",
                "cpu": cpu("2026-11-24T12:00:03Z", 3_000_000_000_u64, 1000),
                "memory": memory("2026-11-24T12:00:03Z", 4_294_967_296_u64),
            },
            "pods": [{
                "podRef": {"name": "web", "namespace": "shop", "uid": "u"}, "startTime": then,
                "containers": [{
                    "name": "main", "startTime": then,
                    "cpu": cpu(then, 250_000_000, 1000), "memory": memory(then, 2_097_152),
                }],
                "cpu": cpu(then, 250_000_000, 1000), "memory": memory(then, 2_097_152),
            }],
        })
    );
}

#[tokio::test]
async fn without_a_metrics_api_below_there_are_no_figures_and_the_cure_is_told() {
    for (answer, cure) in [
        (status::<404> as Answer, "install metrics-server there"),
        (status::<403>, "deploy/rbac-lower.yaml"),
        (status::<503>, "kubectl get apiservice"),
    ] {
        let (code, text) = scrape(vec![answer, answer]).await;
        assert_eq!(code, 200);
        assert!(text.starts_with("# ") && text.contains(cure), "{text}");
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series, ["resource_scrape_error 1"]);
        let (code, text) = body(usage(&Answers::new(vec![answer, answer])).summary().await).await;
        assert_eq!(code, 500);
        assert!(text.contains(cure), "{text}");
    }
}

#[tokio::test]
async fn a_lower_cluster_that_keeps_its_nodes_metrics_to_itself_still_tells_of_pods() {
    let (_, text) = scrape(vec![pods, status::<403>]).await;
    assert!(text.contains("container_memory_working_set_bytes{"), "{text}");
    assert!(!text.contains("\nnode_memory_working_set_bytes "), "{text}");
}

#[tokio::test]
async fn who_asks_again_at_once_gets_the_same_and_the_lower_cluster_is_left_alone() {
    let answers = Answers::new(vec![pods, nodes]);
    let usage = usage(&answers);
    let both = tokio::join!(usage.resource_metrics(), usage.resource_metrics());
    assert_eq!(body(both.0).await, body(both.1).await);
    usage.summary().await;
    assert_eq!(answers.paths().len(), 2);
}

#[tokio::test]
async fn a_hiccup_below_is_bridged_and_a_longer_outage_is_told() {
    let usage = usage(&Answers::new(vec![pods, nodes, status::<503>, status::<503>, status::<503>, status::<503>]));
    let before = body(usage.resource_metrics().await).await;
    let_it_age(&usage, STALE_MAX / 2).await;
    assert_eq!(body(usage.resource_metrics().await).await, before);
    let_it_age(&usage, STALE_MAX / 2).await;
    let (_, text) = body(usage.resource_metrics().await).await;
    assert!(text.contains("resource_scrape_error 1"), "{text}");
}

#[test]
fn a_state_is_said_once() {
    let mut said = None;
    assert!(changed(&mut said, Some(1)));
    assert!(!changed(&mut said, Some(1)));
    assert!(changed(&mut said, Some(2)));
    assert!(changed(&mut said, None));
    assert!(!changed(&mut said, None::<i32>));
}
