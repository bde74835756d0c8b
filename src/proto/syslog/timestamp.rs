//! Timestamps as devices write them.
//!
//! Read are (rule P4) the BSD form `Mmm dd hh:mm:ss` of RFC 3164 with everything that vendors add (year in any of three
//! places, fraction, offset, zone word) and the ISO form; strictly, RFC 3339 as RFC 5424 wants it.
//!
//! A reader answers three ways: not a timestamp, so these bytes mean something else; a timestamp; something that has
//! the form of a timestamp but is no date or no time of day. [`Timestamp`] spans 1970 to 2554: what lies outside, such
//! as the year 1 that Go programs send for "never", is of the third kind.

use super::calendar::{DAY, NANOS, civil, days};
use super::message::Context;
use crate::proto::envelope::Timestamp;

/// What was read, up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// `None`: no date or no time of day.
    pub time: Option<Timestamp>,
    /// Bytes that belong to the timestamp and its zone.
    pub end: usize,
    /// A zone word that is not known; the default zone was applied.
    pub zone_unknown: bool,
}

/// A date and a time of day as written: the form is right, the values may not be.
#[derive(Clone, Copy, Debug)]
struct Written {
    year: i64,
    month: i64,
    day: i64,
    clock: Clock,
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    hour: i64,
    minute: i64,
    second: i64,
    nanos: u32,
}

/// A zone as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WrittenZone {
    /// None, or an unknown word.
    Default,
    /// Seconds east of Greenwich; `None` is an impossible offset such as `+99:00`.
    East(Option<i32>),
}

