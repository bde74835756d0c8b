//! Accepting connections, the same for syslog, forward and RELP: who is let in, the handshake of TLS, the way to the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::{Control, allowed, poisoned, quiescing};
use crate::config::TlsServer;
use crate::journal::State;
use crate::metrics::InputMetrics;
use crate::proto::envelope::Transport;
use crate::sys;
use crate::tls::{self, Stream};

/// Pause after `accept` failed for want of file descriptors or memory, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes over a listening, non-blocking socket: the task that accepts until the stage says otherwise, then waits for the
/// connections to end; or until the journal is poisoned, then closes them. `welcome` spawns what a connection needs. Must
/// be called on the runtime.
///
/// # Errors
/// What the system says.
pub(super) fn accept<S>(
    listener: std::net::TcpListener,
    control: watch::Receiver<Control<S>>,
    journal_state: watch::Receiver<State>,
    welcome: impl FnMut(&mut JoinSet<()>, TcpStream, SocketAddr),
) -> io::Result<impl Future<Output = ()>> {
    Ok(run(TcpListener::from_std(listener)?, control, journal_state, welcome))
}

async fn run<S>(
    listener: TcpListener,
    mut control: watch::Receiver<Control<S>>,
    mut journal_state: watch::Receiver<State>,
    mut welcome: impl FnMut(&mut JoinSet<()>, TcpStream, SocketAddr),
) {
    let mut connections = JoinSet::new();
    let is_poisoned = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => welcome(&mut connections, stream, source),
                Err(error) => {
                    control.borrow().metrics.rejected.inc("accept_error");
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => log_panic(ended),
            () = quiescing(&mut control) => break false,
            () = poisoned(&mut journal_state) => break true,
        }
    };
    if is_poisoned {
        // What is not durable now never will be, and a sender that says nothing now would learn of it only by losing its
        // next message.
        drop(listener);
        connections.abort_all();
    } else {
        take_the_rest(listener, |stream, source| welcome(&mut connections, stream, source));
    }
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

/// Takes in what the kernel has already answered for: it would be reset with the socket. The kernel is asked itself, because
/// the runtime may not have heard of the newest yet. It answers for nothing more from here on.
fn take_the_rest(listener: TcpListener, mut welcome: impl FnMut(TcpStream, SocketAddr)) {
    let Ok(listener) = listener.into_std() else { return };
    if let Err(error) = sys::tcp::ignore(&listener) {
        tracing::debug!(%error, "a connection may come between the last one and the end");
    }
    while let Ok((stream, source)) = listener.accept() {
        if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            welcome(stream, source);
        }
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task failed");
    }
}

/// Who is let in.
pub(super) struct Door<'a> {
    /// Name of the input.
    pub(super) input: &'a str,
    pub(super) allow: &'a [IpNet],
    pub(super) max_connections: Option<u32>,
    pub(super) metrics: &'a Arc<InputMetrics>,
}

impl Door<'_> {
    /// Counts a connection in, beside the `open` ones; `None` if it is turned away, which is counted and said.
    pub(super) fn admit(&self, source: SocketAddr, open: usize) -> Option<Counted> {
        if !allowed(self.allow, source.ip().to_canonical()) {
            self.metrics.rejected.inc("denied");
            tracing::debug!(input = self.input, %source, "connection denied by `allow`");
            return None;
        }
        if self.max_connections.is_some_and(|max| open >= max as usize) {
            self.metrics.rejected.inc("max_connections");
            tracing::warn!(input = self.input, %source, "connection refused: max_connections reached");
            return None;
        }
        self.metrics.connections_total.inc();
        self.metrics.connections.inc();
        Some(Counted(self.metrics.clone()))
    }
}

/// Counts a connection for as long as it lives.
pub(super) struct Counted(Arc<InputMetrics>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// What shakes hands with these settings; kept in `current` for as long as they are the same, because it follows its files.
pub(super) fn follow(current: &mut Option<tls::Server>, settings: Option<&TlsServer>) -> Option<tls::Server> {
    let settings = settings?;
    if current.as_ref().is_none_or(|server| server.settings() != settings) {
        *current = Some(tls::Server::new(settings));
    }
    current.clone()
}

/// Has a connection that answers find out when its sender's host is gone; an answer is small and wanted now.
pub(super) fn make_answering(stream: &TcpStream, source: SocketAddr) {
    if let Err(error) = sys::tcp::keep_alive(stream).and_then(|()| stream.set_nodelay(true)) {
        tracing::debug!(%source, %error, "keepalive");
    }
}

/// What messages come in: the stream, or what is inside it if it begins with a TLS handshake; `None` if that fails.
pub(super) async fn inside<S>(
    server: Option<tls::Server>,
    stream: TcpStream,
    source: SocketAddr,
    control: watch::Receiver<Control<S>>,
    grace: Duration,
) -> Option<(Stream, Transport)> {
    let Some(server) = server else { return Some((Stream::Plain(stream), Transport::Tcp)) };
    // Boxed: a handshake is larger than the connection that it becomes.
    let stream = Box::pin(shake_hands(server, stream, source, control, grace)).await?;
    Some((stream, Transport::Tls))
}

/// The stream inside TLS. A failure is counted and is the sender's business, or that of whoever gave us our files.
pub(super) async fn shake_hands<S>(
    server: tls::Server,
    stream: TcpStream,
    source: SocketAddr,
    mut control: watch::Receiver<Control<S>>,
    grace: Duration,
) -> Option<Stream> {
    let metrics = control.borrow().metrics.clone();
    let leaving = async {
        quiescing(&mut control).await;
        sleep(grace).await;
    };
    let shaken = tokio::select! {
        shaken = server.accept(stream) => shaken,
        () = leaving => return None,
    };
    match shaken {
        Ok(stream) => {
            tracing::debug!(%source, name = stream.peer_name(), "connection inside TLS");
            Some(stream)
        }
        Err(error) => {
            metrics.rejected.inc("tls");
            tracing::debug!(%source, %error, "no TLS connection");
            None
        }
    }
}
