//! Finds where a MessagePack value ends, without decoding it and without a byte allocated for what it claims.
//!
//! A value is a sequence of headers; each closes one open place and, if it is an array's or a map's, opens as many as it
//! announces. The value ends when no place is open. So the state between two reads is a position and a number, whatever
//! the nesting, and a frame that comes in thousands of reads is looked at once. The nesting is tracked beside it, only to
//! refuse what nobody could unpack: a container ends when the number of open places is down to what it was before, which
//! need not be noticed before the next container begins.
//!
//! As each open place takes at least one byte, a claim (`dd ff ff ff ff`, an array of 4 294 967 295) is refused as too
//! large when it is read, not when memory is gone.

use rmp::Marker;
use thiserror::Error;

/// Deepest nesting of a frame or of an entry. msgpack-c, and so fluent-bit, stops at 32.
pub const DEPTH_MAX: usize = 64;

/// Why a stream cannot be read on. All are the sender's fault; as the next frame cannot be found, close the connection.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ScanError {
    /// A frame is, or announces to be, larger than is taken. A sender that waits for an acknowledgement will send it
    /// again: tell the operator.
    #[error("a frame of at least {needed} bytes is larger than max_chunk, {max} bytes")]
    TooLarge {
        /// Bytes that the frame has at least.
        needed: usize,
        /// The limit.
        max: usize,
    },
    /// Arrays and maps are nested deeper than [`DEPTH_MAX`].
    #[error("a frame is nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// The byte 0xc1, which MessagePack never uses: this is no MessagePack.
    #[error("byte 0xc1 is no MessagePack")]
    Reserved,
}

/// What is known of the frame at the start of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is so many bytes long; the scanner is ready for the one after it.
    Complete(usize),
    /// It goes on behind the bytes there are.
    Incomplete {
        /// Bytes that it has at least: room that will be needed.
        needed: usize,
        /// Whether it ends there or little behind: no more than the value at hand, which is cut, and one other are to come.
        is_near: bool,
    },
}

/// Finds frames in the stream of one connection.
#[derive(Clone, Debug)]
pub struct Scanner {
    walk: Walk,
    max: usize,
}

impl Scanner {
    /// A scanner for frames of at most `max_chunk` bytes.
    #[must_use]
    pub fn new(max_chunk: usize) -> Scanner {
        Scanner { walk: Walk::new(), max: max_chunk }
    }

    /// Changes the limit, when the handshake is over and frames may be large.
    pub fn set_max(&mut self, max_chunk: usize) {
        self.max = max_chunk;
    }

    /// Looks for the end of the frame at the start of `bytes`. After [`Step::Incomplete`] the next call must be given
    /// the same bytes and those that came since; what was seen is not looked at again.
    ///
    /// # Errors
    /// Says why the stream cannot be read; every later call would say the same.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Step, ScanError> {
        let complete = self.walk.run(bytes, self.max).map_err(|Reserved| ScanError::Reserved)?;
        let needed = self.walk.at.saturating_add(self.walk.open);
        if needed > self.max {
            return Err(ScanError::TooLarge { needed, max: self.max });
        }
        if self.walk.too_deep {
            return Err(ScanError::TooDeep);
        }
        if complete {
            self.walk.start(0);
            return Ok(Step::Complete(needed));
        }
        let is_near = self.walk.at > bytes.len() && self.walk.open <= 1;
        Ok(Step::Incomplete { needed: needed.max(bytes.len() + 1), is_near })
    }
}

/// The byte that MessagePack never uses was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserved;

/// Why a value of a complete slice cannot be skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unskippable {
    /// It is cut or no MessagePack; nothing behind it can be found.
    Malformed,
    /// It is nested too deep, but ends here.
    TooDeep(usize),
}

/// A walk over headers: where it is and what is still open.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// The next header; behind the end of the bytes if a leaf is cut.
    at: usize,
    /// Values still to come.
    open: usize,
    /// Containers that may not have ended.
    depth: usize,
    too_deep: bool,
    /// For each container, how many values were open before it began: at so few again, it has ended.
    ends: [usize; DEPTH_MAX],
}

impl Walk {
    pub(super) fn new() -> Walk {
        Walk { at: 0, open: 1, depth: 0, too_deep: false, ends: [0; DEPTH_MAX] }
    }

    #[inline]
    fn start(&mut self, at: usize) {
        (self.at, self.open, self.depth, self.too_deep) = (at, 1, 0, false);
    }

    /// The end of the value that starts at `at` of `bytes`, which hold it whole.
    #[inline]
    pub(super) fn skip(&mut self, bytes: &[u8], at: usize) -> Result<usize, Unskippable> {
        self.start(at);
        match self.run(bytes, bytes.len()) {
            Ok(true) if self.too_deep => Err(Unskippable::TooDeep(self.at)),
            Ok(true) => Ok(self.at),
            Ok(false) | Err(Reserved) => Err(Unskippable::Malformed),
        }
    }

