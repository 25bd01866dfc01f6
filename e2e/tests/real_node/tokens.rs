//! In-cluster configuration: a container finds the upper cluster, under its pod's own identity, and loses it with its pod.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, TokenReview, UserInfo},
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tensile_e2e::{Seen, Tool, Tools, eventually};
use tensile_proto::vocabulary::{annotation, label};

use crate::{
    command::{Ended, run},
    pods::is_ready,
    world::{SLEEP, SOON, Space, space},
};

const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A pod whose container `main` has kubectl, which knows no cluster but the one that its pod was given.
async fn client_pod(space: &Space, name: &str) -> Pod {
    let kubectl = Tools::get(Tool::Kubectl).await.unwrap();
    let mut main = crate::world::container("main", SLEEP);
    main["volumeMounts"] = json!([{"name": "kubectl", "mountPath": "/tools/kubectl", "readOnly": true}]);
    let volumes = json!([{"name": "kubectl", "hostPath": {"path": kubectl, "type": "File"}}]);
    space.pod(name, "", json!({"containers": [main], "volumes": volumes})).await;
    space.until(name, "is ready", is_ready).await
}

/// What kubectl in the container says.
fn kubectl_inside(space: &Space, pod: &str, arguments: &str) -> Ended {
    let script = format!("/tools/kubectl --cache-dir=/tmp/cache {arguments}");
    run(&mut space.kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", &script]), b"")
}

/// Who the upper API server takes the bearer of this token for.
async fn whoami(space: &Space, token: &str) -> kube::Result<UserInfo> {
    let (host, port) = &space.world.upper_api;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {
            "server": format!("https://{host}:{port}"),
            "certificate-authority-data": STANDARD.encode(space.world.upper.ca_pem()),
        }}],
        "users": [{"name": "x", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let api: Api<SelfSubjectReview> = Api::all(Client::try_from(config).unwrap());
    let myself = api.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    Ok(myself.status.unwrap().user_info.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_cluster_configuration_leads_to_the_upper_cluster_as_the_pods_own_account() {
    let Some(space) = space("tokens").await else { return };
    let pod = client_pod(&space, "client").await;
    assert_eq!(space.inside("client", &format!("cat {FOLDER}/namespace")).await, "tokens");
    let ca = space.inside("client", &format!("cat {FOLDER}/ca.crt")).await;
    assert_eq!(ca.trim(), space.world.upper.ca_pem().trim());
    let address =
        space.inside("client", "echo $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT $KUBERNETES_PORT").await;
    let (host, port) = &space.world.upper_api;
    assert_eq!(address.trim(), format!("{host} {port} tcp://{host}:{port}"));
    let token = space.inside("client", &format!("cat {FOLDER}/token")).await;
    let extra = whoami(&space, &token).await.unwrap().extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["client"]);
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [pod.metadata.uid.unwrap()], "bound to the upper pod");

    // A pod that only the upper cluster has: nobody may schedule it.
    space.pod("only-above", SLEEP, json!({"schedulingGates": [{"name": "tensile.test/never"}]})).await;
    let undisturbed = space.undisturbed().await;
    let denied = kubectl_inside(&space, "client", "get pods -o name");
    assert_eq!((denied.code, denied.out.as_str()), (Some(1), ""), "{denied:?}");
    let words =
        "(Forbidden): pods is forbidden: User \"system:serviceaccount:tokens:default\" cannot list resource \"pods\"";
    assert!(denied.err.contains(words), "{}", denied.err);
    space
        .apply(
            "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: NAMESPACE}
rules: [{apiGroups: [''], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: default, namespace: NAMESPACE}]
",
        )
        .await;
    eventually("the container lists the upper cluster's pods", SOON, || async {
        let listed = kubectl_inside(&space, "client", "get pods -o name");
        Ok(Seen::when(listed.code == Some(0) && listed.out == "pod/client\npod/only-above\n", listed))
    })
    .await
    .unwrap();
    // The right is for pods of this namespace, and for no more.
    assert!(kubectl_inside(&space, "client", "get secrets").err.contains("secrets is forbidden"));
    drop(undisturbed);

    space.pod("without", SLEEP, json!({"automountServiceAccountToken": false})).await;
    space.until("without", "is ready", is_ready).await;
    assert_eq!(space.inside("without", &format!("ls {FOLDER} 2>&1 || echo none")).await.lines().last(), Some("none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_in_the_running_container_and_ends_with_its_pod() {
    let Some(space) = space("rotation").await else { return };
    client_pod(&space, "bearer").await;
    let secrets: Api<Secret> = space.lower();
    let token_secret = async || {
        let tokens = ListParams::default().labels(&format!("{}=token", label::NEED));
        let mut found = secrets.list(&tokens).await.unwrap().items;
        assert_eq!(found.len(), 1);
        found.remove(0)
    };
    let read = format!("cat {FOLDER}/token");
    let first = space.inside("bearer", &read).await;
    let undisturbed = space.undisturbed().await;
    // Until it is another one than those.
    let renewed = async |before: &[&str]| {
        eventually("the running container reads a new token", SOON, || async {
            let ended = run(&mut space.kubectl(&["exec", "bearer", "-c", "main", "--", "sh", "-c", &read]), b"");
            let new = ended.code == Some(0) && !before.contains(&ended.out.as_str());
            Ok(if new { Seen::Done(ended.out) } else { Seen::NotYet(format!("code {:?}", ended.code)) })
        })
        .await
        .unwrap()
    };

    // It is due: as it is by itself after 48 minutes of its hour.
    let below = token_secret().await;
    let due = json!({"metadata": {"annotations": {annotation::TOKEN_REFRESH: "2020-01-01T00:00:00Z"}}});
    secrets.patch(&below.name_any(), &PatchParams::default(), &Patch::Merge(due)).await.unwrap();
    let second = renewed(&[&first]).await;
    let user = kubectl_inside(&space, "bearer", "auth whoami -o jsonpath={.status.userInfo.username}");
    assert_eq!(user.ok(), "system:serviceaccount:rotation:default");
    assert_eq!(token_secret().await.uid(), below.uid(), "the same Secret");

    // Somebody deletes it below.
    secrets.delete(&below.name_any(), &DeleteParams::default()).await.unwrap();
    let third = renewed(&[&first, &second]).await;
    assert_ne!(token_secret().await.uid(), below.uid(), "made anew");
    // Somebody edits it.
    let edit = json!({"stringData": {"token": "nonsense"}});
    secrets.patch(&below.name_any(), &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    let fourth = renewed(&[&first, &second, &third, "nonsense"]).await;
    drop(undisturbed);

    // Each is good for its whole life, as long as its pod lives.
    for token in [&first, &second, &third, &fourth] {
        whoami(&space, token).await.unwrap();
    }
    space.upper::<Pod>().delete("bearer", &DeleteParams::default()).await.unwrap();
    space.until_gone(&space.upper(), "bearer").await;
    for token in [&first, &second, &third, &fourth] {
        // The API server remembers for some seconds whom it has let in.
        eventually("the token is worth nothing", SOON, || async {
            let answer = whoami(&space, token).await;
            let refused = matches!(&answer, Err(kube::Error::Api(status)) if status.code == 401);
            Ok(Seen::when(refused, answer))
        })
        .await
        .unwrap();
    }
    eventually("the token is gone below", SOON, || async {
        let left = secrets.get_opt(&below.name_any()).await?.map(|secret| secret.name_any());
        Ok(Seen::when(left.is_none(), left))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projected_token_is_for_its_audience_alone() {
    let Some(space) = space("audience").await else { return };
    let sources =
        json!([{"serviceAccountToken": {"audience": "vault", "expirationSeconds": 600, "path": "deep/token"}}]);
    let mut main = crate::world::container("main", SLEEP);
    main["volumeMounts"] = json!([{"name": "vault", "mountPath": "/vault", "readOnly": true}]);
    let spec = json!({"containers": [main], "volumes": [{"name": "vault", "projected": {"sources": sources}}]});
    space.pod("login", "", spec).await;
    space.until("login", "is ready", is_ready).await;
    let token = space.inside("login", "cat /vault/deep/token").await;
    let review = async |audience: &str| {
        let review = json!({"metadata": {}, "spec": {"token": token, "audiences": [audience]}});
        let reviews: Api<TokenReview> = Api::all(space.world.upper.client());
        reviews.create(&PostParams::default(), &serde_json::from_value(review).unwrap()).await.unwrap().status.unwrap()
    };
    let good = review("vault").await;
    assert_eq!(good.authenticated, Some(true), "{good:?}");
    assert_eq!(good.user.unwrap().username.as_deref(), Some("system:serviceaccount:audience:default"));
    assert_eq!(review("bank").await.authenticated, None);
    assert!(matches!(whoami(&space, &token).await, Err(kube::Error::Api(status)) if status.code == 401));
}
