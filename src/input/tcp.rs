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
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use tokio::sync::{SemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::accept::{Arrival, Begun, Counted, Door, Newcomer, Surroundings, accept, follow, shake_hands};
use super::departure::{Due, Held, Passenger, Phase, State, Stay};
use super::pace::Pace;
use super::{Context, Control, now};
use crate::config::SyslogInput;
use crate::journal::Appender;
use crate::journal::memory::Memory;
use crate::metrics::{InputMetrics, Received};
use crate::proto::batch::{BATCH_BYTES, BatchBuilder};
use crate::proto::drain::LINGER;
use crate::proto::envelope::{Origin, Transport};
use crate::proto::pair::moving::Moving;
use crate::proto::syslog::framing::{Ending, Framer, FramingError, Step};
use crate::sys;
use crate::sys::tcp_repair::{self, DumpError};
use crate::tls::{self, Stream};

/// Bytes taken from a connection before another has its turn.
const READ_BYTES: usize = 256 * 1024;
/// A segment may be past a socket's filter on another processor when that is set: 0.3 ms, measured; timers have
/// milliseconds.
const PAST_THE_FILTER: Duration = Duration::from_millis(1);

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
    arrivals: Option<mpsc::Receiver<Arrival>>,
) -> io::Result<impl Future<Output = ()>> {
    let surroundings = Surroundings { arrivals, ..context.surroundings() };
    let mut reception = Reception { is_tls, tls: None, control: control.clone(), context };
    accept(listener, control, surroundings, move |connections, newcomer| reception.welcome(connections, newcomer))
}

struct Reception {
    is_tls: bool,
    /// Made from the input's newest `tls`; its files are followed, so it stays as long as those are the same.
    tls: Option<tls::Server>,
    control: watch::Receiver<Control<SyslogInput>>,
    context: Context,
}

