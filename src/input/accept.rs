//! Accepting connections, the same for syslog, forward and RELP: who is let in, the handshake of TLS, the way to the end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::departure::{Departures, ListenersPart, Passenger, Phase, Stay};
use super::{Control, allowed, poisoned, quiescing};
use crate::config::TlsServer;
use crate::journal::State;
use crate::metrics::InputMetrics;
use crate::proto::envelope::Transport;
use crate::proto::syslog::framing::Standing;
use crate::sys::{self, socket_filter};
use crate::tls::{self, Stream};

/// Pause after `accept` failed for want of file descriptors or memory, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection, as a listener's task gives it to what serves it.
pub(super) struct Newcomer {
    pub(super) stream: TcpStream,
    pub(super) source: SocketAddr,
    /// What the other node has begun, if it had the connection before.
    pub(super) begun: Option<Begun>,
}

/// How far a connection was read.
#[derive(Debug)]
pub struct Begun {
    /// What was read and makes no whole message yet.
    pub rest: Vec<u8>,
    /// Where the search for messages stands.
    pub standing: Standing,
}

/// A live connection that the other node had before.
#[derive(Debug)]
pub struct Arrival {
    /// The connection; does not block.
    pub stream: std::net::TcpStream,
    /// The client.
    pub source: SocketAddr,
    /// How far it was read there.
    pub begun: Begun,
}

/// What a listener's task follows, beside its input's settings.
pub(super) struct Surroundings {
    pub(super) journal_state: watch::Receiver<State>,
    pub(super) departures: Departures,
    /// Live connections of the other node, where such may come.
    pub(super) arrivals: Option<mpsc::Receiver<Arrival>>,
}

/// Takes over a listening, non-blocking socket: the task that accepts until the stage says otherwise, then waits for the
/// connections to end; or until the journal is poisoned, then closes them. `welcome` spawns what a connection needs. Must
/// be called on the runtime.
///
/// # Errors
/// What the system says.
pub(super) fn accept<S>(
    listener: std::net::TcpListener,
    control: watch::Receiver<Control<S>>,
    surroundings: Surroundings,
    welcome: impl FnMut(&mut JoinSet<()>, Newcomer),
) -> io::Result<impl Future<Output = ()>> {
    let part = surroundings.departures.listener(listener.local_addr()?);
    Ok(run(TcpListener::from_std(listener)?, control, surroundings, part, welcome))
}

async fn run<S>(
    listener: TcpListener,
    mut control: watch::Receiver<Control<S>>,
    surroundings: Surroundings,
    mut part: Option<ListenersPart>,
    mut welcome: impl FnMut(&mut JoinSet<()>, Newcomer),
) {
    let Surroundings { mut journal_state, mut arrivals, .. } = surroundings;
    let mut connections = JoinSet::new();
    let is_poisoned = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => welcome(&mut connections, Newcomer { stream, source, begun: None }),
                Err(error) => {
                    control.borrow().metrics.rejected.inc("accept_error");
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            arrival = next_arrival(&mut arrivals) => match TcpStream::from_std(arrival.stream) {
                Ok(stream) => {
                    let Arrival { source, begun, .. } = arrival;
                    welcome(&mut connections, Newcomer { stream, source, begun: Some(begun) });
                }
                Err(error) => tracing::warn!(%error, "cannot go on with a connection of the peer's"),
            },
            (phase, obeyed) = wanted(&mut part) => {
                if let Err(error) = obey(&listener, phase) {
                    tracing::warn!(%error, ?phase, "a listener stays as it is");
                }
                if phase == Phase::Hold {
                    take_what_waits(&listener, |stream, source| {
                        welcome(&mut connections, Newcomer { stream, source, begun: None });
                    });
                }
                drop(obeyed);
            },
            Some(ended) = connections.join_next() => log_panic(ended),
            () = quiescing(&mut control) => break false,
            () = poisoned(&mut journal_state) => break true,
        }
    };
    drop(part);
    if is_poisoned {
        // What is not durable now never will be, and a sender that says nothing now would learn of it only by losing its
        // next message.
        drop(listener);
        connections.abort_all();
    } else {
        take_the_rest(listener, |stream, source| {
            welcome(&mut connections, Newcomer { stream, source, begun: None });
        });
    }
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

