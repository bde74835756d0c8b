//! The header of everything that is not RFC 5424: what RFC 3164 found in use, and what vendors made of it since.
//!
//! ```text
//! <PRI>  [seq: ][host: ][seq: ][*|.] TIMESTAMP [:]  [HOST]  [TAG[pid]:] text
//!         Cisco (P5)                 P4             P7      P6, P8
//! ```
//!
//! One rule guards against the common fault of taking a text apart: a first word is a tag only with a colon or a
//! `[pid]` behind it. Comma-separated bodies (Palo Alto), `CEF:`, `key=value` and plain sentences stay whole.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use memchr::memchr;

use super::message::{Context, Host, Message, name_of};
use super::notes::Notes;
use super::timestamp::{self, Reading};

/// Longest tag of a message without a timestamp: what is longer is rather the begin of a sentence.
const BARE_TAG_MAX: usize = 48;
/// Most `word: ` before a timestamp.
const PREFIX_WORDS_MAX: usize = 3;

/// Reads `text`, which stands behind the priority, into `message`.
pub(super) fn read<'a>(message: &mut Message<'a>, text: &'a [u8], context: &Context) {
    if let Some(reading) = timestamp::read(text, context) {
        behind_timestamp(message, text, reading);
    } else if !behind_prefix(message, text, context) {
        message.notes.insert(Notes::TIMESTAMP_MISSING);
        message.msg = text;
        let is_tag = |tag: &Tag<'_>| {
            tag.name.len() <= BARE_TAG_MAX && (tag.name[0] == b'%' || tag.name[0].is_ascii_alphabetic())
        };
        if cef_or_leef(text).is_none()
            && let Some(tag) = mnemonic(text).or_else(|| tag(text)).filter(is_tag)
        {
            set_tag(message, text, tag);
        }
    }
}

/// Reads what stands behind the timestamp of `reading` at the start of `text`.
pub(super) fn behind_timestamp<'a>(message: &mut Message<'a>, text: &'a [u8], reading: Reading) {
    message.set_timestamp(reading.time);
    if reading.zone_unknown {
        message.notes.insert(Notes::TZ_UNKNOWN);
    }
    host_and_tag(message, &text[reading.end..], None);
}

/// P5: Cisco puts numbers, a host and clock marks before the time, or the uptime in its place. False and no change if
/// no time follows.
fn behind_prefix<'a>(message: &mut Message<'a>, text: &'a [u8], context: &Context) -> bool {
    let mut notes = Notes::NONE;
    let mut host = None;
    let mut at = 0;
    for words in 0..=PREFIX_WORDS_MAX {
        let mut rest = &text[at..];
        if let Some(behind) = rest.strip_prefix(b":") {
            rest = behind.trim_ascii_start();
        }
        let (marked, unsynced) = match rest {
            [b'*', behind @ ..] => (behind, true),
            [b'.', behind @ ..] => (behind, false),
            _ => (rest, false),
        };
        if let Some(reading) = timestamp::read(marked, context) {
            message.set_timestamp(reading.time);
            if reading.zone_unknown {
                notes.insert(Notes::TZ_UNKNOWN);
            }
            if unsynced {
                notes.insert(Notes::CLOCK_UNSYNCED);
            }
            message.notes.insert(notes);
            host_and_tag(message, &marked[reading.end..], host);
            return true;
        }
        if let Some(end) = uptime(marked) {
            notes.insert(Notes::TIMESTAMP_UPTIME);
            message.notes.insert(notes);
            host_and_tag(message, &marked[end..], host);
            return true;
        }
        if words == PREFIX_WORDS_MAX {
            break;
        }
        let Some(end) = memchr(b' ', &text[at..]) else { break };
        let Some(word) = text[at..at + end].strip_suffix(b":").filter(|word| !word.is_empty()) else { break };
        if word.iter().all(u8::is_ascii_digit) {
            notes.insert(Notes::CISCO_SEQ);
        } else if let Some(name) = host_name(word) {
            host = Some(name);
        } else if word[0] != b'*' {
            break;
        }
        at += end + 1;
        at += text[at..].iter().take_while(|b| **b == b' ').count();
    }
    false
}

/// The length of `00:01:01` or `1w2d` at the start of `text` if `: %` follows.
fn uptime(text: &[u8]) -> Option<usize> {
    let length = match text {
        [h, i, b':', m, n, b':', s, t, ..] if [h, i, m, n, s, t].iter().all(|b| b.is_ascii_digit()) => 8,
        [b'0'..=b'9', ..] => {
            let end = memchr(b':', text)?;
            let units = |b: &u8| b.is_ascii_digit() || matches!(b, b'y' | b'w' | b'd' | b'h' | b'm' | b's');
            text[..end].iter().all(units).then_some(end)?
        }
        _ => return None,
    };
    text[length..].starts_with(b": %").then_some(length)
}