/// Reads the BSD or the ISO form at the start of `text`.
#[inline]
pub(super) fn read(text: &[u8], context: &Context) -> Option<Reading> {
    match text {
        [b'0'..=b'9', _, _, _, b'-', ..] => iso(text, context),
        [b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z', ..] => bsd(text, context),
        _ => None,
    }
}

/// Reads `yyyy-mm-ddThh:mm:ss[.fraction]zone` at the start of `text`: the time (`None`: no such date) and its length.
pub(super) fn rfc3339(text: &[u8]) -> Option<(Option<Timestamp>, usize)> {
    let (written, end) = iso_date_time(text, |separator| matches!(separator, b'T' | b't'))?;
    let (zone, length) = glued_zone(&text[end..])?;
    Some((written.resolve(zone, &Context::default()), end + length))
}

fn iso(text: &[u8], context: &Context) -> Option<Reading> {
    let (written, mut end) = iso_date_time(text, |separator| matches!(separator, b'T' | b't' | b' '))?;
    let rest = &text[end..];
    let (zone, length, zone_unknown) = if let Some((zone, length)) = glued_zone(rest) {
        (zone, length, false)
    } else if let Some((zone, length)) = spaced_zone(rest) {
        (zone, length, false)
    } else {
        zone_word(rest)
    };
    end += length;
    Some(Reading { time: written.resolve(zone, context), end, zone_unknown })
}

fn bsd(text: &[u8], context: &Context) -> Option<Reading> {
    let mut at = 0;
    let mut year = four_digits(text).filter(|_| text.get(4) == Some(&b' '));
    if year.is_some() {
        at = 5;
    }
    let month = month(text.get(at..at + 3)?)?;
    at += 3;
    at = skip(text, at, b' ')?;
    // A day below ten is padded with a space, with a zero, or not at all.
    at = skip(text, at, b' ').unwrap_or(at);
    let (day, length) = one_or_two_digits(&text[at..])?;
    at = skip(text, at + length, b' ')?;
    if let Some(found) = four_digits(&text[at..]).filter(|_| text.get(at + 4) == Some(&b' ')) {
        year = Some(found);
        at += 5;
    }
    let (clock, length) = clock(&text[at..])?;
    at += length;
    let mut zone = glued_zone(&text[at..]);
    at += zone.map_or(0, |(_, length)| length);
    if year.is_none()
        && let Some(found) = year_behind(&text[at..])
    {
        year = Some(found);
        at += 5;
    }
    let mut zone_unknown = false;
    if zone.is_none() {
        let (word, length, unknown) = zone_word(&text[at..]);
        zone = Some((word, length));
        zone_unknown = unknown;
        at += length;
    }
    let zone = zone.map_or(WrittenZone::Default, |(zone, _)| zone);
    let time = match year {
        Some(year) => Written { year, month, day, clock }.resolve(zone, context),
        None => Written { year: 0, month, day, clock }.resolve_nearest(zone, context),
    };
    Some(Reading { time, end: at, zone_unknown })
}

/// A year behind the time counts only with a space behind it: ` 2001:db8::1` there is a host.
fn year_behind(text: &[u8]) -> Option<i64> {
    let [b' ', rest @ ..] = text else { return None };
    four_digits(rest).filter(|year| (1970..2100).contains(year) && rest.get(4) == Some(&b' '))
}

fn iso_date_time(text: &[u8], is_separator: impl Fn(u8) -> bool) -> Option<(Written, usize)> {
    let head = text.get(..11)?;
    if head[4] != b'-' || head[7] != b'-' || !is_separator(head[10]) {
        return None;
    }
    let year = four_digits(head)?;
    let month = two_digits(&head[5..])?;
    let day = two_digits(&head[8..])?;
    let (clock, length) = clock(&text[11..])?;
    Some((Written { year, month, day, clock }, 11 + length))
}

/// `hh:mm:ss` with an optional fraction.
fn clock(text: &[u8]) -> Option<(Clock, usize)> {
    let head = text.get(..8)?;
    if head[2] != b':' || head[5] != b':' {
        return None;
    }
    let (hour, minute, second) = (two_digits(head)?, two_digits(&head[3..])?, two_digits(&head[6..])?);
    let (nanos, length) = fraction(&text[8..]);
    Some((Clock { hour, minute, second, nanos }, 8 + length))
}

/// A point or comma with digits as nanoseconds, and its length; digits beyond the ninth are ignored.
pub(super) fn fraction(text: &[u8]) -> (u32, usize) {
    let [b'.' | b',', digits @ ..] = text else { return (0, 0) };
    let mut nanos = 0;
    let mut scale = 100_000_000;
    let mut length = 0;
    for byte in digits {
        if !byte.is_ascii_digit() {
            break;
        }
        nanos += u32::from(byte - b'0') * scale;
        scale /= 10;
        length += 1;
    }
    if length == 0 { (0, 0) } else { (nanos, length + 1) }
}

impl Written {
    fn resolve(self, zone: WrittenZone, context: &Context) -> Option<Timestamp> {
        self.is_real().then(|| self.seconds(zone, context)).flatten().and_then(|seconds| self.timestamp(seconds))
    }

    /// Without a year: the one that puts the time nearest to its reception.
    fn resolve_nearest(mut self, zone: WrittenZone, context: &Context) -> Option<Timestamp> {
        let received = (context.received.0 / NANOS) as i64;
        self.year = civil(received.div_euclid(DAY)).0;
        let mut distance = self.seconds(zone, context)?.abs_diff(received);
        // Half a year: nothing else can be nearer.
        if distance > 180 * DAY as u64 {
            for year in [self.year - 1, self.year + 1] {
                let other = Written { year, ..self };
                let other_distance = other.seconds(zone, context)?.abs_diff(received);
                if other_distance < distance {
                    (self, distance) = (other, other_distance);
                }
            }
        }
        self.resolve(zone, context)
    }

    fn is_real(&self) -> bool {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let days = match self.month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 => 28 + i64::from(leap),
            _ => return false,
        };
        // 60: a leap second.
        (1..=days).contains(&self.day) && self.clock.hour < 24 && self.clock.minute < 60 && self.clock.second <= 60
    }

    /// Seconds since the epoch, also for dates that are not real.
    fn seconds(&self, zone: WrittenZone, context: &Context) -> Option<i64> {
        let clock = self.clock;
        let days = days(self.year, self.month, self.day);
        let local = days * DAY + clock.hour * 3600 + clock.minute * 60 + clock.second;
        match zone {
            WrittenZone::Default => Some(context.zone.to_utc(local)),
            WrittenZone::East(east) => Some(local - i64::from(east?)),
        }
    }

    fn timestamp(&self, seconds: i64) -> Option<Timestamp> {
        let nanos = u64::try_from(seconds).ok()?.checked_mul(NANOS)?;
        nanos.checked_add(u64::from(self.clock.nanos)).map(Timestamp)
    }
}

/// `Z` or an offset directly behind the time.
fn glued_zone(text: &[u8]) -> Option<(WrittenZone, usize)> {
    match text {
        [b'Z' | b'z', rest @ ..] if !rest.first().is_some_and(u8::is_ascii_alphanumeric) => {
            Some((WrittenZone::East(Some(0)), 1))
        }
        _ => numeric_zone(text).map(|(east, length)| (WrittenZone::East(east), length)),
    }
}

