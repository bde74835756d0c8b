//! Syslog over TCP (RFC 6587): accept, read, frame, append.
//!
//! A connection owns no buffer while it is silent: what was read and makes no whole frame yet is kept in a vector of
//! its own size, and reading itself goes into memory that the worker's thread shares among its connections. That is
//! what keeps ten thousand idle connections small. A connection waits for the journal before it reads on, so a full
//! journal stops its sender through the kernel's window and never grows memory.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Context, Control, allowed, now, poisoned, quiescing};
use crate::config::SyslogInput;
use crate::journal::Appender;
use crate::metrics::InputMetrics;
use crate::proto::batch::{BATCH_BYTES, BatchBuilder};
use crate::proto::envelope::{Origin, Transport};
use crate::proto::syslog::framing::{Ending, Framer, FramingError, Step};
use crate::sys;

/// Bytes taken from a connection before another has its turn.
const READ_BYTES: usize = 256 * 1024;
/// Pause after `accept` failed for want of file descriptors or memory, so that the loop does not spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// Where this worker's connections read into, one at a time and never across an await.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A listening socket and the connections it made.
pub struct Acceptor {
    listener: tokio::net::TcpListener,
    control: watch::Receiver<Control<SyslogInput>>,
    context: Context,
    connections: JoinSet<()>,
}

impl Acceptor {
    /// Takes over a listening, non-blocking socket. Must be called on the runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(
        listener: TcpListener,
        control: watch::Receiver<Control<SyslogInput>>,
        context: Context,
    ) -> io::Result<Acceptor> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        Ok(Acceptor { listener, control, context, connections: JoinSet::new() })
    }

    /// Accepts until the stage says otherwise, then waits for its connections to end; or until the journal is poisoned,
    /// then closes them.
    pub async fn run(mut self) {
        let mut control = self.control.clone();
        let mut journal_state = self.context.journal_state.clone();
        let is_poisoned = loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, source)) => self.welcome(stream, source),
                    Err(error) => {
                        self.control.borrow().metrics.rejected.inc("accept_error");
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.connections.join_next() => log_panic(ended),
                () = quiescing(&mut control) => break false,
                () = poisoned(&mut journal_state) => break true,
            }
        };
        if is_poisoned {
            // A sender that says nothing now would learn of it only by losing its next message.
            self.connections.abort_all();
        } else {
            // What the kernel has already answered for would be reset with the socket: take it in first.
            while let Ok(Ok((stream, source))) = timeout(Duration::ZERO, self.listener.accept()).await {
                self.welcome(stream, source);
            }
        }
        drop(self.listener);
        while let Some(ended) = self.connections.join_next().await {
            log_panic(ended);
        }
    }

    fn welcome(&mut self, stream: TcpStream, source: SocketAddr) {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        if !allowed(&settings.allow, source.ip().to_canonical()) {
            metrics.rejected.inc("denied");
            tracing::debug!(input = settings.name, %source, "connection denied by `allow`");
            return;
        }
        if settings.max_connections.is_some_and(|max| self.connections.len() >= max as usize) {
            metrics.rejected.inc("max_connections");
            tracing::warn!(input = settings.name, %source, "connection refused: max_connections reached");
            return;
        }
        if let Err(error) = sys::tcp::keep_alive(&stream) {
            tracing::debug!(%source, %error, "keepalive");
        }
        metrics.connections_total.inc();
        let framer = Framer::new(settings.max_message);
        let connection = Connection { stream, source, framer, rest: Vec::new(), settings, metrics };
        let Context { appender, grace, .. } = self.context.clone();
        self.connections.spawn(connection.run(appender, self.control.clone(), grace));
    }
}

pub(super) fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task failed");
    }
}

/// Counts a connection for as long as it lives.
pub(super) struct Counted(Arc<InputMetrics>);

impl Counted {
    pub(super) fn new(metrics: &Arc<InputMetrics>) -> Counted {
        metrics.connections.inc();
        Counted(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

struct Connection {
    stream: TcpStream,
    source: SocketAddr,
    framer: Framer,
    /// What was read and makes no whole frame yet.
    rest: Vec<u8>,
    settings: Arc<SyslogInput>,
    metrics: Arc<InputMetrics>,
}

/// What one read gave.
enum Taken {
    /// Frames, maybe none.
    Some(BatchBuilder),
    /// Frames, and then the end: of the stream, or because the framing is lost.
    Last(BatchBuilder),
    /// Nothing was there after all.
    Nothing,
}

impl Connection {
    async fn run(mut self, appender: Appender, mut control: watch::Receiver<Control<SyslogInput>>, grace: Duration) {
        let _counted = Counted::new(&self.metrics);
        let mut closing = None;
        loop {
            let idle = self.settings.idle_timeout.map(|idle| Instant::now() + idle);
            let until = closing.or(idle);
            tokio::select! {
                ready = self.stream.readable() => if ready.is_err() { break },
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
                    // Our FIN asks the sender to go elsewhere; what it still sends is read until its own FIN.
                    let _ = self.stream.shutdown().await;
                    closing = Some(Instant::now() + grace);
                    continue;
                }
            }
            let (batch, last) = match self.take() {
                Taken::Nothing => continue,
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

    /// Reads once and takes the frames out.
    fn take(&mut self) -> Taken {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.rest.len();
            if scratch.len() < kept + READ_BYTES {
                scratch.resize(kept + READ_BYTES, 0);
            }
            scratch[..kept].copy_from_slice(&self.rest);
            let read = match self.stream.try_read(&mut scratch[kept..kept + READ_BYTES]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Taken::Nothing,
                Err(error) => {
                    tracing::debug!(source = %self.source, %error, "connection broke");
                    self.metrics.rejected.inc("connection_error");
                    0
                }
            };
            let filled = &scratch[..kept + read];
            if read == 0 { Taken::Last(self.finish(filled)) } else { self.frame(filled) }
        })
    }

    fn builder(&self, capacity: usize) -> BatchBuilder {
        let mut builder = BatchBuilder::with_capacity(capacity);
        builder.set_origin(&Origin {
            received_at: now(),
            source: Some(self.source),
            transport: Transport::Tcp,
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
            self.metrics.tcp.messages.inc_by(builder.messages().into());
            self.metrics.tcp.bytes.inc_by(payload_bytes as u64);
            self.metrics.saw_message(now());
        }
    }
}
