//! The client against a scripted API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{TryStreamExt, future::join_all};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams, WatchParams},
    client::Body,
};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use super::{connect::Pings, *};
use crate::{
    test_certs::TestCa,
    testing::{Asked, Chunk, Reply, ScriptedServer},
    tls::{ClientAuth, ReloadingIdentity, server_config},
};

const PODS: &str = "/api/v1/namespaces/ns/pods";
/// No test's single step takes longer than this unless it fails.
const LIMIT: Duration = Duration::from_secs(20);

fn options() -> ClientOptions {
    ClientOptions { role: "lower", timeout: Duration::from_secs(5), ..ClientOptions::default() }
}

fn pods(server: &ScriptedServer, options: &ClientOptions) -> Api<Pod> {
    Api::namespaced(build(server.config(), options, &KubeMetrics::default()).unwrap(), "ns")
}

fn pod() -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).unwrap()
}

fn created() -> Reply {
    Reply::json(201, &json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}}))
}

fn empty_list() -> Reply {
    Reply::list("1", &[])
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("not a status: {other:?}"),
    }
}

#[tokio::test]
async fn a_429_is_repeated_after_what_the_server_asked_for_even_for_a_post() {
    let server = ScriptedServer::start(|asked| match asked.number {
        0 => Reply::error(429, "slow down").header("Retry-After", "1"),
        _ => created(),
    })
    .await
    .unwrap();
    let start = Instant::now();
    pods(&server, &options()).create(&PostParams::default(), &pod()).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "it did not wait: {:?}", start.elapsed());
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].body, seen[1].body, "the second try is another request");
}

#[tokio::test]
async fn retries_end_and_the_callers_sees_the_servers_last_word() {
    let server = ScriptedServer::start(|_| Reply::error(429, "never")).await.unwrap();
    let options = ClientOptions { retries_max: 2, ..options() };
    let error = pods(&server, &options).get("p").await.unwrap_err();
    assert_eq!((code(&error), server.seen().len()), (429, 3));
}

#[tokio::test]
async fn a_read_survives_503_and_a_cut_and_a_write_is_surfaced() {
    let script = |asked: &Asked| match (asked.method.as_str(), asked.number) {
        ("GET", 0) | ("POST", _) => Reply::error(503, "starting"),
        ("GET", 1) => Reply::Cut,
        ("GET", _) => empty_list(),
        _ => Reply::Cut,
    };
    let server = ScriptedServer::start(script).await.unwrap();
    let pods = pods(&server, &options());
    pods.list(&ListParams::default()).await.unwrap();
    assert_eq!(code(&pods.create(&PostParams::default(), &pod()).await.unwrap_err()), 503);
    pods.delete("p", &DeleteParams::default()).await.unwrap_err();
    let count = |method: &str| server.seen().iter().filter(|asked| asked.method == method).count();
    assert_eq!((count("GET"), count("POST"), count("DELETE")), (3, 1, 1));
}