/// P6 to P8: what stands behind the time. `host` was found before the time.
fn host_and_tag<'a>(message: &mut Message<'a>, text: &'a [u8], host: Option<&'a str>) {
    let mut rest = skip_colon(text);
    message.msg = rest;
    match host {
        Some(name) => message.host = Host::Message(Cow::Borrowed(name)),
        None if rest.starts_with(b"%") => {}
        None if rest.starts_with(b"last message repeated") => return,
        None => {
            if let Some((name, behind)) = host_token(rest) {
                message.host = Host::Message(name);
                rest = behind;
                message.msg = rest;
            }
        }
    }
    if cef_or_leef(rest).is_none()
        && let Some(tag) = mnemonic(rest).or_else(|| tag(rest))
    {
        set_tag(message, rest, tag);
    }
}

/// Skips spaces with one colon before or among them: `: %ASA`, ` : %ASA`.
fn skip_colon(text: &[u8]) -> &[u8] {
    let text = text.strip_prefix(b":").unwrap_or(text);
    let text = skip_spaces(text);
    text.strip_prefix(b": ").map_or(text, skip_spaces)
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|b| **b == b' ').count();
    &text[spaces..]
}

/// P7: the host at the start of `text`, and what stands behind it and its spaces.
fn host_token(text: &[u8]) -> Option<(Cow<'_, str>, &[u8])> {
    if let Some(rest) = text.strip_prefix(b"Message forwarded from ") {
        let end = memchr(b' ', rest).unwrap_or(rest.len());
        let name = rest[..end].strip_suffix(b":").filter(|name| !name.is_empty())?;
        return Some((name_of(name), skip_spaces(&rest[end..])));
    }
    let end = memchr(b' ', text).unwrap_or(text.len());
    let (token, rest) = text.split_at(end);
    let behind = skip_spaces(rest);
    if let Some(name) = host_name(token) {
        // ASA: `host : %ASA-…`.
        let message = behind.strip_prefix(b":").map(skip_spaces).filter(|text| text.starts_with(b"%"));
        return Some((Cow::Borrowed(name), message.unwrap_or(behind)));
    }
    // `192.0.2.1: %ASA-…`; a name in that place is a tag.
    let name = std::str::from_utf8(token.strip_suffix(b":")?).ok()?;
    (behind.starts_with(b"%") && name.parse::<IpAddr>().is_ok()).then_some((Cow::Borrowed(name), behind))
}

/// The token as a host's name, if it can be one.
fn host_name(token: &[u8]) -> Option<&str> {
    if token.is_empty() || token[0] == b'/' {
        return None;
    }
    let mut colons = 0;
    for byte in token {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'/' | b'-' => {}
            b':' => colons += 1,
            _ => return None,
        }
    }
    let name = std::str::from_utf8(token).ok()?;
    (colons == 0 || (colons >= 2 && name.parse::<Ipv6Addr>().is_ok())).then_some(name)
}

/// A tag, and where the text behind it begins.
struct Tag<'a> {
    name: &'a [u8],
    pid: &'a [u8],
    end: usize,
}

fn set_tag<'a>(message: &mut Message<'a>, text: &'a [u8], tag: Tag<'a>) {
    message.app = Some(name_of(tag.name));
    if !tag.pid.is_empty() {
        message.pid = Some(name_of(tag.pid));
    }
    message.msg = text[tag.end..].strip_prefix(b" ").unwrap_or(&text[tag.end..]);
}

/// Cisco's `%FACILITY-SEVERITY-MNEMONIC:`, also with a space before the colon.
fn mnemonic(text: &[u8]) -> Option<Tag<'_>> {
    let rest = text.strip_prefix(b"%")?;
    let end =
        1 + rest.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/' | b'.')).count();
    let name = &text[..end];
    let has_severity = name.windows(3).any(|w| matches!(w, [b'-', b'0'..=b'7', b'-']));
    let colon = match text[end..] {
        [b':', ..] => 1,
        [b' ', b':', ..] => 2,
        _ => return None,
    };
    has_severity.then_some(Tag { name, pid: b"", end: end + colon })
}

/// P8: `name:` or `name[pid]` with or without a colon.
fn tag(text: &[u8]) -> Option<Tag<'_>> {
    let mut has_letter = false;
    let mut end = 0;
    loop {
        match text.get(end)? {
            b':' | b'[' => break,
            0..=b' ' | 0x7f | b']' | b'<' | b'>' | b'"' | b'=' | b'{' | b'}' | b',' | b';' => return None,
            byte => has_letter |= byte.is_ascii_alphabetic() || !byte.is_ascii(),
        }
        end += 1;
    }
    let (name, rest) = text.split_at(end);
    if !has_letter {
        return None;
    }
    if rest[0] == b':' {
        return (!rest.starts_with(b"://")).then_some(Tag { name, pid: b"", end: end + 1 });
    }
    let length = rest[1..].iter().take_while(|b| **b > b' ' && !matches!(b, b'[' | b']')).count();
    if rest.get(1 + length) != Some(&b']') {
        return None;
    }
    let pid = &rest[1..=length];
    let behind = &rest[length + 2..];
    Some(Tag { name, pid, end: end + length + 2 + usize::from(behind.starts_with(b":")) })
}