/// A zone one space behind an ISO time: an offset, or a word that is known.
fn spaced_zone(text: &[u8]) -> Option<(WrittenZone, usize)> {
    let [b' ', rest @ ..] = text else { return None };
    let ends = |length: usize| matches!(rest.get(length), None | Some(b' ' | b':'));
    if let Some((east, length)) = numeric_zone(rest).filter(|(_, length)| ends(*length)) {
        return Some((WrittenZone::East(east), length + 1));
    }
    let length = rest.iter().take_while(|b| b.is_ascii_uppercase()).count();
    let east = zone_offset(&rest[..length]).filter(|_| ends(length))?;
    Some((WrittenZone::East(Some(east)), length + 1))
}

/// ` UTC` if a colon follows; else nothing of length 0. The flag says that the word is unknown.
fn zone_word(text: &[u8]) -> (WrittenZone, usize, bool) {
    let [b' ', rest @ ..] = text else { return (WrittenZone::Default, 0, false) };
    let length = rest.iter().take_while(|b| b.is_ascii_uppercase()).count();
    if length == 0 || rest.get(length) != Some(&b':') {
        return (WrittenZone::Default, 0, false);
    }
    match zone_offset(&rest[..length]) {
        Some(east) => (WrittenZone::East(Some(east)), length + 1, false),
        None => (WrittenZone::Default, length + 1, true),
    }
}

/// `+hh:mm` or `+hhmm`: seconds east (`None` when impossible) and the length.
pub(super) fn numeric_zone(text: &[u8]) -> Option<(Option<i32>, usize)> {
    let sign = match text.first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let hours = two_digits(&text[1..])?;
    let (minutes, length) = match text.get(3)? {
        b':' => (two_digits(&text[4..])?, 6),
        _ => (two_digits(&text[3..])?, 5),
    };
    let east = (hours < 24 && minutes < 60).then(|| sign * (hours * 3600 + minutes * 60) as i32);
    Some((east, length))
}

/// Seconds east of Greenwich. Zone words are ambiguous all over the world (`CST` is also China's); these are the
/// meanings that rule P4 fixes, those of the vendors' home.
fn zone_offset(word: &[u8]) -> Option<i32> {
    let hours = match word {
        b"UTC" | b"GMT" | b"Z" | b"UT" | b"WET" => 0,
        b"EST" => -5,
        b"EDT" => -4,
        b"CST" => -6,
        b"CDT" => -5,
        b"MST" => -7,
        b"MDT" => -6,
        b"PST" => -8,
        b"PDT" => -7,
        b"WEST" | b"BST" | b"CET" => 1,
        b"CEST" | b"EET" => 2,
        b"EEST" | b"MSK" => 3,
        b"JST" => 9,
        b"AEST" => 10,
        b"AEDT" => 11,
        _ => return None,
    };
    Some(hours * 3600)
}

fn month(name: &[u8]) -> Option<i64> {
    Some(match &[name[0] | 0x20, name[1] | 0x20, name[2] | 0x20] {
        b"jan" => 1,
        b"feb" => 2,
        b"mar" => 3,
        b"apr" => 4,
        b"may" => 5,
        b"jun" => 6,
        b"jul" => 7,
        b"aug" => 8,
        b"sep" => 9,
        b"oct" => 10,
        b"nov" => 11,
        b"dec" => 12,
        _ => return None,
    })
}

fn skip(text: &[u8], at: usize, byte: u8) -> Option<usize> {
    (text.get(at) == Some(&byte)).then_some(at + 1)
}

fn two_digits(text: &[u8]) -> Option<i64> {
    let [a @ b'0'..=b'9', b @ b'0'..=b'9', ..] = text else { return None };
    Some(i64::from((a - b'0') * 10 + (b - b'0')))
}

fn four_digits(text: &[u8]) -> Option<i64> {
    Some(two_digits(text)? * 100 + two_digits(text.get(2..)?)?)
}

fn one_or_two_digits(text: &[u8]) -> Option<(i64, usize)> {
    if let Some(value) = two_digits(text) {
        return Some((value, 2));
    }
    let first = text.first().filter(|b| b.is_ascii_digit())?;
    Some((i64::from(first - b'0'), 1))
}

#[cfg(test)]
mod tests {
    use super::super::calendar::write_rfc3339;
    use super::*;

    fn context() -> Context {
        // 2026-03-10T12:00:00Z
        Context { received: Timestamp(1_773_144_000 * NANOS), ..Context::default() }
    }