    /// Goes on to the end of the value, if `bytes` hold it. Stops early at a claim that leads beyond `max`.
    #[inline]
    fn run(&mut self, bytes: &[u8], max: usize) -> Result<bool, Reserved> {
        let (mut at, mut open) = (self.at, self.open);
        while open > 0 {
            let Some(&marker) = bytes.get(at) else { break };
            let length = usize::from(LEAF_LENGTHS[usize::from(marker)]);
            if length > 0 {
                at += length;
                open -= 1;
                continue;
            }
            match Header::read(&bytes[at..]) {
                Header::Leaf(length) => {
                    at += length;
                    open -= 1;
                }
                Header::Container { length, values } => {
                    self.enter(open);
                    at += length;
                    open += values - 1;
                    if at + open > max {
                        break;
                    }
                }
                Header::Cut => break,
                Header::Reserved => return Err(Reserved),
            }
        }
        (self.at, self.open) = (at, open);
        Ok(open == 0 && at <= bytes.len())
    }

    /// Notes that a container begins, itself one of `open` values.
    #[inline]
    fn enter(&mut self, open: usize) {
        while self.depth > 0 && self.ends[self.depth - 1] >= open {
            self.depth -= 1;
        }
        match self.ends.get_mut(self.depth) {
            Some(end) => {
                *end = open - 1;
                self.depth += 1;
            }
            None => self.too_deep = true,
        }
    }
}

enum Header {
    /// A value without values in it, so many bytes long in all; also an empty container.
    Leaf(usize),
    /// A header of `length` bytes before `values` values, at least one.
    Container {
        length: usize,
        values: usize,
    },
    /// The header itself is cut.
    Cut,
    Reserved,
}

