//! Services of the upper cluster stand below wherever the pods of their namespace run.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Pod, Service, ServiceSpec},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tensile_e2e::{Seen, eventually, kept::TestCluster};
use tensile_proto::vocabulary::label;

use crate::world::{SOON, Space, is_ready, world};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: tensile.dev/cluster, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers: [{name: web, image: example.test/web:1, ports: [{name: www, containerPort: 8080}]}]
";

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NAMESPACE, labels: {team: shop}}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: www}, {name: metrics, port: 9090}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: NAMESPACE}
spec: {clusterIP: None, selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: NAMESPACE}
spec: {type: ExternalName, externalName: db.example}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand, namespace: NAMESPACE}
spec: {ports: [{port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: by-hand-1, namespace: NAMESPACE, labels: {kubernetes.io/service-name: by-hand}}
addressType: IPv4
ports: [{name: '', port: 5432, protocol: TCP}]
endpoints: [{addresses: [192.0.2.7], conditions: {ready: true}}]
";

/// The addresses that a Service has in a cluster, and whether each is ready.
async fn endpoints(slices: &Api<EndpointSlice>, service: &str) -> anyhow::Result<BTreeSet<(String, bool)>> {
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = slices.list(&of_service).await?.items;
    let all = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    Ok(all
        .flat_map(|one| {
            let ready = one.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
            one.addresses.iter().map(move |address| (address.clone(), ready))
        })
        .collect())
}

/// Waits until a lower cluster tells the same endpoints as the upper one, and gives them.
async fn until_equal(space: &Space<'_>, below: &TestCluster, service: &str, count: usize) -> BTreeSet<(String, bool)> {
    let (above, below) = (space.upper::<EndpointSlice>(), space.lower::<EndpointSlice>(below));
    eventually(&format!("service {service} has {count} ready endpoints on both sides"), SOON, || async {
        let (above, below) = (endpoints(&above, service).await?, endpoints(&below, service).await?);
        let ready = above.iter().filter(|(_, ready)| *ready).count();
        if ready == count && above.len() == count && above == below {
            return Ok(Seen::Done(above));
        }
        Ok(Seen::NotYet(format!("above {above:?}, below {below:?}")))
    })
    .await
    .unwrap()
}

async fn until_lower(space: &Space<'_>, below: &TestCluster, service: &str) -> Service {
    let services = space.lower::<Service>(below);
    eventually(&format!("service {service} is below"), SOON, || async {
        Ok(services.get_opt(service).await?.map_or(Seen::NotYet("none".to_owned()), Seen::Done))
    })
    .await
    .unwrap()
}

fn ports(spec: &ServiceSpec) -> Vec<(Option<&str>, i32, Option<i32>)> {
    spec.ports.iter().flatten().map(|port| (port.name.as_deref(), port.port, port.node_port)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_stand_below_with_the_endpoints_of_all_clusters_and_follow_them_to_their_end() {
    let w = world().await;
    let space = w.namespace("services").await;
    space.apply(WEB).await;
    space.apply(SERVICES).await;

    let mut seen = Vec::new();
    for below in w.lowers() {
        let web = until_lower(&space, below, "web").await;
        let spec = web.spec.as_ref().unwrap();
        assert_eq!(spec.type_.as_deref(), Some("ClusterIP"), "node ports stay the upper cluster's");
        assert_eq!(ports(spec), [(Some("http"), 80, None), (Some("metrics"), 9090, None)]);
        assert!(spec.selector.is_none(), "nothing below may fill it");
        assert_eq!(web.labels().get("team").map(String::as_str), Some("shop"));
        let address = spec.cluster_ip.clone().unwrap();
        assert_ne!(address, "None");
        seen.push(until_equal(&space, below, "web", 4).await);

        let headless = until_lower(&space, below, "headless").await;
        assert_eq!(headless.spec.unwrap().cluster_ip.as_deref(), Some("None"));
        until_equal(&space, below, "headless", 4).await;
        let outside = until_lower(&space, below, "outside").await.spec.unwrap();
        assert_eq!(outside.external_name.as_deref(), Some("db.example"));
        until_lower(&space, below, "by-hand").await;
        assert_eq!(until_equal(&space, below, "by-hand", 1).await, [("192.0.2.7".to_owned(), true)].into());
    }
    assert_eq!(seen[0], seen[1], "each cluster knows the pods of all");

    // Scale, a changed port, a pod that is no longer ready.
    let patch = Patch::Merge(json!({"spec": {"replicas": 2}}));
    space.upper::<Deployment>().patch("web", &PatchParams::default(), &patch).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"ports": [{"name": "http", "port": 81, "targetPort": "www"}]}}));
    space.upper::<Service>().patch("web", &PatchParams::default(), &patch).await.unwrap();
    for below in w.lowers() {
        until_equal(&space, below, "web", 2).await;
        let services = space.lower::<Service>(below);
        eventually("the port has changed below", SOON, || async {
            let web = services.get("web").await?.spec.unwrap_or_default();
            Ok(Seen::when(ports(&web) == [(Some("http"), 81, None)], format!("{:?}", web.ports)))
        })
        .await
        .unwrap();
    }

    // What somebody does to it below is made up for.
    let services = space.lower::<Service>(&w.a);
    let uid = services.get("web").await.unwrap().uid();
    services.delete("web", &DeleteParams::default()).await.unwrap();
    eventually("the Service is made anew", SOON, || async {
        let now = services.get_opt("web").await?.and_then(|service| service.uid());
        Ok(Seen::when(now.is_some() && now != uid, now))
    })
    .await
    .unwrap();
    until_equal(&space, &w.a, "web", 2).await;

    // One goes, and then the last pod of the namespace.
    space.upper::<Service>().delete("by-hand", &DeleteParams::default()).await.unwrap();
    eventually("the deleted Service is gone below", SOON, || async {
        let left = services.get_opt("by-hand").await?;
        Ok(Seen::when(left.is_none(), left))
    })
    .await
    .unwrap();
    assert!(services.get_opt("web").await.unwrap().is_some());
    space.upper::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    for below in w.lowers() {
        let ours = ListParams::default().labels(label::UPPER_CLUSTER);
        let (services, slices) = (space.lower::<Service>(below), space.lower::<EndpointSlice>(below));
        eventually("nothing of ours is left in a namespace without pods", SOON, || async {
            let left = (services.list(&ours).await?.items.len(), slices.list(&ours).await?.items.len());
            Ok(Seen::when(left == (0, 0), left))
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_service_of_the_same_name_is_left_alone_and_gets_none_of_our_endpoints() {
    let w = world().await;
    let space = w.namespace("services-foreign").await;
    space.apply(&WEB.replace("replicas: 4", "replicas: 2")).await;
    let pods = space.upper_pods();
    eventually("both pods are ready", SOON, || async {
        let all: Vec<Pod> = pods.list(&ListParams::default()).await?.items;
        Ok(Seen::when(all.iter().filter(|pod| is_ready(pod)).count() == 2, all.len()))
    })
    .await
    .unwrap();
    let services = space.lower::<Service>(&w.a);
    let foreign: Service = serde_json::from_value(json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 8443}]}}))
    .unwrap();
    let foreign = services.create(&PostParams::default(), &foreign).await.unwrap();
    space.apply(SERVICES).await;
    space.until_event("web", "NameConflict").await;
    // The other Services of the namespace are there, the foreign one is as it was.
    until_equal(&space, &w.a, "headless", 2).await;
    let now = services.get("web").await.unwrap();
    assert_eq!((now.uid(), now.resource_version()), (foreign.uid(), foreign.resource_version()));
    assert_eq!(endpoints(&space.lower(&w.a), "web").await.unwrap(), BTreeSet::new());
    // In the other cluster it stands, and here too as soon as its place is free.
    until_equal(&space, &w.b, "web", 2).await;
    services.delete("web", &DeleteParams::default()).await.unwrap();
    until_equal(&space, &w.a, "web", 2).await;

    // A stranger takes the place of ours: our endpoints do not stay under its name.
    let stranger = Service { metadata: ObjectMeta { name: Some("web".into()), ..ObjectMeta::default() }, ..foreign };
    eventually("a stranger is faster than we are", SOON, || async {
        let _ = services.delete("web", &DeleteParams::default()).await;
        let made = services.create(&PostParams::default(), &stranger).await;
        Ok(Seen::when(made.is_ok(), made.err().map(|error| error.to_string())))
    })
    .await
    .unwrap();
    let slices = space.lower::<EndpointSlice>(&w.a);
    eventually("none of our endpoints is under the stranger's name", SOON, || async {
        let left = endpoints(&slices, "web").await?;
        Ok(Seen::when(left.is_empty(), left))
    })
    .await
    .unwrap();
}
