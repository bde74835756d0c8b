//! The UDP heartbeat: one byte each second from every fluentd that asks for it, one byte back.
//!
//! fluentd knows a server by the address that it sent to, and takes an answer from another for a stranger's. So the
//! answer leaves from the very address that was asked, whatever the routes would choose. An answer is never longer than
//! the question, and never goes where only another server listens: two of them would go on for ever.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use tokio::io::Interest;
use tokio::sync::watch;

use super::Settings;
use crate::input::{Control, allowed, poisoned, quiescing};
use crate::journal::State;
use crate::sys::udp::{answer, receive_one};

/// What is sent and answered.
const BEAT: [u8; 1] = [0];
/// Below this port only servers send: echo (7) and its like would answer our answer.
const CLIENT_PORT_MIN: u16 = 1024;

/// Answers heartbeats on one socket.
pub struct Heartbeat {
    socket: tokio::net::UdpSocket,
    own_port: u16,
    control: watch::Receiver<Control<Settings>>,
}

impl Heartbeat {
    /// Takes over a socket of [`bind_answering`](crate::sys::udp::bind_answering). Must be called on the runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(socket: UdpSocket, control: watch::Receiver<Control<Settings>>) -> io::Result<Heartbeat> {
        let own_port = socket.local_addr()?.port();
        Ok(Heartbeat { socket: tokio::net::UdpSocket::from_std(socket)?, own_port, control })
    }

    /// Answers until the stage says otherwise, or until the journal takes nothing any more: clients that hear nothing go
    /// elsewhere.
    pub async fn run(self, mut journal_state: watch::Receiver<State>) {
        let mut control = self.control.clone();
        loop {
            tokio::select! {
                ready = self.socket.readable() => {
                    if let Err(error) = ready {
                        tracing::error!(%error, "cannot wait for heartbeats");
                        break;
                    }
                    self.answer_one();
                }
                () = quiescing(&mut control) => break,
                () = poisoned(&mut journal_state) => break,
            }
        }
    }

    fn answer_one(&self) {
        let received = self.socket.try_io(Interest::READABLE, || receive_one(&self.socket, &mut [0; 16]));
        let (length, (source, asked)) = match received {
            Ok((length, Some(known))) => (length, known),
            Ok((_, None)) => return,
            Err(error) => {
                // An ICMP error of an earlier answer or the like: the next call goes on.
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(%error, "receive a heartbeat");
                }
                return;
            }
        };
        let control = self.control.borrow().clone();
        if !allowed(&control.settings.config.allow, source.ip().to_canonical()) {
            control.metrics.rejected.inc("denied");
        } else if length != BEAT.len() || !self.is_client(source) {
            control.metrics.rejected.inc("not_a_heartbeat");
        } else if let Err(error) = self.socket.try_io(Interest::WRITABLE, || answer(&self.socket, &BEAT, source, asked))
        {
            // It comes again in a second.
            tracing::debug!(%source, %error, "answer a heartbeat");
        }
    }

    fn is_client(&self, source: SocketAddr) -> bool {
        source.port() >= CLIENT_PORT_MIN && source.port() != self.own_port
    }
}
