//! Finding the other node: listening and dialling, and which connection stands.
//!
//! Both nodes dial, so that one firewall rule that is missing does not part them. Two connections may come to be at once;
//! the node with the lower address speaks first on the one that it wants, and the other one hears on which. A new
//! connection always wins: whoever dials has none, so the old one is dead.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::conversation::{self, Ended};
use crate::tls::Stream;

/// Between two attempts to dial, of the node that decides which connection stands.
const REDIAL: Duration = Duration::from_millis(200);
/// The same of the other one, which mostly need not.
const REDIAL_OTHER: Duration = Duration::from_millis(1000);
/// How long a SYN is waited for: the other node is on the same LAN.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Connections that may shake hands at a time; more are closed. Only one is ever wanted, the rest is somebody else's.
const HANDSHAKES_MAX: usize = 16;

/// Which part of the link came to an end.
enum Part {
    /// A connection is ready to be talked on, or there is none; why.
    Accepted(io::Result<Stream>),
    /// The same of one that this node dialled.
    Dialled(io::Result<Stream>),
    /// A conversation.
    Ended(Ended),
}

/// Talks to the other node whenever there is one, for as long as it is polled.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let mut link = Link { shared, parts: JoinSet::new(), conversations: 0, handshakes: 0, dials: false, said: None };
    loop {
        if link.conversations == 0 && !link.dials {
            link.dials = true;
            link.parts.spawn(dial(link.shared.clone()));
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => link.accept(tcp, from),
                // No descriptor left: the ones in use end some time.
                Err(_) => sleep(REDIAL).await,
            },
            Some(part) = link.parts.join_next() => match part {
                Ok(part) => link.handle(part),
                // A fault of ours: it must not go unseen.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        }
    }
}

struct Link {
    shared: Arc<Shared>,
    parts: JoinSet<Part>,
    /// Conversations that are under way.
    conversations: usize,
    handshakes: usize,
    dials: bool,
    /// What was last logged about there being no connection.
    said: Option<String>,
}

impl Link {
    fn accept(&mut self, tcp: TcpStream, from: SocketAddr) {
        let shared = self.shared.clone();
        let is_peer = from.ip().to_canonical() == shared.settings.pair.peer_node().address;
        if !is_peer || self.handshakes >= HANDSHAKES_MAX {
            let reason = if is_peer { "max_connections" } else { "denied" };
            tracing::debug!(%from, reason, "a connection to the pair's port is refused");
            return shared.settings.metrics.rejected.inc(reason);
        }
        self.handshakes += 1;
        self.parts.spawn(async move { Part::Accepted(shared.settings.key.accept(tcp).await) });
    }

    fn handle(&mut self, part: Part) {
        match part {
            Part::Accepted(outcome) => {
                self.handshakes -= 1;
                if let Err(error) = &outcome {
                    let is_late = error.kind() == io::ErrorKind::TimedOut;
                    self.shared.settings.metrics.rejected.inc(if is_late { "handshake_timeout" } else { "tls" });
                }
                self.begin(outcome);
            }
            Part::Dialled(outcome) => {
                self.dials = false;
                self.begin(outcome);
            }
            Part::Ended(ended) => {
                self.conversations -= 1;
                if let Some(reason) = ended.rejection() {
                    self.shared.settings.metrics.rejected.inc(reason);
                }
                self.fail(ended.to_string());
            }
        }
    }

    fn begin(&mut self, outcome: io::Result<Stream>) {
        match outcome {
            Ok(stream) => {
                self.conversations += 1;
                let shared = self.shared.clone();
                self.parts.spawn(async move { Part::Ended(conversation::run(stream, shared).await) });
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    /// Says once why there is no connection.
    fn fail(&mut self, why: String) {
        let is_connected = self.shared.view.borrow().connected_since.is_some();
        if is_connected {
            self.said = None;
        } else if self.said.as_ref() != Some(&why) {
            tracing::warn!(peer = %self.shared.settings.pair.peer_node().name, "no pair link: {why}");
            self.shared.view.send_modify(|view| view.error = Some(why.clone()));
            self.said = Some(why);
        }
    }
}

/// Waits a little, then connects from this node's own address to the other's.
async fn dial(shared: Arc<Shared>) -> Part {
    // Not at the same moment as the other one, every time.
    let pause = if shared.settings.decides() { REDIAL } else { REDIAL_OTHER };
    sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
    let pair = &shared.settings.pair;
    let connect = async {
        let socket = if pair.own_node().address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(pair.own_node().address, 0))?;
        let tcp = timeout(CONNECT_MAX, socket.connect(SocketAddr::new(pair.peer_node().address, pair.port))).await;
        let tcp = tcp.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer")))?;
        shared.settings.key.connect(tcp).await
    };
    Part::Dialled(connect.await)
}
