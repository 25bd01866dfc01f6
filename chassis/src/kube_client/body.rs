//! An answer's body that keeps its request's slot and time limit until its last byte.
//!
//! Without this a server that sends its headers and then hangs would hold the caller for ever, and a hundred long lists
//! at once would count as none.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};
use tower::BoxError;

use super::service::RequestError;

/// The body of an answer.
pub(super) struct HeldBody {
    inner: Incoming,
    /// Absent for answers that stay open.
    hold: Option<Hold>,
}

struct Hold {
    _slot: OwnedSemaphorePermit,
    deadline: Instant,
    timeout: Duration,
    /// Made when the body first has to be waited for: most come with their headers.
    timer: Option<Pin<Box<Sleep>>>,
}

impl HeldBody {
    /// A body without limits.
    pub(super) fn open(inner: Incoming) -> Self {
        Self { inner, hold: None }
    }

    /// A body that must end by `deadline`, which was `timeout` after the request began.
    pub(super) fn held(inner: Incoming, slot: OwnedSemaphorePermit, deadline: Instant, timeout: Duration) -> Self {
        Self { inner, hold: Some(Hold { _slot: slot, deadline, timeout, timer: None }) }
    }
}

impl Body for HeldBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Err(error))) => {
                this.hold = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                this.hold = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some(hold) = &mut this.hold else { return Poll::Pending };
                let deadline = hold.deadline;
                let timer = hold.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let timeout = hold.timeout;
                this.hold = None;
                Poll::Ready(Some(Err(RequestError::TimedOut { what: "its answer stopped half way", timeout }.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
