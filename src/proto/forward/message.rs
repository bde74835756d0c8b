//! A complete frame, taken apart: tag, mode, option, entries.
//!
//! [`Request::parse`] looks at the frame's outside, borrowing. [`Frame::accept`] then looks at every entry, inside
//! compression too, and gives the packed stream to journal. It is the received one, byte by byte, unless entries in it
//! are unsound: then only the sound ones are kept, because the sender would repeat the same for ever and the
//! destination could choke on it. So what is journaled can be iterated, and forwarded, without another look.

use thiserror::Error;

use super::compression::{Encoding, InflateError, inflate};
use super::entry::{Entries, GroupMarker};
use super::scan::{Unskippable, Walk};
use super::value::{Value, is_map};

/// Longest tag, in bytes: what an envelope can carry.
pub const TAG_BYTES_MAX: usize = 65_535;
/// Longest chunk id, in bytes. Clients use 24 or 25, and fluentd and fluent-bit read a reply of at most 511.
pub const CHUNK_ID_BYTES_MAX: usize = 480;
/// Default of how large a compressed stream may be when decompressed, in bytes; fluentd's limit too.
pub const INFLATED_BYTES_MAX: usize = 256 << 20;

/// Memory of a [`Scratch`] that is kept between frames, in bytes.
const SCRATCH_BYTES_KEPT: usize = 4 << 20;

/// Why a frame is not one. The sender's fault; nothing of it can be kept.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// Not an array: another protocol, or JSON. The specification says to ignore the value.
    #[error("a request starts with byte {0:#04x}, which is no array")]
    NotAnArray(u8),
    /// An array of another length than the mode has.
    #[error("a request is an array of {0}")]
    Length(u32),
    /// The tag is no string, or longer than [`TAG_BYTES_MAX`].
    #[error("a request's tag is no string, or too long")]
    Tag,
    /// No mode has this second element.
    #[error("a request's second element fits no mode")]
    SecondElement,
    /// The option is neither a map nor nil, or its `chunk` is no string, or longer than [`CHUNK_ID_BYTES_MAX`].
    #[error("a request's option is malformed")]
    Option,
    /// The bytes are not one whole MessagePack value.
    #[error("a request is no whole MessagePack value")]
    Malformed,
}

/// Why the entries of a sound frame are not taken. The sender's fault.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// There are events, but no tag to route them by.
    #[error("events without a tag")]
    EmptyTag,
    /// The body is not logs but metrics (1), traces (2) or something newer.
    #[error("fluent_signal {0} is not logs")]
    NotLogs(u64),
    /// The stream is not compressed in the way that the option says, or in a way that nobody knows.
    #[error("the stream is not compressed as its option says")]
    Compression,
    /// The stream does not decompress within the limit.
    #[error(transparent)]
    Inflate(#[from] InflateError),
}

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// nil, or `["", []]`: proof of life; answer nothing.
    Heartbeat,
    /// Events.
    Frame(Frame<'a>),
}

/// How a frame carries its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// One entry, spread over the frame.
    Message,
    /// An array of entries.
    Forward,
    /// A packed stream.
    PackedForward,
    /// A packed stream, compressed.
    CompressedPackedForward(Encoding),
}

/// A frame of events, borrowed from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the events are routed by: any bytes, by custom words with dots between.
    pub tag: &'a [u8],
    /// How the entries came.
    pub mode: Mode,
    /// What the client asks for beside.
    pub option: FrameOption<'a>,
    body: Body<'a>,
}

