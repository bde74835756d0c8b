//! The messages of the pair link and their bytes.
//!
//! ```text
//! frame, little endian: length of what follows, u32 · kind, u8 · body
//! kind 1: batches, as they stand in the journal: stream, u16 · batches, one after the other
//! kind 2: everything else: MessagePack of [`Message`], fields by name, so that a newer node may add some
//! ```

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::moving::Move;
use crate::proto::batch::{BODY_BYTES_MAX, HEADER_LEN};
use crate::proto::position::{JournalId, Mark, NodeName};

/// The protocol this code speaks. Nodes of different protocols refuse each other with a sentence.
pub const PROTOCOL: u16 = 1;
/// Longest control message, in bytes: bounds what a peer can make us hold.
pub const CONTROL_BYTES_MAX: usize = 1024 * 1024;
/// Longest frame, in bytes: the largest batch there can be, with its stream.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + HEADER_LEN + 3;

const LENGTH_LEN: usize = 4;
const KIND_BATCHES: u8 = 1;
const KIND_CONTROL: u8 = 2;

/// Number of a journal in its sender's greeting.
pub type Stream = u16;

/// What one node says to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first message of either side.
    Hello(Hello),
    /// The journal of this stream goes on here: what is before was delivered, dropped, or cannot be read.
    Skip {
        /// Which journal.
        stream: Stream,
        /// Where it goes on.
        to: Mark,
    },
    /// Everything of the receiver's stream before this is safe on the disk of whoever says it.
    Durable {
        /// Which journal, by the number of the node that ships it.
        stream: Stream,
        /// How far.
        mark: Mark,
    },
    /// What outputs have delivered of a journal.
    Delivered {
        /// Which journal.
        journal: JournalId,
        /// How far, by the output's name.
        outputs: BTreeMap<String, Mark>,
    },
    /// How the node is; also a sign of life.
    Status(Status),
    /// Of live connections that move with the addresses.
    Move(Move),
}

/// Who speaks, and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the speaker.
    pub protocol: u16,
    /// Its program version, for people.
    pub program: String,
    /// Its name.
    pub node: NodeName,
    /// A fingerprint of its configuration: differing ones are shown, not refused.
    pub configuration: u32,
    /// The journals that it has, the one that it writes among them.
    pub journals: Vec<Held>,
}

/// A journal, or its mirror, on a node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which.
    pub journal: JournalId,
    /// Whether the speaker writes it; else it is a mirror.
    pub is_own: bool,
    /// Where the oldest kept batch stands.
    pub oldest: Mark,
    /// Everything before this is safe there.
    pub durable: Mark,
    /// What outputs have delivered of it, as far as the speaker knows.
    pub delivered: BTreeMap<String, Mark>,
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether it holds the addresses.
    pub is_active: bool,
    /// Whether any of its outputs may be sending.
    pub is_delivering: bool,
    /// Whether it would take the addresses if they were free.
    #[serde(default)]
    pub can_take_over: bool,
    /// Its own part of `status --json`, as text; what the other node shows of it. `None` says that it is as it was.
    #[serde(default)]
    pub shown: Option<String>,
}

/// Bytes that are no frame of this protocol. The connection cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// Longer than any frame.
    #[error("a frame of {0} bytes is longer than any of this protocol")]
    TooLong(usize),
    /// Of no known kind, or not what its kind has.
    #[error("a frame is malformed")]
    Malformed,
}

/// One frame as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Batches of a journal, not yet looked at.
    Batches {
        /// Which journal, by the number of the node that ships it.
        stream: Stream,
        /// Whole batches, one after the other.
        bytes: Bytes,
    },
    /// Anything else.
    Control(Message),
}

impl Frame {
    /// Takes the frame at the front of `received`, if it is there whole. Nothing of a batch is copied.
    ///
    /// # Errors
    /// [`FrameError`]; the stream has no meaning after it.
    pub fn take(received: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(length) = received.first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        let kind = received.get(LENGTH_LEN).copied();
        let longest = if kind == Some(KIND_CONTROL) { CONTROL_BYTES_MAX } else { FRAME_BYTES_MAX };
        if length > longest {
            return Err(FrameError::TooLong(length));
        }
        if received.len() < LENGTH_LEN + length {
            return Ok(None);
        }
        let mut frame = received.split_to(LENGTH_LEN + length).split_off(LENGTH_LEN);
        if frame.is_empty() {
            return Err(FrameError::Malformed);
        }
        let body = frame.split_off(1);
        match frame[0] {
            KIND_BATCHES => {
                let stream = body.first_chunk().map(|stream| Stream::from_le_bytes(*stream));
                let stream = stream.ok_or(FrameError::Malformed)?;
                Ok(Some(Frame::Batches { stream, bytes: body.freeze().slice(size_of::<Stream>()..) }))
            }
            KIND_CONTROL => {
                rmp_serde::from_slice(&body).map(|message| Some(Frame::Control(message))).or(Err(FrameError::Malformed))
            }
            _ => Err(FrameError::Malformed),
        }
    }

