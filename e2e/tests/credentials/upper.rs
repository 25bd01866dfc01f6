//! The account in the upper cluster: its token is replaced on disk every hour where it is a pod's.

use k8s_openapi::{
    api::{authorization::v1::SelfSubjectAccessReview, coordination::v1::Lease},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tensile_e2e::{Seen, VirtualNode, eventually};

use crate::{
    files::Mounted,
    world::{SOON, kubeconfig, renewals, revocable_token, revoke, until_shown, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_accounts_token_above_is_replaced_and_the_lease_goes_on() {
    let w = world().await;
    // The account must be there before its token.
    w.upper.apply_yaml(&tensile_e2e::virtual_node::rights("above").upper).await.unwrap();
    let old = revocable_token(&w.upper, "above-1").await;
    let text = |user| kubeconfig(w.upper.server_url(), w.upper.ca_pem(), &user);
    let of_file = text(json!({"tokenFile": "token"}));
    let mounted = Mounted::new(w.folder("above"), &[("kubeconfig", &of_file), ("token", &old)]);
    let argument = format!("--upper-kubeconfig={}", mounted.path("kubeconfig").display());
    let node = VirtualNode::builder(&w.upper, &w.lower).name("above").args([argument]).start().await.unwrap();

    let new = revocable_token(&w.upper, "above-2").await;
    mounted.replace(&[("kubeconfig", &of_file), ("token", &new)]);
    until_shown(&node, &renewals("upper", "taken", 1)).await;
    revoke(&w.upper, "above-1").await;
    let stranger = client(&text(json!({"token": old}))).await;
    eventually("the old token is refused", SOON, || async {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(stranger.clone());
        let review = SelfSubjectAccessReview::default();
        Ok(match reviews.create(&PostParams::default(), &review).await {
            Err(kube::Error::Api(status)) if status.code == 401 => Seen::Done(()),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await
    .unwrap();

    let refused_at = Timestamp::now();
    let leases: Api<Lease> = Api::namespaced(w.upper.client(), "tensile-system");
    eventually("the election's lease is renewed after that", SOON, || async {
        let at = leases.get("virtual-node-above").await?.spec.and_then(|spec| spec.renew_time).map(|at| at.0);
        Ok(Seen::when(at.is_some_and(|at| at > refused_at), (at, refused_at)))
    })
    .await
    .unwrap();
    assert!(node.exited().is_none());
}

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}
