//! Who may call, and what anybody may ask.

use tensile_proto::v1::{self, cluster_client::ClusterClient};
use tonic::Code;

use crate::{
    caller::Authority,
    world::{endpoint, spec, template, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_each_caller_may_do_its_own_part() {
    let world = world().await;
    let fit = || v1::FitRequest {
        templates: vec![v1::TemplateCount { template: Some(template("work", &spec("none", 1))), replicas: 1 }],
        counting: v1::Counting::Alone.into(),
        ..v1::FitRequest::default()
    };
    // A certificate of another CA does not get in, whatever name it has.
    let endpoint = endpoint(world.upper.client(), "vn").await;
    let stranger = Authority::new().channel_trusting(&world.authority, &endpoint, "vn", "multi-scheduler");
    let status = ClusterClient::new(stranger).fit(fit()).await.unwrap_err();
    // The handshake fails, and which end says so first differs. The service itself has not answered: that has no source.
    assert!(std::error::Error::source(&status).is_some(), "{status}");
    // One of our CA with a name that is on no list gets in and is refused, by name.
    let status = world.client("webhook").await.fit(fit()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("\"webhook\" may not call /tensile.v1.Cluster/Fit"), "{status}");
    // A descheduler may ask, and not take.
    let mut descheduler = world.client("descheduler").await;
    let answer = descheduler.fit(fit()).await.unwrap().into_inner();
    assert!(answer.fits[0].message.contains("didn't match Pod's node affinity/selector"), "{answer:?}");
    let status = descheduler.release(v1::ReleaseRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}
