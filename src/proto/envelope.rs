//! The envelope: one received message, exactly as received, with what only its receiver could know.
//!
//! What it carries is its [`Kind`]: a syslog message, or the entries of a forward frame, which stay together because they
//! came together. An [`Origin`] says when, from whom and through which input; all messages of one readiness of one sender
//! share it, so it is written once for the run and not once for each message (see `batch.rs` for the layout). Nothing here
//! interprets a payload.

use std::net::SocketAddr;

use super::position::Position;

/// Nanoseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Seconds from this time until `later`; 0 if `later` is earlier.
    #[must_use]
    pub fn seconds_until(self, later: Timestamp) -> f64 {
        later.0.saturating_sub(self.0) as f64 / 1e9
    }
}

/// How a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Made by twinlog itself: a gap message.
    Internal,
    /// One datagram, one message (RFC 5426).
    Udp,
    /// A plain byte stream (RFC 6587, or forward).
    Tcp,
    /// A byte stream inside TLS (RFC 5425, or forward).
    Tls,
}

impl Transport {
    pub(super) fn code(self) -> u8 {
        match self {
            Transport::Internal => 0,
            Transport::Udp => 1,
            Transport::Tcp => 2,
            Transport::Tls => 3,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Transport> {
        Some(match code {
            0 => Transport::Internal,
            1 => Transport::Udp,
            2 => Transport::Tcp,
            3 => Transport::Tls,
            _ => return None,
        })
    }
}

/// Where a run of messages came from: the part of an envelope that neighbours share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// When this node read the bytes.
    pub received_at: Timestamp,
    /// The sender's address; `None` for messages made by twinlog itself. IPv4-mapped IPv6 addresses are stored as IPv4.
    pub source: Option<SocketAddr>,
    /// How it came in.
    pub transport: Transport,
    /// Name of the input, at most 255 bytes.
    pub input: &'a str,
    /// Tag of the input or of the forward message; at most 65 535 bytes.
    pub tag: &'a [u8],
}

/// What the receiver noticed about one message while taking it in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// Nothing to note.
    pub const NONE: Flags = Flags(0);
    /// Longer than `max_message`; the payload is its beginning.
    pub const TRUNCATED: Flags = Flags(1);
    /// The stream ended before the message's line end.
    pub const NO_TRAILER: Flags = Flags(2);

    /// Whether every flag of `other` is set.
    #[must_use]
    pub fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags' names as they stand in JSON.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [(Flags::TRUNCATED, "truncated"), (Flags::NO_TRAILER, "no_trailer")]
            .into_iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|(_, name)| name)
    }
}

/// The entries of one forward frame, kept together: what is said about them beside the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Number of events in it: each counts as a message.
    pub events: u32,
    /// Whether every entry is `[time, record]`, which every receiver takes; see
    /// [`Accepted::plain`](super::forward::message::Accepted::plain).
    pub plain: bool,
    /// The sender's chunk id, at most 480 bytes: by it a chunk that comes again is recognised, also after a restart.
    pub id: Option<&'a [u8]>,
}

/// What an envelope carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// One syslog message; the payload is its bytes.
    Syslog,
    /// Forward entries; the payload is a packed stream of sound entries, maybe compressed.
    Forward(Chunk<'a>),
}

/// Borrowed view of one message, or of the entries of one forward frame, in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Where the message stands in its journal: the last part of its id.
    pub position: Position,
    /// Where it came from.
    pub origin: Origin<'a>,
    /// What the receiver noticed.
    pub flags: Flags,
    /// What the payload is.
    pub kind: Kind<'a>,
    /// The message exactly as received, without the framing of its transport.
    pub payload: &'a [u8],
}

impl Envelope<'_> {
    /// How many messages it counts as.
    #[must_use]
    pub fn messages(&self) -> u64 {
        match self.kind {
            Kind::Syslog => 1,
            Kind::Forward(chunk) => chunk.events.into(),
        }
    }
}
