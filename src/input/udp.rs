//! Syslog over UDP (RFC 5426): one datagram, one message, exactly as it came.
//!
//! Woken once for a readiness, the task takes what is there, up to a batch, and appends it. While the journal has no
//! room it does not read: the kernel's buffer fills, and what the kernel drops is read from the socket and counted, so
//! that no datagram disappears without a number.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Control, allowed, now, poisoned, quiescing};
use crate::config::SyslogInput;
use crate::journal::{Appender, State};
use crate::metrics::SocketState;
use crate::proto::batch::BatchBuilder;
use crate::proto::envelope::{Flags, Origin, Transport};
use crate::sys::udp::{Bell, Receiver, memory_info, receive_buffer};

/// How often the kernel's drop counter is read.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Rest after a wake-up that found few datagrams: the kernel collects the next ones meanwhile, and a wake-up costs as much
/// as several datagrams.
const COLLECT: Duration = Duration::from_millis(1);
/// Receive buffer that a millisecond of datagrams cannot fill, in bytes: at a million a second they take about 1 MiB.
const COLLECT_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// A wake-up that found so many is worth its cost.
const MANY_DATAGRAMS: u32 = 64;
/// Datagrams of one batch: what a sender waits for is bounded, whatever the flood.
const BATCH_DATAGRAMS: u32 = 1024;

/// One receiving socket and its task.
pub struct Socket {
    label: String,
    socket: UdpSocket,
    bell: AsyncFd<Bell>,
    receiver: Receiver,
    control: watch::Receiver<Control<SyslogInput>>,
    /// Whether the receive buffer is large enough to let datagrams collect in it.
    collects: bool,
    /// The 32-bit counter of the kernel and what it has added up to.
    kernel_drops: (u32, u64),
}

impl Socket {
    /// Takes over a bound, non-blocking socket. Must be called on the runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(label: String, socket: UdpSocket, control: watch::Receiver<Control<SyslogInput>>) -> io::Result<Socket> {
        let collects = receive_buffer(&socket)? >= COLLECT_BUFFER_BYTES;
        let bell = Bell::new(&socket)?.watched()?;
        // Of a socket that is older than this run the kernel counts on, and so do we: the last run told of most of them.
        let before = memory_info(&socket)?.drops;
        if before > 0 {
            tracing::warn!(socket = label, drops = before, "the kernel dropped datagrams, before this start");
        }
        let kernel_drops = (before, before.into());
        Ok(Socket { label, socket, bell, receiver: Receiver::new(), control, collects, kernel_drops })
    }

    /// Reads until the stage says otherwise, then what the kernel still holds, to the last datagram; or until the journal
    /// is poisoned: a datagram taken then would be lost and not counted.
    pub async fn run(mut self, appender: Appender, mut journal_state: watch::Receiver<State>) {
        let mut count = tokio::time::interval(COUNT_EVERY);
        let mut control = self.control.clone();
        loop {
            tokio::select! {
                ready = rung(&self.bell) => {
                    if let Err(error) = ready {
                        tracing::error!(socket = self.label, %error, "cannot wait for datagrams");
                        break;
                    }
                    let batch = self.receive();
                    let few = batch.messages() < MANY_DATAGRAMS;
                    if !batch.is_empty() && let Err(refused) = appender.append_datagrams(batch).await {
                        tracing::error!(socket = self.label, %refused, "datagrams are refused from now on");
                        break;
                    }
                    if few && self.collects {
                        sleep(COLLECT).await;
                    }
                    if let Err(error) = self.bell.get_ref().arm(&self.socket) {
                        tracing::error!(socket = self.label, %error, "cannot wait for datagrams");
                        break;
                    }
                }
                () = quiescing(&mut control) => {
                    let batch = self.receive();
                    if batch.is_empty() || appender.append_datagrams(batch).await.is_err() {
                        break;
                    }
                }
                () = poisoned(&mut journal_state) => break,
                _ = count.tick() => self.count_kernel_drops(),
            }
        }
        self.count_kernel_drops();
    }

    /// Takes what is there, up to one batch.
    fn receive(&mut self) -> BatchBuilder {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        let received_at = now();
        let mut builder = BatchBuilder::new();
        let mut bytes = 0;
        let (input, tag) = (settings.name.as_str(), settings.tag.as_bytes());
        // Neighbours are often from one sender: it is judged, and written down, once.
        let mut judged: Option<(SocketAddr, bool)> = None;
        let Socket { socket, receiver, .. } = self;
        while !builder.is_full() && builder.messages() < BATCH_DATAGRAMS {
            let taken = receiver.receive(socket.as_raw_fd(), |source, datagram| {
                let welcome = match judged {
                    Some((same, welcome)) if same == source => welcome,
                    _ => {
                        let source = Some(source);
                        let origin = Origin { received_at, source, transport: Transport::Udp, input, tag };
                        builder.set_origin(&origin);
                        origin.source.is_some_and(|source| allowed(&settings.allow, source.ip().to_canonical()))
                    }
                };
                judged = Some((source, welcome));
                if !welcome {
                    metrics.rejected.inc("denied");
                    return;
                }
                let (flags, payload) = match datagram.get(..settings.max_message) {
                    Some(cut) if cut.len() < datagram.len() => (Flags::TRUNCATED, cut),
                    _ => (Flags::NONE, datagram),
                };
                if flags == Flags::TRUNCATED {
                    metrics.rejected.inc("oversize");
                }
                builder.push(flags, payload);
                bytes += payload.len() as u64;
            });
            match taken {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // An ICMP error of an earlier reply or the like: the next call goes on.
                    tracing::debug!(socket = self.label, %error, "receive");
                    metrics.rejected.inc("receive_error");
                    break;
                }
            }
        }
        if !builder.is_empty() {
            metrics.udp.messages.inc_by(builder.messages().into());
            metrics.udp.bytes.inc_by(bytes);
            metrics.saw_message(received_at);
        }
        builder
    }

    fn count_kernel_drops(&mut self) {
        let Ok(info) = memory_info(&self.socket) else { return };
        let (last, total) = self.kernel_drops;
        let new = info.drops.wrapping_sub(last);
        self.kernel_drops = (info.drops, total + u64::from(new));
        if new > 0 {
            tracing::warn!(
                socket = self.label,
                drops = new,
                "the kernel dropped datagrams: the receive buffer was full"
            );
        }
        let state = SocketState {
            drops: self.kernel_drops.1,
            queue_bytes: info.queue_bytes.into(),
            queue_limit_bytes: info.queue_limit_bytes.into(),
        };
        self.control.borrow().metrics.set_socket(&self.label, state);
    }
}

/// Resolves when the bell rang. Cancelling loses nothing.
async fn rung(bell: &AsyncFd<Bell>) -> io::Result<()> {
    loop {
        let mut ready = bell.readable().await?;
        ready.clear_ready();
        if ready.get_inner().rang()? {
            return Ok(());
        }
    }
}
