//! The requests of a watch and the reading of their answers, with limits on what is read.

use bytes::BytesMut;
use http::{Request, Response};
use http_body_util::BodyExt;
use kube::{
    Client,
    api::{ListParams, Request as ApiRequest, WatchParams},
    client::Body,
    core::response::Status,
};
use memchr::memchr;

use super::{FailureReason, WatchOptions};
use crate::kube_client::{NoRetry, chain};

/// A page of 500 objects of the largest size that etcd takes by default (1.5 MB) is 750 MB; real ones are under 20 MB.
const PAGE_BYTES_MAX: usize = 256 << 20;
/// An API server refuses objects over 3 MB; an event may hold little more.
const LINE_BYTES_MAX: usize = 16 << 20;
/// A Status is short.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Why a try failed.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: FailureReason,
    pub(super) detail: String,
}

impl Trouble {
    pub(super) fn new(reason: FailureReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    pub(super) fn of_status(status: &Status) -> Self {
        let reason = match (status.code, status.reason.as_str()) {
            (410, _) | (_, "Expired" | "Gone") => FailureReason::Gone,
            (429 | 500.., _) => FailureReason::Overloaded,
            _ => FailureReason::Refused,
        };
        Self::new(reason, format!("{} ({})", status.message, status.code))
    }
}

/// Asks for one page of a list and reads it whole.
pub(super) async fn list(
    client: &Client,
    path: &str,
    options: &WatchOptions,
    next: Option<&str>,
) -> Result<BytesMut, Trouble> {
    let params = ListParams {
        label_selector: options.label_selector.clone(),
        field_selector: options.field_selector.clone(),
        limit: (options.page_size > 0).then_some(options.page_size),
        continue_token: next.map(str::to_owned),
        ..ListParams::default()
    };
    // Without a resourceVersion: the newest state, never that of an API server's stale cache. Absence must be proven.
    let answer = send(client, ApiRequest::new(path).list(&params)).await?;
    whole(answer.into_body(), PAGE_BYTES_MAX).await
}

/// Begins a watch at `version`.
pub(super) async fn watch(
    client: &Client,
    path: &str,
    options: &WatchOptions,
    version: &str,
    timeout_secs: u32,
) -> Result<Lines, Trouble> {
    let params = WatchParams {
        label_selector: options.label_selector.clone(),
        field_selector: options.field_selector.clone(),
        timeout: Some(timeout_secs),
        bookmarks: true,
        send_initial_events: false,
    };
    let answer = send(client, ApiRequest::new(path).watch(&params, version)).await?;
    Ok(Lines { body: answer.into_body(), buffer: BytesMut::new(), searched: 0 })
}

async fn send(
    client: &Client,
    request: Result<Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Response<Body>, Trouble> {
    let mut request = request.map_err(|error| Trouble::new(FailureReason::Refused, error.to_string()))?;
    // The watch has a backoff of its own, and its health must show the first failure, not the sixth.
    request.extensions_mut().insert(NoRetry);
    let answer = client
        .send(request.map(Body::from))
        .await
        .map_err(|error| Trouble::new(FailureReason::Unreachable, chain(&error)))?;
    let code = answer.status();
    if code.is_success() {
        return Ok(answer);
    }
    let text = whole(answer.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
    let mut status: Status = serde_json::from_slice(&text).unwrap_or_default();
    status.code = code.as_u16();
    if status.message.is_empty() {
        code.canonical_reason().unwrap_or("no reason given").clone_into(&mut status.message);
    }
    Err(Trouble::of_status(&status))
}

async fn whole(mut body: Body, limit: usize) -> Result<BytesMut, Trouble> {
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Trouble::new(FailureReason::Cut, chain(&error)))?;
        if let Ok(data) = frame.into_data() {
            if text.len() + data.len() > limit {
                return Err(Trouble::new(FailureReason::Undecodable, format!("the answer is over {limit} bytes")));
            }
            text.extend_from_slice(&data);
        }
    }
    Ok(text)
}

/// The lines of a watch.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no end of line.
    searched: usize,
}

impl Lines {
    /// The next line; `None` at the end. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>, Trouble> {
        loop {
            if let Some(end) = self.buffer.get(self.searched..).and_then(|unsearched| memchr(b'\n', unsearched)) {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(Trouble::new(
                    FailureReason::Undecodable,
                    format!("an event is over {LINE_BYTES_MAX} bytes"),
                ));
            }
            match self.body.frame().await {
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => {
                    return Err(Trouble::new(FailureReason::Cut, "the connection was cut in the middle of an event"));
                }
                Some(Err(error)) => return Err(Trouble::new(FailureReason::Cut, chain(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
