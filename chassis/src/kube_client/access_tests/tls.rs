//! Certificates, and an issuer that is reached over TLS.

use super::*;

/// A server with TLS whose clients must have a certificate of `clients`, and a kubeconfig's cluster for it.
async fn secure(
    ca: &TestCa,
    clients: Option<&TestCa>,
    script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> (ScriptedServer, Value) {
    let issued = ca.issue("server", &[], &["127.0.0.1"]);
    let identity = ReloadingIdentity::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap();
    let roots = clients.map(|clients| TrustRoots::from_pem(clients.pem().as_bytes()).unwrap());
    let tls = server_config(identity, roots.map_or(ClientAuth::None, ClientAuth::Required), &["h2", "http/1.1"]);
    let server = ScriptedServer::start_at(([127, 0, 0, 1], 0).into(), Some(Arc::new(tls)), script).await.unwrap();
    let cluster = json!({"server": format!("https://{}", server.address()),
        "certificate-authority-data": STANDARD.encode(ca.pem())});
    (server, cluster)
}

fn one_cluster(asked: &Asked) -> Reply {
    if asked.path == IDENTITY { Reply::json(200, &json!({"metadata": {"uid": "a"}})) } else { Reply::list("1", &[]) }
}

#[tokio::test]
async fn certificates_from_files_and_from_a_plugin_are_shown_and_replaced() {
    let (ca, old, new) = (TestCa::new("ca"), TestCa::new("old"), TestCa::new("new"));
    let (old_server, old_cluster) = secure(&ca, Some(&old), one_cluster).await;
    let files = Files::new();
    let issued = old.issue("jane", &[], &[]);
    files.plugin_gives(&json!({"clientCertificateData": issued.certificate, "clientKeyData": issued.key}));
    files.kubeconfig(&old_cluster, &files.plugin());
    let followed = open(&files).await;
    followed.access.expect_cluster("a");
    let pods = followed.pods();
    assert!(lists(&pods).await, "the plugin's certificate was not shown");

    // The cluster moves to a place that takes certificates of another authority.
    let (_new_server, new_cluster) = secure(&ca, Some(&new), one_cluster).await;
    let issued = new.issue("jane", &[], &[]);
    let (certificate, key) = (files.write("crt", &issued.certificate), files.write("key", &issued.key));
    files.kubeconfig(&new_cluster, &json!({"client-certificate": certificate, "client-key": key}));
    followed.until_shown("tensile_kube_credential_renewals_total{role=\"lower\",outcome=\"taken\"} 1").await;
    old_server.stop();
    assert!(lists(&pods).await, "the certificate of the files was not shown");
    // Half way through a renewal certificate and key do not fit each other: held back.
    let next = new.issue("jane", &[], &[]);
    files.write("crt", &next.certificate);
    followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 1").await;
    assert!(lists(&pods).await);
    files.write("key", &next.key);
    followed.until_shown("tensile_kube_credentials_held_back{role=\"lower\"} 0").await;
    assert!(lists(&pods).await);
}

#[tokio::test]
async fn a_certificate_of_our_own_follows_the_accounts_cluster_to_a_new_ca() {
    let (old_ca, new_ca, clients) = (TestCa::new("old"), TestCa::new("new"), TestCa::new("clients"));
    let (old_server, old_cluster) = secure(&old_ca, Some(&clients), one_cluster).await;
    let files = Files::new();
    let account = clients.issue("account", &[], &[]);
    let user = json!({"client-certificate-data": STANDARD.encode(&account.certificate),
        "client-key-data": STANDARD.encode(&account.key)});
    files.kubeconfig(&old_cluster, &user);
    let followed = open(&files).await;
    followed.access.expect_cluster("a");
    let node = clients.issue("node", &[], &[]);
    let access = followed.access.with_certificate(&node.certificate, &node.key).unwrap();
    let pods: Api<Pod> = Api::all(build(&access, &ClientOptions::default(), &followed.metrics).unwrap());
    assert!(lists(&pods).await);
    let renewed = clients.issue("node", &[], &[]);
    access.replace_certificate(&renewed.certificate, &renewed.key).unwrap();
    assert!(lists(&pods).await);

    let (_new_server, new_cluster) = secure(&new_ca, Some(&clients), one_cluster).await;
    files.kubeconfig(&new_cluster, &user);
    followed.until_shown("tensile_kube_credential_renewals_total{role=\"lower\",outcome=\"taken\"} 1").await;
    old_server.stop();
    assert!(lists(&pods).await, "the certificate stays with the old address");
    let stranger = TestCa::new("strangers").issue("node", &[], &[]);
    access.replace_certificate(&stranger.certificate, &node.key).unwrap_err();
}

fn id_token(name: &str) -> String {
    let claims = json!({"sub": name, "exp": jiff::Timestamp::now().as_second() + 3_600});
    format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[tokio::test]
async fn an_issuers_tokens_are_refreshed_with_the_newest_refresh_token() {
    let (ca, files) = (TestCa::new("issuer-ca"), Files::new());
    let (first, second) = (id_token("one"), id_token("two"));
    let expected = Arc::new(Mutex::new(first.clone()));
    let given = [first, second.clone()];
    let own_url = Arc::new(Mutex::new(String::new()));
    let url = own_url.clone();
    let (issuer, _) = secure(&ca, None, move |asked| {
        if asked.path == "/realm/.well-known/openid-configuration" {
            return Reply::json(200, &json!({"token_endpoint": format!("{}/token?x=1", url.lock())}));
        }
        let body = String::from_utf8_lossy(&asked.body).into_owned();
        // This one takes the secret in the form only.
        if asked.path != "/token" || asked.headers.contains_key("authorization") {
            return Reply::json(401, &json!({"error": "invalid_client"}));
        }
        let number = usize::from(!body.contains("refresh_token=r0&"));
        assert!(number == 0 || body.contains("refresh_token=r1&"), "{body}");
        Reply::json(200, &json!({"id_token": given[number], "refresh_token": format!("r{}", number + 1)}))
    })
    .await;
    let base = format!("https://{}", issuer.address());
    base.clone_into(&mut own_url.lock());
    let accepted = expected.clone();
    let server = ScriptedServer::start(move |asked| {
        let header = asked.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        if header == Some(format!("Bearer {}", accepted.lock())) { one_cluster(asked) } else { Reply::error(401, "no") }
    })
    .await
    .unwrap();
    let config = json!({"idp-issuer-url": format!("{base}/realm"), "client-id": "c", "client-secret": "s",
        "refresh-token": "r0", "idp-certificate-authority-data": STANDARD.encode(ca.pem())});
    files.kubeconfig(&plain(&server), &json!({"auth-provider": {"name": "oidc", "config": config}}));
    let followed = open(&files).await;
    let pods = followed.pods();
    assert!(lists(&pods).await);
    second.clone_into(&mut expected.lock());
    assert!(lists(&pods).await, "the issuer was not asked for another token");
}
