//! Syslog: an *originator* makes a message, a *relay* passes it on, a *collector* keeps it (RFC 5424, section 3).
//!
//! ```text
//! stream ──framing──▶ payload ──message──▶ Message ──render──▶ RFC 5424, JSON
//! ```
//!
//! The payload is the truth: it is journaled and can be forwarded as it came, whatever the parse says. The parse is an
//! opinion about it, formed when an output asks, by the rules P0 to P11 of `tests/fixtures/README.md`; it never fails,
//! it only finds less. The rules are checked against real device lines by `tests/corpus.rs`.
//!
//! Syslog's two standards describe few of these lines, so the header is read by hand, bytes first: `timestamp` and
//! `header` hold what devices really send, `rfc5424` what the standard says they should.

pub mod calendar;
pub(in crate::proto) mod decimal;
pub mod framing;
mod header;
pub mod message;
pub mod notes;
pub mod priority;
pub mod render;
mod rfc5424;
pub mod shared_text;
pub mod structured_data;
mod timestamp;
pub mod zone;
