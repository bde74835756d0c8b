//! Where one frame ends and the next begins.
//!
//! ```text
//! TXNR SP COMMAND SP DATALEN [SP DATA] LF        TXNR, DATALEN: 1 to 9 digits; COMMAND: 1 to 32 letters
//! ```
//!
//! A [`Scanner`] holds no bytes. Its caller keeps what was not consumed and shows it again, longer; never more than a header
//! and the longest data are waited for. Of a frame with longer data the begin is given as soon as it is there, and the rest
//! is passed over, so that the stream stays in step.

use thiserror::Error;

/// The largest transaction number; 1 follows.
const TXNR_MAX: u32 = 999_999_999;
/// Most digits of a number.
const DIGITS_MAX: usize = 9;
/// Most letters of a command.
const LETTERS_MAX: usize = 32;
/// Most bytes before a frame's data.
pub const HEADER_BYTES_MAX: usize = DIGITS_MAX + 1 + LETTERS_MAX + 1 + DIGITS_MAX + 1;

/// Why the bytes are no RELP: there is no way back into step, the connection is closed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// A TLS ClientHello on a port without TLS.
    #[error("a TLS handshake, on a port without TLS")]
    TlsOnPlainPort,
    /// The stream does not begin with a digit; plain syslog begins with `<`.
    #[error("the stream does not begin as RELP does")]
    NotRelp,
    /// No number of 1 to 9 digits and a space at the frame's start.
    #[error("a frame without a transaction number")]
    Number,
    /// No 1 to 32 letters and a space behind the number.
    #[error("a frame without a command")]
    Command,
    /// No number of 1 to 9 digits behind the command, or not what follows it: a space before data, a line feed without.
    #[error("a frame without a length")]
    Length,
    /// No line feed where the length says that the frame ends.
    #[error("no line feed at the frame's end")]
    Trailer,
}

impl FrameError {
    /// The reason's name in metrics; never changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FrameError::TlsOnPlainPort => "tls_on_plain_port",
            FrameError::NotRelp => "not_relp",
            FrameError::Number => "bad_number",
            FrameError::Command => "bad_command",
            FrameError::Length => "bad_length",
            FrameError::Trailer => "bad_trailer",
        }
    }
}

/// A transaction number: 0 for hints, which nobody answers, else 1 to 999 999 999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Txnr(u32);

impl Txnr {
    /// That of hints.
    pub const HINT: Txnr = Txnr(0);

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// What follows: after the largest comes 1.
    #[must_use]
    pub fn next(self) -> Txnr {
        Txnr(if self.0 >= TXNR_MAX { 1 } else { self.0 + 1 })
    }
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The begin, with offers.
    Open,
    /// A message.
    Syslog,
    /// The end.
    Close,
    /// Nothing that this server knows.
    Unknown,
}

impl Command {
    fn of(name: &[u8]) -> Command {
        match name {
            b"open" => Command::Open,
            b"syslog" => Command::Syslog,
            b"close" => Command::Close,
            _ => Command::Unknown,
        }
    }
}

/// A frame, or the begin of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its number.
    pub txnr: Txnr,
    /// What it is for.
    pub command: Command,
    /// Its data; empty if it has none.
    pub data: &'a [u8],
}

/// What the bytes shown to a [`Scanner`] begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A whole frame.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// Bytes of the input that are done with.
        consumed: usize,
    },
    /// The begin of a frame with more data than the limit; its end comes as [`Found::End`].
    Begin {
        /// The frame, with as many data as the limit allows.
        frame: Frame<'a>,
        /// Bytes of the input that are done with.
        consumed: usize,
    },
    /// The end of the frame that [`Found::Begin`] was the begin of.
    End {
        /// Its number.
        txnr: Txnr,
        /// Bytes of the input that are done with.
        consumed: usize,
    },
    /// No frame yet: read more, then show what was not consumed again together with what came.
    NeedMore {
        /// Bytes of the input that are done with nevertheless.
        consumed: usize,
    },
}

