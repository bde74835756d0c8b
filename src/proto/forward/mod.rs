//! The fluent-forward protocol, version 1: what fluentd, fluent-bit and their client libraries speak.
//!
//! ```text
//! stream ──scan──▶ frame ──message──▶ Frame ──accept──▶ packed entries ──entry──▶ Entry ──json──▶ JSON
//!                                     Syslog message ──render──▶ packed entries ──render──▶ frame
//! ```
//!
//! A *frame* is one MessagePack array. Its second element says its mode; an *option* may end it:
//!
//! | mode | array | second element |
//! | --- | --- | --- |
//! | Message | `[tag, time, record, option?]` | an integer or an EventTime (ext type 0) |
//! | Forward | `[tag, [[time, record], …], option?]` | an array |
//! | PackedForward | `[tag, stream of [time, record], option?]` | bin, or str |
//! | CompressedPackedForward | the same, the stream compressed with gzip or zstd | bin, or str32 from fluentd |
//!
//! | option | meaning |
//! | --- | --- |
//! | `chunk` | an id: answer `{"ack": chunk}`, the same bytes, once the entries are safe; without it answer nothing |
//! | `compressed` | `text`, `gzip` or `zstd`; the first bytes of the stream decide, because clients forget it |
//! | `size` | number of entries, a hint that may be wrong |
//! | `fluent_signal` | 0 logs; 1 metrics and 2 traces have other bodies |
//! | `metadata` | of a Message's only event (fluent-bit) |
//!
//! What is journaled is a *packed stream* of entries, as received if every entry is sound: see
//! [`message::Frame::accept`]. Everything that travels as a MessagePack `str` is taken as bytes, UTF-8 or not.
//!
//! Sources: Forward Protocol Specification v1; where fluentd, fluent-bit and the specification differ, what the programs
//! do. Not here: the JSON mode of in_forward, sockets, and the one-byte UDP heartbeat, which needs no codec.

pub mod ack;
pub mod chunks;
pub mod compression;
pub mod entry;
pub mod event;
pub mod handshake;
pub mod json;
pub mod message;
pub mod render;
pub mod scan;
mod value;
