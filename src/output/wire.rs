//! What is written to a connection, and how much of it the peer's TCP has acknowledged, also when the bytes on the wire
//! are others than the bytes written.
//!
//! Over plain TCP they are the same. Inside TLS, records, handshake and tickets make more of them, and how many is the
//! library's business; so it is not computed but counted: after every flush, all that was written is carried by what the
//! socket has taken until then. That is never too early, and too late by a piece at most.

use std::collections::VecDeque;
use std::io;

use tokio::io::AsyncWriteExt;

use crate::tls::Stream;

/// Bytes that are written before the next flush inside TLS: what rustls holds back at most. It costs no call: rustls
/// writes records out as they are made, and the flush finds only what the socket had no room for.
const PIECE_BYTES: usize = 64 * 1024;

/// A connection that knows what has arrived.
#[derive(Debug)]
pub struct Wire {
    /// The connection.
    pub stream: Stream,
    base: u64,
    written: u64,
    flushed: u64,
    carried: Carried,
}

impl Wire {
    /// A connection on which nothing was written; `base` are the bytes its TCP had acknowledged before the first of ours.
    #[must_use]
    pub fn new(stream: Stream, base: u64) -> Wire {
        Wire { stream, base, written: 0, flushed: 0, carried: Carried::default() }
    }

    /// Whether something that was written is not known to be on the wire.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        self.flushed < self.written
    }

    /// Goes on: writes some of `bytes`, or flushes what was written, when there is room. Returns how many of `bytes` were
    /// taken. Cancelling loses nothing.
    ///
    /// # Errors
    /// What the connection says.
    pub async fn push(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.holds_back() {
            self.stream.flush().await?;
            self.flushed = self.written;
            if let Some(wire) = self.stream.wire_bytes() {
                self.carried.note(wire, self.written);
            }
            return Ok(0);
        }
        let piece = match self.stream {
            Stream::Plain(_) => bytes,
            Stream::Tls(_) => &bytes[..bytes.len().min(PIECE_BYTES)],
        };
        let taken = self.stream.write(piece).await?;
        if taken == 0 && !piece.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += taken as u64;
        if let Stream::Plain(_) = self.stream {
            self.flushed = self.written;
        }
        Ok(taken)
    }

    /// How many of the bytes written have arrived, when the peer's TCP has acknowledged so many.
    pub fn arrived(&mut self, acknowledged: u64) -> u64 {
        let acknowledged = acknowledged.saturating_sub(self.base);
        match self.stream {
            Stream::Plain(_) => acknowledged,
            Stream::Tls(_) => self.carried.by(acknowledged),
        }
    }
}

/// Which bytes on the wire carry which bytes written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Carried {
    /// So many bytes on the wire carry at least so many bytes written; both only grow.
    notes: VecDeque<(u64, u64)>,
    arrived: u64,
}

impl Carried {
    fn note(&mut self, wire: u64, written: u64) {
        self.notes.push_back((wire, written));
    }

    /// How many bytes written are carried by the first `wire` bytes.
    fn by(&mut self, wire: u64) -> u64 {
        while let Some(&(end, written)) = self.notes.front()
            && end <= wire
        {
            self.notes.pop_front();
            self.arrived = written;
        }
        self.arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_has_arrived_only_with_the_last_byte_that_carries_it() {
        let mut carried = Carried::default();
        carried.note(1_500, 1_000);
        carried.note(1_522, 1_001);
        carried.note(9_000, 8_000);
        for (wire, written) in [(0, 0), (1_499, 0), (1_500, 1_000), (1_521, 1_000), (8_999, 1_001), (9_000, 8_000)] {
            assert_eq!(carried.by(wire), written, "{wire}");
        }
        assert_eq!((carried.by(u64::MAX), carried.notes.len()), (8_000, 0));
    }
}
