//! From the stream of one connection to batches: reading, and taking whole frames out.
//!
//! Reading goes into memory that the worker's thread shares among its connections; frames that are whole there are
//! looked at in place and copied once, into the batch. Only the begin of a frame is kept, in a vector that grows with what
//! has arrived and not with what is claimed. Half frames that were kept and put together again cost as much as the copy into
//! the batch; so no more is read at once than ends with a frame, as far as that can be known or guessed.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::Settings;
use super::budget::Share;
use super::repeats::{self, Fingerprint, First, Repeats};
use crate::input::now;
use crate::journal::memory::Memory;
use crate::metrics::InputMetrics;
use crate::proto::batch::{Batch, BatchBuilder};
use crate::proto::envelope::{Chunk, Flags, Origin, Timestamp, Transport};
use crate::proto::forward::compression::InflateError;
use crate::proto::forward::message::{AcceptError, Accepted, Frame, FrameError, Request, Scratch, tag_of};
use crate::proto::forward::scan::{ScanError, Scanner, Step};

/// Bytes taken from a connection before another has its turn: some chunks of the size that clients like. The batch of them,
/// with the begin of a frame, is smaller than one read of the journal's readers: a larger one is read twice.
const READ_BYTES: usize = 512 * 1024;
/// The begin of a frame up to this size is put before what is read next; a longer one is read on where it is.
const BEGIN_BYTES: usize = 32 * 1024;
/// Bytes that are read beyond the known or likely end of a frame: what stands behind the entries.
const MARGIN_BYTES: usize = 512;
/// Size at which no further frame joins a batch. One that is larger makes a batch of its own.
const TOGETHER_BYTES: usize = 4 * 1024 * 1024;
/// Largest entries of a frame as they are journaled, in bytes: with one more batch's beginning they fit a batch.
const ENTRIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Answers that frames of one read may ask for; the next frame waits in its buffer until those are given.
const ASKED_MAX: usize = 1024;
/// Decompressed bytes at which no further frame of a read is looked at: other connections have their turn.
const INFLATED_BYTES_TOGETHER: usize = 16 * 1024 * 1024;
/// How many times its largest size a compressed frame may have when decompressed.
const INFLATED_TIMES: usize = 4;

thread_local! {
    /// What this worker's connections use one at a time and never across an await.
    static SHARED: RefCell<Shared> = RefCell::default();
}

#[derive(Default)]
struct Shared {
    /// Room for the begin of a frame, then for a read.
    bytes: Vec<u8>,
    accept: Scratch,
}

/// Why a connection is not read any more. The sender's fault.
#[derive(Debug, Error)]
pub(super) enum Closed {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error("{0} bytes of entries are left of a decompressed frame with unsound ones, more than a batch holds")]
    EntriesTooLarge(usize),
    #[error("the stream ended inside a frame, after {0} bytes")]
    Incomplete(usize),
    #[error("reading: {0}")]
    Broken(io::Error),
}

impl Closed {
    /// The name that it is counted under.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Closed::Scan(ScanError::TooLarge { .. }) | Closed::EntriesTooLarge(_) => "frame_too_large",
            Closed::Scan(ScanError::TooDeep) => "too_deep",
            Closed::Scan(ScanError::Reserved) => "not_messagepack",
            Closed::Frame(FrameError::NotAnArray(b'{' | b'[')) => "json",
            // The first letter of GET, POST, HEAD and the like; the first byte of a TLS handshake.
            Closed::Frame(FrameError::NotAnArray(b'A'..=b'Z')) => "http",
            Closed::Frame(FrameError::NotAnArray(0x16)) => "tls_on_plain_port",
            Closed::Frame(FrameError::NotAnArray(_)) => "not_forward",
            Closed::Frame(_) => "malformed",
            Closed::Accept(AcceptError::EmptyTag) => "empty_tag",
            Closed::Accept(AcceptError::NotLogs(_)) => "not_logs",
            Closed::Accept(AcceptError::Compression) => "compression",
            Closed::Accept(AcceptError::Inflate(InflateError::TooLarge { .. })) => "inflated_too_large",
            Closed::Accept(AcceptError::Inflate(InflateError::Corrupt { .. })) => "corrupt",
            Closed::Incomplete(_) => "incomplete",
            Closed::Broken(_) => "connection_error",
        }
    }

    /// Whether the sender will try the same again for ever, so that somebody has to look.
    pub(super) fn wants_a_look(&self) -> bool {
        matches!(self.reason(), "frame_too_large" | "inflated_too_large" | "tls_on_plain_port")
    }
}

