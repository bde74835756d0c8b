//! One connection to one server: chunks go out, acknowledgements come back.
//!
//! Both directions are served at once, so that neither side can wait for the other for ever. An acknowledgement is matched
//! by its id, never by its place. The session ends with an error, and then nothing more is known of what was not
//! acknowledged; or well, when its channel of chunks is closed and everything has arrived.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::endpoint::open;
use super::super::stream::{LOOK_AGAIN, SILENCE_MAX};
use super::login::log_in;
use crate::config::{ForwardOutput, SecretError, Target};
use crate::proto::forward::ack::{ACK_BYTES_MAX, read_ack};
use crate::proto::forward::chunks::Outgoing;
use crate::proto::forward::handshake::HandshakeError;
use crate::proto::forward::render::ChunkId;
use crate::proto::forward::scan::{Scanner, Step};
use crate::sys;
use crate::tls;

/// Parts of a frame that one call writes at most.
const SLICES_MAX: usize = 64;
/// How long the server may take to let us say goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Connect(io::Error),
    #[error(transparent)]
    Secret(SecretError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("no answer in the handshake: the server may want none, then remove shared_key_file")]
    SilentInHandshake,
    #[error("the server asks for a shared key: set shared_key_file")]
    HandshakeWanted,
    #[error("no acknowledgement within {0:?}")]
    AckTimeout(Duration),
    #[error("the server acknowledged a chunk that it was not sent")]
    UnknownAck,
    #[error("the server answered something that is no acknowledgement")]
    NoReply,
    #[error(transparent)]
    Lost(io::Error),
}

impl Failure {
    /// Whether one side does not want the other, which will be so again.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.reason(), "secret" | "handshake")
    }

    /// The reason as it is counted.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Failure::Connect(_) => "connect",
            Failure::Secret(_) => "secret",
            Failure::Handshake(_) | Failure::SilentInHandshake | Failure::HandshakeWanted => "handshake",
            Failure::AckTimeout(_) => "ack_timeout",
            Failure::UnknownAck | Failure::NoReply => "ack_invalid",
            Failure::Lost(_) => "connection_lost",
        }
    }
}

/// What a session tells while it lasts.
#[derive(Debug)]
pub(super) enum Report {
    /// The server may be sent so many chunks at a time.
    Up { window: usize },
    /// A chunk has arrived, so long after it was sent.
    Arrived(ChunkId, Duration),
}

/// A session to be.
pub(super) struct Session {
    /// Its number among the servers, in every report.
    pub(super) server: usize,
    /// Where it is.
    pub(super) target: Target,
    /// How it is talked to.
    pub(super) settings: Arc<ForwardOutput>,
    /// Who shakes hands, if it is inside TLS.
    pub(super) tls: tls::Client,
    /// What is to be sent.
    pub(super) chunks: mpsc::Receiver<Arc<Outgoing>>,
    /// To whom it tells.
    pub(super) reports: mpsc::Sender<(usize, Report)>,
}

