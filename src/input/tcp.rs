//! Syslog over TCP (RFC 6587), also inside TLS (RFC 5425): accept, shake hands, read, frame, append.
//!
//! A connection owns no buffer while it is silent: what was read and makes no whole frame yet is kept in a vector of
//! its own size, and reading itself goes into memory that the worker's thread shares among its connections. That is
//! what keeps ten thousand idle connections small. A connection waits for the journal before it reads on, so a full
//! journal stops its sender through the kernel's window and never grows memory.
//!
//! Inside TLS octet counting is what RFC 5425 asks for and lines are what many devices send; both are taken, as on TCP.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::accept::{Counted, Door, accept, follow, shake_hands};
use super::{Context, Control, now, quiescing};
use crate::config::SyslogInput;
use crate::journal::Appender;
use crate::journal::memory::Memory;
use crate::metrics::{InputMetrics, Received};
use crate::proto::batch::{BATCH_BYTES, BatchBuilder};
use crate::proto::envelope::{Origin, Transport};
use crate::proto::syslog::framing::{Ending, Framer, FramingError, Step};
use crate::sys;
use crate::tls::{self, Stream};

/// Bytes taken from a connection before another has its turn.
const READ_BYTES: usize = 256 * 1024;

thread_local! {
    /// Where this worker's connections read into, one at a time and never across an await.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The task of a listening, non-blocking socket, whose connections begin with a TLS handshake if `is_tls`. Must be called
/// on the runtime.
///
/// # Errors
/// What the system says.
pub fn serve(
    listener: TcpListener,
    is_tls: bool,
    control: watch::Receiver<Control<SyslogInput>>,
    context: Context,
) -> io::Result<impl Future<Output = ()>> {
    let journal_state = context.journal_state.clone();
    let mut reception = Reception { is_tls, tls: None, control: control.clone(), context };
    accept(listener, control, journal_state, move |connections, stream, source| {
        reception.welcome(connections, stream, source);
    })
}

struct Reception {
    is_tls: bool,
    /// Made from the input's newest `tls`; its files are followed, so it stays as long as those are the same.
    tls: Option<tls::Server>,
    control: watch::Receiver<Control<SyslogInput>>,
    context: Context,
}

impl Reception {
    fn welcome(&mut self, connections: &mut JoinSet<()>, stream: TcpStream, source: SocketAddr) {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        let SyslogInput { name, allow, max_connections, .. } = &*settings;
        let door = Door { input: name, allow, max_connections: *max_connections, metrics: &metrics };
        let Some(counted) = door.admit(source, connections.len()) else { return };
        if let Err(error) = sys::tcp::keep_alive(&stream) {
            tracing::debug!(%source, %error, "keepalive");
        }
        let Context { appender, grace, .. } = self.context.clone();
        let (control, memory) = (self.control.clone(), appender.memory().clone());
        let server = follow(&mut self.tls, settings.tls.as_ref());
        let connection = move |stream| {
            let framer = Framer::new(settings.max_message);
            Connection { stream, source, framer, rest: Vec::new(), settings, metrics, memory, _counted: counted }
        };
        if !self.is_tls {
            connections.spawn(connection(Stream::Plain(stream)).run(appender, control, grace));
        } else if let Some(server) = server {
            connections.spawn(async move {
                // Boxed: a handshake is larger than the connection that it becomes.
                let shaken = Box::pin(shake_hands(server, stream, source, control.clone(), grace)).await;
                if let Some(stream) = shaken {
                    connection(stream).run(appender, control, grace).await;
                }
            });
        }
    }
}

struct Connection {
    stream: Stream,
    source: SocketAddr,
    framer: Framer,
    /// What was read and makes no whole frame yet.
    rest: Vec<u8>,
    settings: Arc<SyslogInput>,
    metrics: Arc<InputMetrics>,
    memory: Arc<Memory>,
    _counted: Counted,
}

/// What one read gave.
enum Taken {
    /// Frames, maybe none.
    Some(BatchBuilder),
    /// Frames, and then the end: of the stream, or because the framing is lost.
    Last(BatchBuilder),
}

impl Connection {
    async fn run(mut self, appender: Appender, mut control: watch::Receiver<Control<SyslogInput>>, grace: Duration) {
        let mut closing = None;
        loop {
            let idle = self.settings.idle_timeout.map(|idle| Instant::now() + idle);
            let until = closing.or(idle);
            let taken = tokio::select! {
                taken = poll_fn(|context| self.poll_take(context)) => taken,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    if closing.is_none() {
                        self.metrics.rejected.inc("idle_timeout");
                    }
                    // A line whose end never came was taken all the same: our kernel has acknowledged it.
                    let rest = std::mem::take(&mut self.rest);
                    let batch = self.finish(&rest);
                    if !batch.is_empty() {
                        // Refused: there is nothing to close any more that could tell the sender.
                        let _ = appender.append(batch).await;
                    }
                    break;
                }
                () = quiescing(&mut control), if closing.is_none() => {
                    // Our FIN, after `close_notify` inside TLS, asks the sender to go elsewhere; what it still sends is
                    // read until its own FIN.
                    let _ = self.stream.shutdown().await;
                    closing = Some(Instant::now() + grace);
                    continue;
                }
            };
            let (batch, last) = match taken {
                Taken::Some(batch) => (batch, false),
                Taken::Last(batch) => (batch, true),
            };
            if !batch.is_empty() && appender.append(batch).await.is_err() {
                // Not ours to promise any more: unread bytes make this a reset, so that the sender notices.
                break;
            }
            if last {
                break;
            }
        }
    }

    /// Reads once, when there is something to read, and takes the frames out.
    fn poll_take(&mut self, context: &mut task::Context<'_>) -> Poll<Taken> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.rest.len();
            if scratch.len() < kept + READ_BYTES {
                scratch.resize(kept + READ_BYTES, 0);
            }
            let read = match ready!(self.stream.poll_fill(context, &mut scratch[kept..kept + READ_BYTES])) {
                Ok(read) => read,
                // Inside TLS: FIN without `close_notify`, as devices do it.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => {
                    tracing::debug!(source = %self.source, %error, "connection broke");
                    self.metrics.rejected.inc("connection_error");
                    0
                }
            };
            scratch[..kept].copy_from_slice(&self.rest);
            let filled = &scratch[..kept + read];
            Poll::Ready(if read == 0 { Taken::Last(self.finish(filled)) } else { self.frame(filled) })
        })
    }

    fn builder(&self, capacity: usize) -> BatchBuilder {
        let mut builder = BatchBuilder::in_memory(self.memory.take(capacity));
        builder.set_origin(&Origin {
            received_at: now(),
            source: Some(self.source),
            transport: if self.is_tls() { Transport::Tls } else { Transport::Tcp },
            input: &self.settings.name,
            tag: self.settings.tag.as_bytes(),
        });
        builder
    }

    fn frame(&mut self, filled: &[u8]) -> Taken {
        // Room for the headers of frames of 64 bytes and more; shorter ones cost a reallocation.
        let mut builder = self.builder(filled.len() + filled.len() / 8 + 128);
        let mut at = 0;
        let mut payload_bytes = 0;
        let broken = loop {
            match self.framer.next(&filled[at..]) {
                Step::Frame { payload, flags, consumed } => {
                    if flags != crate::proto::envelope::Flags::NONE {
                        self.metrics.rejected.inc(FramingError::Oversize.as_str());
                    }
                    payload_bytes += payload.len();
                    builder.push(flags, payload);
                    at += consumed;
                }
                Step::Skip { consumed, error } => {
                    self.metrics.rejected.inc(error.as_str());
                    at += consumed;
                }
                Step::NeedMore { consumed } => {
                    at += consumed;
                    break false;
                }
                Step::Close(error) => {
                    self.metrics.rejected.inc(error.as_str());
                    tracing::debug!(source = %self.source, reason = error.as_str(), "connection closed");
                    break true;
                }
            }
        };
        self.count(&builder, payload_bytes);
        if broken {
            return Taken::Last(builder);
        }
        self.keep(&filled[at..]);
        Taken::Some(builder)
    }

    /// Keeps what makes no frame yet, in as much memory as it needs.
    fn keep(&mut self, rest: &[u8]) {
        self.rest.clear();
        if rest.is_empty() {
            self.rest = Vec::new();
        } else {
            self.rest.extend_from_slice(rest);
        }
    }

    fn finish(&mut self, rest: &[u8]) -> BatchBuilder {
        let mut builder = self.builder(rest.len().min(BATCH_BYTES));
        match self.framer.finish(rest) {
            Some(Ending::Frame { payload, flags }) => {
                builder.push(flags, payload);
                self.count(&builder, payload.len());
            }
            Some(Ending::Incomplete(begin)) => {
                self.metrics.rejected.inc(FramingError::Incomplete.as_str());
                tracing::debug!(source = %self.source, bytes = begin.len(), "the stream ended inside a counted frame");
            }
            None => {}
        }
        builder
    }

    fn count(&self, builder: &BatchBuilder, payload_bytes: usize) {
        if !builder.is_empty() {
            let Received { messages, bytes } = if self.is_tls() { &self.metrics.tls } else { &self.metrics.tcp };
            messages.inc_by(builder.messages().into());
            bytes.inc_by(payload_bytes as u64);
            self.metrics.saw_message(now());
        }
    }

    fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }
}
