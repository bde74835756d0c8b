//! The handshake on a connection: HELO, PING, PONG, each in one write, all within a limit.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::proto::forward::handshake::{HANDSHAKE_BYTES_MAX, HandshakeError, Peer, Security, Server};
use crate::proto::forward::scan::{ScanError, Scanner, Step};
use crate::sys;

/// How long a client may take to prove itself.
const WITHIN: Duration = Duration::from_secs(10);

/// Why a client was not let in.
#[derive(Debug, Error)]
pub(super) enum Refused {
    #[error("no PING within {} s", WITHIN.as_secs())]
    Silent,
    #[error(transparent)]
    Malformed(#[from] ScanError),
    #[error(transparent)]
    Unproven(#[from] HandshakeError),
    /// It left before it said anything: fluentd's heartbeat over TCP.
    #[error("left")]
    Left,
    #[error("handshake: {0}")]
    Io(#[from] io::Error),
}

impl Refused {
    /// The name that it is counted under; `None` for what is no mistake.
    pub(super) fn reason(&self) -> Option<&'static str> {
        match self {
            Refused::Silent => Some("handshake_timeout"),
            Refused::Malformed(_) | Refused::Unproven(_) => Some("auth"),
            Refused::Left => None,
            Refused::Io(_) => Some("connection_error"),
        }
    }
}

/// Lets a client in that knows the key; also gives what it sent behind its PING.
///
/// # Errors
/// Says why not; the client was told as far as it may know. Close.
pub(super) async fn shake_hands<S>(stream: &mut S, security: &Security) -> Result<(Peer, Vec<u8>), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    timeout(WITHIN, exchange(stream, security)).await.unwrap_or(Err(Refused::Silent))
}

async fn exchange<S>(stream: &mut S, security: &Security) -> Result<(Peer, Vec<u8>), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = Server::new(security, sys::random::bytes()?);
    send(stream, &server.helo()).await?;
    let mut scanner = Scanner::new(HANDSHAKE_BYTES_MAX);
    let mut received = Vec::new();
    let length = loop {
        received.reserve(1024);
        match stream.read_buf(&mut received).await {
            Ok(0) if received.is_empty() => return Err(Refused::Left),
            Ok(0) => return Err(HandshakeError::Unexpected("PING").into()),
            Ok(_) => {}
            // So a heartbeat looks whose client does not wait for the HELO, or inside TLS says no goodbye.
            Err(error) if received.is_empty() && has_left(&error) => return Err(Refused::Left),
            Err(error) => return Err(error.into()),
        }
        if let Step::Complete(length) = scanner.scan(&received)? {
            break length;
        }
    };
    let verdict = server.handle_ping(security, &received[..length]);
    send(stream, &verdict.reply).await?;
    let peer = verdict.outcome;
    if peer.is_err() {
        stream.shutdown().await?;
    }
    received.drain(..length);
    Ok((peer?, received))
}

fn has_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.flush().await
}