/// A frame in `Taken::batch`, or one without anything to append, that wants an answer.
pub(super) struct Asked {
    pub(super) id: Box<[u8]>,
    pub(super) what: What,
}

/// What such a frame was.
pub(super) enum What {
    /// Part of the batch.
    New(Fingerprint),
    /// A repeat of what ends there.
    Repeat(First),
    /// Without events.
    Nothing,
}

/// What one read gave.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) batch: BatchBuilder,
    /// Whether a frame of the batch wants no answer: nobody would send it again.
    pub(super) unasked: bool,
    pub(super) received: Timestamp,
    pub(super) asked: Vec<Asked>,
    /// The next frame may be one that is at that place already.
    pub(super) suspect: Option<First>,
    /// What comes behind is not looked at any more.
    pub(super) end: Option<End>,
}

/// Why there is nothing behind.
pub(super) enum End {
    /// The client closed its side between two frames.
    Stream,
    /// Something was wrong; the tag of the frame, if it is known.
    Fault(Closed, Option<Vec<u8>>),
}

/// The reading half of a connection.
pub(super) struct Frames<R> {
    reader: R,
    source: SocketAddr,
    transport: Transport,
    settings: Arc<Settings>,
    metrics: Arc<InputMetrics>,
    repeats: Arc<Repeats>,
    memory: Arc<Memory>,
    scanner: Scanner,
    /// The begin of a frame; if `unread`, also whole ones that were not looked at yet.
    rest: Vec<u8>,
    unread: bool,
    /// Where the frame at the start of `rest` ends, or little before, if that is known.
    end: Option<usize>,
    /// Bytes that the last whole frame had; 0 before.
    last: usize,
    /// Whether nothing came yet.
    silent: bool,
    /// What is known of the frame at the start of `rest`.
    verdict: Option<Verdict>,
    /// Whether nothing can be answered any more.
    mute: bool,
    pub(super) share: Share,
}

/// Whether the frame that was suspected is a repeat.
enum Verdict {
    Repeat(First),
    New,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Frames of `reader`, the first bytes of which are in `rest`.
    pub(super) fn new(
        (reader, rest): (R, Vec<u8>),
        (source, transport): (SocketAddr, Transport),
        settings: Arc<Settings>,
        metrics: Arc<InputMetrics>,
        repeats: Arc<Repeats>,
        memory: Arc<Memory>,
        share: Share,
    ) -> Frames<R> {
        let scanner = Scanner::new(settings.config.max_chunk);
        let unread = !rest.is_empty();
        let (silent, verdict) = (rest.is_empty(), None);
        Frames {
            reader,
            source,
            transport,
            settings,
            metrics,
            repeats,
            memory,
            scanner,
            rest,
            unread,
            end: None,
            last: 0,
            silent,
            verdict,
            mute: false,
            share,
        }
    }

    /// From here on nothing is taken that wants an answer: there is none, so its sender sends it again, elsewhere. What
    /// wants none is taken: nobody would send it again.
    pub(super) fn fall_silent(&mut self) {
        self.mute = true;
    }

