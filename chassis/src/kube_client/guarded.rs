//! Connections that carry a leader's writes, and break when it leads no more.
//!
//! What was handed to a connection before the lease ran out may still lie in its buffers: a process that was suspended in
//! the middle of a burst would send it when it wakes up, long after another replica has come to lead. So such writes have
//! connections of their own, and each piece that leaves is looked at once more.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};

use crate::lease::Fence;

/// The fence of the writes that a pool carries, once the first one has come.
pub(super) type PoolFence = Arc<OnceLock<Fence>>;

/// A connection; with a fence, nothing leaves by it while that is closed.
pub(super) struct Guarded<T> {
    inner: T,
    fence: Option<PoolFence>,
}

impl<T> Guarded<T> {
    pub(super) fn new(inner: T, fence: Option<PoolFence>) -> Self {
        Self { inner, fence }
    }

    fn check(&self) -> io::Result<()> {
        let fence = self.fence.as_ref().and_then(|fence| fence.get());
        fence.map_or(Ok(()), |fence| fence.check().map_err(io::Error::other))
    }
}

impl<T: Read + Unpin> Read for Guarded<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An orderly end would send what is left.
        self.check()?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

impl<T: Connection> Connection for Guarded<T> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{future::poll_fn, time::Duration};

    use hyper_util::rt::TokioIo;
    use tokio::{io::AsyncReadExt, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_lies_in_a_connection_when_the_lease_runs_out_never_leaves() {
        let (near, mut far) = tokio::io::duplex(64);
        let fence = Fence::new();
        fence.extend(Instant::now() + Duration::from_secs(10));
        let pool = PoolFence::default();
        pool.set(fence.clone()).unwrap();
        let mut guarded = Guarded::new(TokioIo::new(near), Some(pool));
        let mut write = async |bytes: &[u8]| poll_fn(|cx| Pin::new(&mut guarded).poll_write(cx, bytes)).await;

        assert_eq!(write(b"led").await.unwrap(), 3);
        tokio::time::advance(Duration::from_secs(10)).await;
        let error = write(b"late").await.unwrap_err();
        assert!(error.to_string().contains("not the leader"), "{error}");
        drop(guarded);
        let mut arrived = String::new();
        far.read_to_string(&mut arrived).await.unwrap();
        assert_eq!(arrived, "led");
    }
}