#[tokio::test]
async fn a_500_is_not_repeated() {
    let server = ScriptedServer::start(|_| Reply::error(500, "bug")).await.unwrap();
    assert_eq!(code(&pods(&server, &options()).get("p").await.unwrap_err()), 500);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_request_marked_so_is_not_repeated() {
    let server = ScriptedServer::start(|_| Reply::error(503, "starting")).await.unwrap();
    let client = build(server.config(), &options(), &KubeMetrics::default()).unwrap();
    let mut request = http::Request::get(PODS).body(Body::empty()).unwrap();
    request.extensions_mut().insert(NoRetry);
    assert_eq!(client.send(request).await.unwrap().status(), 503);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_server_that_hangs_runs_into_the_time_limit_once() {
    let server = ScriptedServer::start(|_| Reply::Hang).await.unwrap();
    let options = ClientOptions { timeout: Duration::from_millis(300), ..options() };
    let error = timeout(LIMIT, pods(&server, &options).get("p")).await.expect("no time limit").unwrap_err();
    assert!(error.to_string().contains("within 300ms"), "{error}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_server_that_hangs_in_the_middle_of_an_answer_runs_into_the_time_limit() {
    let (reply, events) = Reply::watch();
    events.send(Chunk::Raw("{\"kind\":\"Pod".into()));
    let reply = parking_lot::Mutex::new(Some(reply));
    let server = ScriptedServer::start(move |_| reply.lock().take().unwrap_or(Reply::Hang)).await.unwrap();
    let options = ClientOptions { timeout: Duration::from_millis(300), ..options() };
    let error = timeout(LIMIT, pods(&server, &options).get("p")).await.expect("no time limit").unwrap_err();
    assert!(format!("{error:?}").contains("half way"), "{error:?}");
    drop(events);
}

#[tokio::test]
async fn a_watch_neither_takes_a_slot_nor_runs_into_the_time_limit() {
    let (reply, events) = Reply::watch();
    let reply = parking_lot::Mutex::new(Some(reply));
    let server =
        ScriptedServer::start(
            move |asked| {
                if asked.is_watch() { reply.lock().take().unwrap_or(Reply::Hang) } else { empty_list() }
            },
        )
        .await
        .unwrap();
    let options = ClientOptions { concurrency_max: 1, timeout: Duration::from_millis(300), ..options() };
    let pods = pods(&server, &options);
    let mut watch = Box::pin(pods.watch(&WatchParams::default(), "1").await.unwrap());
    for _ in 0..3 {
        pods.list(&ListParams::default()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    events.send(Chunk::event("ADDED", &json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "late"}})));
    let event = timeout(LIMIT, watch.try_next()).await.expect("the event is lost").unwrap();
    assert!(event.is_some());
}

#[tokio::test]
async fn requests_at_once_are_bounded_and_all_served() {
    let server = ScriptedServer::start(|_| Reply::error(404, "none")).await.unwrap();
    // The slots themselves, seen from inside: a script cannot see how many requests wait.
    let options = ClientOptions { concurrency_max: 3, ..options() };
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let pods = pods(&server, &options);
    join_all((0..50).map(|number| {
        let (pods, most, now) = (pods.clone(), most.clone(), now.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            assert_eq!(code(&pods.get(&format!("p{number}")).await.unwrap_err()), 404);
            now.fetch_sub(1, Ordering::SeqCst);
        }
    }))
    .await;
    assert_eq!((server.seen().len(), most.load(Ordering::SeqCst)), (50, 50));
    let connections: std::collections::BTreeSet<SocketAddr> = server.seen().iter().map(|asked| asked.client).collect();
    assert!(connections.len() <= 3, "more requests at once than slots: {} connections", connections.len());
}

#[tokio::test]
async fn the_rate_is_kept() {
    let server = ScriptedServer::start(|_| empty_list()).await.unwrap();
    let pods = pods(&server, &ClientOptions { qps: 50.0, burst: 5, ..options() });
    let start = Instant::now();
    for _ in 0..25 {
        pods.list(&ListParams::default()).await.unwrap();
    }
    assert!(
        start.elapsed() >= Duration::from_millis(400),
        "25 requests at 50/s with a burst of 5: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_server_that_comes_back_on_its_port_is_used_again_even_for_a_write() {
    let first = ScriptedServer::start(|_| empty_list()).await.unwrap();
    let address = first.address();
    let (known, fresh) = (pods(&first, &options()), pods(&first, &options()));
    known.list(&ListParams::default()).await.unwrap();
    first.stop();
    refuses(address).await;
    // Nobody listens: a write without a connection surely does not get through, and is tried until someone does; a read
    // may be tried in any case.
    let write = tokio::spawn(async move { fresh.create(&PostParams::default(), &pod()).await });
    let read = tokio::spawn(async move { known.list(&ListParams::default()).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let second = restart(address, |asked| if asked.method == "POST" { created() } else { empty_list() }).await;
    timeout(LIMIT, write).await.expect("the write never got through").unwrap().unwrap();
    timeout(LIMIT, read).await.expect("the read never got through").unwrap().unwrap();
    assert_eq!(second.seen().len(), 2);
}

async fn refuses(address: SocketAddr) {
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "{address} still takes connections");
        tokio::task::yield_now().await;
    }
}

async fn restart(
    address: SocketAddr,
    script: impl Fn(&Asked) -> Reply + Send + Sync + Clone + 'static,
) -> ScriptedServer {
    let deadline = Instant::now() + LIMIT;
    loop {
        match ScriptedServer::start_at(address, None, script.clone()).await {
            Ok(server) => return server,
            Err(error) => assert!(Instant::now() < deadline, "the port does not come free: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// A server with TLS and a configuration that trusts it.
async fn secure(
    alpn: &[&str],
    client_auth: ClientAuth,
    ca: &TestCa,
    script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> (ScriptedServer, Config) {
    let issued = ca.issue("kube-apiserver", &[], &["kubernetes.test", "127.0.0.1"]);
    let identity = ReloadingIdentity::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap();
    let tls = Arc::new(server_config(identity, client_auth, alpn));
    let server = ScriptedServer::start_at(([127, 0, 0, 1], 0).into(), Some(tls), script).await.unwrap();
    let mut config = server.config();
    config.root_cert = Some(vec![pem_to_der(&ca.pem())]);
    (server, config)
}

fn pem_to_der(pem: &str) -> Vec<u8> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn http2_is_used_where_the_server_speaks_it_with_a_connection_apart_for_watches() {
    let (watched, _events) = Reply::watch();
    let watched = parking_lot::Mutex::new(Some(watched));
    let (server, config) = secure(&["h2", "http/1.1"], ClientAuth::None, &TestCa::new("ca"), move |asked| {
        if asked.is_watch() { watched.lock().take().unwrap_or(Reply::Hang) } else { empty_list() }
    })
    .await;
    let pods: Api<Pod> = Api::namespaced(build(config, &options(), &KubeMetrics::default()).unwrap(), "ns");
    let _watch = pods.watch(&WatchParams::default(), "1").await.unwrap();
    pods.list(&ListParams::default()).await.unwrap();
    let params = ListParams::default();
    join_all((0..20).map(|_| pods.list_metadata(&params))).await.into_iter().for_each(|list| drop(list.unwrap()));
    let seen = server.seen();
    assert!(seen.iter().all(|asked| asked.http2), "HTTP/1.1 was used");
    let of = |watch: bool| {
        let clients = seen.iter().filter(move |asked| asked.is_watch() == watch).map(|asked| asked.client);
        clients.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!((of(true).len(), of(false).len()), (1, 1), "one connection each");
    assert_ne!(of(true), of(false));
}

#[tokio::test]
async fn http1_is_used_where_the_server_or_the_setting_wants_it() {
    for (alpn, http2) in [(vec!["http/1.1"], true), (vec!["h2", "http/1.1"], false)] {
        let (server, config) = secure(&alpn, ClientAuth::None, &TestCa::new("ca"), |_| empty_list()).await;
        let client = build(config, &ClientOptions { http2, ..options() }, &KubeMetrics::default()).unwrap();
        Api::<Pod>::all(client).list(&ListParams::default()).await.unwrap();
        assert!(!server.seen()[0].http2);
    }
}

#[tokio::test]
async fn a_server_of_another_ca_or_name_is_not_talked_to() {
    let ca = TestCa::new("ca");
    let (server, mut config) = secure(&["h2"], ClientAuth::None, &ca, |_| empty_list()).await;
    let once = ClientOptions { retries_max: 0, ..options() };
    let list = async |config: Config| {
        let client = build(config, &once, &KubeMetrics::default()).unwrap();
        Api::<Pod>::all(client).list(&ListParams::default()).await
    };
    config.tls_server_name = Some("kubernetes.test".into());
    list(config.clone()).await.unwrap();
    config.tls_server_name = Some("elsewhere.test".into());
    list(config.clone()).await.unwrap_err();
    config.tls_server_name = None;
    config.root_cert = Some(vec![pem_to_der(&TestCa::new("other").pem())]);
    list(config.clone()).await.unwrap_err();
    config.accept_invalid_certs = true;
    list(config).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_peer_that_hangs_is_seen_by_pings_and_the_next_request_gets_through() {
    let (server, mut config) = secure(&["h2"], ClientAuth::None, &TestCa::new("ca"), |asked| {
        if asked.is_watch() { Reply::watched_for_ever() } else { empty_list() }
    })
    .await;
    let proxy = Proxy::start(server.address()).await;
    config.cluster_url = format!("https://{}", proxy.address).parse().unwrap();
    let pings = Pings { interval: Duration::from_millis(100), timeout: Duration::from_millis(200) };
    let client = build_with(&config.into_access().unwrap(), &options(), &KubeMetrics::default(), pings).unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "ns");
    let mut watch = Box::pin(pods.watch(&WatchParams::default(), "1").await.unwrap());
    proxy.stall();
    let start = Instant::now();
    let ended = timeout(LIMIT, watch.try_next()).await.expect("the hung connection was not seen");
    assert!(!matches!(ended, Ok(Some(_))), "an event came through a stalled connection");
    assert!(start.elapsed() < Duration::from_secs(5), "seen only after {:?}", start.elapsed());
    // New connections pass the proxy again.
    timeout(LIMIT, pods.list(&ListParams::default())).await.expect("no new connection").unwrap();
}

/// Passes connections on; can let those there are starve, as a host that vanished does.
struct Proxy {
    address: SocketAddr,
    stall: tokio::sync::watch::Sender<()>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stall = tokio::sync::watch::Sender::new(());
        let stalled = stall.clone();
        tokio::spawn(async move {
            while let Ok((mut inbound, _)) = listener.accept().await {
                let mut stalled = stalled.subscribe();
                tokio::spawn(async move {
                    let mut outbound = TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut inbound, &mut outbound) => {}
                        _ = stalled.changed() => {
                            // Both ends stay open and nothing is passed on.
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { address, stall }
    }

    fn stall(&self) {
        self.stall.send_replace(());
    }
}

#[tokio::test]
async fn credentials_of_each_kind_reach_the_server() {
    let ca = TestCa::new("ca");
    let clients = TestCa::new("client-ca");
    let roots = crate::tls::TrustRoots::from_pem(clients.pem().as_bytes()).unwrap();
    let (server, mut config) = secure(&["h2"], ClientAuth::Required(roots), &ca, |_| empty_list()).await;
    let issued = clients.issue("system:node:v", &["system:nodes"], &[]);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path.display().to_string())
    };
    config.auth_info.client_certificate = write("cert", &issued.certificate);
    config.auth_info.client_key = write("key", &issued.key);
    config.auth_info.token_file = write("token", "a-token");
    config.auth_info.impersonate = Some("jane".into());
    config.auth_info.impersonate_groups = Some(vec!["a".into(), "b".into()]);
    let options = ClientOptions { user_agent: "tensile-test/1".into(), ..options() };
    let client = build(config.clone(), &options, &KubeMetrics::default()).unwrap();
    Api::<Pod>::all(client).list(&ListParams::default()).await.unwrap();
    let headers = &server.seen()[0].headers;
    assert_eq!(headers["authorization"], "Bearer a-token");
    assert_eq!(headers["impersonate-user"], "jane");
    assert_eq!(headers.get_all("impersonate-group").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(headers["user-agent"], "tensile-test/1");
    // Without its certificate the server does not let us in.
    config.auth_info.client_certificate = None;
    config.auth_info.client_key = None;
    let client = build(config, &ClientOptions { retries_max: 0, ..options }, &KubeMetrics::default()).unwrap();
    Api::<Pod>::all(client).list(&ListParams::default()).await.unwrap_err();
}

#[tokio::test]
async fn the_streaming_client_has_no_time_limit_and_speaks_http1() {
    let (reply, events) = Reply::watch();
    let reply = parking_lot::Mutex::new(Some(reply));
    let (server, config) = secure(&["h2", "http/1.1"], ClientAuth::None, &TestCa::new("ca"), move |_| {
        reply.lock().take().unwrap_or(Reply::Hang)
    })
    .await;
    let client = build_streaming(config, "tensile-test/1").unwrap();
    let request = http::Request::get("/api/v1/namespaces/ns/pods/p/log?follow=true").body(Body::empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    events.send(Chunk::Raw("line\n".into()));
    let frame = timeout(LIMIT, body.frame()).await.expect("no line came").unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "line\n");
    assert!(!server.seen()[0].http2);
}

#[tokio::test]
async fn attempts_are_counted_by_resource_and_by_how_they_ended() {
    let server = ScriptedServer::start(|asked| match asked.number {
        0 => Reply::error(429, "slow down"),
        _ => Reply::json(200, &json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}})),
    })
    .await
    .unwrap();
    let mut registry = Registry::default();
    let metrics = KubeMetrics::register(&mut registry);
    let client: Client = build(server.config(), &options(), &metrics).unwrap();
    Api::<ConfigMap>::namespaced(client, "ns").get("c").await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"tensile_kube_requests_total{role="lower",method="GET",resource="configmaps",code="429"} 1"#,
        r#"tensile_kube_requests_total{role="lower",method="GET",resource="configmaps",code="200"} 1"#,
        r#"tensile_kube_retries_total{role="lower",reason="429"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn an_unknown_proxy_is_refused_without_its_password() {
    let mut config = Config::new("https://10.0.0.1".parse().unwrap());
    config.proxy_url = Some("ftp://user:hunter2@proxy:1".parse().unwrap());
    let error = build(config, &options(), &KubeMetrics::default()).map(drop).unwrap_err().to_string();
    assert!(error.contains("ftp://proxy") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn an_http_proxy_is_used_with_its_credentials() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (server, mut config) = secure(&["h2"], ClientAuth::None, &TestCa::new("ca"), |_| empty_list()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.proxy_url = Some(format!("http://user:p%40ss@{}", listener.local_addr().unwrap()).parse().unwrap());
    let address = server.address();
    let proxied = tokio::spawn(async move {
        let (mut inbound, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(inbound.read_u8().await.unwrap());
        }
        inbound.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        let mut outbound = TcpStream::connect(address).await.unwrap();
        tokio::spawn(async move { copy_bidirectional(&mut inbound, &mut outbound).await });
        String::from_utf8(head).unwrap()
    });
    let client = build(config, &options(), &KubeMetrics::default()).unwrap();
    Api::<Pod>::all(client).list(&ListParams::default()).await.unwrap();
    let head = timeout(LIMIT, proxied).await.expect("the proxy was not used").unwrap().to_lowercase();
    assert!(head.starts_with(&format!("connect {address}")), "{head}");
    // "user:p@ss"
    assert!(head.contains("proxy-authorization: basic dxnlcjpwqhnz"), "{head}");
}
