//! A scripted API server, for tests of what talks to one: real connections, and every kind of bad day.
//!
//! The script is a function from request to [`Reply`]; keep what it needs to remember in the closure.
//!
//! ```text
//! let server = ScriptedServer::start(|asked| match asked.number {
//!     0 => Reply::error(429, "slow down").header("retry-after", "1"),
//!     _ => Reply::json(200, &json!({"kind": "PodList", ...})),
//! }).await?;
//! let client = kube::Client::try_from(server.config())?;
//! ```

use std::{collections::BTreeMap, convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use kube::Config;
use parking_lot::Mutex;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A request as the server got it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How many requests came before it, of this method, path and kind (watch or not).
    pub number: usize,
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// Its query, decoded only as far as our own clients encode.
    pub query: BTreeMap<String, String>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Whether it came over HTTP/2.
    pub http2: bool,
    /// The client's end of the connection; tells connections apart.
    pub client: SocketAddr,
}

impl Asked {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|value| value == "true")
    }

    /// Its body as JSON; null when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// What the server does about a request.
#[derive(Debug)]
pub enum Reply {
    /// Answers whole.
    Answer {
        /// The status.
        code: u16,
        /// Further headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: Bytes,
    },
    /// Answers 200 and sends what comes through the channel; ends when the sender is dropped.
    Stream(mpsc::UnboundedReceiver<Chunk>),
    /// Never answers, and keeps the connection.
    Hang,
    /// Closes the connection without an answer.
    Cut,
}

/// A piece of a streamed answer.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// A JSON value and an end of line.
    Line(Value),
    /// Bytes as they are.
    Raw(Bytes),
    /// Breaks the connection off here.
    Cut,
}

/// The sending end of a streamed answer, for a watch.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::UnboundedSender<Chunk>,
}

impl Reply {
    /// A JSON answer.
    pub fn json(code: u16, value: &Value) -> Self {
        Self::Answer { code, headers: Vec::new(), body: value.to_string().into() }
    }

    /// A failure as an API server words it.
    pub fn error(code: u16, message: &str) -> Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason(code), "code": code});
        Self::json(code, &status)
    }

    /// A list, as a single page.
    pub fn list(resource_version: &str, items: &[Value]) -> Self {
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": resource_version},
            "items": items});
        Self::json(200, &list)
    }

    /// A watch that sends what is sent through the second value, and ends with it.
    pub fn watch() -> (Self, Events) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self::Stream(receiver), Events { sender })
    }

    /// A watch that is begun, sends nothing and does not end.
    pub fn watched_for_ever() -> Self {
        let (reply, Events { sender }) = Self::watch();
        // The stream ends when its last sender is dropped: this one never is, until the connection goes.
        tokio::spawn(async move { sender.closed().await });
        reply
    }

    /// A watch that sends `chunks` and ends.
    pub fn watched(chunks: impl IntoIterator<Item = Chunk>) -> Self {
        let (reply, events) = Self::watch();
        for chunk in chunks {
            events.send(chunk);
        }
        reply
    }

    /// Adds a header to a whole answer.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

impl Chunk {
    /// A watch event: `kind` is ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
    pub fn event(kind: &str, object: &Value) -> Self {
        Self::Line(json!({"type": kind, "object": object}))
    }
}

impl Events {
    /// Sends a piece; it is lost when the watcher has gone.
    pub fn send(&self, chunk: Chunk) {
        // The watcher may go at any time: that is what many of the tests are about.
        let _ = self.sender.send(chunk);
    }

