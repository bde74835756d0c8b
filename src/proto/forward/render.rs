//! What leaves through forward: frames, their chunk ids, and syslog messages as entries.
//!
//! A frame is a PackedForward `[tag, bin, {"size", "chunk", "compressed"}]`. Its entries are plain, `[EventTime, record]`:
//! fluentd and Vector do not take fluent-bit's metadata. Its chunk id is derived from where its entries stand in the
//! journal, so a chunk that is sent again, after a crash or by the other node, has the same id, and a destination that
//! looks for repeats finds them.
//!
//! A syslog message has the record that fluentd's syslog parser would give it, with `facility` and `severity` by the
//! names that in_syslog gives them:
//!
//! | key | value | when |
//! | --- | --- | --- |
//! | `pri` | integer, 0 to 191 | always |
//! | `facility`, `severity` | str, `auth`, `crit` | always |
//! | `host` | str: the message's, or the address of the sender | known |
//! | `ident`, `pid`, `msgid` | str | the message has them |
//! | `extradata` | str: the structured data as they stand | the message has some |
//! | `message` | str: the text's bytes, UTF-8 or not, which is what fluentd, fluent-bit and the Go logger do | always |

use std::io::Write;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use super::compression::Encoding;
use super::entry::Entries;
use super::value::{push_array, push_bin_header, push_event_time_header, push_int, push_map, push_str};
use crate::proto::envelope::Timestamp;
use crate::proto::position::{JournalId, Position};
use crate::proto::syslog::message::{Host, Message};
use crate::proto::syslog::priority::Priority;

/// Facilities by number, named as fluentd names them.
pub(super) const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "at", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
/// Severities by number, named as fluentd names them.
pub(super) const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"];

/// Id of a chunk that we send: 16 bytes in base64, without fluentd's line feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 24]);

impl ChunkId {
    /// The id of the chunk with the entries of `tag` from `position` of `journal` on.
    #[must_use]
    pub fn derive(journal: &JournalId, position: Position, tag: &[u8]) -> ChunkId {
        let mut hash = Sha256::new();
        hash.update(journal.node.as_str());
        // A node's name has no NUL, so no two places give the same bytes.
        hash.update([0]);
        hash.update(journal.incarnation.0.to_be_bytes());
        hash.update(position.0.to_be_bytes());
        hash.update(tag);
        let mut id = [0; 24];
        let written = BASE64.encode_slice(&hash.finalize()[..16], &mut id);
        assert_eq!(written, Ok(24), "16 bytes are 24 in base64");
        ChunkId(id)
    }

