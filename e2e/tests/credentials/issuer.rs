//! A small OpenID Connect issuer: discovery, keys, and tokens that live for seconds.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData, SigningKey};
use serde_json::{Value, json};
use tensile_chassis::{
    testing::{Asked, Reply, ScriptedServer},
    tls::{ClientAuth, ReloadingIdentity, server_config},
};

/// Who its tokens are for.
pub const AUDIENCE: &str = "tensile";
/// The only refresh token that it takes.
pub const REFRESH_TOKEN: &str = "very-secret-refresh";
/// Life of a token, in seconds.
const LIFE_SECONDS: i64 = 8;

pub struct Issuer {
    pub url: String,
    pub ca_pem: String,
}

impl Issuer {
    /// Runs in a thread of its own until the process ends: each test has a runtime of its own, which ends with it.
    pub fn start() -> Self {
        let (ready, started) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (issuer, _server) = serve().await;
                ready.send(issuer).unwrap();
                std::future::pending::<()>().await;
            });
        });
        started.recv().unwrap()
    }
}

async fn serve() -> (Issuer, ScriptedServer) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let identity = ReloadingIdentity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let tls = Arc::new(server_config(identity, ClientAuth::None, &["http/1.1"]));
    let signer = KeyPair::generate().unwrap();
    let (url_sender, url) = tokio::sync::watch::channel(String::new());
    let server = ScriptedServer::start_at(([127, 0, 0, 1], 0).into(), Some(tls), move |asked| {
        answer(asked, &url.borrow(), &signer)
    })
    .await
    .unwrap();
    let url = format!("https://{}", server.address());
    url_sender.send_replace(url.clone());
    (Issuer { url, ca_pem: authority.pem() }, server)
}

fn answer(asked: &Asked, url: &str, signer: &KeyPair) -> Reply {
    match asked.path.as_str() {
        "/.well-known/openid-configuration" => Reply::json(
            200,
            &json!({"issuer": url, "jwks_uri": format!("{url}/keys"), "token_endpoint": format!("{url}/token"),
                "authorization_endpoint": format!("{url}/authorize"), "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"]}),
        ),
        "/keys" => Reply::json(200, &json!({"keys": [public_key(signer)]})),
        "/token" if String::from_utf8_lossy(&asked.body).contains(&format!("refresh_token={REFRESH_TOKEN}")) => {
            Reply::json(200, &json!({"token_type": "Bearer", "access_token": "none", "id_token": token(url, signer)}))
        }
        _ => Reply::json(400, &json!({"error": "invalid_grant"})),
    }
}

/// The key as RFC 7517 and 7518 6.2 have it.
fn public_key(signer: &KeyPair) -> Value {
    let point = signer.der_bytes();
    assert_eq!((point.len(), point[0]), (65, 4), "an uncompressed P-256 point is expected");
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1",
        "x": part(&point[1..33]), "y": part(&point[33..])})
}

fn token(url: &str, signer: &KeyPair) -> String {
    let now = Timestamp::now().as_second();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"iss": url, "aud": AUDIENCE, "sub": "jane", "iat": now, "exp": now + LIFE_SECONDS});
    let text = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT", "kid": "1"})), part(&claims));
    let signature = raw_signature(&signer.sign(text.as_bytes()).unwrap());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A JSON Web Signature has both numbers side by side, 32 bytes each (RFC 7518 3.4), where X.509 has them in DER.
fn raw_signature(der: &[u8]) -> [u8; 64] {
    let mut raw = [0; 64];
    let mut at = 2;
    for half in raw.chunks_exact_mut(32) {
        let length = usize::from(der[at + 1]);
        let number = &der[at + 2..at + 2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        half[32 - number.len()..].copy_from_slice(number);
        at += 2 + length;
    }
    raw
}