    fn shown(text: &str) -> Option<(Option<String>, &str)> {
        let reading = read(text.as_bytes(), &context())?;
        Some((reading.time.map(show), &text[reading.end..]))
    }

    fn show(time: Timestamp) -> String {
        let mut out = Vec::new();
        write_rfc3339(&mut out, time, 9);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_form_that_vendors_write_is_read() {
        for (text, expected, rest) in [
            ("Mar 10 11:59:58 h", "2026-03-10T11:59:58Z", " h"),
            ("MAR  9 11:59:58,5 h", "2026-03-09T11:59:58.5Z", " h"),
            ("Mar 9 11:59:58 h", "2026-03-09T11:59:58Z", " h"),
            ("Mar 10 2025 11:59:58: %A", "2025-03-10T11:59:58Z", ": %A"),
            ("2025 Mar 10 11:59:58: %A", "2025-03-10T11:59:58Z", ": %A"),
            ("Mar 10 11:59:58 2025 h", "2025-03-10T11:59:58Z", " h"),
            ("Mar 10 11:59:58 2001:db8::1 h", "2026-03-10T11:59:58Z", " 2001:db8::1 h"),
            ("Mar 10 11:59:58+02:00 h", "2026-03-10T09:59:58Z", " h"),
            ("Mar 10 11:59:58-0230 h", "2026-03-10T14:29:58Z", " h"),
            ("Mar 10 11:59:58.123 CET: h", "2026-03-10T10:59:58.123Z", ": h"),
            ("Mar 10 11:59:58 UTC h", "2026-03-10T11:59:58Z", " UTC h"),
            ("2026-03-10T11:59:58.000000001Z h", "2026-03-10T11:59:58.000000001Z", " h"),
            ("2026-03-10 11:59:58,123 h", "2026-03-10T11:59:58.123Z", " h"),
            ("2026-03-10 11:59:58 +0100 h", "2026-03-10T10:59:58Z", " h"),
            ("2026-03-10 11:59:58 EST h", "2026-03-10T16:59:58Z", " h"),
        ] {
            assert_eq!(shown(text), Some((Some(expected.to_owned()), rest)), "{text}");
        }
    }

    #[test]
    fn impossible_dates_keep_the_form() {
        for text in
            ["Mar 32 11:59:58", "Feb 29 10:00:00", "Mar 10 24:00:00", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00Z"]
        {
            assert_eq!(shown(text), Some((None, "")), "{text}");
        }
    }

    #[test]
    fn other_text_is_no_timestamp() {
        for text in [
            "",
            "Mar",
            "Mar 10",
            "March 10 11:59:58",
            "Mar 10 11:59",
            "10 11:59:58",
            "2026-03-10",
            "2026-03-10X11:59:58Z",
        ] {
            assert_eq!(shown(text), None, "{text}");
        }
    }

    #[test]
    fn a_missing_year_is_the_one_nearest_to_reception() {
        let read = |text: &str, received: &str| {
            let received = rfc3339(received.as_bytes()).unwrap().0.unwrap();
            super::read(text.as_bytes(), &Context { received, ..Context::default() }).unwrap().time.map(show)
        };
        assert_eq!(read("Dec 31 23:59:59", "2026-01-01T00:00:02Z").unwrap(), "2025-12-31T23:59:59Z");
        assert_eq!(read("Jan  1 00:00:01", "2025-12-31T23:59:59Z").unwrap(), "2026-01-01T00:00:01Z");
        assert_eq!(read("Feb 29 10:00:00", "2028-01-10T00:00:00Z").unwrap(), "2028-02-29T10:00:00Z");
        assert_eq!(read("Feb 29 10:00:00", "2027-12-10T00:00:00Z").unwrap(), "2028-02-29T10:00:00Z");
    }

    #[test]
    fn a_leap_second_is_the_next_second() {
        let (time, _) = rfc3339(b"2016-12-31T23:59:60.5Z").unwrap();
        assert_eq!(show(time.unwrap()), "2017-01-01T00:00:00.5Z");
    }

    #[test]
    fn rfc3339_needs_a_t_and_a_zone() {
        assert!(rfc3339(b"2026-03-10t11:59:58z ").is_some());
        assert!(rfc3339(b"2026-03-10T11:59:58.1+0200 ").is_some());
        assert!(rfc3339(b"2026-03-10 11:59:58Z ").is_none());
        assert!(rfc3339(b"2026-03-10T11:59:58 ").is_none());
    }
}
