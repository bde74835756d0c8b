//! Entries: the events of a packed stream, one after the other, borrowed.
//!
//! An entry is `[time, record]`, or `[[time, metadata], record]` from fluent-bit. The time is an integer of seconds or
//! an EventTime (ext type 0: seconds and nanoseconds, 32 bits each, big endian, as fixext 8 or ext 8); the record and
//! the metadata are maps. Anything else is not an event: [`Entries`] steps over it and counts it.

use super::scan::{Unskippable, Walk};
use super::value::{Value, is_map};
use crate::proto::envelope::Timestamp;

/// The time of an event, as it stands in the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Whole seconds since the Unix epoch.
    Seconds(i64),
    /// Seconds and nanoseconds since the Unix epoch.
    EventTime {
        /// Seconds; the two largest numbers are group markers.
        seconds: u32,
        /// Nanoseconds; below 1 000 000 000 from any sane client.
        nanos: u32,
    },
}

/// An entry that is no event but opens or closes a group of them: fluent-bit's way to carry what events of one
/// OpenTelemetry resource and scope share. Keep it in a stream that leaves as forward, drop it elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupMarker {
    /// Seconds are 0xffff_ffff; the record holds what the group shares.
    Start,
    /// Seconds are 0xffff_fffe.
    End,
}

impl Time {
    /// Takes the time at the start of `bytes`.
    #[inline]
    fn take(bytes: &mut &[u8]) -> Option<Time> {
        if let [0xd7, 0, digits @ ..] = *bytes {
            let (time, rest) = digits.split_first_chunk::<8>()?;
            *bytes = rest;
            return Some(Time::event_time(*time));
        }
        match Value::take(bytes)? {
            Value::Int(seconds) => Some(Time::Seconds(seconds)),
            Value::Ext(0, digits) => Some(Time::event_time(digits.try_into().ok()?)),
            _ => None,
        }
    }

    #[inline]
    fn event_time(digits: [u8; 8]) -> Time {
        let both = u64::from_be_bytes(digits);
        Time::EventTime { seconds: (both >> 32) as u32, nanos: both as u32 }
    }

    /// Seconds since the Unix epoch.
    #[must_use]
    pub fn seconds(self) -> i64 {
        match self {
            Time::Seconds(seconds) => seconds,
            Time::EventTime { seconds, .. } => seconds.into(),
        }
    }

    /// Nanoseconds beside the seconds.
    #[must_use]
    pub fn nanos(self) -> u32 {
        match self {
            Time::Seconds(_) => 0,
            Time::EventTime { nanos, .. } => nanos,
        }
    }

    /// Whether the sender did not know the time: seconds are 0, and fluentd puts the time of reception there.
    #[must_use]
    pub fn is_unset(self) -> bool {
        self.seconds() == 0
    }

    /// Whether the entry is no event but a group marker.
    #[must_use]
    pub fn group_marker(self) -> Option<GroupMarker> {
        match self {
            Time::EventTime { seconds: u32::MAX, .. } => Some(GroupMarker::Start),
            Time::EventTime { seconds: 0xffff_fffe, .. } => Some(GroupMarker::End),
            _ => None,
        }
    }

    /// The time in nanoseconds; `received` if the sender did not know it or if it cannot be expressed (before 1970,
    /// after 2554).
    #[must_use]
    pub fn timestamp(self, received: Timestamp) -> Timestamp {
        let nanos = u64::try_from(self.seconds()).ok().and_then(|seconds| {
            let nanos = seconds.checked_mul(1_000_000_000)?;
            nanos.checked_add(self.nanos().into())
        });
        match nanos {
            Some(nanos) if !self.is_unset() => Timestamp(nanos),
            _ => received,
        }
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// When it happened.
    pub time: Time,
    /// The time as MessagePack, without metadata.
    pub raw_time: &'a [u8],
    /// fluent-bit's metadata: a map, as MessagePack.
    pub metadata: Option<&'a [u8]>,
    /// What happened: a map, as MessagePack.
    pub record: &'a [u8],
    /// The whole entry as MessagePack.
    pub raw: &'a [u8],
}

/// Iterator over the sound entries of a stream; those that are not are counted and left out.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Values still to be looked at; a packed stream ends with its bytes instead.
    left: usize,
    invalid: u64,
    walk: Walk,
}

