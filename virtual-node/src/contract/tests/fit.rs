//! `Cluster.Fit`, as a client sees it.

use serde_json::json;

use super::*;

pub(super) fn template(id: &str, spec: &serde_json::Value) -> v1::Template {
    let pod_template = serde_json::to_vec(&json!({ "spec": spec })).unwrap();
    v1::Template { id: id.into(), namespace: "team".into(), pod_template: pod_template.into(), priority: 0 }
}

pub(super) fn cpus(cpu: u32) -> serde_json::Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}]})
}

fn request(counting: v1::Counting, templates: Vec<v1::Template>, replicas: u32) -> v1::FitRequest {
    let templates = templates.into_iter().map(|template| v1::TemplateCount { template: Some(template), replicas });
    v1::FitRequest { templates: templates.collect(), counting: counting.into(), ..v1::FitRequest::default() }
}

#[tokio::test]
async fn fit_says_how_many_where_and_why_no_more_and_under_which_revision() {
    let served = Served::start_first(&[node("a", "4"), node("b", "4")]).await;
    let mut client = served.client("descheduler");
    let ask = request(v1::Counting::Alone, vec![template("two", &cpus(2)), template("three", &cpus(3))], 5);
    let answer = client.fit(ask).await.unwrap().into_inner();
    let [two, three] = answer.fits.as_slice() else { panic!("{answer:?}") };
    assert_eq!((two.template_id.as_str(), two.fits, three.fits), ("two", 4, 2));
    assert_eq!(three.classes.iter().map(|class| class.count).sum::<u32>(), 2);
    assert_eq!(three.message, "0/2 nodes are available: 2 Insufficient cpu.");
    let reason = &three.reasons[0];
    assert_eq!(
        (reason.message.as_str(), reason.nodes, reason.plugin.as_str()),
        ("Insufficient cpu", 2, "NodeResourcesFit")
    );

    let ask = request(v1::Counting::Jointly, vec![template("two", &cpus(2)), template("three", &cpus(3))], 2);
    let fits: Vec<_> = client.fit(ask).await.unwrap().into_inner().fits.iter().map(|fit| fit.fits).collect();
    assert_eq!(fits, [2, 0], "the two of the first are spread over both nodes");

    let mut states = served.client("multi-scheduler").watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let state = next("the state", &mut states).await;
    assert_eq!(state.revision, answer.revision, "Watch and Fit tell one number of one state");
    assert_eq!(state.classes[0].id, three.classes[0].class_id);
}

#[tokio::test]
async fn what_breaks_the_contract_is_refused_with_the_cure() {
    let served = Served::start_first(&[node("a", "4")]).await;
    let alone = v1::Counting::Alone;
    let broken = v1::Template { pod_template: r#"{"spec":{"containers":7}}"#.into(), ..template("t", &cpus(1)) };
    let mut preempting = request(alone, vec![template("t", &cpus(1))], 1);
    preempting.preemption = Some(v1::PreemptionQuery::default());
    for (request, code, word) in [
        (request(v1::Counting::Unspecified, vec![], 1), Code::InvalidArgument, "COUNTING_ALONE"),
        (v1::FitRequest { counting: 77, ..v1::FitRequest::default() }, Code::InvalidArgument, "77"),
        (request(alone, vec![template("t", &cpus(1)); 2], 1), Code::InvalidArgument, "twice"),
        (request(alone, vec![template("t", &cpus(1)); 65], 1), Code::InvalidArgument, "at most 64"),
        (request(alone, vec![template("t", &cpus(1))], 100_001), Code::InvalidArgument, "at most 100000"),
        (request(alone, vec![broken], 1), Code::InvalidArgument, "spec.containers"),
        (preempting, Code::Unimplemented, "preemption"),
    ] {
        let status = served.client("descheduler").fit(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(word), "{word}: {status}");
    }
}

#[tokio::test]
async fn nothing_is_said_before_the_lower_cluster_is_listed_nor_promised_while_it_is_away() {
    let served = Served::start_unlisted().await;
    let ask = || request(v1::Counting::Alone, vec![template("t", &cpus(1))], 1);
    let mut client = served.client("descheduler");
    assert_eq!(client.fit(ask()).await.unwrap_err().code(), Code::Unavailable);
    served.ledger.upsert_node(&node("a", "4"));
    served.ledger.nodes_listed();
    served.ledger.pods_listed();
    assert_eq!(client.fit(ask()).await.unwrap().into_inner().fits[0].fits, 1);
    served.reach.send_replace(Reach::Unreachable { since: Timestamp::UNIX_EPOCH, reason: "refused".into() });
    let fit = client.fit(ask()).await.unwrap().into_inner().fits.remove(0);
    assert_eq!(fit.fits, 0);
    assert!(fit.message.contains("does not answer"), "{fit:?}");
}