/// The option of a frame; a key that is not known stays in `raw`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameOption<'a> {
    /// The id to acknowledge, exactly as sent. With one an answer must be given, without one none.
    pub chunk: Option<&'a [u8]>,
    /// The number of entries as the client thinks; a hint.
    pub size: Option<u64>,
    /// How the client says that the stream is compressed.
    pub compressed: Option<&'a [u8]>,
    /// What the body is: `None` or 0 for logs.
    pub fluent_signal: Option<u64>,
    /// Metadata of a Message's event: a map, as MessagePack.
    pub metadata: Option<&'a [u8]>,
    /// The whole option as MessagePack; `None` if the frame has none.
    pub raw: Option<&'a [u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body<'a> {
    Single {
        time: &'a [u8],
        record: &'a [u8],
    },
    /// The elements, without the header of their array, looked at already: that was needed to find their end.
    Elements {
        bytes: &'a [u8],
        tally: Tally,
    },
    Packed(&'a [u8]),
}

/// What was found in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    events: u64,
    group_markers: u64,
    invalid: u64,
    metadata: bool,
}

/// Entries that can be journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted<'a> {
    /// A packed stream of sound entries, maybe compressed: the received bytes, unless `invalid` is above 0.
    pub entries: &'a [u8],
    /// How `entries` is encoded; [`Encoding::of`] says the same.
    pub encoding: Encoding,
    /// Number of events; group markers are none.
    pub events: u64,
    /// Values that were no entries and are left out.
    pub invalid: u64,
    /// Whether every entry is `[time, record]`, which every receiver takes. Else fluent-bit's metadata or group markers
    /// are in it: see [`render::plain`](super::render::plain).
    pub plain: bool,
}

/// Buffers that [`Frame::accept`] works in, reused from frame to frame.
#[derive(Debug)]
pub struct Scratch {
    inflated_bytes_max: usize,
    inflated: Vec<u8>,
    kept: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new(INFLATED_BYTES_MAX)
    }
}

impl Scratch {
    /// Buffers for compressed streams of at most `inflated_bytes_max` bytes when decompressed. Up to twice as much may
    /// be in use while one is looked at, and zstd's window of as much again; 8 MiB are kept after it.
    #[must_use]
    pub fn new(inflated_bytes_max: usize) -> Scratch {
        Scratch { inflated_bytes_max, inflated: Vec::new(), kept: Vec::new() }
    }

    /// Changes how large a stream may be when decompressed, in bytes.
    pub fn set_inflated_bytes_max(&mut self, inflated_bytes_max: usize) {
        self.inflated_bytes_max = inflated_bytes_max;
    }

    /// Bytes that the last frame had outside its own: decompressed, or put together.
    #[must_use]
    pub fn used(&self) -> usize {
        self.inflated.len() + self.kept.len()
    }

    /// Gives back the memory of a large frame. [`Frame::accept`] does it too, when the next frame comes.
    pub fn clear(&mut self) {
        for buffer in [&mut self.inflated, &mut self.kept] {
            buffer.clear();
            buffer.shrink_to(SCRATCH_BYTES_KEPT);
        }
    }
}

/// The tag of a frame of which only the start is there: for the log, when the rest is not taken.
#[must_use]
pub fn tag_of(mut start: &[u8]) -> Option<&[u8]> {
    let Value::Array(_) = Value::take(&mut start)? else { return None };
    Value::take(&mut start)?.bytes()
}

