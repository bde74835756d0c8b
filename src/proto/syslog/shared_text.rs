//! What messages share with their neighbours, as text: the begin of their ids, and what is known of their reception.
//!
//! All ids of a journal begin alike, and all messages of an [`Origin`] came together. Each of these texts is made once, and
//! copied for each message: their numbers and times were a tenth of what rendering costs.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use super::calendar::write_rfc3339;
use super::decimal;
use super::render::{JSON_DIGITS, SD_ID};
use crate::proto::envelope::{Envelope, Origin, Timestamp};
use crate::proto::json_string::Text;
use crate::proto::position::{JournalId, Position};

/// The texts of one journal, with those of the last origin.
#[derive(Clone, Debug)]
pub struct SharedText {
    /// `NODE/INCARNATION/`. A node's name needs no escapes in JSON or structured data.
    journal: Vec<u8>,
    element: Reception,
    keys: Reception,
}

/// A text that was made for an origin.
#[derive(Clone, Debug, Default)]
struct Reception {
    made_for: Option<(Timestamp, Option<SocketAddr>)>,
    input: String,
    text: Vec<u8>,
}

impl SharedText {
    /// The texts of `journal`.
    #[must_use]
    pub fn new(journal: &JournalId) -> SharedText {
        let journal = format!("{journal}/").into_bytes();
        SharedText { journal, element: Reception::default(), keys: Reception::default() }
    }

    /// Appends our structured data element, with id, source and time of reception, but for the bracket that ends it.
    pub(super) fn push_element(&mut self, out: &mut Vec<u8>, envelope: &Envelope<'_>, event: Option<u32>) {
        out.push(b'[');
        out.extend_from_slice(SD_ID.as_bytes());
        out.extend_from_slice(b" id=\"");
        self.push_id(out, envelope.position, event);
        out.extend_from_slice(self.element.of(&envelope.origin, |text, origin| {
            if let Some(source) = origin.source {
                text.extend_from_slice(b"\" src=\"");
                push_ip(text, source.ip().to_canonical());
            }
            text.extend_from_slice(b"\" rcv=\"");
            write_rfc3339(text, origin.received_at, JSON_DIGITS);
            text.push(b'"');
        }));
    }

    /// Appends the keys that every JSON object begins with, up to the value of `format`.
    pub(in crate::proto) fn push_keys(&mut self, out: &mut Vec<u8>, envelope: &Envelope<'_>, event: Option<u32>) {
        out.extend_from_slice(b"{\"id\":\"");
        self.push_id(out, envelope.position, event);
        out.extend_from_slice(self.keys.of(&envelope.origin, |text, origin| {
            text.extend_from_slice(b"\",\"received\":\"");
            write_rfc3339(text, origin.received_at, JSON_DIGITS);
            text.extend_from_slice(b"\",\"source\":");
            match origin.source {
                Some(source) => {
                    text.push(b'"');
                    push_ip(text, source.ip().to_canonical());
                    text.push(b'"');
                }
                None => text.extend_from_slice(b"null"),
            }
            text.extend_from_slice(b",\"input\":");
            Text::of(origin.input).push(text);
            text.extend_from_slice(b",\"format\":\"");
        }));
    }

    /// Appends a message's stable id: the same on both nodes and in every re-send, so that a destination can drop a repeat.
    /// `NODE/INCARNATION/POSITION`; of an event of a forward chunk, whose position it has, with `.EVENT`, counted from 0.
    fn push_id(&self, out: &mut Vec<u8>, position: Position, event: Option<u32>) {
        out.extend_from_slice(&self.journal);
        decimal::push(out, position.0);
        if let Some(event) = event {
            out.push(b'.');
            decimal::push(out, u64::from(event));
        }
    }
}

impl Reception {
    /// The text for `origin`, which `write` makes if the last one was another's.
    fn of(&mut self, origin: &Origin<'_>, write: impl FnOnce(&mut Vec<u8>, &Origin<'_>)) -> &[u8] {
        let wanted = Some((origin.received_at, origin.source));
        if self.made_for != wanted || self.input != origin.input {
            self.made_for = wanted;
            origin.input.clone_into(&mut self.input);
            self.text.clear();
            write(&mut self.text, origin);
        }
        &self.text
    }
}

pub(super) fn push_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for octet in ip.octets() {
                decimal::push(out, u64::from(octet));
                out.push(b'.');
            }
            out.pop();
        }
        IpAddr::V6(ip) => {
            let mut text = String::with_capacity(39);
            write!(text, "{ip}").expect("a String takes everything");
            out.extend_from_slice(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::envelope::{Flags, Kind, Transport};
    use crate::proto::position::Incarnation;

    #[test]
    fn an_id_names_node_incarnation_position_and_event() {
        let journal = JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(0x19a_a3f0) };
        let text = SharedText::new(&journal);
        for position in [0, 9, 10, 8123, u64::MAX] {
            let mut out = Vec::new();
            text.push_id(&mut out, Position(position), None);
            assert_eq!(out, format!("agg-a/19aa3f0/{position}").as_bytes());
            out.clear();
            text.push_id(&mut out, Position(position), Some(u32::MAX));
            assert_eq!(out, format!("agg-a/19aa3f0/{position}.4294967295").as_bytes());
        }
    }

    #[test]
    fn each_part_of_an_origin_is_its_messages_own() {
        let journal = JournalId { node: "n".parse().unwrap(), incarnation: Incarnation(1) };
        let mut text = SharedText::new(&journal);
        let first = Origin {
            received_at: Timestamp(1_000_000_000),
            source: Some("192.0.2.7:51400".parse().unwrap()),
            transport: Transport::Udp,
            input: "net",
            tag: b"",
        };
        let origins = [
            first,
            Origin { received_at: Timestamp(2_000_000_000), ..first },
            Origin { source: Some("192.0.2.8:51400".parse().unwrap()), ..first },
            Origin { source: None, ..first },
            Origin { input: "apps", ..first },
            first,
        ];
        for origin in origins {
            let (position, kind) = (Position(7), Kind::Syslog);
            let envelope = Envelope { position, origin, flags: Flags::NONE, kind, payload: b"" };
            let (mut shared, mut fresh) = (Vec::new(), Vec::new());
            text.push_keys(&mut shared, &envelope, None);
            text.push_element(&mut shared, &envelope, None);
            let mut other = SharedText::new(&journal);
            other.push_keys(&mut fresh, &envelope, None);
            other.push_element(&mut fresh, &envelope, None);
            assert_eq!(shared.escape_ascii().to_string(), fresh.escape_ascii().to_string());
        }
    }
}
