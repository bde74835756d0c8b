//! The events of a chunk one by one, as everyone but the forward output shows them: JSON, a line, a syslog message.
//!
//! Group markers are no events and have no number. As a syslog message (RFC 5424) an event has:
//!
//! | field | from the record | else |
//! | --- | --- | --- |
//! | PRI | `pri` (0 to 191); or `facility` and `severity` (`priority`) by fluentd's names | `user.notice`, 13 |
//! | TIMESTAMP | – | the entry's time; the time of reception if it has none |
//! | HOSTNAME | `host`, `hostname` | the sender's address |
//! | APP-NAME | `ident`, `app`, `app_name`, `appname`, `program`, `container_name` | the tag |
//! | PROCID, MSGID | `pid`, `procid`; `msgid` | `-` |
//! | MSG | – | the record as JSON |
//!
//! A record that holds nothing but what fluentd's syslog parser writes, and all of it understood, becomes the message it
//! was: MSG is its `message`, the structured data are its `extradata`, and what it does not have is `-`. One key more,
//! and MSG is the record as JSON: nothing is left out.

use std::borrow::Cow;

use super::compression::{Encoding, InflateError, inflate};
use super::entry::{Entries, Entry};
use super::json::write_json;
use super::message::INFLATED_BYTES_MAX;
use super::render::{FACILITIES, SEVERITIES};
use super::scan::Walk;
use super::value::Value;
use crate::proto::envelope::{Envelope, Origin};
use crate::proto::json_string::Text;
use crate::proto::syslog::calendar::write_rfc3339;
use crate::proto::syslog::message::{Format, Host, Message, TimestampSource};
use crate::proto::syslog::notes::Notes;
use crate::proto::syslog::priority::Priority;
use crate::proto::syslog::render;
use crate::proto::syslog::shared_text::SharedText;
use crate::proto::syslog::structured_data::StructuredData;

/// Calls `each` with the number and the entry of every event of a packed stream, compressed or not, in order.
///
/// # Errors
/// The stream cannot be decompressed. Never of one that was accepted: it was decompressed then.
pub fn for_each(packed: &[u8], mut each: impl FnMut(u32, &Entry<'_>)) -> Result<(), InflateError> {
    Events::of(packed)?.each(|number, entry| {
        each(number, entry);
        true
    });
    Ok(())
}

/// The events of a packed stream, compressed or not, in order: some now, some later. An event of three bytes is two
/// hundred in JSON, so nobody can write those of a large stream at once.
#[derive(Debug)]
pub struct Events<'a> {
    plain: Cow<'a, [u8]>,
    at: usize,
    number: u32,
}

