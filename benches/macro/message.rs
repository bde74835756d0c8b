//! The message of every load: 256 bytes of RFC 5424 whose last bytes say where it comes from and when it left.
//!
//! ```text
//! <134>1 2025-01-01T00:00:00.000000Z bench macro 1 - - GET /…  stream=0000002a seq=000f4240 sent=000000e8d4a51000
//! ```
//!
//! The stamp stands at the end, at a fixed distance from it, so that it is found whatever a relay does to the header.
//! Fixed-width hexadecimal: stamping a message is 32 table look-ups in place, no formatting.

/// Length of a message without its line end.
pub const MESSAGE_BYTES: usize = 256;

/// A message and its LF, as it stands in a TCP stream.
pub const LINE_BYTES: usize = MESSAGE_BYTES + 1;

const HEADER: &[u8] = b"<134>1 2025-01-01T00:00:00.000000Z bench macro 1 - - ";
const FILLER: &[u8] = b"GET /an/average/request HTTP/1.1 200 5120 from 192.0.2.17 by Mozilla/5.0 in 31 ms ";
const STAMP: &[u8] = b" stream=00000000 seq=00000000 sent=0000000000000000";

// Places of the three numbers, counted from the begin of the stamp.
const STREAM: std::ops::Range<usize> = 8..16;
const SEQUENCE: std::ops::Range<usize> = 21..29;
const SENT: std::ops::Range<usize> = 35..51;

/// What a message says of itself.
#[derive(Clone, Copy)]
pub struct Stamp {
    /// Which of the generator's streams (TCP connections) it was sent on.
    pub stream: u32,
    /// Its number in that stream, from 0.
    pub sequence: u32,
}

/// A message with an all-zero stamp.
pub fn unstamped() -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    let (body, stamp) = message.split_at_mut(MESSAGE_BYTES - STAMP.len());
    let text = HEADER.iter().chain(FILLER.iter().cycle());
    body.iter_mut().zip(text).for_each(|(byte, letter)| *byte = *letter);
    stamp.copy_from_slice(STAMP);
    message
}

/// Writes `stamp` and the time of sending into a message.
pub fn write_stamp(message: &mut [u8], stamp: Stamp, sent_ns: u64) {
    let at = message.len() - STAMP.len();
    let field = &mut message[at..];
    write_hex(&mut field[STREAM], stamp.stream.into());
    write_hex(&mut field[SEQUENCE], stamp.sequence.into());
    write_hex(&mut field[SENT], sent_ns);
}

/// The stamp at the end of a line without its LF; none if the line is not one of ours, or was cut.
pub fn read_stamp(line: &[u8]) -> Option<Stamp> {
    let field = stamp_of(line)?;
    if !field.starts_with(b" stream=") {
        return None;
    }
    let stream = u32::try_from(read_hex(&field[STREAM])?).ok()?;
    let sequence = u32::try_from(read_hex(&field[SEQUENCE])?).ok()?;
    Some(Stamp { stream, sequence })
}

/// A line up to the end of the last stamp in it; all of it if there is none.
pub fn until_stamp(line: &[u8]) -> &[u8] {
    let at = memchr::memmem::rfind(line, b" stream=");
    at.and_then(|at| line.get(..at + STAMP.len())).unwrap_or(line)
}

/// The time of sending in a line that has a stamp. Apart from [`read_stamp`], because only a sample is asked for it.
pub fn read_sent_ns(line: &[u8]) -> Option<u64> {
    read_hex(&stamp_of(line)?[SENT])
}

fn stamp_of(line: &[u8]) -> Option<&[u8]> {
    line.len().checked_sub(STAMP.len()).map(|at| &line[at..])
}

fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}