impl<'a> Entries<'a> {
    /// The entries of a packed stream, not compressed.
    #[must_use]
    pub fn new(packed: &'a [u8]) -> Entries<'a> {
        Entries::limited(packed, usize::MAX)
    }

    /// The first `count` values of `bytes`.
    pub(super) fn limited(bytes: &'a [u8], count: usize) -> Entries<'a> {
        Entries { bytes, at: 0, left: count, invalid: 0, walk: Walk::new() }
    }

    /// Values met so far that are no entries. Bytes that are no MessagePack count once and end the iteration.
    #[must_use]
    pub fn invalid(&self) -> u64 {
        self.invalid
    }

    /// Bytes looked at.
    pub(super) fn looked_at(&self) -> usize {
        self.at
    }

    /// Bytes looked at; `None` before the announced number of values was.
    pub(super) fn finished_at(&self) -> Option<usize> {
        (self.left == 0).then_some(self.at)
    }

    /// Reads the entry at `at`.
    #[inline]
    fn entry(&mut self, at: usize) -> Option<Entry<'a>> {
        let time_at = at + pair_header(&self.bytes[at..])?;
        let mut rest = &self.bytes[time_at..];
        let (time, raw_time, metadata, record_at) = match pair_header(rest) {
            None => {
                let time = Time::take(&mut rest)?;
                let end = self.bytes.len() - rest.len();
                (time, &self.bytes[time_at..end], None, end)
            }
            Some(length) => {
                let time_at = time_at + length;
                rest = &self.bytes[time_at..];
                let time = Time::take(&mut rest)?;
                let metadata_at = self.bytes.len() - rest.len();
                let end = self.map_end(metadata_at)?;
                (time, &self.bytes[time_at..metadata_at], Some(&self.bytes[metadata_at..end]), end)
            }
        };
        let end = self.map_end(record_at)?;
        Some(Entry { time, raw_time, metadata, record: &self.bytes[record_at..end], raw: &self.bytes[at..end] })
    }

    #[inline]
    fn map_end(&mut self, at: usize) -> Option<usize> {
        if !is_map(*self.bytes.get(at)?) {
            return None;
        }
        self.walk.skip(self.bytes, at).ok()
    }

    /// Steps over what is no entry.
    #[cold]
    fn skip_invalid(&mut self) {
        self.invalid += 1;
        match self.walk.skip(self.bytes, self.at) {
            Ok(end) | Err(Unskippable::TooDeep(end)) => {
                self.at = end;
                self.left -= 1;
            }
            Err(Unskippable::Malformed) => self.at = self.bytes.len(),
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    #[inline]
    fn next(&mut self) -> Option<Entry<'a>> {
        while self.left > 0 && self.at < self.bytes.len() {
            if let Some(entry) = self.entry(self.at) {
                self.at += entry.raw.len();
                self.left -= 1;
                return Some(entry);
            }
            self.skip_invalid();
        }
        None
    }
}

/// The length of the header of an array of two, in any of its three widths.
#[inline]
fn pair_header(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [0x92, ..] => Some(1),
        [0xdc, 0, 2, ..] => Some(3),
        [0xdd, 0, 0, 0, 2, ..] => Some(5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(packed: &[u8]) -> Vec<Time> {
        Entries::new(packed).map(|entry| entry.time).collect()
    }

    #[test]
    fn times_come_in_every_width() {
        let event_time = Time::EventTime { seconds: 1, nanos: 2 };
        for (bytes, time) in [
            (&[5][..], Time::Seconds(5)),
            (&[0xcc, 200], Time::Seconds(200)),
            (&[0xcd, 1, 0], Time::Seconds(256)),
            (&[0xce, 0x69, 0xb0, 0x07, 0xbe], Time::Seconds(1_773_143_998)),
            (&[0xcf, 0, 0, 0, 2, 0, 0, 0, 0], Time::Seconds(8_589_934_592)),
            (&[0xd0, 0xff], Time::Seconds(-1)),
            (&[0xd2, 0x6b, 0, 0x89, 0x6f], Time::Seconds(1_795_197_295)),
            (&[0xd3, 0, 0, 0, 0, 0, 0, 0, 1], Time::Seconds(1)),
            (&[0xd7, 0, 0, 0, 0, 1, 0, 0, 0, 2], event_time),
            (&[0xc7, 8, 0, 0, 0, 0, 1, 0, 0, 0, 2], event_time),
        ] {
            for pair in [&[0x92][..], &[0xdc, 0, 2], &[0xdd, 0, 0, 0, 2]] {
                let plain = [pair, bytes, &[0x80]].concat();
                let nested = [pair, pair, bytes, &[0x81, 1, 2, 0x81, 3, 4]].concat();
                assert_eq!(times(&[plain, nested.clone()].concat()), [time, time], "{bytes:02x?}");
                let entry = Entries::new(&nested).next().unwrap();
                assert_eq!((entry.raw_time, entry.metadata), (bytes, Some(&[0x81, 1, 2][..])));
                assert_eq!((entry.record, entry.raw), (&[0x81, 3, 4][..], &nested[..]));
            }
        }
    }

    #[test]
    fn what_is_no_entry_is_counted_and_its_neighbours_stay() {
        let deep = [&[0x92, 1, 0x81, 1][..], &[0x91; 64], &[1]].concat();
        for invalid in [
            &[0xc0][..],
            &[1],
            &[0x90],
            &[0x91, 1],
            &[0x93, 1, 0x80, 2],
            &[0x92, 1, 0x90],
            &[0x92, 1, 2],
            &[0x92, 0xc0, 0x80],
            &[0x92, 0xa1, b'1', 0x80],
            &[0x92, 0xcf, 0xff, 0, 0, 0, 0, 0, 0, 0, 0x80],
            &[0x92, 0xd7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80],
            &[0x92, 0xd6, 0, 0, 0, 0, 0, 0x80],
            &[0x92, 0x92, 1, 2, 0x80],
            &[0x92, 0x92, 0x92, 1, 0x80, 0x80, 0x80],
            &deep,
        ] {
            let packed = [&[0x92, 1, 0x80][..], invalid, &[0x92, 2, 0x80]].concat();
            let mut entries = Entries::new(&packed);
            assert_eq!(entries.by_ref().map(|e| e.time.seconds()).collect::<Vec<_>>(), [1, 2], "{invalid:02x?}");
            assert_eq!(entries.invalid(), 1, "{invalid:02x?}");
        }
    }

    #[test]
    fn a_stream_that_breaks_keeps_what_came_before() {
        for broken in [&[0xc1, 0x92, 1, 0x80][..], &[0x92, 1], &[0x92], &[0x92, 1, 0x81, 1], &[0xd9], &[0x92, 0xd7, 0]]
        {
            let packed = [&[0x92, 1, 0x80][..], broken].concat();
            let mut entries = Entries::new(&packed);
            assert_eq!((entries.by_ref().count(), entries.invalid()), (1, 1), "{broken:02x?}");
        }
    }

    #[test]
    fn a_time_of_zero_is_the_time_of_reception() {
        let received = Timestamp(9);
        assert_eq!(Time::Seconds(0).timestamp(received), received);
        assert_eq!(Time::EventTime { seconds: 0, nanos: 5 }.timestamp(received), received);
        assert_eq!(Time::EventTime { seconds: 2, nanos: 5 }.timestamp(received), Timestamp(2_000_000_005));
        assert_eq!(Time::Seconds(8_589_934_592).timestamp(received), Timestamp(8_589_934_592_000_000_000));
        assert_eq!(Time::Seconds(-1).timestamp(received), received);
        assert_eq!(Time::Seconds(i64::MAX).timestamp(received), received);
    }

    #[test]
    fn group_markers_are_recognised() {
        let marker = |seconds| Time::EventTime { seconds, nanos: 0 }.group_marker();
        assert_eq!(marker(u32::MAX), Some(GroupMarker::Start));
        assert_eq!(marker(u32::MAX - 1), Some(GroupMarker::End));
        assert_eq!(marker(u32::MAX - 2), None);
        assert_eq!(Time::Seconds(-1).group_marker(), None);
    }
}