/// `CEF` or `LEEF` if `text` is such an event: its header is the begin of its body and must not be taken for a tag.
pub(super) fn cef_or_leef(text: &[u8]) -> Option<&'static str> {
    match text {
        [b'C', b'E', b'F', b':', b'0'..=b'9', ..] => Some("CEF"),
        [b'L', b'E', b'E', b'F', b':', b'0'..=b'9', ..] => Some("LEEF"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(payload: &str) -> (Option<String>, Option<String>, Option<String>, &str) {
        let message = Message::parse(payload.as_bytes(), &Context::default()).unwrap();
        let host = matches!(message.host, Host::Message(_)).then(|| message.host.to_string());
        let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
        (host, owned(message.app), owned(message.pid), std::str::from_utf8(message.msg).unwrap())
    }

    fn assert_parts(payload: &str, host: &str, app: &str, pid: &str, msg: &str) {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        assert_eq!(parts(payload), (some(host), some(app), some(pid), msg), "{payload}");
    }

    #[test]
    fn a_tag_needs_a_colon_or_a_pid() {
        assert_parts("<13>Mar 10 11:59:58 h su: x", "h", "su", "", "x");
        assert_parts("<13>Mar 10 11:59:58 h su[7] x", "h", "su", "7", "x");
        assert_parts("<13>Mar 10 11:59:58 h su[7]:x", "h", "su", "7", "x");
        assert_parts("<13>Mar 10 11:59:58 h su x: y", "h", "", "", "su x: y");
        assert_parts("<13>Mar 10 11:59:58 h 42: x", "h", "", "", "42: x");
        assert_parts("<13>Mar 10 11:59:58 h http://x", "h", "", "", "http://x");
        assert_parts("<13>Mar 10 11:59:58 h su[a b]: x", "h", "", "", "su[a b]: x");
    }

    #[test]
    fn cisco_prefixes_are_read() {
        assert_parts("<189>1: r1: 2: *Mar 10 11:59:58: %SYS-5-X: y", "r1", "%SYS-5-X", "", "y");
        assert_parts("<189>wlc: *apfTask_1: Mar 10 11:59:58.1: %APF-3-X: y", "wlc", "%APF-3-X", "", "y");
        assert_parts("<189>: 2026 Mar 10 11:59:58: %SYS-5-X : y", "", "%SYS-5-X", "", "y");
        assert_parts("<189>7: 1y12w: %SYS-5-X: y", "", "%SYS-5-X", "", "y");
        assert_parts("<166>Mar 10 2026 11:59:58 fw : %ASA-6-1: y", "fw", "%ASA-6-1", "", "y");
        assert_parts("<166>Mar 10 2026 11:59:58 192.0.2.1: %ASA-6-1: y", "192.0.2.1", "%ASA-6-1", "", "y");
        assert_parts("<166>Mar 10 2026 11:59:58 Rib: %BGP-6-1: y", "", "Rib", "", "%BGP-6-1: y");
    }

    #[test]
    fn a_prefix_without_a_time_is_text() {
        assert_parts("<189>a: b: c: d: Mar 10 11:59:58 x", "", "a", "", "b: c: d: Mar 10 11:59:58 x");
        assert_parts("<189>app: text", "", "app", "", "text");
        assert_parts("<189>", "", "", "", "");
    }

    #[test]
    fn hosts_are_names_and_addresses() {
        assert_parts("<13>Mar 10 11:59:58 2001:db8::1 a: x", "2001:db8::1", "a", "", "x");
        assert_parts("<13>Mar 10 11:59:58 a:b:c x", "", "a", "", "b:c x");
        assert_parts("<13>Mar 10 11:59:58 Message forwarded from aix1: sshd[1]: x", "aix1", "sshd", "1", "x");
        assert_parts("<13>Mar 10 11:59:58 last message repeated 3 times", "", "", "", "last message repeated 3 times");
        assert_parts("<13>Mar 10 11:59:58 /bin/x[1]: y", "", "/bin/x", "1", "y");
    }

    #[test]
    fn without_a_time_a_long_tag_is_text() {
        let long = "a".repeat(49);
        assert_parts(&format!("<13>{long}: x"), "", "", "", &format!("{long}: x"));
        assert_parts("<13>%ASA-6-1: x", "", "%ASA-6-1", "", "x");
        assert_parts("<13>_a: x", "", "", "", "_a: x");
    }
}
