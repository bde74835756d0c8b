//! The forward load and its far end: chunks of a thousand events of 256 bytes, each to be acknowledged.
//!
//! ```text
//! [tag, bin of 1000 × [EventTime, {"message": "GET /…  stream=… seq=… sent=…"}], {"size": 1000, "chunk": id}]
//! ```
//!
//! An event's text ends with the stamp of `message.rs`, and so does the event: what the sink does with a line it does with
//! an entry. A plain chunk is stamped in place when it is sent. Compressed chunks are all made before the load begins,
//! because compressing costs more than relaying; the sink knows one by its checksum, as a relay passes it on untouched.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rmp::decode;
use twinlog::proto::forward::ack::write_ack;
use twinlog::proto::forward::compression::{Encoding, gzip};
use twinlog::proto::forward::scan::{Scanner, Step};

use crate::generator::{Plan, TICK, precise_sleep};
use crate::measure::{Deadline, Histogram, now_ns};
use crate::message::{MESSAGE_BYTES, Stamp, unstamped, write_stamp};

/// Events of a chunk.
pub const CHUNK_EVENTS: u32 = 1000;
/// Chunks that one connection sends before it waits for the first acknowledgement.
const WINDOW: usize = 16;
/// Largest frame that the sink takes, in bytes.
const FRAME_BYTES_MAX: usize = 256 << 20;

const TAG: &[u8] = b"bench.macro";
/// Array of two, EventTime, map of one, key, and the header of a text that makes the entry 256 bytes long.
const ENTRY_HEAD: &[u8] = b"\x92\xd7\x00\x69\xb0\x07\xbe\x00\x00\x00\x05\x81\xa7message\xd9\xea";
const ID_BYTES: usize = 24;
/// `{"ack": id}` with an id of 24 bytes.
const ACK_BYTES: usize = 6 + ID_BYTES;

/// One packed stream of a chunk, with zeros for stamps.
fn entries() -> Vec<u8> {
    let mut entry = unstamped();
    entry[..ENTRY_HEAD.len()].copy_from_slice(ENTRY_HEAD);
    entry.repeat(CHUNK_EVENTS as usize)
}

fn stamp(entries: &mut [u8], stream: u32, first: u32, sent_ns: u64) {
    for (entry, sequence) in entries.chunks_exact_mut(MESSAGE_BYTES).zip(first..) {
        write_stamp(entry, Stamp { stream, sequence }, sent_ns);
    }
}

fn id_of(stream: u32, sequence: u32) -> [u8; ID_BYTES] {
    let text = format!("{stream:012x}{sequence:012x}");
    text.into_bytes().try_into().expect("24 digits")
}

/// A frame around `entries`, and where they stand in it; its id is written over the last 24 bytes.
fn frame(entries: &[u8]) -> (Vec<u8>, usize) {
    let mut frame = vec![0x93, 0xa0 | TAG.len() as u8];
    frame.extend_from_slice(TAG);
    frame.push(0xc6);
    frame.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    let at = frame.len();
    frame.extend_from_slice(entries);
    let compressed: &[u8] = match Encoding::of(entries) {
        Encoding::Plain => b"\x82",
        _ => b"\x83\xaacompressed\xa4gzip",
    };
    frame.extend_from_slice(compressed);
    frame.extend_from_slice(b"\xa4size\xcd\x03\xe8\xa5chunk\xb8");
    frame.extend_from_slice(&[b'0'; ID_BYTES]);
    (frame, at)
}

/// Compressed chunks of a whole plan.
pub struct Compressed {
    frames: Vec<Vec<u8>>,
    /// Stream and first sequence number, by checksum.
    known: HashMap<u32, (u32, u32)>,
}

impl Compressed {
    pub fn make(plan: &Plan) -> Compressed {
        let mut made = Compressed { frames: Vec::new(), known: HashMap::new() };
        let mut plain = entries();
        for stream in 0..plan.streams {
            for first in (0..plan.per_stream).step_by(CHUNK_EVENTS as usize) {
                stamp(&mut plain, stream, first, 0);
                let mut blob = Vec::new();
                gzip(&mut blob, &plain);
                made.known.insert(crc32c::crc32c(&blob), (stream, first));
                made.frames.push(frame(&blob).0);
            }
        }
        made
    }

    /// Stream and first sequence number of the chunk with these entries.
    pub fn find(&self, entries: &[u8]) -> Option<(u32, u32)> {
        self.known.get(&crc32c::crc32c(entries)).copied()
    }
}

/// The sender's connections.
pub struct Senders<'a> {
    connections: Vec<Sender>,
    compressed: Option<&'a Compressed>,
    /// From the time a chunk was handed to the kernel, or was due if the load is paced, to its acknowledgement.
    pub acknowledged: Histogram,
}

struct Sender {
    socket: TcpStream,
    stream: u32,
    /// Sequence number of the next event.
    next: u32,
    frame: Vec<u8>,
    entries_at: usize,
    written: usize,
    /// Ids and times of what is not acknowledged.
    waiting: VecDeque<([u8; ID_BYTES], u64)>,
    replies: Vec<u8>,
}

