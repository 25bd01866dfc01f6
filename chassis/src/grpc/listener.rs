//! Takes connections, shakes hands, and reads who the peer is: once for each connection, not for each call.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{retry::Backoff, tls::PeerIdentity};

/// A few services with a few replicas each call us; this many connections are a mistake or an attack.
const CONNECTIONS_MAX: usize = 512;
/// A peer that takes longer is not one of ours.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Out of file descriptors: waiting lets connections end.
const ACCEPT_BACKOFF_INITIAL: Duration = Duration::from_millis(10);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The peer of a connection; in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its address.
    pub address: SocketAddr,
    /// Its names, if it showed a certificate.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// A connection after its handshake.
pub(super) struct Peer {
    stream: Stream,
    info: PeerInfo,
    /// Given back when the connection ends.
    _slot: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Takes connections until `stop` is cancelled or the receiver is gone.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    peers: mpsc::Sender<io::Result<Peer>>,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let acceptor = tls.map(TlsAcceptor::from);
    let mut backoff = Backoff::new(ACCEPT_BACKOFF_INITIAL, ACCEPT_BACKOFF_MAX);
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, address) = listener.accept().await?;
            Ok::<_, io::Error>((slot, stream, address))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => return,
            () = peers.closed() => return,
        };
        match accepted {
            Ok((slot, stream, address)) => {
                backoff.reset();
                let (acceptor, peers) = (acceptor.clone(), peers.clone());
                // A handshake that hangs must not hold up the next one.
                tokio::spawn(async move {
                    match handshake(stream, address, acceptor, slot).await {
                        // It fails when the server has ended; then nobody needs the connection.
                        Ok(peer) => drop(peers.send(Ok(peer)).await),
                        Err(error) => tracing::debug!(%address, %error, "a gRPC connection was not made"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no gRPC connection can be taken; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    slot: OwnedSemaphorePermit,
) -> io::Result<Peer> {
    stream.set_nodelay(true)?;
    let Some(acceptor) = acceptor else {
        let info = PeerInfo { address, identity: None };
        return Ok(Peer { stream: Stream::Plain(stream), info, _slot: slot });
    };
    let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = leaf.map(PeerIdentity::from_certificate).transpose().map_err(io::Error::other)?.map(Arc::new);
    Ok(Peer { stream: Stream::Tls(Box::new(stream)), info: PeerInfo { address, identity }, _slot: slot })
}

impl Connected for Peer {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