impl Reception {
    fn welcome(&mut self, connections: &mut JoinSet<()>, newcomer: Newcomer) {
        let Control { settings, metrics, .. } = self.control.borrow().clone();
        let SyslogInput { name, allow, max_connections, .. } = &*settings;
        let (departures, can_move) = (&self.context.departures, !self.is_tls);
        let door =
            Door { input: name, allow, max_connections: *max_connections, metrics: &metrics, departures, can_move };
        let Some(counted) = door.admit(&newcomer, connections.len()) else { return };
        let Newcomer { stream, source, begun } = newcomer;
        if let Err(error) = sys::tcp::keep_alive(&stream) {
            tracing::debug!(%source, %error, "keepalive");
        }
        let Context { appender, grace, .. } = self.context.clone();
        let memory = appender.memory().clone();
        let mut stay = counted.stay(self.control.clone());
        let server = follow(&mut self.tls, settings.tls.as_ref());
        let max_message = settings.max_message;
        let (framer, rest) = match begun {
            Some(Begun { rest, standing }) => (Framer::resume(max_message, standing), rest),
            None => (Framer::new(max_message), Vec::new()),
        };
        let of_the_handshake = metrics.clone();
        let pace = Pace::new(appender.commit_interval(), self.is_tls);
        let connection =
            move |stream| Connection { stream, source, framer, rest, settings, metrics, memory, counted, pace };
        if !self.is_tls {
            connections.spawn(connection(Stream::Plain(stream)).run(appender, stay, grace));
        } else if let Some(server) = server {
            connections.spawn(async move {
                // Boxed: a handshake is larger than the connection that it becomes.
                let shaken = shake_hands(server, stream, source, &of_the_handshake, &mut stay, grace);
                if let Some(stream) = Box::pin(shaken).await {
                    connection(stream).run(appender, stay, grace).await;
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
    counted: Counted,
    pace: Pace,
}

/// What one read gave.
enum Taken {
    /// Frames, maybe none.
    Some(BatchBuilder),
    /// Frames, and then the end: of the stream, or because the framing is lost.
    Last(BatchBuilder),
}

/// How a connection goes on that stood still.
enum Next {
    /// As before.
    On,
    /// It finishes and ends.
    End,
    /// It is over: the other node has it, or the client had closed.
    Over,
}

impl Connection {
    async fn run(mut self, appender: Appender, mut stay: Stay<SyslogInput>, grace: Duration) {
        let mut closing: Option<Instant> = None;
        loop {
            // Nobody is idle whom we let wait for a hand.
            let idle_timeout = self.settings.idle_timeout.filter(|_| closing.is_none());
            let (taken, _hand) = tokio::select! {
                (taken, hand) = self.read(&appender, idle_timeout) => (taken, Some(hand)),
                () = sleep_until(closing.unwrap_or_else(Instant::now)), if closing.is_some() => {
                    self.counted.cut();
                    (self.give_up(), None)
                }
                due = stay.due(), if closing.is_none() => {
                    let next = if due == Due::Hold { self.hold(&appender).await } else { Next::End };
                    match next {
                        Next::On => {}
                        Next::Over => break,
                        Next::End => {
                            // Our FIN asks the sender to go elsewhere; what it still sends is read until its own.
                            let _ = self.stream.half_close().await;
                            closing = Some(Instant::now() + grace);
                        }
                    }
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

    /// Stands still and is handed in, until it is known what becomes of it. The client notices a pause.
    async fn hold(&mut self, appender: &Appender) -> Next {
        match self.stand_still(appender).await {
            Ok(Some((number, passenger))) => {
                let outcome = passenger.outcome(number).await;
                if outcome == Phase::Gone {
                    // What neighbours still send here is swallowed in silence.
                    sleep(LINGER).await;
                    return Next::Over;
                }
                let is_on = outcome == Phase::Stay;
                self.take_back(if is_on { State::Stays } else { State::Ends });
                if is_on { Next::On } else { Next::End }
            }
            Ok(None) => Next::Over,
            Err(error) => {
                tracing::debug!(source = %self.source, %error, "the connection cannot move");
                self.take_back(State::Ends);
                Next::End
            }
        }
    }

    fn take_back(&mut self, state: State) {
        if let Err(error) = tcp_repair::take_back(self.stream.tcp()) {
            tracing::warn!(source = %self.source, %error, "a connection that stood still cannot go on");
        }
        if let Some(passenger) = &mut self.counted.passenger {
            passenger.set(state);
        }
    }

    /// Hears nothing more, takes in what is there, and hands in what another host needs to go on; `None` if the client has
    /// closed.
    async fn stand_still(&mut self, appender: &Appender) -> Result<Option<(u32, &Passenger)>, DumpError> {
        tcp_repair::freeze(self.stream.tcp())?;
        sleep(PAST_THE_FILTER).await;
        let image = loop {
            let (batch, is_last) = match self.take_now() {
                None => (self.builder(0), false),
                Some(Taken::Some(batch)) => (batch, false),
                Some(Taken::Last(batch)) => (batch, true),
            };
            let is_refused = !batch.is_empty() && appender.append(batch).await.is_err();
            if is_last || is_refused {
                // It ends as any other does.
                tcp_repair::take_back(self.stream.tcp())?;
                return Ok(None);
            }
            match tcp_repair::dump(self.stream.tcp()) {
                Err(DumpError::Unread(_)) => {}
                dumped => break dumped?,
            }
        };
        let socket = self.stream.tcp().as_fd().try_clone_to_owned()?;
        // Without one nobody would have asked.
        let passenger = self.counted.passenger.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let number = passenger.number();
        let moving = Moving::new(number, &image, self.rest.clone(), self.framer.standing());
        let held = moving.map(|moving| Held { number, moving, image, socket });
        match held.is_some_and(|held| passenger.hand_in(held)) {
            true => Ok(Some((number, passenger))),
            false => Err(io::Error::other("it is more than can be sent").into()),
        }
    }

    /// Takes the frames out of what the kernel has, without waiting; none if it has nothing.
    fn take_now(&mut self) -> Option<Taken> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.prepare(scratch);
            match sys::tcp::read_now(self.stream.tcp(), &mut scratch[kept..kept + READ_BYTES]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                read => Some(self.take(scratch, kept, read)),
            }
        })
    }

    /// Reads once, when there is something to read and a hand for it, and takes the frames out; or gives the sender up, if
    /// it is silent for so long. Cancelling loses nothing.
    async fn read<'a>(&mut self, appender: &'a Appender, idle: Option<Duration>) -> (Taken, SemaphorePermit<'a>) {
        let mut is_silent = false;
        loop {
            self.pace.rest(self.stream.tcp()).await;
            let hand = appender.hand().await;
            let look = poll_fn(|context| match self.poll_take(context) {
                Poll::Ready(taken) => Poll::Ready(Some(taken)),
                Poll::Pending => Poll::Ready(None),
            });
            let taken = match look.await {
                None if self.pace.is_slow() => self.take_now(),
                taken => taken,
            };
            match taken {
                Some(taken) => return (taken, hand),
                None if is_silent => {
                    self.metrics.rejected.inc("idle_timeout");
                    return (self.give_up(), hand);
                }
                None => drop(hand),
            }
            self.pace.hurry(self.stream.tcp());
            // Whatever is wrong with the socket, reading says.
            let readable = self.stream.tcp().readable();
            match idle {
                Some(idle) => is_silent = timeout(idle, readable).await.is_err(),
                None => drop(readable.await),
            }
            self.pace.slow_down(self.stream.tcp());
        }
    }

    /// A line whose end never came is taken all the same: our kernel has acknowledged it.
    fn give_up(&mut self) -> Taken {
        let rest = std::mem::take(&mut self.rest);
        Taken::Last(self.finish(&rest))
    }

    /// Reads once, if there is something to read, and takes the frames out.
    fn poll_take(&mut self, context: &mut task::Context<'_>) -> Poll<Taken> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.prepare(scratch);
            let read = ready!(self.stream.poll_fill(context, &mut scratch[kept..kept + READ_BYTES]));
            Poll::Ready(self.take(scratch, kept, read))
        })
    }

    /// Puts what was kept in front of what will be read; its length.
    fn prepare(&self, scratch: &mut Vec<u8>) -> usize {
        let kept = self.rest.len();
        if scratch.len() < kept + READ_BYTES {
            scratch.resize(kept + READ_BYTES, 0);
        }
        scratch[..kept].copy_from_slice(&self.rest);
        kept
    }

    /// Takes the frames out of what was kept and what was read behind it.
    fn take(&mut self, scratch: &[u8], kept: usize, read: io::Result<usize>) -> Taken {
        let read = match read {
            Ok(read) => read,
            // Inside TLS: FIN without `close_notify`, as devices do it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => {
                tracing::debug!(source = %self.source, %error, "connection broke");
                self.metrics.rejected.inc("connection_error");
                0
            }
        };
        self.pace.has_read(self.stream.tcp(), read);
        let filled = &scratch[..kept + read];
        if read == 0 { Taken::Last(self.finish(filled)) } else { self.frame(filled) }
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