impl<'a> Events<'a> {
    /// All events of `packed`.
    ///
    /// # Errors
    /// See [`for_each`].
    pub fn of(packed: &'a [u8]) -> Result<Events<'a>, InflateError> {
        let plain = match Encoding::of(packed) {
            Encoding::Plain => Cow::Borrowed(packed),
            Encoding::Gzip | Encoding::Zstd => {
                let mut inflated = Vec::new();
                inflate(&mut inflated, packed, INFLATED_BYTES_MAX)?;
                Cow::Owned(inflated)
            }
        };
        Ok(Events { plain, at: 0, number: 0 })
    }

    /// Calls `each` with the number and the entry of the events that are left, until it says that this is enough: by
    /// false. Gives whether it did.
    pub fn each(&mut self, mut each: impl FnMut(u32, &Entry<'_>) -> bool) -> bool {
        let mut entries = Entries::new(&self.plain[self.at..]);
        while let Some(entry) = entries.next() {
            if entry.time.group_marker().is_some() {
                continue;
            }
            let goes_on = each(self.number, &entry);
            self.number += 1;
            if !goes_on {
                self.at += entries.looked_at();
                return true;
            }
        }
        self.at = self.plain.len();
        false
    }
}

/// Appends the event of this `number` in its chunk as one JSON object without a line end; with `raw` also the entry as
/// `raw_b64`.
pub fn json(
    out: &mut Vec<u8>,
    text: &mut SharedText,
    envelope: &Envelope<'_>,
    number: u32,
    entry: &Entry<'_>,
    raw: bool,
) {
    out.reserve(256 + 2 * entry.record.len());
    text.push_keys(out, envelope, Some(number));
    out.extend_from_slice(b"forward\",\"tag\":");
    Text::of(&String::from_utf8_lossy(envelope.origin.tag)).push(out);
    out.extend_from_slice(b",\"time\":\"");
    write_rfc3339(out, entry.time.timestamp(envelope.origin.received_at), render::JSON_DIGITS);
    out.extend_from_slice(b"\",\"record\":");
    push_map(out, entry.record);
    if let Some(metadata) = entry.metadata {
        out.extend_from_slice(b",\"metadata\":");
        push_map(out, metadata);
    }
    render::push_flags(out, envelope.flags, Notes::NONE);
    if raw {
        out.extend_from_slice(b",\"raw_b64\":\"");
        render::push_base64(out, entry.raw);
        out.push(b'"');
    }
    out.push(b'}');
}

/// Appends an event as fluentd's out_file writes it, without a line end: time, tab, tag, tab, the record as JSON. The time
/// is in UTC with as many digits as it has. Control characters of a tag become `_`.
pub fn line(out: &mut Vec<u8>, origin: &Origin<'_>, entry: &Entry<'_>) {
    write_rfc3339(out, entry.time.timestamp(origin.received_at), render::JSON_DIGITS);
    out.push(b'\t');
    out.extend(origin.tag.iter().map(|byte| if byte.is_ascii_control() { b'_' } else { *byte }));
    out.push(b'\t');
    push_map(out, entry.record);
}

/// Appends the event of this `number` in its chunk as an RFC 5424 message, without framing.
pub fn rfc5424(out: &mut Vec<u8>, text: &mut SharedText, envelope: &Envelope<'_>, number: u32, entry: &Entry<'_>) {
    let fields = Fields::of(entry.record);
    let mut record = Vec::new();
    let was_syslog = fields.only_syslog && fields.message.is_some() && fields.has_priority();
    if !was_syslog {
        push_map(&mut record, entry.record);
    }
    let origin = &envelope.origin;
    let message = Message {
        format: Format::Rfc5424,
        priority: fields.priority(),
        timestamp: entry.time.timestamp(origin.received_at),
        timestamp_source: TimestampSource::Message,
        host: match (fields.host, origin.source) {
            (Some(host), _) => Host::Message(host),
            (None, Some(source)) => Host::Source(source.ip().to_canonical()),
            (None, None) => Host::Unknown,
        },
        app: fields.app.or_else(|| (!was_syslog).then(|| String::from_utf8_lossy(origin.tag))),
        pid: fields.pid,
        msgid: fields.msgid,
        structured_data: if was_syslog { fields.structured_data } else { None },
        msg: fields.message.filter(|_| was_syslog).unwrap_or(&record),
        notes: Notes::NONE,
    };
    render::rfc5424(out, text, envelope, Some(number), &message);
}

/// What a record says about a syslog header.
#[derive(Default)]
struct Fields<'a> {
    pri: Option<Priority>,
    facility: Option<u8>,
    severity: Option<u8>,
    host: Option<Cow<'a, str>>,
    app: Option<Cow<'a, str>>,
    pid: Option<Cow<'a, str>>,
    msgid: Option<Cow<'a, str>>,
    structured_data: Option<StructuredData<'a>>,
    message: Option<&'a [u8]>,
    /// Whether every key is one that fluentd's syslog parser writes, stands once, and has a value that was understood.
    only_syslog: bool,
}

impl<'a> Fields<'a> {
    fn of(record: &'a [u8]) -> Fields<'a> {
        let mut fields = Fields { only_syslog: true, ..Fields::default() };
        let mut rest = record;
        let Some(Value::Map(pairs)) = Value::take(&mut rest) else { return Fields::default() };
        let mut at = record.len() - rest.len();
        let mut walk = Walk::new();
        for _ in 0..pairs {
            let Ok(key_end) = walk.skip(record, at) else { return Fields::default() };
            let Ok(value_end) = walk.skip(record, key_end) else { return Fields::default() };
            let key = Value::take(&mut &record[at..key_end]).and_then(Value::bytes);
            let value = Value::take(&mut &record[key_end..value_end]);
            let taken = match (key, value) {
                (Some(key), Some(value)) => fields.take(key, value),
                _ => None,
            };
            fields.only_syslog &= taken.unwrap_or(false);
            at = value_end;
        }
        fields
    }

    /// Whether the field is one of the syslog parser's; `None` if it was not understood.
    fn take(&mut self, key: &[u8], value: Value<'a>) -> Option<bool> {
        match key {
            b"pri" => {
                let Value::Int(number) = value else { return None };
                once(&mut self.pri, Priority::new(u8::try_from(number).ok()?)?)
            }
            b"facility" => once(&mut self.facility, number_of(value, &FACILITIES)?),
            b"severity" | b"priority" => once(&mut self.severity, number_of(value, &SEVERITIES)?),
            b"host" => once(&mut self.host, text_of(value)?),
            b"hostname" => once(&mut self.host, text_of(value)?).map(|_| false),
            b"ident" => once(&mut self.app, text_of(value)?),
            b"app" | b"app_name" | b"appname" | b"program" | b"container_name" => {
                once(&mut self.app, text_of(value)?).map(|_| false)
            }
            b"pid" => once(&mut self.pid, text_of(value)?),
            b"procid" => once(&mut self.pid, text_of(value)?).map(|_| false),
            b"msgid" => once(&mut self.msgid, text_of(value)?),
            b"extradata" => {
                let Value::Str(text) = value else { return None };
                let (data, rest) = StructuredData::read(text)?;
                if !rest.is_empty() {
                    return None;
                }
                once(&mut self.structured_data, data)
            }
            b"message" => {
                let Value::Str(text) = value else { return None };
                once(&mut self.message, text)
            }
            _ => None,
        }
    }

    fn has_priority(&self) -> bool {
        self.pri.is_some() || (self.facility.is_some() && self.severity.is_some())
    }

    /// The names say more than a number that contradicts them would: they are what a person may have changed.
    fn priority(&self) -> Priority {
        let base = self.pri.unwrap_or_default();
        let facility = self.facility.unwrap_or(base.facility());
        let severity = self.severity.unwrap_or(base.severity());
        Priority::new(facility * 8 + severity).unwrap_or(base)
    }
}

/// Keeps the first value; a second one is not understood.
fn once<T>(field: &mut Option<T>, value: T) -> Option<bool> {
    if field.is_some() {
        return None;
    }
    *field = Some(value);
    Some(true)
}

/// The text of a field of a header. An empty one is none, and a number is written out: process numbers come as such.
fn text_of(value: Value<'_>) -> Option<Cow<'_, str>> {
    match value {
        Value::Str(text) if !text.is_empty() => Some(String::from_utf8_lossy(text)),
        Value::Int(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

fn number_of(value: Value<'_>, names: &[&str]) -> Option<u8> {
    let name = match value.bytes()? {
        b"warning" => &b"warn"[..],
        b"error" => b"err",
        name => name,
    };
    let number = names.iter().position(|known| known.as_bytes() == name)?;
    u8::try_from(number).ok()
}

/// Appends a map as JSON. Entries were looked at when they were accepted, so there always is one.
fn push_map(out: &mut Vec<u8>, map: &[u8]) {
    if write_json(out, map).is_err() {
        out.extend_from_slice(b"{}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::compression::gzip;
    use super::*;
    use crate::proto::envelope::{Chunk, Flags, Kind, Timestamp, Transport};
    use crate::proto::position::{Incarnation, JournalId, Position};

    const OURS: &str = "[twinlog@32473 id=\"n/1/7.3\" src=\"192.0.2.7\" rcv=\"2026-03-10T12:00:00.000000001Z\"]";

    fn envelope() -> Envelope<'static> {
        Envelope {
            position: Position(7),
            origin: Origin {
                received_at: Timestamp(1_773_144_000_000_000_001),
                source: Some("192.0.2.7:51400".parse().unwrap()),
                transport: Transport::Tcp,
                input: "apps",
                tag: b"web.access\n",
            },
            flags: Flags::NONE,
            kind: Kind::Forward(Chunk { events: 1, plain: true, id: None }),
            payload: b"",
        }
    }

    /// An entry of 2004 (whose EventTime has 3 ns) with the record in `map`.
    fn entry(map: &[u8]) -> Vec<u8> {
        [&b"\x92\xd7\0\x3f\xf3\x64\x80\0\0\0\x03"[..], map].concat()
    }

    fn shown(map: &[u8], show: impl Fn(&mut Vec<u8>, &mut SharedText, &Entry<'_>)) -> String {
        let journal = JournalId { node: "n".parse().unwrap(), incarnation: Incarnation(1) };
        let packed = entry(map);
        let mut out = Vec::new();
        show(&mut out, &mut SharedText::new(&journal), &Entries::new(&packed).next().unwrap());
        String::from_utf8(out).unwrap()
    }

    fn syslog(map: &[u8]) -> String {
        shown(map, |out, text, entry| rfc5424(out, text, &envelope(), 3, entry))
    }

    #[test]
    fn an_event_is_one_object() {
        let packed = entry(b"\x81\xa1a\x01");
        assert_eq!(
            shown(b"\x81\xa1a\x01", |out, text, entry| json(out, text, &envelope(), 3, entry, true)),
            format!(
                concat!(
                    r#"{{"id":"n/1/7.3","received":"2026-03-10T12:00:00.000000001Z","source":"192.0.2.7","input":"apps","#,
                    r#""format":"forward","tag":"web.access\n","time":"2004-01-01T00:06:24.000000003Z","#,
                    r#""record":{{"a":1}},"flags":[],"raw_b64":"{}"}}"#
                ),
                base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &packed)
            )
        );
    }

    #[test]
    fn metadata_stands_beside_the_record() {
        let packed = b"\x92\x92\x05\x81\x01\x02\x80";
        let (mut out, journal) = (Vec::new(), JournalId { node: "n".parse().unwrap(), incarnation: Incarnation(1) });
        let entry = Entries::new(packed).next().unwrap();
        json(&mut out, &mut SharedText::new(&journal), &envelope(), 0, &entry, false);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.ends_with(r#""time":"1970-01-01T00:00:05Z","record":{},"metadata":{"1":2},"flags":[]}"#),
            "{text}"
        );
    }

    #[test]
    fn a_line_is_that_of_fluentds_files() {
        let text = shown(b"\x81\xa1a\xa1\t", |out, _, entry| line(out, &envelope().origin, entry));
        assert_eq!(text, "2004-01-01T00:06:24.000000003Z\tweb.access_\t{\"a\":\"\\t\"}");
    }

    #[test]
    fn a_record_is_the_text_of_a_syslog_message() {
        assert_eq!(
            syslog(b"\x82\xa3log\xa1x\xa3pid\x07"),
            format!("<13>1 2004-01-01T00:06:24Z 192.0.2.7 web.access_ 7 - {OURS} {{\"log\":\"x\",\"pid\":7}}")
        );
        assert_eq!(
            syslog(b"\x84\xa8hostname\xa1h\xa3app\xa1a\xa8severity\xa3err\xa7message\xa1m"),
            format!(
                "<11>1 2004-01-01T00:06:24Z h a - - {OURS} \
                 {{\"hostname\":\"h\",\"app\":\"a\",\"severity\":\"err\",\"message\":\"m\"}}"
            )
        );
    }

    #[test]
    fn what_a_syslog_parser_made_becomes_the_message_it_was() {
        let record = b"\x87\xa3pri\xcc\xa5\xa4host\xa1h\xa5ident\xa3app\xa3pid\xa17\xa5msgid\xa2ID\xa9extradata\xa9[a k=\"v\"]\xa7message\xa2m\xff";
        let (mut out, journal) = (Vec::new(), JournalId { node: "n".parse().unwrap(), incarnation: Incarnation(1) });
        let packed = entry(record);
        let entry = Entries::new(&packed).next().unwrap();
        rfc5424(&mut out, &mut SharedText::new(&journal), &envelope(), 3, &entry);
        let expected = format!("<165>1 2004-01-01T00:06:24Z h app 7 ID {OURS}[a k=\"v\"] m");
        assert_eq!(out, [expected.as_bytes(), b"\xff"].concat());
        assert_eq!(
            syslog(b"\x83\xa8facility\xa4auth\xa8severity\xa4crit\xa7message\xa1m"),
            format!("<34>1 2004-01-01T00:06:24Z 192.0.2.7 - - - {OURS} m")
        );
    }

    #[test]
    fn one_key_more_or_one_that_is_not_understood_keeps_the_record_whole() {
        for record in [
            &b"\x83\xa3pri\x22\xa7message\xa1m\xa1x\x01"[..],
            b"\x82\xa3pri\xcc\xff\xa7message\xa1m",
            b"\x83\xa3pri\x22\xa7message\xa1m\xa9extradata\xa1?",
            b"\x83\xa3pri\x22\xa7message\xa1m\xa7message\xa1n",
            b"\x82\xa3pri\x22\xa7message\x01",
            b"\x82\xa3pri\x22\xa4host\xa1h",
            b"\x82\x90\xa1a\xa7message\xa1m",
            b"\x81\xa7message\xa1m",
        ] {
            assert!(syslog(record).ends_with('}'), "{}", syslog(record));
        }
    }

    #[test]
    fn events_come_some_now_and_some_later_under_the_same_numbers() {
        let plain = [&b"\x92\xd7\0\xff\xff\xff\xff\0\0\0\0\x80"[..], &b"\x92\x05\x80".repeat(5)[..]].concat();
        let mut zipped = Vec::new();
        gzip(&mut zipped, &plain);
        for stream in [&plain, &zipped] {
            let mut events = Events::of(stream).unwrap();
            let mut seen = Vec::new();
            let mut two = || {
                let mut left = 2;
                events.each(|number, entry| {
                    seen.push((number, entry.time.seconds()));
                    left -= 1;
                    left > 0
                })
            };
            assert_eq!([two(), two(), two(), two()], [true, true, false, false]);
            assert_eq!(seen, [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]);
        }
    }

    #[test]
    fn events_are_counted_from_zero_without_markers_and_out_of_compression() {
        let packed =
            b"\x92\xd7\0\xff\xff\xff\xff\0\0\0\0\x80\x92\x05\x80\x92\x06\x80\x92\xd7\0\xff\xff\xff\xfe\0\0\0\0\x80";
        let mut gzipped = Vec::new();
        gzip(&mut gzipped, packed);
        for stream in [&packed[..], &gzipped] {
            let mut seen = Vec::new();
            for_each(stream, |number, entry| seen.push((number, entry.time.seconds()))).unwrap();
            assert_eq!(seen, [(0, 5), (1, 6)]);
        }
        assert!(for_each(&gzipped[..12], |_, _| {}).is_err());
    }
}