/// The next live connection of the other node, if ever any comes.
async fn next_arrival(arrivals: &mut Option<mpsc::Receiver<Arrival>>) -> Arrival {
    let next = match arrivals {
        Some(arrivals) => arrivals.recv().await,
        None => None,
    };
    match next {
        Some(arrival) => arrival,
        None => std::future::pending().await,
    }
}

/// What is wanted of the listener next, if ever anything is.
async fn wanted(part: &mut Option<ListenersPart>) -> (Phase, super::departure::Obeyed) {
    match part {
        Some(part) => part.next().await,
        None => std::future::pending().await,
    }
}

fn obey(listener: &TcpListener, phase: Phase) -> io::Result<()> {
    match phase {
        Phase::Stay => socket_filter::remove(listener),
        Phase::End { .. } => socket_filter::drop_syn(listener),
        Phase::Hold => socket_filter::drop_all(listener),
        Phase::Gone => Ok(()),
    }
}

/// Takes in what the kernel has already answered for: it would be reset with the socket. The kernel is asked itself, because
/// the runtime may not have heard of the newest yet. It answers for nothing more from here on.
fn take_the_rest(listener: TcpListener, mut welcome: impl FnMut(TcpStream, SocketAddr)) {
    let Ok(listener) = listener.into_std() else { return };
    if let Err(error) = sys::tcp::ignore(&listener) {
        tracing::debug!(%error, "a connection may come between the last one and the end");
    }
    take_what_waits(&listener, &mut welcome);
}

/// Takes in the connections that the kernel has ready, however the runtime sees it.
fn take_what_waits(listener: &impl AsFd, mut welcome: impl FnMut(TcpStream, SocketAddr)) {
    while let Ok((stream, source)) = SockRef::from(listener).accept() {
        let stream = std::net::TcpStream::from(stream);
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let (Ok(stream), Some(source)) = (stream, source.as_socket()) {
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
    pub(super) departures: &'a Departures,
    /// Whether its connections can move to another host.
    pub(super) can_move: bool,
}

impl Door<'_> {
    /// Counts a connection in, beside the `open` ones; `None` if it is turned away, which is counted and said.
    pub(super) fn admit(&self, newcomer: &Newcomer, open: usize) -> Option<Counted> {
        let Newcomer { stream, source, begun } = newcomer;
        if begun.is_some() {
            // The other node let it in, by the same rules.
            return Some(self.count(stream));
        }
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
        Some(self.count(stream))
    }

    fn count(&self, stream: &TcpStream) -> Counted {
        self.metrics.connections_total.inc();
        self.metrics.connections.inc();
        let local = stream.local_addr().ok();
        let passenger = local.and_then(|local| self.departures.connection(local, self.can_move));
        Counted { metrics: self.metrics.clone(), passenger }
    }
}

/// Counts a connection for as long as it lives.
pub(super) struct Counted {
    metrics: Arc<InputMetrics>,
    /// Its part when the address leaves this node, if it was made to such an address.
    pub(super) passenger: Option<Passenger>,
}

impl Counted {
    /// How long the connection may stay.
    pub(super) fn stay<S>(&self, control: watch::Receiver<Control<S>>) -> Stay<S> {
        Stay::new(control, self.passenger.as_ref())
    }

    /// Notes that it was ended although its sender had not.
    pub(super) fn cut(&self) {
        self.metrics.connections_cut.inc();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.connections.dec();
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
    metrics: &InputMetrics,
    stay: &mut Stay<S>,
    grace: Duration,
) -> Option<(Stream, Transport)> {
    let Some(server) = server else { return Some((Stream::Plain(stream), Transport::Tcp)) };
    // Boxed: a handshake is larger than the connection that it becomes.
    let stream = Box::pin(shake_hands(server, stream, source, metrics, stay, grace)).await?;
    Some((stream, Transport::Tls))
}

/// The stream inside TLS. A failure is counted and is the sender's business, or that of whoever gave us our files.
pub(super) async fn shake_hands<S>(
    server: tls::Server,
    stream: TcpStream,
    source: SocketAddr,
    metrics: &InputMetrics,
    stay: &mut Stay<S>,
    grace: Duration,
) -> Option<Stream> {
    let leaving = async {
        stay.is_over().await;
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