/// Finds the frames in one connection's stream.
#[derive(Clone, Debug)]
pub struct Scanner {
    data_max: usize,
    state: State,
    /// The stream has shown that it is RELP.
    started: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// At a frame's start.
    Start,
    /// In the data of a frame whose begin was given, `left` bytes before its trailer.
    Rest { txnr: Txnr, left: usize },
}

struct Header {
    txnr: Txnr,
    command: Command,
    length: usize,
    /// Where the data begin; without data, where the trailer is.
    data_at: usize,
}

impl Scanner {
    /// A scanner at the start of a stream that gives at most `data_max` bytes of a frame's data.
    #[must_use]
    pub fn new(data_max: usize) -> Scanner {
        Scanner { data_max, state: State::Start, started: false }
    }

    /// Takes the first step into `input`: the stream's bytes from the first one not consumed yet.
    ///
    /// The caller drops `consumed` bytes after each step and goes on until [`Found::NeedMore`].
    ///
    /// # Errors
    /// The stream is no RELP, or no more. What was not consumed is lost.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Found<'a>, FrameError> {
        match self.state {
            State::Start => self.start(input),
            State::Rest { txnr, left } => self.rest(input, txnr, left),
        }
    }

    fn start<'a>(&mut self, input: &'a [u8]) -> Result<Found<'a>, FrameError> {
        if !self.started {
            match input.first() {
                None | Some(b'0'..=b'9') => {}
                Some(0x16) => return Err(FrameError::TlsOnPlainPort),
                Some(_) => return Err(FrameError::NotRelp),
            }
        }
        let Some(Header { txnr, command, length, data_at }) = Header::parse(input)? else {
            return Ok(Found::NeedMore { consumed: 0 });
        };
        self.started = true;
        if length > self.data_max {
            let begin_ends = data_at + self.data_max;
            let Some(data) = input.get(data_at..begin_ends) else { return Ok(Found::NeedMore { consumed: 0 }) };
            self.state = State::Rest { txnr, left: length - self.data_max };
            return Ok(Found::Begin { frame: Frame { txnr, command, data }, consumed: begin_ends });
        }
        let trailer_at = data_at + length;
        match input.get(trailer_at) {
            None => Ok(Found::NeedMore { consumed: 0 }),
            Some(b'\n') => {
                let frame = Frame { txnr, command, data: &input[data_at..trailer_at] };
                Ok(Found::Frame { frame, consumed: trailer_at + 1 })
            }
            Some(_) => Err(FrameError::Trailer),
        }
    }

    fn rest<'a>(&mut self, input: &'a [u8], txnr: Txnr, left: usize) -> Result<Found<'a>, FrameError> {
        match input.get(left) {
            None => {
                self.state = State::Rest { txnr, left: left - input.len() };
                Ok(Found::NeedMore { consumed: input.len() })
            }
            Some(b'\n') => {
                self.state = State::Start;
                Ok(Found::End { txnr, consumed: left + 1 })
            }
            Some(_) => Err(FrameError::Trailer),
        }
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_between_frames(&self, unconsumed: &[u8]) -> bool {
        unconsumed.is_empty() && matches!(self.state, State::Start)
    }
}

impl Header {
    /// `None` if it is not whole yet.
    fn parse(input: &[u8]) -> Result<Option<Header>, FrameError> {
        let number = |input| field(input, DIGITS_MAX, u8::is_ascii_digit);
        let Some((txnr, end)) = number(input).ok_or(FrameError::Number)? else { return Ok(None) };
        if end != b' ' {
            return Err(FrameError::Number);
        }
        let command_at = txnr.len() + 1;
        let command = field(&input[command_at..], LETTERS_MAX, u8::is_ascii_alphabetic);
        let Some((command, end)) = command.ok_or(FrameError::Command)? else { return Ok(None) };
        if end != b' ' {
            return Err(FrameError::Command);
        }
        let length_at = command_at + command.len() + 1;
        let Some((digits, end)) = number(&input[length_at..]).ok_or(FrameError::Length)? else { return Ok(None) };
        let (length, end_at) = (value(digits), length_at + digits.len());
        let data_at = match (length, end) {
            (0, b'\n') => end_at,
            (1.., b' ') => end_at + 1,
            _ => return Err(FrameError::Length),
        };
        let (txnr, command) = (Txnr(value(txnr)), Command::of(command));
        Ok(Some(Header { txnr, command, length: length as usize, data_at }))
    }
}

