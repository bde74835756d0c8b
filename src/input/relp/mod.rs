//! RELP over TCP, also inside TLS: syslog whose every message is answered, once the journal has it.
//!
//! ```text
//!              frames: read, scan, session ──batch──▶ journal ──durable──▶ answers: `N rsp 6 200 OK`, in order
//! connection ──┤
//!              └ handshake, on tls://
//! ```
//!
//! An answer is a promise, and a message is either promised or its connection is closed: librelp waits for 90 s, others
//! for ever. A client keeps what was not answered and sends it again, so a connection that leaves says `serverclose` as soon as
//! it has answered what it took in, and takes in nothing more. Memory is bounded twice: by the messages that wait for an
//! answer, and by the journal's queue, before which a connection waits without reading.

mod connection;
mod frames;

use std::io;
use std::net::{SocketAddr, TcpListener};

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::accept::{Door, accept, follow, shake_hands};
use super::{Context, Control};
use crate::config::RelpInput;
use crate::proto::envelope::Transport;
use crate::sys;
use crate::tls::{self, Stream};
use connection::Parts;

/// A listening socket and the connections it made.
pub struct Acceptor {
    listener: tokio::net::TcpListener,
    reception: Reception,
}

impl Acceptor {
    /// Takes over a listening, non-blocking socket, whose connections begin with a TLS handshake if `is_tls`. Must be
    /// called on the runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(
        listener: TcpListener,
        is_tls: bool,
        control: watch::Receiver<Control<RelpInput>>,
        context: Context,
    ) -> io::Result<Acceptor> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        Ok(Acceptor { listener, reception: Reception { is_tls, tls: None, control, context } })
    }

    /// Accepts until the stage says otherwise, then waits for its connections to end; or until the journal is poisoned,
    /// then closes them.
    pub async fn run(self) {
        let Acceptor { listener, mut reception } = self;
        let (control, journal_state) = (reception.control.clone(), reception.context.journal_state.clone());
        accept(listener, control, journal_state, |connections, stream, source| {
            reception.welcome(connections, stream, source);
        })
        .await;
    }
}

struct Reception {
    is_tls: bool,
    /// Made from the input's newest `tls`.
    tls: Option<tls::Server>,
    control: watch::Receiver<Control<RelpInput>>,
    context: Context,
}

impl Reception {
    fn welcome(&mut self, connections: &mut JoinSet<()>, stream: TcpStream, source: SocketAddr) {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        let RelpInput { name, allow, max_connections, .. } = &*settings;
        let door = Door { input: name, allow, max_connections: *max_connections, metrics: &metrics };
        let Some(counted) = door.admit(source, connections.len()) else { return };
        // An answer is small and wanted now.
        if let Err(error) = sys::tcp::keep_alive(&stream).and_then(|()| stream.set_nodelay(true)) {
            tracing::debug!(%source, %error, "keepalive");
        }
        let server = follow(&mut self.tls, settings.tls.as_ref()).filter(|_| self.is_tls);
        if self.is_tls && server.is_none() {
            return;
        }
        let Context { appender, grace, .. } = self.context.clone();
        let control = self.control.clone();
        connections.spawn(async move {
            let _counted = counted;
            let (stream, transport) = match server {
                None => (Stream::Plain(stream), Transport::Tcp),
                Some(server) => {
                    // Boxed: a handshake is larger than the connection that it becomes.
                    let shaken = Box::pin(shake_hands(server, stream, source, control.clone(), grace)).await;
                    let Some(stream) = shaken else { return };
                    (stream, Transport::Tls)
                }
            };
            connection::run(Parts { stream, source, transport, settings, metrics, appender }, control, grace).await;
        });
    }
}
