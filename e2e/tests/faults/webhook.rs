//! An admission webhook that lets everything pass, but for one request, which it holds.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tensile_e2e::install_crypto;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use crate::cut::WEBHOOK_TIMEOUT;

/// Largest request that is read.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The webhook; it serves until the test ends.
pub struct Webhook {
    address: SocketAddr,
    ca_pem: String,
    state: Arc<State>,
}

struct State {
    user: String,
    calls: AtomicUsize,
    held: Notify,
    hung_up: Notify,
}

impl Webhook {
    /// One that holds the second call that is about this user's deletion of a pod with grace 0.
    pub async fn holding_the_second(user: &str) -> Self {
        install_crypto();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            user: user.to_owned(),
            calls: AtomicUsize::new(0),
            held: Notify::new(),
            hung_up: Notify::new(),
        });
        let serving = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), serving.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        state.serve(stream).await;
                    }
                });
            }
        });
        Self { address, ca_pem: certificate.pem(), state }
    }

    /// How the API server comes to know it.
    pub fn configuration(&self) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "hold.tensile.test"},
            "webhooks": [{
                "name": "hold.tensile.test",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": WEBHOOK_TIMEOUT.as_secs(),
                "clientConfig": {
                    "url": format!("https://{}/", self.address),
                    "caBundle": BASE64_STANDARD.encode(&self.ca_pem),
                },
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["DELETE"]}],
                "namespaceSelector": {"matchLabels": {"tensile.test/webhook": "on"}},
            }],
        })
    }

    /// Waits until the call that is held has come.
    pub async fn asked_twice(&self) {
        self.state.held.notified().await;
    }

    /// Waits until the API server has given the held call up.
    pub async fn hung_up(&self) {
        self.state.hung_up.notified().await;
    }

    /// How many calls were about the user's last delete.
    pub fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }
}

impl State {
    /// Answers one request after the other, over HTTP/1.1.
    async fn serve(&self, mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
        while let Some(review) = read_review(&mut stream).await {
            let request = &review["request"];
            let is_last_delete =
                request["userInfo"]["username"] == self.user.as_str() && request["options"]["gracePeriodSeconds"] == 0;
            if is_last_delete && self.calls.fetch_add(1, Ordering::SeqCst) == 1 {
                self.held.notify_one();
                // Nothing is sent any more; what ends the wait is the end of the connection.
                let _ = stream.read(&mut [0; 1]).await;
                self.hung_up.notify_one();
                return;
            }
            let answer = json!({
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {"uid": request["uid"], "allowed": true},
            })
            .to_string();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
            let answer = format!("{head} {}\r\n\r\n{answer}", answer.len());
            if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}

/// Reads one request; `None` at the end of the connection.
async fn read_review(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<Value> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
            let body = end + 4..end + 4 + length.trim().parse::<usize>().ok()?;
            if bytes.len() >= body.end {
                return serde_json::from_slice(&bytes[body]).ok();
            }
        }
        assert!(bytes.len() < REQUEST_BYTES_MAX, "a request without end");
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