impl Session {
    /// Connects and delivers.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let stream = open(&self.target, &self.tls).await.map_err(Failure::Connect)?.stream;
        let socket = stream.tcp().as_fd().try_clone_to_owned().map_err(Failure::Connect)?;
        self.deliver(stream, socket).await
    }

    async fn deliver<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        mut stream: S,
        socket: OwnedFd,
    ) -> Result<(), Failure> {
        let mut input = BytesMut::new();
        let mut window = self.settings.window;
        if let Some(login) = &self.settings.login
            && !log_in(&mut stream, &mut input, login).await?.keepalive
        {
            // It closes after a chunk: what else was on its way would have to go again.
            window = 1;
        }
        let proof = if self.settings.require_ack {
            Proof::Acknowledgement { timeout: self.settings.ack_timeout }
        } else {
            Proof::Delivery { socket, pause: LOOK_AGAIN[0], next: Instant::now() }
        };
        if self.reports.send((self.server, Report::Up { window })).await.is_err() {
            return Ok(());
        }
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut flight = Flight { proof, chunks: VecDeque::new(), scanner: Scanner::new(ACK_BYTES_MAX) };
        let (mut writing, mut open) = (None, true);
        loop {
            if !open && writing.is_none() && flight.chunks.is_empty() {
                // What it says after everything has arrived can change nothing.
                let _ = timeout(GOODBYE_MAX, writer.shutdown()).await;
                return Ok(());
            }
            let due = flight.due();
            let arrived = tokio::select! {
                chunk = self.chunks.recv(), if open && writing.is_none() => {
                    match chunk {
                        Some(chunk) => {
                            flight.depart(&chunk);
                            writing = Some(Writing { chunk, part: 0, offset: 0 });
                        }
                        None => open = false,
                    }
                    continue;
                }
                done = push(&mut writer, &mut writing), if writing.is_some() => {
                    flight.moved();
                    if done.map_err(Failure::Lost)? {
                        flight.flushed()?;
                        writing = None;
                    }
                    continue;
                }
                read = reader.read_buf(&mut input) => match read.map_err(Failure::Lost)? {
                    0 => return Err(Failure::Lost(io::ErrorKind::UnexpectedEof.into())),
                    _ => flight.answered(&mut input)?,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => flight.look()?,
            };
            for (id, after) in arrived {
                if self.reports.send((self.server, Report::Arrived(id, after))).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// A frame that is being written.
struct Writing {
    chunk: Arc<Outgoing>,
    part: usize,
    offset: usize,
}

impl Writing {
    fn slices(&self) -> Vec<IoSlice<'_>> {
        let rest = self.chunk.parts[self.part..].iter().map(Bytes::as_ref);
        let offset_of = |number: usize| if number == 0 { self.offset } else { 0 };
        rest.enumerate().take(SLICES_MAX).map(|(number, part)| IoSlice::new(&part[offset_of(number)..])).collect()
    }

    fn advance(&mut self, mut taken: usize) {
        while let Some(part) = self.chunk.parts.get(self.part) {
            let left = part.len() - self.offset;
            if taken < left {
                self.offset += taken;
                return;
            }
            (self.part, self.offset) = (self.part + 1, 0);
            taken -= left;
        }
    }
}

/// Writes some of the frame, or flushes when all of it is written; true when that is done. Cancelling loses nothing.
async fn push<W: AsyncWrite + Unpin>(writer: &mut W, writing: &mut Option<Writing>) -> io::Result<bool> {
    let Some(writing) = writing else { return Ok(true) };
    if writing.part == writing.chunk.parts.len() {
        writer.flush().await?;
        return Ok(true);
    }
    let taken = writer.write_vectored(&writing.slices()).await?;
    if taken == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    writing.advance(taken);
    Ok(false)
}

/// What is known to prove that a chunk has arrived.
enum Proof {
    /// The server says so.
    Acknowledgement { timeout: Duration },
    /// Its TCP has acknowledged the last byte.
    Delivery { socket: OwnedFd, pause: Duration, next: Instant },
}

/// The chunks that were sent and are not known to have arrived.
struct Flight {
    proof: Proof,
    /// In the order of sending: the id, since when nothing was heard of it, and how many bytes the server's TCP must have
    /// acknowledged, once all of it is on the wire.
    chunks: VecDeque<(ChunkId, Instant, Option<u64>)>,
    scanner: Scanner,
}

impl Flight {
    fn depart(&mut self, chunk: &Outgoing) {
        self.chunks.push_back((chunk.id, Instant::now(), None));
        if let Proof::Delivery { pause, next, .. } = &mut self.proof {
            *pause = LOOK_AGAIN[0];
            *next = Instant::now() + *pause;
        }
    }

    /// Some of the newest chunk was taken: the server is alive, its time begins with the last byte.
    fn moved(&mut self) {
        if let Some((_, since, _)) = self.chunks.back_mut() {
            *since = Instant::now();
        }
    }

    /// The newest chunk is on the wire, inside TLS in other bytes than its own: the kernel knows how many it took.
    fn flushed(&mut self) -> Result<(), Failure> {
        if let (Proof::Delivery { socket, .. }, Some((_, _, end))) = (&self.proof, self.chunks.back_mut()) {
            *end = Some(sys::tcp::taken(socket).map_err(Failure::Lost)?);
        }
        Ok(())
    }

    /// When to [`look`](Flight::look), if nothing happens before.
    fn due(&self) -> Option<Instant> {
        let (_, since, _) = self.chunks.front()?;
        Some(match &self.proof {
            Proof::Acknowledgement { timeout } => *since + *timeout,
            Proof::Delivery { next, .. } => *next,
        })
    }

    /// Looks whether something has arrived, or is overdue.
    fn look(&mut self) -> Result<Vec<(ChunkId, Duration)>, Failure> {
        let (socket, pause, next) = match &mut self.proof {
            Proof::Acknowledgement { timeout } => return Err(Failure::AckTimeout(*timeout)),
            Proof::Delivery { socket, pause, next } => (socket, pause, next),
        };
        *pause = (*pause * 2).min(LOOK_AGAIN[1]);
        *next = Instant::now() + *pause;
        let delivery = sys::tcp::delivery(socket).map_err(Failure::Lost)?;
        if delivery.silence.is_some_and(|silence| silence > SILENCE_MAX) {
            return Err(Failure::Lost(io::Error::new(io::ErrorKind::TimedOut, "no answer to what was sent")));
        }
        let mut arrived = Vec::new();
        while let Some(&(id, since, Some(end))) = self.chunks.front()
            && end <= delivery.acknowledged
        {
            self.chunks.pop_front();
            arrived.push((id, since.elapsed()));
        }
        Ok(arrived)
    }

    /// Takes the server's answers out of `input`.
    fn answered(&mut self, input: &mut BytesMut) -> Result<Vec<(ChunkId, Duration)>, Failure> {
        let mut arrived = Vec::new();
        if let Proof::Delivery { .. } = self.proof {
            // Nothing was asked for. But a server that waits for a handshake throws away what its TCP acknowledges.
            if is_helo(input) {
                return Err(Failure::HandshakeWanted);
            }
            input.clear();
            return Ok(arrived);
        }
        while !input.is_empty() {
            let Step::Complete(length) = self.scanner.scan(input).map_err(|_| Failure::NoReply)? else { break };
            let reply = &input[..length];
            let id = read_ack(reply).ok_or_else(|| no_ack(reply))?;
            let known = self.chunks.iter().position(|(chunk, ..)| chunk.as_bytes() == id);
            let (id, since, _) = known.and_then(|at| self.chunks.remove(at)).ok_or(Failure::UnknownAck)?;
            arrived.push((id, since.elapsed()));
            input.advance(length);
        }
        Ok(arrived)
    }
}

/// What a reply is that is no acknowledgement: a HELO says that the server waits for the handshake.
fn no_ack(reply: &[u8]) -> Failure {
    if is_helo(reply) { Failure::HandshakeWanted } else { Failure::NoReply }
}

fn is_helo(reply: &[u8]) -> bool {
    reply.get(1..).is_some_and(|rest| rest.starts_with(b"\xa4HELO"))
}