    /// The id as it is sent and as it must come back.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Appends a frame.
///
/// `entries` is a packed stream of `events` entries; if it is compressed, the option says so. With `chunk` the receiver
/// must acknowledge.
pub fn packed_forward(out: &mut Vec<u8>, tag: &[u8], entries: &[u8], events: u64, chunk: Option<&ChunkId>) {
    out.reserve(tag.len() + entries.len() + 96);
    frame_head(out, tag, entries.len());
    out.extend_from_slice(entries);
    frame_tail(out, events, chunk, Encoding::of(entries));
}

/// Appends what stands in a frame before its `entries_length` bytes of entries: with [`frame_tail`] behind them, entries
/// leave from where they are.
pub fn frame_head(out: &mut Vec<u8>, tag: &[u8], entries_length: usize) {
    push_array(out, 3);
    push_str(out, tag);
    push_bin_header(out, entries_length);
}

/// Appends what stands in a frame behind its entries: the option.
pub fn frame_tail(out: &mut Vec<u8>, events: u64, chunk: Option<&ChunkId>, encoding: Encoding) {
    let compressed = encoding.option();
    push_map(out, 1 + u32::from(chunk.is_some()) + u32::from(compressed.is_some()));
    push_str(out, b"size");
    push_int(out, i64::try_from(events).unwrap_or(i64::MAX));
    if let Some(chunk) = chunk {
        push_str(out, b"chunk");
        push_str(out, chunk.as_bytes());
    }
    if let Some(compressed) = compressed {
        push_str(out, b"compressed");
        push_str(out, compressed.as_bytes());
    }
}

/// Appends the tag of a syslog message: `TAG.FACILITY.SEVERITY`, as in_syslog makes it.
pub fn syslog_tag(out: &mut Vec<u8>, tag: &[u8], priority: Priority) {
    let (facility, severity) = (usize::from(priority.facility()), usize::from(priority.severity()));
    out.extend_from_slice(tag);
    out.push(b'.');
    out.extend_from_slice(FACILITIES[facility].as_bytes());
    out.push(b'.');
    out.extend_from_slice(SEVERITIES[severity].as_bytes());
}

/// Appends the events of a packed stream, not compressed, as entries that every receiver takes: without metadata and
/// without group markers. Gives their number.
pub fn plain(out: &mut Vec<u8>, packed: &[u8]) -> u64 {
    plain_up_to(out, &mut Entries::new(packed), usize::MAX)
}

/// The same with the next of `entries`, until `out` has grown by `bytes` or more.
pub(super) fn plain_up_to(out: &mut Vec<u8>, entries: &mut Entries<'_>, bytes: usize) -> u64 {
    let (full, mut events) = (out.len().saturating_add(bytes), 0);
    while out.len() < full
        && let Some(entry) = entries.next()
    {
        if entry.time.group_marker().is_some() {
            continue;
        }
        if entry.metadata.is_none() {
            out.extend_from_slice(entry.raw);
        } else {
            push_array(out, 2);
            out.extend_from_slice(entry.raw_time);
            out.extend_from_slice(entry.record);
        }
        events += 1;
    }
    events
}

/// Appends a syslog message as an entry.
pub fn syslog_entry(out: &mut Vec<u8>, message: &Message<'_>) {
    // Keys with their headers: less than 100 bytes.
    out.reserve(384 + message.msg.len());
    let host_known = message.host != Host::Unknown;
    let optional = [
        host_known,
        message.app.is_some(),
        message.pid.is_some(),
        message.msgid.is_some(),
        message.structured_data.is_some(),
    ];
    push_array(out, 2);
    push_time(out, message.timestamp);
    push_map(out, 4 + optional.iter().map(|is_there| u32::from(*is_there)).sum::<u32>());
    out.extend_from_slice(b"\xa3pri");
    push_int(out, message.priority.value().into());
    out.extend_from_slice(b"\xa8facility");
    push_str(out, FACILITIES[usize::from(message.priority.facility())].as_bytes());
    out.extend_from_slice(b"\xa8severity");
    push_str(out, SEVERITIES[usize::from(message.priority.severity())].as_bytes());
    match &message.host {
        Host::Message(name) => push_field(out, b"\xa4host", Some(name.as_bytes())),
        Host::Source(ip) => push_ip(out, b"\xa4host", *ip),
        Host::Unknown => {}
    }
    push_field(out, b"\xa5ident", message.app.as_ref().map(|app| app.as_bytes()));
    push_field(out, b"\xa3pid", message.pid.as_ref().map(|pid| pid.as_bytes()));
    push_field(out, b"\xa5msgid", message.msgid.as_ref().map(|msgid| msgid.as_bytes()));
    push_field(out, b"\xa9extradata", message.structured_data.map(|data| data.as_str().as_bytes()));
    push_field(out, b"\xa7message", Some(message.msg));
}

/// Appends a field, if there is a value; `key` comes with its header.
#[inline]
fn push_field(out: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    if let Some(value) = value {
        out.extend_from_slice(key);
        push_str(out, value);
    }
}

fn push_ip(out: &mut Vec<u8>, key: &[u8], ip: IpAddr) {
    let mut text = [0; 45];
    let mut rest = &mut text[..];
    write!(rest, "{ip}").expect("no address is longer than 45 characters");
    let length = 45 - rest.len();
    push_field(out, key, Some(&text[..length]));
}

/// Appends an EventTime, or whole seconds after 2106, when an EventTime ends.
#[inline]
fn push_time(out: &mut Vec<u8>, time: Timestamp) {
    let (seconds, nanos) = (time.0 / 1_000_000_000, time.0 % 1_000_000_000);
    match u32::try_from(seconds) {
        Ok(_) => {
            push_event_time_header(out);
            out.extend_from_slice(&(seconds << 32 | nanos).to_be_bytes());
        }
        Err(_) => push_int(out, seconds as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::super::compression::gzip;
    use super::super::json::write_json;
    use super::super::message::{Mode, Request, Scratch};
    use super::*;
    use crate::proto::position::Incarnation;
    use crate::proto::syslog::message::Context;
    use crate::proto::syslog::zone::Zone;

    fn journal() -> JournalId {
        JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(0x19a_a3f0) }
    }

    fn entry(payload: &[u8]) -> (Vec<u8>, String) {
        let received = Timestamp(1_773_144_000_000_000_001);
        let context = Context { received, source: Some("192.0.2.7".parse().unwrap()), zone: Zone::UTC };
        let mut packed = Vec::new();
        syslog_entry(&mut packed, &Message::parse(payload, &context).unwrap());
        let mut entries = Entries::new(&packed);
        let (entry, mut json) = (entries.next().unwrap(), Vec::new());
        assert_eq!((entries.next(), entries.invalid()), (None, 0));
        write_json(&mut json, entry.record).unwrap();
        (packed, String::from_utf8(json).unwrap())
    }

    #[test]
    fn a_syslog_message_has_the_fields_of_fluentds_parser() {
        let payload = b"<165>1 2003-10-11T22:14:15.003Z h app 7 ID47 [a@1 k=\"v\"] text";
        let (packed, json) = entry(payload);
        assert_eq!(packed[..11], *b"\x92\xd7\x00\x3f\x88\x80\xb7\x00\x2d\xc6\xc0");
        assert_eq!(
            json,
            r#"{"pri":165,"facility":"local4","severity":"notice","host":"h","ident":"app","pid":"7","msgid":"ID47","extradata":"[a@1 k=\"v\"]","message":"text"}"#
        );
    }

    #[test]
    fn fields_that_a_message_does_not_have_are_left_out() {
        let (packed, json) = entry(b"text \xff");
        assert_eq!(packed[..11], *b"\x92\xd7\x00\x69\xb0\x07\xc0\x00\x00\x00\x01");
        assert_eq!(
            json,
            "{\"pri\":13,\"facility\":\"user\",\"severity\":\"notice\",\"host\":\"192.0.2.7\",\"message\":\"text \u{fffd}\"}"
        );
        assert!(packed.windows(15).any(|part| part == b"\xa7message\xa6text \xff"));
    }

    #[test]
    fn a_time_after_2106_is_an_integer() {
        let mut out = Vec::new();
        push_time(&mut out, Timestamp(u64::from(u32::MAX) * 1_000_000_000 + 1_000_000_000));
        assert_eq!(out, [0xcf, 0, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_chunk_has_one_id_everywhere() {
        let id = ChunkId::derive(&journal(), Position(7), b"a.b");
        // printf 'agg-a\0\0\0\0\0\x01\x9a\xa3\xf0\0\0\0\0\0\0\0\x07a.b' | sha256sum | xxd -r -p | head -c16 | base64
        assert_eq!(id.as_bytes(), b"K31s/je/xZDK1PinZ04Bbw==");
        for other in [
            ChunkId::derive(&journal(), Position(8), b"a.b"),
            ChunkId::derive(&journal(), Position(7), b"a.c"),
            ChunkId::derive(&JournalId { incarnation: Incarnation(1), ..journal() }, Position(7), b"a.b"),
            ChunkId::derive(&JournalId { node: "agg-b".parse().unwrap(), ..journal() }, Position(7), b"a.b"),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let entries = b"\x92\x01\x81\xa1a\x01".repeat(3);
        let mut gzipped = Vec::new();
        gzip(&mut gzipped, &entries);
        let id = ChunkId::derive(&journal(), Position(7), b"tag\xff");
        for (stream, mode) in
            [(&entries, Mode::PackedForward), (&gzipped, Mode::CompressedPackedForward(Encoding::Gzip))]
        {
            let mut out = Vec::new();
            packed_forward(&mut out, b"tag\xff", stream, 3, Some(&id));
            let Ok(Request::Frame(frame)) = Request::parse(&out) else { panic!() };
            assert_eq!((frame.tag, frame.mode), (&b"tag\xff"[..], mode));
            assert_eq!((frame.option.chunk, frame.option.size), (Some(id.as_bytes()), Some(3)));
            assert_eq!(frame.option.compressed, (mode != Mode::PackedForward).then_some(&b"gzip"[..]));
            let mut scratch = Scratch::default();
            let accepted = frame.accept(&mut scratch).unwrap();
            assert_eq!((accepted.entries, accepted.events), (&stream[..], 3));
        }
        let mut out = Vec::new();
        packed_forward(&mut out, b"t", b"", 0, None);
        assert_eq!(out, b"\x93\xa1t\xc4\x00\x81\xa4size\x00");
    }

    #[test]
    fn metadata_and_group_markers_do_not_leave() {
        let packed = b"\x92\x92\xd7\0\xff\xff\xff\xff\0\0\0\0\x80\x80\x92\x92\x05\x81\x01\x02\x81\x03\x04\x92\x06\x80";
        let mut out = Vec::new();
        assert_eq!(plain(&mut out, packed), 2);
        assert_eq!(out, b"\x92\x05\x81\x03\x04\x92\x06\x80");
    }
}