impl Header {
    /// Reads what [`LEAF_LENGTHS`] does not know.
    #[inline]
    fn read(bytes: &[u8]) -> Header {
        let container = |length, values| match values {
            0 => Header::Leaf(length),
            _ => Header::Container { length, values },
        };
        let number = |width: usize| {
            let digits: &[u8] = bytes.get(1..1 + width)?;
            Some(digits.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
        };
        let header = match Marker::from_u8(bytes[0]) {
            Marker::FixArray(values) => Some(container(1, usize::from(values))),
            Marker::FixMap(pairs) => Some(container(1, 2 * usize::from(pairs))),
            Marker::Str8 | Marker::Bin8 => number(1).map(|length| Header::Leaf(2 + length)),
            Marker::Str16 | Marker::Bin16 => number(2).map(|length| Header::Leaf(3 + length)),
            Marker::Str32 | Marker::Bin32 => number(4).map(|length| Header::Leaf(5 + length)),
            Marker::Ext8 => number(1).map(|length| Header::Leaf(3 + length)),
            Marker::Ext16 => number(2).map(|length| Header::Leaf(4 + length)),
            Marker::Ext32 => number(4).map(|length| Header::Leaf(6 + length)),
            Marker::Array16 => number(2).map(|values| container(3, values)),
            Marker::Array32 => number(4).map(|values| container(5, values)),
            Marker::Map16 => number(2).map(|pairs| container(3, 2 * pairs)),
            Marker::Map32 => number(4).map(|pairs| container(5, 2 * pairs)),
            _ => Some(Header::Reserved),
        };
        header.unwrap_or(Header::Cut)
    }
}

/// Bytes of a value, by its first byte; 0 if that byte alone does not say or if values follow.
const LEAF_LENGTHS: [u8; 256] = {
    let mut lengths = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        lengths[byte] = match Marker::from_u8(byte as u8) {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => 1,
            Marker::FixArray(0) | Marker::FixMap(0) => 1,
            Marker::FixStr(length) => 1 + length,
            Marker::U8 | Marker::I8 => 2,
            Marker::U16 | Marker::I16 | Marker::FixExt1 => 3,
            Marker::FixExt2 => 4,
            Marker::U32 | Marker::I32 | Marker::F32 => 5,
            Marker::FixExt4 => 6,
            Marker::U64 | Marker::I64 | Marker::F64 => 9,
            Marker::FixExt8 => 10,
            Marker::FixExt16 => 18,
            _ => 0,
        };
        byte += 1;
    }
    lengths
};

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Result<Step, ScanError> {
        Scanner::new(1 << 20).scan(bytes)
    }

    /// A value of every kind, from the MessagePack specification.
    fn values() -> Vec<Vec<u8>> {
        let long = |head: &[u8], length: usize| [head, &vec![0xc1; length]].concat();
        let mut values: Vec<Vec<u8>> = vec![
            vec![0x00],
            vec![0x7f],
            vec![0xe0],
            vec![0xc0],
            vec![0xc2],
            vec![0xc3],
            vec![0x80],
            vec![0x90],
            long(&[0xbf], 31),
        ];
        for (marker, length) in [(0xcc, 1), (0xcd, 2), (0xce, 4), (0xcf, 8), (0xd0, 1), (0xd1, 2), (0xd2, 4), (0xd3, 8)]
        {
            values.push(long(&[marker], length));
        }
        for (marker, length) in [(0xca, 4), (0xcb, 8), (0xd4, 2), (0xd5, 3), (0xd6, 5), (0xd7, 9), (0xd8, 17)] {
            values.push(long(&[marker], length));
        }
        for (head, length) in [
            (&[0xc4, 3][..], 3),
            (&[0xc5, 1, 0], 256),
            (&[0xc6, 0, 0, 1, 1], 257),
            (&[0xd9, 3], 3),
            (&[0xda, 1, 0], 256),
            (&[0xdb, 0, 0, 1, 1], 257),
            (&[0xc7, 3], 4),
            (&[0xc8, 1, 0], 257),
            (&[0xc9, 0, 0, 1, 1], 258),
        ] {
            values.push(long(head, length));
        }
        values.extend([
            vec![0x93, 1, 2, 3],
            vec![0x82, 1, 2, 3, 4],
            vec![0xdc, 0, 2, 1, 2],
            vec![0xdd, 0, 0, 0, 1, 0x91, 1],
            vec![0xde, 0, 1, 1, 2],
            vec![0xdf, 0, 0, 0, 1, 1, 0x81, 1, 2],
            vec![0xdf, 0, 0, 0, 0],
        ]);
        values
    }

    #[test]
    fn every_kind_of_value_ends_where_it_ends() {
        for value in values() {
            let followed = [&value[..], &[0xc1; 3]].concat();
            assert_eq!(scan(&followed), Ok(Step::Complete(value.len())), "{value:02x?}");
            for end in 0..value.len() {
                let Ok(Step::Incomplete { needed, .. }) = scan(&value[..end]) else { panic!("{value:02x?} to {end}") };
                assert!(needed > end && needed <= value.len(), "{value:02x?} to {end}: {needed}");
            }
        }
    }

    #[test]
    fn a_frame_may_come_byte_by_byte() {
        let all = values();
        let frame = [&[0xdc, 0, all.len() as u8][..], &all.concat()].concat();
        let stream = [&frame[..], &frame[..]].concat();
        let mut scanner = Scanner::new(1 << 20);
        for frame_start in [0, frame.len()] {
            let stream = &stream[frame_start..];
            for end in 0..frame.len() {
                assert!(matches!(scanner.scan(&stream[..end]), Ok(Step::Incomplete { .. })), "{end}");
            }
            assert_eq!(scanner.scan(stream), Ok(Step::Complete(frame.len())));
        }
    }

    #[test]
    fn claims_are_refused_when_they_are_made() {
        let too_large = |bytes: &[u8]| matches!(scan(bytes), Err(ScanError::TooLarge { max: 0x10_0000, .. }));
        for marker in [0xdd, 0xdf, 0xdb, 0xc6, 0xc9] {
            assert!(too_large(&[marker, 0xff, 0xff, 0xff, 0xff]), "{marker:x}");
            assert!(too_large(&[0x92, 0xa0, marker, 0xff, 0xff, 0xff, 0xff, 0]), "{marker:x}");
        }
        assert!(too_large(&[0xdd, 0xff, 0xff, 0xff, 0xff].repeat(1000)));
        let exact = [&[0xdb, 0, 0x10, 0, 0][..], &vec![b'x'; 1 << 20]].concat();
        assert!(too_large(&exact), "the limit includes the header");
        assert_eq!(Scanner::new(exact.len()).scan(&exact), Ok(Step::Complete(exact.len())));
    }

    #[test]
    fn nesting_is_limited_and_siblings_do_not_count() {
        let nested = |depth: usize| [vec![0x91; depth], vec![1]].concat();
        assert_eq!(scan(&nested(DEPTH_MAX)), Ok(Step::Complete(DEPTH_MAX + 1)));
        assert_eq!(scan(&nested(DEPTH_MAX + 1)), Err(ScanError::TooDeep));
        assert_eq!(scan(&vec![0x91; 1 << 19]), Err(ScanError::TooDeep));
        let siblings = [&[0xdc, 4, 0][..], &[0x92, 0x91, 1, 2].repeat(1024)].concat();
        assert_eq!(scan(&siblings), Ok(Step::Complete(siblings.len())));
        let last = [&[0xdc, 0, 99][..], &nested(DEPTH_MAX - 1).repeat(99)].concat();
        assert_eq!(scan(&last), Ok(Step::Complete(last.len())));
    }

    #[test]
    fn what_is_nested_too_deep_can_still_be_skipped() {
        let value = [vec![0x92; 100], vec![1; 101], vec![7]].concat();
        assert_eq!(Walk::new().skip(&value, 0), Err(Unskippable::TooDeep(201)));
    }

    #[test]
    fn the_unused_byte_is_no_messagepack() {
        assert_eq!(scan(&[0xc1]), Err(ScanError::Reserved));
        assert_eq!(scan(&[0x92, 1, 0xc1]), Err(ScanError::Reserved));
    }
}