impl<'a> Request<'a> {
    /// Takes apart one frame: the bytes that [`Scanner`](super::scan::Scanner) found whole.
    ///
    /// # Errors
    /// Says why the bytes are no request.
    pub fn parse(bytes: &'a [u8]) -> Result<Request<'a>, FrameError> {
        let mut cursor = Cursor { bytes, rest: bytes };
        let length = match cursor.value()? {
            Value::Nil if bytes.len() == 1 => return Ok(Request::Heartbeat),
            Value::Nil => return Err(FrameError::Malformed),
            Value::Array(length @ 2..=4) => length,
            Value::Array(length) => return Err(FrameError::Length(length)),
            _ => return Err(FrameError::NotAnArray(bytes[0])),
        };
        let tag = cursor.value()?.bytes().filter(|tag| tag.len() <= TAG_BYTES_MAX).ok_or(FrameError::Tag)?;
        let second_at = cursor.rest;
        let (mode, body) = match cursor.value()? {
            Value::Int(_) | Value::Uint(_) | Value::Ext(..) if length > 2 => {
                let time = &second_at[..second_at.len() - cursor.rest.len()];
                (Mode::Message, Body::Single { time, record: cursor.skip()? })
            }
            Value::Int(_) | Value::Uint(_) | Value::Ext(..) => return Err(FrameError::Length(length)),
            Value::Array(count) => (Mode::Forward, cursor.elements(count)?),
            Value::Str(packed) | Value::Bin(packed) => {
                let mode = match Encoding::of(packed) {
                    Encoding::Plain => Mode::PackedForward,
                    encoding => Mode::CompressedPackedForward(encoding),
                };
                (mode, Body::Packed(packed))
            }
            _ => return Err(FrameError::SecondElement),
        };
        let before_option = if mode == Mode::Message { 3 } else { 2 };
        let option = match length - before_option {
            0 => FrameOption::default(),
            1 => FrameOption::parse(cursor.skip()?)?,
            _ => return Err(FrameError::Length(length)),
        };
        if !cursor.rest.is_empty() {
            return Err(FrameError::Malformed);
        }
        let frame = Frame { tag, mode, option, body };
        Ok(if frame.is_heartbeat() { Request::Heartbeat } else { Request::Frame(frame) })
    }
}

impl<'a> Frame<'a> {
    /// `["", []]`. With a chunk it is a question, and must be answered.
    fn is_heartbeat(&self) -> bool {
        let empty = matches!(self.body, Body::Elements { bytes: [], .. });
        empty && self.tag.is_empty() && self.option.chunk.is_none()
    }

    /// Looks at every entry and gives those to journal. A frame without any is accepted too: it may have to be
    /// acknowledged.
    ///
    /// # Errors
    /// Says why nothing of the frame can be kept. Sending it again cannot help the client.
    pub fn accept<'s>(&self, scratch: &'s mut Scratch) -> Result<Accepted<'s>, AcceptError>
    where
        'a: 's,
    {
        scratch.clear();
        if let Some(signal @ 1..) = self.option.fluent_signal {
            return Err(AcceptError::NotLogs(signal));
        }
        let accepted = match &self.body {
            Body::Single { time, record } => self.accept_single(scratch, time, record),
            Body::Elements { bytes, tally } => accept_plain(bytes, *tally, &mut scratch.kept),
            Body::Packed(packed) => self.accept_packed(scratch, packed)?,
        };
        if self.tag.is_empty() && accepted.events > 0 {
            return Err(AcceptError::EmptyTag);
        }
        Ok(accepted)
    }

    fn accept_single<'s>(&self, scratch: &'s mut Scratch, time: &'a [u8], record: &'a [u8]) -> Accepted<'s>
    where
        'a: 's,
    {
        let built = &mut scratch.inflated;
        built.push(0x92);
        match self.option.metadata.filter(|metadata| *metadata != [0x80]) {
            Some(metadata) => {
                built.push(0x92);
                built.extend_from_slice(time);
                built.extend_from_slice(metadata);
            }
            None => built.extend_from_slice(time),
        }
        built.extend_from_slice(record);
        let tally = Tally::of(&mut Entries::limited(built, 1));
        accept_plain(built, tally, &mut scratch.kept)
    }

    fn accept_packed<'s>(&self, scratch: &'s mut Scratch, packed: &'a [u8]) -> Result<Accepted<'s>, AcceptError>
    where
        'a: 's,
    {
        let encoding = Encoding::of(packed);
        if encoding == Encoding::Plain {
            let tally = Tally::of(&mut Entries::new(packed));
            let said_plain = matches!(self.option.compressed, None | Some(b"" | b"text"));
            if !said_plain && tally.invalid > 0 {
                return Err(AcceptError::Compression);
            }
            return Ok(accept_plain(packed, tally, &mut scratch.kept));
        }
        inflate(&mut scratch.inflated, packed, scratch.inflated_bytes_max)?;
        let tally = Tally::of(&mut Entries::new(&scratch.inflated));
        let accepted = accept_plain(&scratch.inflated, tally, &mut scratch.kept);
        Ok(match tally.invalid {
            0 if !accepted.entries.is_empty() => Accepted { entries: packed, encoding, ..accepted },
            _ => accepted,
        })
    }
}

