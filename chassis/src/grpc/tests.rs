//! Server and client together, over real connections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    FILE_DESCRIPTOR_SET, HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::*;
use crate::{
    test_certs::TestCa,
    tls::{ClientAuth, ReloadingIdentity, TrustRoots},
};

/// No test's single step takes longer than this unless it fails.
const LIMIT: Duration = Duration::from_secs(20);

struct Running {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), GrpcError>>,
}

async fn run(server: GrpcServer) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    Running { address, task: tokio::spawn(server.serve(listener, stop.clone())), stop }
}

fn identity(ca: &TestCa, name: &str) -> Arc<ReloadingIdentity> {
    let issued = ca.issue(name, &[], &[name]);
    ReloadingIdentity::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap()
}

fn roots(ca: &TestCa) -> Arc<TrustRoots> {
    TrustRoots::from_pem(ca.pem().as_bytes()).unwrap()
}

async fn check(channel: Channel) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest { service: String::new() };
    let answer = timeout(LIMIT, HealthClient::new(channel).check(request)).await.expect("no answer")?;
    Ok(answer.into_inner().status())
}

#[tokio::test]
async fn health_answers_in_plain_text_and_the_server_stops_when_asked() {
    let server = run(GrpcServer::new()).await;
    let channel = channel(&format!("http://{}", server.address), None, ChannelOptions::default()).unwrap();
    assert_eq!(check(channel.clone()).await.unwrap(), ServingStatus::Serving);
    server.stop.cancel();
    timeout(LIMIT, server.task).await.expect("it does not stop").unwrap().unwrap();
    check(channel).await.unwrap_err();
}

#[tokio::test]
async fn a_stream_that_does_not_end_does_not_hold_up_the_shutdown_for_long() {
    let server = run(GrpcServer::new()).await;
    let channel = channel(&format!("http://{}", server.address), None, ChannelOptions::default()).unwrap();
    let request = HealthCheckRequest { service: String::new() };
    let _stream = HealthClient::new(channel).watch(request).await.unwrap();
    server.stop.cancel();
    timeout(LIMIT, server.task).await.expect("it does not stop").unwrap().unwrap();
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let server = run(GrpcServer::new().descriptors(FILE_DESCRIPTOR_SET)).await;
    let channel = channel(&format!("http://{}", server.address), None, ChannelOptions::default()).unwrap();
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { unreachable!("{answer:?}") };
    assert!(list.service.iter().any(|service| service.name == "grpc.health.v1.Health"), "{list:?}");
}

#[tokio::test]
async fn mutual_tls_lets_ours_in_and_strangers_not_and_survives_a_renewal() {
    let (ca, stranger) = (TestCa::new("ca"), TestCa::new("stranger"));
    let server_identity = identity(&ca, "virtual-node-1");
    let server = run(GrpcServer::new().tls(server_identity.clone(), ClientAuth::Required(roots(&ca)))).await;
    let address = format!("https://{}", server.address);
    let tls = |identity: Option<Arc<ReloadingIdentity>>, name: &str| ClientTls {
        roots: roots(&ca),
        identity,
        server_name: Some(name.to_owned()),
    };
    let ask = async |tls: ClientTls| check(channel(&address, Some(&tls), ChannelOptions::default()).unwrap()).await;
    let ours = identity(&ca, "multi-scheduler");
    assert_eq!(ask(tls(Some(ours.clone()), "virtual-node-1")).await.unwrap(), ServingStatus::Serving);
    ask(tls(Some(ours.clone()), "virtual-node-2")).await.expect_err("another server's name was taken");
    ask(tls(None, "virtual-node-1")).await.expect_err("it was let in without a certificate");
    ask(tls(Some(identity(&stranger, "multi-scheduler")), "virtual-node-1")).await.expect_err("a stranger was let in");
    let renewed = ca.issue("virtual-node-1", &[], &["virtual-node-1"]);
    server_identity.replace_pem(renewed.certificate.as_bytes(), renewed.key.as_bytes()).unwrap();
    assert_eq!(ask(tls(Some(ours), "virtual-node-1")).await.unwrap(), ServingStatus::Serving);
}

/// Reflection is open to all, so a service of our own is needed: the health service under another name is not to be
/// had, but an RPC that does not exist is judged before it is looked for.
#[tokio::test]
async fn an_unlisted_caller_is_refused_and_a_listed_one_gets_through() {
    let ca = TestCa::new("ca");
    let callers = Callers::any().allow("/tensile.v1.Cluster/", ["multi-scheduler"]);
    let server =
        run(GrpcServer::new().tls(identity(&ca, "server"), ClientAuth::Required(roots(&ca))).callers(callers)).await;
    let call = async |name: &str| {
        let tls =
            ClientTls { roots: roots(&ca), identity: Some(identity(&ca, name)), server_name: Some("server".into()) };
        let channel = channel(&format!("https://{}", server.address), Some(&tls), ChannelOptions::default()).unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/tensile.v1.Cluster/Fit");
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
        let request = tonic::Request::new(HealthCheckRequest::default());
        let status = timeout(LIMIT, client.unary(request, path, codec)).await.expect("no answer").unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let (code, message) = call("webhook").await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(message.contains("\"webhook\" may not call /tensile.v1.Cluster/Fit"), "{message}");
    assert_eq!(call("multi-scheduler").await.0, Code::Unimplemented, "it did not reach the services");
}

#[tokio::test]
async fn a_channel_connects_when_the_server_comes_up_and_gives_up_in_time_before() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    // It listens and never answers, as a host that hangs.
    let options = ChannelOptions { timeout: Duration::from_millis(300), ..ChannelOptions::default() };
    let channel = channel(&format!("http://{address}"), None, options).unwrap();
    assert!(check(channel.clone()).await.is_err());
    let stop = CancellationToken::new();
    let task = tokio::spawn(GrpcServer::new().serve(free, stop.clone()));
    let deadline = tokio::time::Instant::now() + LIMIT;
    while let Err(status) = check(channel.clone()).await {
        assert!(tokio::time::Instant::now() < deadline, "it never gets through: {status}");
    }
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn bad_addresses_are_refused_with_the_cure() {
    let refusal = |address: &str| channel(address, None, ChannelOptions::default()).map(drop).unwrap_err().to_string();
    assert!(refusal("10.0.0.1:80").contains("give https://HOST:PORT"));
    assert!(refusal("ftp://x:1").contains("give https://HOST:PORT"));
    assert!(refusal("https://10.0.0.1:80").contains("no CA is given"));
}
