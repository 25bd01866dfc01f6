//! Two upper clusters share one lower cluster.

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt, api::ListParams};
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};
use tensile_proto::vocabulary::label;

use crate::support::{SOON, deployment, make_namespace, pods, until_ready};

#[tokio::test(flavor = "multi_thread")]
async fn suffixed_namespaces_keep_two_upper_clusters_apart() {
    let (one, two, lower) = tokio::try_join!(
        Cluster::builder("one").start(),
        Cluster::builder("two").start(),
        Cluster::builder("lower").nodes(KwokNodes::count(2)).start()
    )
    .unwrap();
    let suffixed = ["--namespaces=suffixed"];
    let _first = VirtualNode::builder(&one, &lower).name("vn").args(suffixed).start().await.unwrap();
    let _second = VirtualNode::builder(&two, &lower).name("vn").args(suffixed).start().await.unwrap();
    for upper in [&one, &two] {
        make_namespace(upper).await;
        upper.apply_yaml(&deployment(3)).await.unwrap();
    }
    until_ready(&one, 3, SOON).await;
    until_ready(&two, 3, SOON).await;
    let all: Api<k8s_openapi::api::core::v1::Pod> = Api::all(lower.client());
    let below = all.list(&ListParams::default().labels(label::UPPER_UID)).await.unwrap().items;
    assert_eq!(below.len(), 6);
    let namespaces: std::collections::BTreeSet<_> = below.iter().filter_map(ResourceExt::namespace).collect();
    assert_eq!(namespaces.len(), 2, "{namespaces:?}");

    // The pods of one go; those of the other stay.
    one.apply_yaml(&deployment(0)).await.unwrap();
    eventually("the first cluster's pods are gone below", SOON, || async {
        let left = all.list(&ListParams::default().labels(label::UPPER_UID)).await?.items;
        Ok(Seen::when(left.len() == 3, left.len()))
    })
    .await
    .unwrap();
    until_ready(&two, 3, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_of_another_upper_cluster_or_of_nobody_is_refused_with_the_cure() {
    let (one, two, lower) = tokio::try_join!(
        Cluster::builder("one").start(),
        Cluster::builder("two").start(),
        Cluster::builder("lower").nodes(KwokNodes::count(2)).start()
    )
    .unwrap();
    let _first = VirtualNode::builder(&one, &lower).name("vn-one").start().await.unwrap();
    let _second = VirtualNode::builder(&two, &lower).name("vn-two").start().await.unwrap();
    make_namespace(&one).await;
    one.apply_yaml(&deployment(1)).await.unwrap();
    until_ready(&one, 1, SOON).await;
    make_namespace(&two).await;
    two.apply_yaml(&deployment(1)).await.unwrap();
    let refused = eventually("the second cluster's pod is refused", SOON, || async {
        let all = pods(&two).list(&ListParams::default()).await?.items;
        let told = all
            .iter()
            .flat_map(|pod| pod.status.iter().flat_map(|s| s.conditions.iter().flatten()))
            .find(|c| c.type_ == "tensile.dev/Offloaded" && c.status == "False");
        Ok(match told {
            Some(condition) => Seen::Done(condition.clone()),
            None => Seen::NotYet(format!("{} pods", all.len())),
        })
    })
    .await
    .unwrap();
    assert_eq!(refused.reason.as_deref(), Some("NamespaceConflict"));
    let message = refused.message.unwrap();
    assert!(message.contains("--adopt-namespace") || message.contains("suffixed"), "{message}");
    // The owner's is as it was.
    let namespace = Api::<Namespace>::all(lower.client()).get("work").await.unwrap();
    assert!(namespace.labels().contains_key(label::UPPER_CLUSTER));
    until_ready(&one, 1, SOON).await;
}
