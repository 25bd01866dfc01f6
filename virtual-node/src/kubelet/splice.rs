//! Joins two connections: what one side sends the other side gets, until both have ended.
//!
//! No byte is looked at, so every version of every protocol, window sizes and ends of single streams work as the two ends
//! make them work (KEP-4006; kubernetes #136256 is what terminating the protocol leads to).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};

/// Buffer of each direction: one TLS record. Larger ones gain nothing, as a record is what a read returns at most.
const BUFFER_BYTES: usize = 16 * 1024;

/// When one direction has ended, the other may go on for as long as bytes move, and this long without any. No end of a
/// Kubernetes stream keeps half a connection open on purpose: an API server's proxy closes both halves at the first end.
const LINGER: Duration = Duration::from_mins(1);

/// Time for saying goodbye to a peer that may be gone.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// How many bytes went each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the caller to the lower cluster.
    pub down: u64,
    /// From the lower cluster to the caller.
    pub up: u64,
}

/// Copies both ways until both directions have ended.
///
/// An end is handed on as the end of writing only, and an error of one direction does not end the other: a process that
/// writes its last lines and exits ends its connection while those lines are still under way, and they must arrive
/// (kubernetes #124571: output lost with exit code 0).
pub async fn splice(caller: impl AsyncRead + AsyncWrite + Unpin, lower: impl AsyncRead + AsyncWrite + Unpin) -> Moved {
    let (caller_read, caller_write) = tokio::io::split(caller);
    let (lower_read, lower_write) = tokio::io::split(lower);
    let (moved_down, moved_up) = (AtomicU64::new(0), AtomicU64::new(0));
    {
        let mut down = Box::pin(pump(caller_read, lower_write, &moved_down));
        let mut up = Box::pin(pump(lower_read, caller_write, &moved_up));
        tokio::select! {
            () = &mut down => linger(up, &moved_up).await,
            () = &mut up => linger(down, &moved_down).await,
        }
    }
    Moved { down: moved_down.into_inner(), up: moved_up.into_inner() }
}

/// Waits for the direction that is left, as long as it moves.
async fn linger(rest: impl Future<Output = ()> + Unpin, moved: &AtomicU64) {
    let still = async {
        let mut before = moved.load(Ordering::Relaxed);
        loop {
            sleep(LINGER).await;
            let now = moved.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    };
    tokio::select! {
        () = rest => {}
        () = still => {}
    }
}

/// Copies one way until the reader ends or either side fails, then ends the writer.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, moved: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    // An error of reading is an end too: a peer that is killed sends no close_notify.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // Flushed at once: a keystroke must not wait in TLS's buffer for the next one.
        if to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            break;
        }
        moved.fetch_add(count as u64, Ordering::Relaxed);
    }
    let _ = timeout(SHUTDOWN_MAX, to.shutdown()).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    struct Ends {
        caller: DuplexStream,
        lower: DuplexStream,
        task: tokio::task::JoinHandle<Moved>,
    }

    /// Pipes that hold little, so that a splice which does not drain is seen.
    fn joined() -> Ends {
        let (caller, caller_far) = duplex(1024);
        let (lower, lower_far) = duplex(1024);
        Ends { caller, lower, task: tokio::spawn(splice(caller_far, lower_far)) }
    }

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let Ends { mut caller, mut lower, task } = joined();
        caller.write_all(b"ls").await.unwrap();
        let mut two = [0; 2];
        lower.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ls");
        lower.write_all(b"ok").await.unwrap();
        caller.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ok");
        drop((caller, lower));
        assert_eq!(task.await.unwrap(), Moved { down: 2, up: 2 });
    }

    #[tokio::test]
    async fn an_end_of_one_direction_leaves_the_other_open() {
        let Ends { mut caller, mut lower, task } = joined();
        caller.write_all(b"last words").await.unwrap();
        caller.shutdown().await.unwrap();
        let mut heard = Vec::new();
        lower.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
        lower.write_all(b"answer").await.unwrap();
        drop(lower);
        heard.clear();
        caller.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"answer");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn output_under_way_arrives_although_the_sender_is_gone() {
        let Ends { mut caller, mut lower, task } = joined();
        let output = vec![b'x'; 1 << 20];
        let expected = output.clone();
        let sender = tokio::spawn(async move {
            lower.write_all(&output).await.unwrap();
            // Gone for both directions, while most of it is still on its way.
        });
        // The caller still sends to the one that is gone, as SPDY's window updates and pings do.
        caller.write_all(b"ping").await.unwrap();
        let mut heard = Vec::new();
        let (mut caller_read, mut caller_write) = tokio::io::split(caller);
        let reading = async {
            caller_read.read_to_end(&mut heard).await.unwrap();
        };
        let pinging = async { while caller_write.write_all(b"ping").await.is_ok() {} };
        tokio::select! {
            () = reading => {}
            () = async { pinging.await; std::future::pending::<()>().await } => {}
        }
        sender.await.unwrap();
        assert!(heard == expected, "{} of {} bytes arrived", heard.len(), expected.len());
        drop((caller_read, caller_write));
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_stops_the_writer_and_loses_nothing() {
        let Ends { mut caller, mut lower, task } = joined();
        let output: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
        let mut written = 0;
        while written < output.len()
            && let Ok(count) = timeout(LINGER, lower.write(&output[written..])).await
        {
            written += count.unwrap();
        }
        assert!(written <= 2 * BUFFER_BYTES, "{written} bytes are held for a caller that reads none");
        let rest = output[written..].to_vec();
        let sender = tokio::spawn(async move {
            lower.write_all(&rest).await.unwrap();
        });
        let mut heard = Vec::new();
        caller.read_to_end(&mut heard).await.unwrap();
        assert!(heard == output, "{} bytes arrived", heard.len());
        sender.await.unwrap();
        drop(caller);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_never_ends_does_not_hold_the_splice_for_ever() {
        let Ends { caller, lower, task } = joined();
        drop(lower);
        timeout(3 * LINGER, task).await.unwrap().unwrap();
        drop(caller);
    }
}