/// Accepts a plain stream in which `tally` was found: as it is, or its sound entries in `kept`.
fn accept_plain<'s>(stream: &'s [u8], tally: Tally, kept: &'s mut Vec<u8>) -> Accepted<'s> {
    let entries = match tally.invalid {
        0 => stream,
        _ => {
            Entries::new(stream).for_each(|entry| kept.extend_from_slice(entry.raw));
            kept
        }
    };
    Accepted {
        entries,
        encoding: Encoding::Plain,
        events: tally.events,
        invalid: tally.invalid,
        plain: !tally.metadata && tally.group_markers == 0,
    }
}

impl Tally {
    fn of(entries: &mut Entries<'_>) -> Tally {
        let mut tally = Tally::default();
        for entry in entries.by_ref() {
            match entry.time.group_marker() {
                None => tally.events += 1,
                Some(GroupMarker::Start | GroupMarker::End) => tally.group_markers += 1,
            }
            tally.metadata |= entry.metadata.is_some();
        }
        tally.invalid = entries.invalid();
        tally
    }
}

impl<'a> FrameOption<'a> {
    fn parse(raw: &'a [u8]) -> Result<FrameOption<'a>, FrameError> {
        let mut cursor = Cursor { bytes: raw, rest: raw };
        let pairs = match cursor.value()? {
            Value::Nil => return Ok(FrameOption { raw: Some(raw), ..FrameOption::default() }),
            Value::Map(pairs) => pairs,
            _ => return Err(FrameError::Option),
        };
        let mut option = FrameOption { raw: Some(raw), ..FrameOption::default() };
        for _ in 0..pairs {
            let key = Value::take(&mut cursor.skip()?).and_then(Value::bytes);
            let raw_value = cursor.skip()?;
            let value = Value::take(&mut &*raw_value).ok_or(FrameError::Malformed)?;
            let number = match value {
                Value::Int(number) => u64::try_from(number).ok(),
                _ => None,
            };
            match key {
                Some(b"chunk") => option.chunk = chunk_id(value)?,
                Some(b"size") => option.size = number,
                Some(b"compressed") => option.compressed = value.bytes(),
                Some(b"fluent_signal") => option.fluent_signal = number,
                Some(b"metadata") if is_map(raw_value[0]) => option.metadata = Some(raw_value),
                _ => {}
            }
        }
        Ok(option)
    }
}

/// A chunk that cannot be answered must not look like one that needs no answer: its sender would wait for ever.
fn chunk_id(value: Value<'_>) -> Result<Option<&[u8]>, FrameError> {
    match value {
        Value::Nil => Ok(None),
        _ => value.bytes().filter(|id| id.len() <= CHUNK_ID_BYTES_MAX).map(Some).ok_or(FrameError::Option),
    }
}

/// Reads on through a frame.
struct Cursor<'a> {
    bytes: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn value(&mut self) -> Result<Value<'a>, FrameError> {
        Value::take(&mut self.rest).ok_or(FrameError::Malformed)
    }

    /// Steps over a whole value and gives its bytes.
    fn skip(&mut self) -> Result<&'a [u8], FrameError> {
        let at = self.bytes.len() - self.rest.len();
        let end = match Walk::new().skip(self.bytes, at) {
            Ok(end) => end,
            Err(Unskippable::TooDeep(_) | Unskippable::Malformed) => return Err(FrameError::Malformed),
        };
        self.rest = &self.bytes[end..];
        Ok(&self.bytes[at..end])
    }

    /// The `count` elements of a Forward frame.
    fn elements(&mut self, count: u32) -> Result<Body<'a>, FrameError> {
        let mut entries = Entries::limited(self.rest, count as usize);
        let tally = Tally::of(&mut entries);
        let end = entries.finished_at().ok_or(FrameError::Malformed)?;
        let (bytes, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(Body::Elements { bytes, tally })
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