    /// Bytes that are still missing of the frame at the front of `received`, as far as it is known: first those of its
    /// length. Whoever reads no more than these has each frame in memory of its own.
    #[must_use]
    pub fn missing(received: &[u8]) -> usize {
        let Some(length) = received.first_chunk::<LENGTH_LEN>() else { return LENGTH_LEN - received.len() };
        (LENGTH_LEN + (u32::from_le_bytes(*length) as usize).min(FRAME_BYTES_MAX)).saturating_sub(received.len())
    }
}

/// What stands before `length` bytes of batches of `stream`.
#[must_use]
pub fn batches_head(stream: Stream, length: usize) -> Bytes {
    let mut head = Vec::with_capacity(LENGTH_LEN + 3);
    let rest = 1 + size_of::<Stream>() + length;
    head.extend_from_slice(&(rest as u32).to_le_bytes());
    head.push(KIND_BATCHES);
    head.extend_from_slice(&stream.to_le_bytes());
    head.into()
}

/// The frame of a control message.
///
/// # Panics
/// Never: these types have no value that MessagePack lacks.
#[must_use]
pub fn control(message: &Message) -> Bytes {
    let body = rmp_serde::to_vec_named(message).expect("MessagePack has every value of a message");
    let mut frame = Vec::with_capacity(LENGTH_LEN + 1 + body.len());
    frame.extend_from_slice(&(1 + body.len() as u32).to_le_bytes());
    frame.push(KIND_CONTROL);
    frame.extend_from_slice(&body);
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::position::{Incarnation, Position};

    fn hello() -> Message {
        let journal = JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(7) };
        let mark = Mark { position: Position(512), ordinal: 3 };
        let delivered = [("siem".to_owned(), mark)].into();
        let held = Held { journal, is_own: true, oldest: Mark::default(), durable: mark, delivered };
        let (program, node) = ("0.1.0".to_owned(), "agg-a".parse().unwrap());
        Message::Hello(Hello { protocol: PROTOCOL, program, node, configuration: 9, journals: vec![held] })
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let batches = Bytes::from_static(b"not looked at here");
        let head = batches_head(3, batches.len());
        let stream = [&control(&hello())[..], &head, &batches, &control(&Message::Status(Status::default()))].concat();
        for piece in [1, 2, 3, 7, stream.len()] {
            let (mut received, mut frames) = (BytesMut::new(), Vec::new());
            for bytes in stream.chunks(piece) {
                received.extend_from_slice(bytes);
                while let Some(frame) = Frame::take(&mut received).unwrap() {
                    frames.push(frame);
                }
            }
            assert!(received.is_empty());
            let expected = [
                Frame::Control(hello()),
                Frame::Batches { stream: 3, bytes: batches.clone() },
                Frame::Control(Message::Status(Status::default())),
            ];
            assert_eq!(frames, expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let take = |bytes: &[u8]| Frame::take(&mut BytesMut::from(bytes));
        assert_eq!(take(b"GET / HTTP/1.1\r\n"), Err(FrameError::TooLong(0x2054_4547)));
        assert_eq!(take(&[0, 0, 0, 0]), Err(FrameError::Malformed));
        assert_eq!(take(&[1, 0, 0, 0, 9]), Err(FrameError::Malformed));
        assert_eq!(take(&[2, 0, 0, 0, KIND_BATCHES, 1]), Err(FrameError::Malformed));
        assert_eq!(take(&[3, 0, 0, 0, KIND_CONTROL, 0xc1, 0xc1]), Err(FrameError::Malformed));
        let long = (CONTROL_BYTES_MAX as u32 + 1).to_le_bytes();
        assert_eq!(
            take(&[&long[..], &[KIND_CONTROL]].concat()),
            Err(FrameError::TooLong(CONTROL_BYTES_MAX + 1)),
            "before it is there"
        );
    }

    #[test]
    fn no_byte_of_a_greeting_makes_the_reader_panic() {
        let bytes = control(&hello());
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xc1, 0xdf, 0xff] {
                let mut bytes = BytesMut::from(&bytes[..]);
                bytes[at] = value;
                let _ = Frame::take(&mut bytes);
            }
        }
    }
}
