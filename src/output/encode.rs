//! How a message looks when it leaves: its format, and how the next message is told apart from it.

use std::io::Write;
use std::sync::Arc;

use memchr::memchr;

use crate::config::{FileFormat, Framing, Protocol, SyslogFormat};
use crate::proto::envelope::Envelope;
use crate::proto::position::JournalId;
use crate::proto::syslog::message::{Context, Message};
use crate::proto::syslog::render;
use crate::zones::Zones;

/// How a message looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes as received.
    Raw,
    /// RFC 5424, with the id in the structured data.
    Rfc5424,
    /// One JSON object.
    Json,
}

impl From<SyslogFormat> for Format {
    fn from(format: SyslogFormat) -> Format {
        match format {
            SyslogFormat::Raw => Format::Raw,
            SyslogFormat::Rfc5424 => Format::Rfc5424,
        }
    }
}

impl From<FileFormat> for Format {
    fn from(format: FileFormat) -> Format {
        match format {
            FileFormat::Raw => Format::Raw,
            FileFormat::Json => Format::Json,
        }
    }
}

/// What stands between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delimiter {
    /// RFC 6587, 3.4.1: the length and a space before each.
    OctetCount,
    /// RFC 6587, 3.4.2: a line feed after each. A message with a line feed inside goes octet-counted: receivers decide
    /// for every frame, and nothing else keeps it whole.
    LineFeed,
    /// A line feed after each, whatever is inside: for files and terminals.
    Line,
    /// The datagram's own border.
    Datagram,
}

impl Delimiter {
    /// What stands between messages to a target of this protocol.
    #[must_use]
    pub fn of(framing: Framing, protocol: Protocol) -> Delimiter {
        match (protocol, framing) {
            (Protocol::Udp, _) => Delimiter::Datagram,
            (_, Framing::Octet) | (Protocol::Tls, Framing::Auto) => Delimiter::OctetCount,
            (_, Framing::Lf) | (Protocol::Tcp, Framing::Auto) => Delimiter::LineFeed,
        }
    }
}

/// Writes messages in one format with one delimiter.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// How a message looks.
    pub format: Format,
    /// What stands between two.
    pub delimiter: Delimiter,
    /// Whose positions the ids are made of.
    pub journal: JournalId,
    /// What a timestamp without a zone means.
    pub zones: Arc<Zones>,
}

impl Encoder {
    /// Appends the message to `out`; false for a message without content, which only a datagram can carry.
    pub fn encode(&self, envelope: &Envelope<'_>, out: &mut Vec<u8>) -> bool {
        if self.format == Format::Raw {
            return self.frame(envelope.payload, out);
        }
        let zone = self.zones.get(envelope.origin.input);
        let context = Context::new(&envelope.origin, zone);
        let Some(message) = Message::parse(envelope.payload, &context) else { return false };
        match self.delimiter {
            Delimiter::Datagram => self.render(&message, envelope, out),
            Delimiter::Line => {
                self.render(&message, envelope, out);
                out.push(b'\n');
            }
            Delimiter::OctetCount | Delimiter::LineFeed => {
                let mut text = Vec::with_capacity(envelope.payload.len() + 256);
                self.render(&message, envelope, &mut text);
                self.frame(&text, out);
            }
        }
        true
    }

    fn render(&self, message: &Message<'_>, envelope: &Envelope<'_>, out: &mut Vec<u8>) {
        let id = self.journal.message(envelope.position);
        match self.format {
            Format::Raw => out.extend_from_slice(envelope.payload),
            Format::Rfc5424 => render::rfc5424(out, id, envelope, message),
            Format::Json => render::json(out, id, envelope, message, false),
        }
    }

    fn frame(&self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        if payload.is_empty() {
            return self.delimiter == Delimiter::Datagram;
        }
        match self.delimiter {
            Delimiter::Datagram => out.extend_from_slice(payload),
            Delimiter::Line => {
                out.extend_from_slice(payload);
                if !payload.ends_with(b"\n") {
                    out.push(b'\n');
                }
            }
            Delimiter::LineFeed => match memchr(b'\n', payload) {
                None => {
                    out.extend_from_slice(payload);
                    out.push(b'\n');
                }
                Some(at) if at + 1 == payload.len() && at > 0 => out.extend_from_slice(payload),
                Some(_) => octet_count(payload, out),
            },
            Delimiter::OctetCount => octet_count(payload, out),
        }
        true
    }
}

fn octet_count(payload: &[u8], out: &mut Vec<u8>) {
    write!(out, "{} ", payload.len()).expect("a vector takes everything");
    out.extend_from_slice(payload);
}