/// The field at the front of `input` and the byte that ends it: `Some(None)` if that has not come yet, `None` if the field
/// is empty or too long.
fn field(input: &[u8], length_max: usize, belongs: fn(&u8) -> bool) -> Option<Option<(&[u8], u8)>> {
    let length = input.iter().take(length_max + 1).take_while(|byte| belongs(byte)).count();
    match input.get(length) {
        _ if length > length_max => None,
        None => Some(None),
        Some(_) if length == 0 => None,
        Some(end) => Some(Some((&input[..length], *end))),
    }
}

/// The value of at most nine digits.
fn value(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(stream: &[u8]) -> Result<Found<'_>, FrameError> {
        Scanner::new(100).next(stream)
    }

    #[test]
    fn a_frame_is_found_as_soon_as_it_is_whole_and_not_before() {
        let stream = b"17 syslog 7 <13>a\nbX";
        for cut in 0..=stream.len() {
            let expected = if cut < 20 { Ok(Found::NeedMore { consumed: 0 }) } else { Err(FrameError::Trailer) };
            assert_eq!(whole(&stream[..cut]), expected, "{cut} bytes");
        }
        let stream = b"17 syslog 7 <13>a\nb\n18 close 0\n";
        let frame = Frame { txnr: Txnr(17), command: Command::Syslog, data: b"<13>a\nb" };
        assert_eq!(whole(stream), Ok(Found::Frame { frame, consumed: 20 }));
        let frame = Frame { txnr: Txnr(18), command: Command::Close, data: b"" };
        assert_eq!(whole(&stream[20..]), Ok(Found::Frame { frame, consumed: 11 }));
    }

    #[test]
    fn every_malformed_frame_has_its_name() {
        for (stream, error) in [
            (&b"<13>plain syslog"[..], FrameError::NotRelp),
            (b"\x16\x03\x01", FrameError::TlsOnPlainPort),
            (b"1234567890 ", FrameError::Number),
            (b"1x", FrameError::Number),
            (b"1  syslog", FrameError::Command),
            (b"1 sys-log", FrameError::Command),
            (b"1 abcdefghijklmnopqrstuvwxyzabcdefg", FrameError::Command),
            (b"1 syslog\n", FrameError::Command),
            (b"1 syslog  ", FrameError::Length),
            (b"1 syslog -1", FrameError::Length),
            (b"1 syslog 1234567890", FrameError::Length),
            (b"1 close 0 ", FrameError::Length),
            (b"1 syslog 1\n", FrameError::Length),
            (b"1 syslog 1 ab", FrameError::Trailer),
        ] {
            assert_eq!(whole(stream), Err(error), "{}", stream.escape_ascii());
            assert!(stream.len() < HEADER_BYTES_MAX);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_given_cut_and_passed_over() {
        let mut scanner = Scanner::new(4);
        let begin = Frame { txnr: Txnr(1), command: Command::Syslog, data: b"abcd" };
        assert_eq!(scanner.next(b"1 syslog 7 abc"), Ok(Found::NeedMore { consumed: 0 }));
        assert_eq!(scanner.next(b"1 syslog 7 abcd"), Ok(Found::Begin { frame: begin, consumed: 15 }));
        assert_eq!(scanner.next(b"ef"), Ok(Found::NeedMore { consumed: 2 }));
        assert!(!scanner.is_between_frames(b""));
        assert_eq!(scanner.next(b"g\n2"), Ok(Found::End { txnr: Txnr(1), consumed: 2 }));
        assert!(scanner.is_between_frames(b""));
        assert!(scanner.next(b"2 syslog 999999999 abcd").is_ok());
        assert_eq!(scanner.next(b""), Ok(Found::NeedMore { consumed: 0 }));
    }

    #[test]
    fn one_follows_the_largest_number() {
        assert_eq!(Txnr(TXNR_MAX).next(), Txnr(1));
        assert_eq!(Txnr(1).next(), Txnr(2));
    }
}