    /// Whether no frame has begun.
    pub(super) fn is_between_frames(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads once, when there is memory for it, and takes the frames out. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Taken {
        if !self.unread {
            self.share.room().await;
        }
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Taken> {
        SHARED.with_borrow_mut(|Shared { bytes, accept }| {
            accept.set_inflated_bytes_max(self.settings.config.max_chunk.saturating_mul(INFLATED_TIMES));
            if !self.unread {
                let is_short = self.rest.len() <= BEGIN_BYTES;
                let read = if is_short {
                    bytes.resize(BEGIN_BYTES + READ_BYTES, 0);
                    ready!(self.read(&mut bytes[BEGIN_BYTES..], context))
                } else {
                    ready!(self.read_on(context))
                };
                let read = match read {
                    Ok(read) => read,
                    // Inside TLS: FIN without `close_notify`, as clients do it. Frames tell whether something is missing.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                    // A heartbeat inside TLS, closed with our session tickets unread.
                    Err(error) if self.silent && error.kind() == io::ErrorKind::ConnectionReset => 0,
                    Err(error) => return Poll::Ready(self.ended(End::Fault(Closed::Broken(error), None))),
                };
                if read == 0 {
                    let end = match self.rest.len() {
                        0 => End::Stream,
                        begin => End::Fault(Closed::Incomplete(begin), tag_of(&self.rest).map(<[u8]>::to_vec)),
                    };
                    return Poll::Ready(self.ended(end));
                }
                self.silent = false;
                if is_short {
                    let begin = BEGIN_BYTES - self.rest.len();
                    bytes[begin..BEGIN_BYTES].copy_from_slice(&self.rest);
                    let (taken, consumed) = self.take(&bytes[begin..BEGIN_BYTES + read], accept);
                    self.keep(&bytes[begin + consumed..BEGIN_BYTES + read]);
                    return Poll::Ready(taken);
                }
            }
            self.unread = false;
            let rest = std::mem::take(&mut self.rest);
            let (taken, consumed) = self.take(&rest, accept);
            if consumed == 0 {
                self.rest = rest;
                self.share.hold(self.rest.capacity());
            } else {
                self.keep(&rest[consumed..]);
            }
            Poll::Ready(taken)
        })
    }

    /// Reads apart from what was kept.
    fn read(&mut self, room: &mut [u8], context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let want = self.want().min(room.len());
        let mut room = ReadBuf::new(&mut room[..want]);
        ready!(Pin::new(&mut self.reader).poll_read(context, &mut room))?;
        Poll::Ready(Ok(room.filled().len()))
    }

    /// Reads behind what was kept, at most as much again.
    fn read_on(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let want = self.want().min(self.rest.len());
        self.rest.reserve(want);
        self.share.hold(self.rest.capacity());
        let mut room = (&mut self.rest).limit(want);
        pin!(self.reader.read_buf(&mut room)).poll(context)
    }

    /// Bytes to read: to the end of the frame that has begun, if that is known; else to the end of as many frames as there
    /// is room for, if they are like the last; else as many as there is room for.
    fn want(&self) -> usize {
        let begun = self.rest.len();
        let likely =
            if (1..=READ_BYTES).contains(&self.last) { READ_BYTES / self.last * self.last } else { READ_BYTES };
        let end = self.end.filter(|_| begun > BEGIN_BYTES).or_else(|| (likely > begun).then_some(likely));
        end.map_or(READ_BYTES, |end| (end + MARGIN_BYTES).saturating_sub(begun).clamp(MARGIN_BYTES, READ_BYTES))
    }

    fn ended(&mut self, end: End) -> Taken {
        Taken { end: Some(end), ..Taken::default() }
    }

    /// Keeps what was not consumed, in as much memory as it needs.
    fn keep(&mut self, rest: &[u8]) {
        self.rest = rest.to_vec();
        self.share.hold(self.rest.len());
    }

    /// Takes the whole frames at the front; also says how many bytes they are.
    fn take(&mut self, filled: &[u8], accept: &mut Scratch) -> (Taken, usize) {
        let mut taken = Taken { received: now(), ..Taken::default() };
        let (mut at, mut inflated) = (0, 0);
        while at < filled.len() && taken.suspect.is_none() && !self.unread {
            match self.take_one(&filled[at..], accept, &mut taken) {
                Ok(Some(length)) => {
                    at += length;
                    inflated += accept.used();
                    // What is whole here can ask for a thousand times as much: of answers, and of decompressed bytes.
                    let enough = taken.asked.len() >= ASKED_MAX || inflated >= INFLATED_BYTES_TOGETHER;
                    self.unread = enough && at < filled.len();
                }
                Ok(None) => break,
                Err(closed) => {
                    let tag = tag_of(&filled[at..]).map(<[u8]>::to_vec);
                    taken.end = Some(End::Fault(closed, tag));
                    at = filled.len();
                }
            }
        }
        accept.clear();
        (taken, at)
    }

    /// Takes the frame at the front of `bytes`, if it is whole, and says how long it is.
    fn take_one(&mut self, bytes: &[u8], accept: &mut Scratch, taken: &mut Taken) -> Result<Option<usize>, Closed> {
        let length = match self.scanner.scan(bytes)? {
            Step::Complete(length) => length,
            Step::Incomplete { needed, is_near } => {
                self.end = is_near.then_some(needed);
                return Ok(None);
            }
        };
        (self.end, self.last) = (None, length);
        let Request::Frame(frame) = Request::parse(&bytes[..length])? else { return Ok(Some(length)) };
        if self.mute && frame.option.chunk.is_some() {
            self.metrics.rejected.inc("leaving");
            return Ok(Some(length));
        }
        let accepted = frame.accept(accept)?;
        let entries = accepted.entries.len();
        if entries > ENTRIES_BYTES_MAX {
            return Err(Closed::EntriesTooLarge(entries));
        }
        if accepted.events == 0 {
            self.answer_only(taken, &frame, What::Nothing);
            return Ok(Some(length));
        }
        if !taken.batch.is_empty() && taken.batch.len() + entries > TOGETHER_BYTES {
            self.unread = true;
            return Ok(None);
        }
        let fingerprint = frame.option.chunk.map(|id| {
            let (client, tag) = (self.source.ip(), frame.tag);
            self.repeats.fingerprint(client, tag, id, accepted.entries)
        });
        match (self.verdict.take(), fingerprint.as_ref().and_then(|fingerprint| self.repeats.first(fingerprint))) {
            (Some(Verdict::Repeat(first)), _) => {
                self.metrics.rejected.inc("repeated");
                self.answer_only(taken, &frame, What::Repeat(first));
                return Ok(Some(length));
            }
            (None, Some(first)) => {
                taken.suspect = Some(first);
                return Ok(None);
            }
            (Some(Verdict::New), _) | (None, None) => {}
        }
        if taken.batch.is_empty() {
            // At most what was read: the rest may be the begin of a frame that joins another batch.
            let room = bytes.len().min(TOGETHER_BYTES).max(entries) + 1024;
            taken.batch = BatchBuilder::in_memory(self.memory.take(room));
        }
        self.push(taken, &frame, &accepted);
        match (frame.option.chunk, fingerprint) {
            (Some(id), Some(fingerprint)) => taken.asked.push(Asked { id: id.into(), what: What::New(fingerprint) }),
            _ => taken.unasked = true,
        }
        Ok(Some(length))
    }

    fn answer_only(&self, taken: &mut Taken, frame: &Frame<'_>, what: What) {
        if let Some(id) = frame.option.chunk {
            taken.asked.push(Asked { id: id.into(), what });
        }
    }

    fn push(&self, taken: &mut Taken, frame: &Frame<'_>, accepted: &Accepted<'_>) {
        taken.batch.set_origin(&Origin {
            received_at: taken.received,
            source: Some(self.source),
            transport: self.transport,
            input: &self.settings.config.name,
            tag: frame.tag,
        });
        let events = u32::try_from(accepted.events).expect("an event has a byte at least, of less than 2^32");
        let chunk = Chunk { events, plain: accepted.plain, id: frame.option.chunk };
        taken.batch.push_chunk(Flags::NONE, &chunk, accepted.entries);
        self.metrics.forward.messages.inc_by(accepted.events);
        self.metrics.forward.bytes.inc_by(accepted.entries.len() as u64);
        self.metrics.saw_message(taken.received);
        if accepted.invalid > 0 {
            self.metrics.rejected.inc_by("invalid_entry", accepted.invalid);
        }
    }

    /// Judges the frame at the front, suspected to be what `first` names: it is, if the journal's `copy` has its bytes.
    pub(super) fn judge(&mut self, first: First, copy: Option<&Batch>) {
        let is_repeat = copy.is_some_and(|batch| self.is_in(batch).unwrap_or_default());
        self.verdict = Some(if is_repeat { Verdict::Repeat(first) } else { Verdict::New });
        self.unread = true;
    }

    fn is_in(&self, batch: &Batch) -> Option<bool> {
        SHARED.with_borrow_mut(|Shared { accept, .. }| {
            let Ok(Step::Complete(length)) = Scanner::new(self.settings.config.max_chunk).scan(&self.rest) else {
                return None;
            };
            let Ok(Request::Frame(frame)) = Request::parse(&self.rest[..length]) else { return None };
            let accepted = frame.accept(accept).ok()?;
            let id = frame.option.chunk?;
            Some(repeats::holds(batch, self.source.ip(), frame.tag, id, accepted.entries))
        })
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