    /// Whether the watcher has gone.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// The server. It stops, and breaks its connections off, when it is dropped.
pub struct ScriptedServer {
    address: SocketAddr,
    scheme: &'static str,
    seen: Arc<watch::Sender<Vec<Asked>>>,
    stop: CancellationToken,
}

struct Shared {
    script: Box<dyn Fn(&Asked) -> Reply + Send + Sync>,
    seen: Arc<watch::Sender<Vec<Asked>>>,
    counts: Mutex<BTreeMap<(String, String, bool), usize>>,
}

impl ScriptedServer {
    /// Starts on a free port of 127.0.0.1, in plain HTTP.
    pub async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), None, script).await
    }

    /// Starts at an address (such as that of a server that was stopped), with TLS if given.
    pub async fn start_at(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(watch::Sender::new(Vec::new()));
        let stop = CancellationToken::new();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared { script: Box::new(script), seen: seen.clone(), counts: Mutex::default() });
        tokio::spawn(accept(listener, tls.map(TlsAcceptor::from), shared, stop.clone()));
        Ok(Self { address, scheme, seen, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A configuration to reach it with, without credentials.
    pub fn config(&self) -> Config {
        let url = format!("{}://{}", self.scheme, self.address);
        // An address that was bound makes a valid URL.
        Config::new(url.parse().unwrap_or_default())
    }

    /// All requests so far, in order of arrival.
    pub fn seen(&self) -> Vec<Asked> {
        self.seen.borrow().clone()
    }

    /// Waits until the requests satisfy `condition`; returns them, and an error with them after `limit`.
    pub async fn wait_for(
        &self,
        limit: Duration,
        condition: impl Fn(&[Asked]) -> bool,
    ) -> Result<Vec<Asked>, Vec<Asked>> {
        let deadline = Instant::now() + limit;
        let mut receiver = self.seen.subscribe();
        loop {
            let seen = receiver.borrow_and_update().clone();
            if condition(&seen) {
                return Ok(seen);
            }
            if !matches!(timeout_at(deadline, receiver.changed()).await, Ok(Ok(()))) {
                return Err(seen);
            }
        }
    }

    /// Stops listening and breaks all connections off, as a server that is killed.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for ScriptedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedServer").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, client)) = accepted else { return };
        let (tls, shared, stop) = (tls.clone(), shared.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serve(stream, client, tls, shared) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn serve(stream: TcpStream, client: SocketAddr, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(request, client, shared.clone()));
    let builder = auto::Builder::new(TokioExecutor::new());
    // Errors are the client's doing, or the script's.
    match tls {
        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

async fn answer(request: Request<Incoming>, client: SocketAddr, shared: Arc<Shared>) -> io::Result<Answer> {
    let http2 = request.version() == http::Version::HTTP_2;
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut asked = Asked {
        number: 0,
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: query(parts.uri.query().unwrap_or_default()),
        headers: parts.headers,
        body,
        http2,
        client,
    };
    {
        let kind = (asked.method.to_string(), asked.path.clone(), asked.is_watch());
        let mut counts = shared.counts.lock();
        let count = counts.entry(kind).or_default();
        asked.number = *count;
        *count += 1;
    }
    let reply = (shared.script)(&asked);
    shared.seen.send_modify(|seen| seen.push(asked));
    match reply {
        Reply::Answer { code, headers, body } => {
            let body = http_body_util::Full::new(body).map_err(|never: Infallible| match never {});
            respond(code, &headers, body.boxed_unsync())
        }
        Reply::Stream(receiver) => respond(200, &[], StreamBody::new(frames(receiver)).boxed_unsync()),
        Reply::Hang => std::future::pending().await,
        Reply::Cut => Err(io::Error::other("cut by the script")),
    }
}

fn respond(code: u16, headers: &[(String, String)], body: UnsyncBoxBody<Bytes, io::Error>) -> io::Result<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).map_err(io::Error::other)?;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in headers {
        let name: HeaderName = name.parse().map_err(io::Error::other)?;
        response.headers_mut().insert(name, value.parse().map_err(io::Error::other)?);
    }
    Ok(response)
}

fn frames(receiver: mpsc::UnboundedReceiver<Chunk>) -> impl futures::Stream<Item = io::Result<Frame<Bytes>>> {
    stream::unfold(receiver, |mut receiver| async move {
        let frame = match receiver.recv().await? {
            Chunk::Line(value) => Ok(Frame::data(format!("{value}\n").into())),
            Chunk::Raw(bytes) => Ok(Frame::data(bytes)),
            Chunk::Cut => {
                // hyper flushes when it finds nothing more to send, and drops what is unflushed at an error.
                tokio::task::yield_now().await;
                Err(io::Error::other("cut by the script"))
            }
        };
        Some((frame, receiver))
    })
}

fn query(text: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/").replace('+', " ");
    text.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (decoded(key), decoded(value))).collect()
}

fn reason(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    }
}
