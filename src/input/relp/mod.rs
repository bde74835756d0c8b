//! RELP over TCP, also inside TLS: syslog whose every message is answered, once the journal has it.
//!
//! ```text
//!              frames: read, scan, session ──batch──▶ journal ──durable──▶ answers: `N rsp 6 200 OK`, in order
//! connection ──┤
//!              └ handshake, on tls://
//! ```
//!
//! An answer is a promise, and a message is either promised or its connection is closed: librelp waits for 90 s, others for
//! ever. A client keeps what was not answered and sends it again, so a connection that leaves says `serverclose` as soon as
//! it has answered what it took in, and takes in nothing more. Memory is bounded twice: by the messages that wait for an
//! answer, and by the journal's queue, before which a connection waits without reading.

mod connection;
mod frames;

use std::io;
use std::net::TcpListener;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::accept::{Door, Newcomer, accept, follow, inside, make_answering};
use super::{Context, Control};
use crate::config::RelpInput;
use crate::tls;
use connection::Parts;

/// The task of a listening, non-blocking socket, whose connections begin with a TLS handshake if `is_tls`. Must be called
/// on the runtime.
///
/// # Errors
/// What the system says.
pub fn serve(
    listener: TcpListener,
    is_tls: bool,
    control: watch::Receiver<Control<RelpInput>>,
    context: Context,
) -> io::Result<impl Future<Output = ()>> {
    let surroundings = context.surroundings();
    let mut reception = Reception { is_tls, tls: None, control: control.clone(), context };
    accept(listener, control, surroundings, move |connections, newcomer| reception.welcome(connections, newcomer))
}

struct Reception {
    is_tls: bool,
    /// Made from the input's newest `tls`.
    tls: Option<tls::Server>,
    control: watch::Receiver<Control<RelpInput>>,
    context: Context,
}

impl Reception {
    fn welcome(&mut self, connections: &mut JoinSet<()>, newcomer: Newcomer) {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        let RelpInput { name, allow, max_connections, .. } = &*settings;
        let (departures, can_move) = (&self.context.departures, false);
        let door =
            Door { input: name, allow, max_connections: *max_connections, metrics: &metrics, departures, can_move };
        let Some(counted) = door.admit(&newcomer, connections.len()) else { return };
        let Newcomer { stream, source, .. } = newcomer;
        make_answering(&stream, source);
        let server = follow(&mut self.tls, settings.tls.as_ref()).filter(|_| self.is_tls);
        if self.is_tls && server.is_none() {
            return;
        }
        let Context { appender, grace, .. } = self.context.clone();
        let mut stay = counted.stay(self.control.clone());
        connections.spawn(async move {
            let inside = inside(server, stream, source, &metrics, &mut stay, grace).await;
            let Some((stream, transport)) = inside else { return };
            connection::run(Parts { stream, source, transport, settings, metrics, appender, counted }, stay, grace)
                .await;
        });
    }
}