impl<'a> Senders<'a> {
    pub fn open(relay: SocketAddr, plan: &Plan, compressed: Option<&'a Compressed>) -> Result<Senders<'a>> {
        let connect = |stream| {
            let socket = TcpStream::connect_timeout(&relay, Duration::from_secs(10))
                .with_context(|| format!("connecting stream {stream} to the relay"))?;
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let (frame, entries_at) = frame(&entries());
            let written = frame.len();
            let (waiting, replies) = Default::default();
            Ok(Sender { socket, stream, next: 0, frame, entries_at, written, waiting, replies })
        };
        let connections = (0..plan.streams).map(connect).collect::<Result<_>>()?;
        Ok(Senders { connections, compressed, acknowledged: Histogram::new() })
    }

    /// Sends the whole plan and returns when the last chunk is acknowledged.
    pub fn send(&mut self, plan: &Plan, deadline: Deadline) -> Result<()> {
        precise_sleep()?;
        let start_ns = now_ns();
        let mut made = 0;
        loop {
            deadline.check("sending chunks")?;
            let mut progress = false;
            for sender in &mut self.connections {
                // A chunk is due when its last event is.
                let last = (made + u64::from(CHUNK_EVENTS)).min(plan.total());
                let (due, due_ns) = plan.due(start_ns, last);
                if sender.is_ready(plan) && due >= last {
                    sender.fill(plan, self.compressed, due_ns);
                    made += u64::from(CHUNK_EVENTS);
                }
                progress |= sender.flush()?;
                progress |= sender.take_replies(&mut self.acknowledged)?;
            }
            if self.connections.iter().all(|sender| sender.is_done(plan)) {
                return Ok(());
            }
            if !progress {
                thread::sleep(TICK);
            }
        }
    }
}

impl Sender {
    fn is_ready(&self, plan: &Plan) -> bool {
        self.written == self.frame.len() && self.waiting.len() < WINDOW && self.next < plan.per_stream
    }

    fn is_done(&self, plan: &Plan) -> bool {
        self.next >= plan.per_stream && self.written == self.frame.len() && self.waiting.is_empty()
    }

    fn fill(&mut self, plan: &Plan, compressed: Option<&Compressed>, sent_ns: u64) {
        match compressed {
            None => {
                let entries = &mut self.frame[self.entries_at..][..MESSAGE_BYTES * CHUNK_EVENTS as usize];
                stamp(entries, self.stream, self.next, sent_ns);
            }
            Some(compressed) => {
                let chunks = plan.per_stream / CHUNK_EVENTS;
                self.frame.clone_from(&compressed.frames[(self.stream * chunks + self.next / CHUNK_EVENTS) as usize]);
            }
        }
        let id = id_of(self.stream, self.next);
        let at = self.frame.len() - ID_BYTES;
        self.frame[at..].copy_from_slice(&id);
        self.waiting.push_back((id, sent_ns));
        self.written = 0;
        self.next += CHUNK_EVENTS;
    }

    fn flush(&mut self) -> Result<bool> {
        if self.written == self.frame.len() {
            return Ok(false);
        }
        match self.socket.write(&self.frame[self.written..]) {
            Ok(bytes) => {
                self.written += bytes;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("writing to the relay"),
        }
    }

    /// Takes acknowledgements, which must come in the order of the chunks.
    fn take_replies(&mut self, acknowledged: &mut Histogram) -> Result<bool> {
        let mut buffer = [0; 4096];
        let read = match self.socket.read(&mut buffer) {
            Ok(0) => bail!("the relay closed a connection with {} chunks on it", self.waiting.len()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("reading acknowledgements"),
        };
        self.replies.extend_from_slice(&buffer[..read]);
        let now = now_ns();
        while self.replies.len() >= ACK_BYTES {
            let (id, sent_ns) = self.waiting.pop_front().context("an acknowledgement of nothing")?;
            let mut expected = Vec::with_capacity(ACK_BYTES);
            write_ack(&mut expected, &id);
            if !self.replies.starts_with(&expected) {
                bail!("an acknowledgement of something else: {:02x?}", &self.replies[..ACK_BYTES]);
            }
            self.replies.drain(..ACK_BYTES);
            acknowledged.record(now.saturating_sub(sent_ns));
        }
        Ok(true)
    }
}

/// What the sink makes of a stream: entries to count and acknowledgements to send.
pub struct Taker(Scanner);

impl Taker {
    pub fn new() -> Taker {
        Taker(Scanner::new(FRAME_BYTES_MAX))
    }

    /// Takes the whole frames in `bytes`: hands their entries to `count`, writes acknowledgements to `replies`. Returns
    /// the bytes taken and those that the next frame needs.
    pub fn take(
        &mut self,
        bytes: &[u8],
        replies: &mut Vec<u8>,
        mut count: impl FnMut(&[u8]),
    ) -> Result<(usize, usize)> {
        let mut at = 0;
        loop {
            match self.0.scan(&bytes[at..])? {
                Step::Incomplete { needed, .. } => return Ok((at, needed)),
                Step::Complete(length) => {
                    let (entries, chunk) = take_apart(&bytes[at..at + length])?;
                    count(entries);
                    if let Some(chunk) = chunk {
                        write_ack(replies, chunk);
                    }
                    at += length;
                }
            }
        }
    }
}

/// Entries and chunk id of a PackedForward frame. By rmp alone: what the relay's own codec would make of it is not asked.
fn take_apart(mut frame: &[u8]) -> Result<(&[u8], Option<&[u8]>)> {
    let elements = decode::read_array_len(&mut frame)?;
    let tag = decode::read_str_len(&mut frame)?;
    frame = &frame[tag as usize..];
    let length = decode::read_bin_len(&mut frame).context("the relay sent another mode than PackedForward")?;
    let (entries, mut rest) = frame.split_at(length as usize);
    let pairs = if elements > 2 { decode::read_map_len(&mut rest)? } else { 0 };
    for _ in 0..pairs {
        let key = take_text(&mut rest)?;
        match key {
            b"size" => drop(decode::read_int::<u64, _>(&mut rest)?),
            b"chunk" => return Ok((entries, Some(take_text(&mut rest)?))),
            _ => drop(take_text(&mut rest)?),
        }
    }
    Ok((entries, None))
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = decode::read_str_len(rest)? as usize;
    let (text, after) = rest.split_at(length);
    *rest = after;
    Ok(text)
}
