//! A Service and its endpoints, which stand below for as long as a pod of their namespace does.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tensile_e2e::{Seen, eventually};

use crate::{
    space::{Space, is_ready},
    subject::{Subject, each},
    world::SOON,
};

/// What they pass.
pub const POINTS: &[&str] =
    &["service-create", "service-update", "service-delete", "endpoints-create", "endpoints-update", "endpoints-delete"];

fn port(number: u16) -> Value {
    json!({"spec": {"ports": [{"port": number, "protocol": "TCP", "targetPort": number}]}})
}

fn endpoint(address: &str) -> Value {
    json!({"endpoints": [{"addresses": [address], "conditions": {"ready": true}}]})
}

async fn make(space: &Space) {
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "db", "namespace": space.name}, "spec": port(5432)["spec"]});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "db-1", "namespace": space.name, "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"name": "", "port": 5432, "protocol": "TCP"}], "endpoints": endpoint("192.0.2.7")["endpoints"]});
    space.world.upper.apply_yaml(&service.to_string()).await.unwrap();
    space.world.upper.apply_yaml(&slice.to_string()).await.unwrap();
}

/// Waits until both stand below with this port and this address.
async fn until_below(space: &Space, number: u16, address: &str) {
    eventually(&format!("the Service of {} is below, at {address}:{number}", space.name), SOON, || async {
        let service = serde_json::to_value(space.lower::<Service>().get_opt("db").await?)?;
        let slice = serde_json::to_value(space.lower::<EndpointSlice>().get_opt("db-1").await?)?;
        let seen = (&service["spec"]["ports"][0]["port"], &slice["endpoints"][0]["addresses"][0]);
        Ok(Seen::when(*seen.0 == number && *seen.1 == address, seen))
    })
    .await
    .unwrap();
}

async fn until_gone_below(space: &Space) {
    eventually(&format!("the Service of {} is gone below", space.name), SOON, || async {
        let service = space.lower::<Service>().get_opt("db").await?.is_some();
        let slice = space.lower::<EndpointSlice>().get_opt("db-1").await?.is_some();
        Ok(Seen::when(!service && !slice, (service, slice)))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_follows_its_original_whichever_of_its_steps_is_the_last_of_a_process() {
    let subject = Subject::start("services").await;
    for faults in each(POINTS) {
        let space = subject.namespace().await;
        space.pod(json!({"automountServiceAccountToken": false})).await;
        space.until("pod", "is ready", is_ready).await;
        let scene = async {
            make(&space).await;
            until_below(&space, 5432, "192.0.2.7").await;
            let (services, slices) = (space.upper::<Service>(), space.upper::<EndpointSlice>());
            services.patch("db", &PatchParams::default(), &Patch::Merge(port(5433))).await.unwrap();
            slices.patch("db-1", &PatchParams::default(), &Patch::Merge(endpoint("192.0.2.8"))).await.unwrap();
            until_below(&space, 5433, "192.0.2.8").await;
            slices.delete("db-1", &DeleteParams::default()).await.unwrap();
            services.delete("db", &DeleteParams::default()).await.unwrap();
            until_gone_below(&space).await;
        };
        subject.live_through(&faults, scene, until_gone_below(&space)).await;
        space.delete("pod", false).await;
        space.until_gone().await;
    }
    subject.leaves_nothing().await;
}
