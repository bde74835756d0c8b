//! How a message looks when it leaves: its format, and how the next message is told apart from it.

use std::io::Write;
use std::sync::Arc;

use memchr::memchr;

use crate::config::{FileFormat, Framing, Protocol, SyslogFormat};
use crate::proto::envelope::{Envelope, Kind};
use crate::proto::forward::entry::Entry;
use crate::proto::forward::event::{self, Events};
use crate::proto::syslog::message::{Context, Message};
use crate::proto::syslog::render;
use crate::proto::syslog::shared_text::SharedText;
use crate::zones::Zones;

/// How a message looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes as received; an event as fluentd writes it.
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

/// Bytes of encoded messages that are delivered before more are encoded: a chunk can have some hundred times its size as
/// JSON.
pub const PIECE_BYTES: usize = 4 << 20;

/// What of an envelope is not encoded yet.
#[derive(Debug)]
pub enum Unencoded<'a> {
    /// A message.
    Message(Envelope<'a>),
    /// Events of a chunk.
    Events(Envelope<'a>, Events<'a>),
    /// All was encoded.
    Nothing,
}

/// Writes messages in one format with one delimiter.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// How a message looks.
    pub format: Format,
    /// What stands between two.
    pub delimiter: Delimiter,
    /// Of the journal whose positions the ids are made of.
    pub text: SharedText,
    /// What a timestamp without a zone means.
    pub zones: Arc<Zones>,
}

impl Encoder {
    /// What `envelope` carries, to be encoded. Of a chunk that cannot be decompressed, nothing.
    #[must_use]
    pub fn begin<'a>(&self, envelope: Envelope<'a>) -> Unencoded<'a> {
        let Kind::Forward(_) = envelope.kind else { return Unencoded::Message(envelope) };
        match Events::of(envelope.payload) {
            Ok(events) => Unencoded::Events(envelope, events),
            Err(error) => {
                tracing::error!(position = %envelope.position, %error, "a chunk cannot be read and is left out");
                Unencoded::Nothing
            }
        }
    }

    /// Appends what is left of an envelope to `out`, up to [`PIECE_BYTES`]; gives whether there may be more. After each
    /// message `ended` is told how long `out` is, which is where a datagram ends. A message without content is none, unless
    /// a datagram carries it.
    pub fn encode_some(&mut self, left: &mut Unencoded<'_>, out: &mut Vec<u8>, mut ended: impl FnMut(usize)) -> bool {
        match left {
            Unencoded::Nothing => false,
            Unencoded::Message(envelope) => {
                if self.encode_syslog(envelope, out) {
                    ended(out.len());
                }
                *left = Unencoded::Nothing;
                false
            }
            Unencoded::Events(envelope, events) => events.each(|number, entry| {
                self.encode_event(envelope, number, entry, out);
                ended(out.len());
                out.len() < PIECE_BYTES
            }),
        }
    }

    fn encode_syslog(&mut self, envelope: &Envelope<'_>, out: &mut Vec<u8>) -> bool {
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
                let start = out.len();
                self.render(&message, envelope, out);
                self.delimit(out, start);
            }
        }
        true
    }

    fn render(&mut self, message: &Message<'_>, envelope: &Envelope<'_>, out: &mut Vec<u8>) {
        match self.format {
            Format::Raw => out.extend_from_slice(envelope.payload),
            Format::Rfc5424 => render::rfc5424(out, &mut self.text, envelope, None, message),
            Format::Json => render::json(out, &mut self.text, envelope, message, false),
        }
    }

    /// An event was not received as a message of its own. `raw` is what fluentd would write: a line in a file, RFC 5424 to
    /// whoever wants syslog.
    fn encode_event(&mut self, envelope: &Envelope<'_>, number: u32, entry: &Entry<'_>, out: &mut Vec<u8>) {
        match (self.format, self.delimiter) {
            (Format::Json, _) => event::json(out, &mut self.text, envelope, number, entry, false),
            (Format::Raw, Delimiter::Line) => event::line(out, &envelope.origin, entry),
            (_, Delimiter::Line | Delimiter::Datagram) => event::rfc5424(out, &mut self.text, envelope, number, entry),
            (_, Delimiter::OctetCount | Delimiter::LineFeed) => {
                let start = out.len();
                event::rfc5424(out, &mut self.text, envelope, number, entry);
                self.delimit(out, start);
            }
        }
        if self.delimiter == Delimiter::Line {
            out.push(b'\n');
        }
    }

    /// Frames for a stream what was rendered from `start` on.
    fn delimit(&self, out: &mut Vec<u8>, start: usize) {
        let text = &out[start..];
        if self.delimiter == Delimiter::LineFeed {
            match memchr(b'\n', text) {
                None => return out.push(b'\n'),
                Some(at) if at + 1 == text.len() && at > 0 => return,
                Some(_) => {}
            }
        }
        let (length, end) = (text.len(), out.len());
        write!(out, "{length} ").expect("a vector takes everything");
        let before = out.len() - end;
        out[start..].rotate_right(before);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::position::{Incarnation, JournalId};

    #[test]
    fn what_was_rendered_in_place_is_framed_as_what_was_received() {
        for delimiter in [Delimiter::OctetCount, Delimiter::LineFeed] {
            let journal = JournalId { node: "n".parse().unwrap(), incarnation: Incarnation(1) };
            let encoder =
                Encoder { format: Format::Rfc5424, delimiter, text: SharedText::new(&journal), zones: Arc::default() };
            for text in [&b"x"[..], b"two\nlines", b"a line\n", b"\n", &[b'x'; 12_345]] {
                let (mut apart, mut in_place) = (b"before".to_vec(), b"before".to_vec());
                assert!(encoder.frame(text, &mut apart));
                let start = in_place.len();
                in_place.extend_from_slice(text);
                encoder.delimit(&mut in_place, start);
                assert_eq!(in_place, apart, "{delimiter:?} {:?}", String::from_utf8_lossy(text));
            }
        }
    }
}
