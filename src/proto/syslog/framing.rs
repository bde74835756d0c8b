//! Framing: where one message ends and the next begins in a byte stream (RFC 6587; RFC 5425, 4.3).
//!
//! Both framings of RFC 6587 on one connection, decided anew for every frame, because relays mix them: an octet count
//! (`LEN SP body`) or a line. The rules are F1 to F7 of `tests/fixtures/README.md`. Three of them differ from what
//! most receivers do:
//!
//! * Digits make an octet count only with `SP <` behind them, or once the connection has shown that it counts. So a
//!   line that begins with a date or a number is a line (rsyslog delivers none of them).
//! * A NUL ends a line as LF does (rsyslog glues such messages together).
//! * A frame longer than the limit is delivered cut, and the stream stays in step.
//!
//! A [`Framer`] holds no bytes. Its caller keeps what was not consumed and shows it again, longer; never more than
//! `max_message` and two bytes of a frame are waited for. What was searched is not searched twice, so a frame that
//! arrives byte by byte costs no more than one that arrives whole.

use memchr::memchr2;
use serde::{Deserialize, Serialize};

use crate::proto::envelope::Flags;

/// Most digits of an octet count.
const COUNT_DIGITS_MAX: usize = 10;
/// A run of digits longer than this is text and no broken count: it bounds what is looked at again after each read.
const DIGIT_RUN_MAX: usize = 64;

/// Why bytes were not delivered as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FramingError {
    /// A frame longer than the limit: delivered cut, with [`Flags::TRUNCATED`].
    Oversize,
    /// An octet count of zero: skipped.
    ZeroCount,
    /// An octet count of more than ten digits: there is no way back into step, the connection is closed.
    CountTooLong,
    /// A TLS ClientHello on a port without TLS: the connection is closed.
    TlsOnPlainPort,
    /// The stream ended inside an octet-counted frame.
    Incomplete,
}

impl FramingError {
    /// Every reason, for counters that exist before the first error.
    pub const ALL: [FramingError; 5] = [
        FramingError::Oversize,
        FramingError::ZeroCount,
        FramingError::CountTooLong,
        FramingError::TlsOnPlainPort,
        FramingError::Incomplete,
    ];

    /// The reason's name in metrics; never changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FramingError::Oversize => "oversize",
            FramingError::ZeroCount => "zero_count",
            FramingError::CountTooLong => "count_too_long",
            FramingError::TlsOnPlainPort => "tls_on_plain_port",
            FramingError::Incomplete => "incomplete_frame",
        }
    }
}

/// What the bytes shown to a [`Framer`] begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A message. Never empty. With [`Flags::TRUNCATED`] it also counts as [`FramingError::Oversize`].
    Frame {
        /// The message without its framing.
        payload: &'a [u8],
        /// What the framer noticed.
        flags: Flags,
        /// Bytes of the input that are done with.
        consumed: usize,
    },
    /// Nothing to deliver, but something to count.
    Skip {
        /// Bytes of the input that are done with.
        consumed: usize,
        /// What to count.
        error: FramingError,
    },
    /// The rest of the input makes no frame yet: read more, then show it again together with what came.
    NeedMore {
        /// Bytes of the input that are done with nevertheless.
        consumed: usize,
    },
    /// Count this and close the connection; what was not consumed is not to be delivered.
    Close(FramingError),
}

/// What the end of a stream leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending<'a> {
    /// A last line without a line end: a message like any other, flagged [`Flags::NO_TRAILER`].
    Frame {
        /// The message.
        payload: &'a [u8],
        /// [`Flags::NO_TRAILER`].
        flags: Flags,
    },
    /// The begin of an octet-counted message. Not to be delivered: count it as [`FramingError::Incomplete`], keep it
    /// for whoever looks into the connection.
    Incomplete(&'a [u8]),
}

/// Finds the messages in one connection's stream.
#[derive(Clone, Debug)]
pub struct Framer {
    max_message: usize,
    standing: Standing,
}

/// Where a framer stands in its stream: what another host needs to go on with it, beside the bytes that were not consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    state: State,
    /// The last frame was octet-counted, so digits and SP are a count whatever follows.
    counting: bool,
    /// Something of the stream was consumed: it cannot be a ClientHello any more.
    started: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// At a frame's start.
    Start,
    /// In a line whose first `searched` bytes, all still in the input, hold no line end. Who goes on elsewhere searches
    /// anew.
    Line {
        #[serde(skip)]
        searched: usize,
    },
    /// At the body of an octet-counted frame of `length` bytes.
    Body { length: usize },
    /// Behind the delivered part of an oversize line.
    RestOfLine,
    /// Behind the delivered part of an oversize octet-counted frame, `left` bytes before its end.
    RestOfBody { left: usize },
}

/// What the digits at a frame's start are.
enum Count {
    Text,
    Undecided,
    Length { value: usize, header: usize },
    TooLong,
}

impl Framer {
    /// A framer at the start of a stream that cuts messages at `max_message` bytes.
    ///
    /// # Panics
    /// If `max_message` is 0: the configuration refuses that.
    #[must_use]
    pub fn new(max_message: usize) -> Framer {
        Framer::resume(max_message, Standing { state: State::Start, counting: false, started: false })
    }

    /// A framer that goes on where another one of the same limit stood. Any standing is safe: one that is wrong finds other
    /// messages in the stream than were sent.
    ///
    /// # Panics
    /// If `max_message` is 0: the configuration refuses that.
    #[must_use]
    pub fn resume(max_message: usize, standing: Standing) -> Framer {
        assert!(max_message > 0, "a message may have at least one byte");
        Framer { max_message, standing }
    }

    /// Where it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Takes the first step into `input`: the stream's bytes from the first one not consumed yet.
    ///
    /// The caller drops `consumed` bytes after each step and goes on until [`Step::NeedMore`] or [`Step::Close`].
    #[inline]
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        // Nearly every frame of a busy connection is a line that starts with `<` and is here to its end.
        if let State::Start = self.standing.state
            && input.first() == Some(&b'<')
            && let Some(end) = memchr2(b'\n', 0, &input[..input.len().min(self.max_message + 1)])
        {
            self.standing.counting = false;
            self.standing.started = true;
            let end_of_text = end - usize::from(input[end - 1] == b'\r');
            return Step::Frame { payload: &input[..end_of_text], flags: Flags::NONE, consumed: end + 1 };
        }
        self.step(input)
    }

    /// [`Framer::next`] for everything else.
    fn step<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let step = match self.standing.state {
            State::Start => self.start(input),
            State::Line { searched } => self.line(input, 0, searched),
            State::Body { length } => self.body(input, 0, length),
            State::RestOfLine => self.rest_of_line(input),
            State::RestOfBody { left } => self.rest_of_body(input, left),
        };
        self.standing.started |= !matches!(step, Step::NeedMore { consumed: 0 });
        step
    }

    /// Takes what remains when the stream has ended: `rest` is what the last [`Step::NeedMore`] left.
    pub fn finish<'a>(&mut self, rest: &'a [u8]) -> Option<Ending<'a>> {
        let state = std::mem::replace(&mut self.standing.state, State::Start);
        match state {
            State::Body { .. } => Some(Ending::Incomplete(rest)),
            State::RestOfLine | State::RestOfBody { .. } => None,
            State::Start | State::Line { .. } if rest.is_empty() => None,
            State::Start | State::Line { .. } => {
                let payload = rest.strip_suffix(b"\r").unwrap_or(rest);
                // Only an undecided run of digits can be longer than a tiny limit.
                let payload = &payload[..payload.len().min(self.max_message)];
                Some(Ending::Frame { payload, flags: Flags::NO_TRAILER })
            }
        }
    }

    /// F1, F2 and F7.
    fn start<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        if !self.standing.started && input.first() == Some(&0x16) {
            match input.get(1) {
                None => return Step::NeedMore { consumed: 0 },
                Some(0x03) => return Step::Close(FramingError::TlsOnPlainPort),
                Some(_) => {}
            }
        }
        let mut at = input.iter().take_while(|b| matches!(b, b'\n' | b'\r' | 0)).count();
        match input[at..] {
            [] | [b' '] => return Step::NeedMore { consumed: at },
            [b' ', b'<', ..] => at += 1,
            [b'0'..=b'9', ..] => match self.count(&input[at..]) {
                Count::Text => {}
                Count::Undecided => return Step::NeedMore { consumed: at },
                Count::TooLong => return Step::Close(FramingError::CountTooLong),
                Count::Length { value: 0, header } => {
                    return Step::Skip { consumed: at + header, error: FramingError::ZeroCount };
                }
                Count::Length { value, header } => {
                    self.standing.counting = true;
                    return self.body(input, at + header, value);
                }
            },
            _ => {}
        }
        self.line(input, at, 0)
    }

    fn count(&self, input: &[u8]) -> Count {
        let digits = input.iter().take(DIGIT_RUN_MAX + 1).take_while(|b| b.is_ascii_digit()).count();
        if digits > DIGIT_RUN_MAX {
            return Count::Text;
        }
        let is_count = match (input.get(digits), input.get(digits + 1)) {
            (None, _) => return Count::Undecided,
            (Some(b' '), _) if self.standing.counting && digits <= COUNT_DIGITS_MAX => true,
            (Some(b' '), None) => return Count::Undecided,
            (Some(b' '), Some(b'<')) => true,
            _ => false,
        };
        if !is_count {
            return Count::Text;
        }
        if digits > COUNT_DIGITS_MAX {
            return Count::TooLong;
        }
        let value = input[..digits].iter().fold(0_u64, |value, b| value * 10 + u64::from(b - b'0'));
        // A 32-bit machine cannot hold such a frame, but it can discard it.
        Count::Length { value: usize::try_from(value).unwrap_or(usize::MAX), header: digits + 1 }
    }

    /// The line that begins at `begin`; its first `searched` bytes hold no line end.
    fn line<'a>(&mut self, input: &'a [u8], begin: usize, searched: usize) -> Step<'a> {
        let line = &input[begin..];
        // The longest line that is not cut ends in CR LF.
        let window = line.len().min(self.max_message + 2);
        if let Some(found) = memchr2(b'\n', 0, &line[searched..window]) {
            let end = searched + found;
            let content = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            self.standing.state = State::Start;
            self.standing.counting = false;
            let consumed = begin + end + 1;
            if content.len() <= self.max_message {
                return Step::Frame { payload: content, flags: Flags::NONE, consumed };
            }
            return Step::Frame { payload: &content[..self.max_message], flags: Flags::TRUNCATED, consumed };
        }
        let too_long = match line.get(self.max_message) {
            None => false,
            Some(b'\r') => line.len() > self.max_message + 1,
            Some(_) => true,
        };
        if !too_long {
            self.standing.state = State::Line { searched: line.len() };
            return Step::NeedMore { consumed: begin };
        }
        self.standing.state = State::RestOfLine;
        self.standing.counting = false;
        Step::Frame { payload: &line[..self.max_message], flags: Flags::TRUNCATED, consumed: begin + self.max_message }
    }

    fn body<'a>(&mut self, input: &'a [u8], begin: usize, length: usize) -> Step<'a> {
        let body = &input[begin..];
        let wanted = length.min(self.max_message);
        if body.len() < wanted {
            self.standing.state = State::Body { length };
            return Step::NeedMore { consumed: begin };
        }
        let consumed = begin + wanted;
        if wanted == length {
            self.standing.state = State::Start;
            return Step::Frame { payload: &body[..wanted], flags: Flags::NONE, consumed };
        }
        self.standing.state = State::RestOfBody { left: length - wanted };
        Step::Frame { payload: &body[..wanted], flags: Flags::TRUNCATED, consumed }
    }

    fn rest_of_line<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        match memchr2(b'\n', 0, input) {
            None => Step::NeedMore { consumed: input.len() },
            Some(end) => {
                self.standing.state = State::Start;
                self.after(input, end + 1)
            }
        }
    }

    fn rest_of_body<'a>(&mut self, input: &'a [u8], left: usize) -> Step<'a> {
        if input.len() < left {
            self.standing.state = State::RestOfBody { left: left - input.len() };
            return Step::NeedMore { consumed: input.len() };
        }
        self.standing.state = State::Start;
        self.after(input, left)
    }

    /// The step behind `discarded` bytes, told from the begin of `input`.
    fn after<'a>(&mut self, input: &'a [u8], discarded: usize) -> Step<'a> {
        self.standing.started = true;
        match self.start(&input[discarded..]) {
            Step::Frame { payload, flags, consumed } => Step::Frame { payload, flags, consumed: consumed + discarded },
            Step::Skip { consumed, error } => Step::Skip { consumed: consumed + discarded, error },
            Step::NeedMore { consumed } => Step::NeedMore { consumed: consumed + discarded },
            Step::Close(error) => Step::Close(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection as a reader sees it: keeps what was not consumed.
    struct Connection {
        framer: Framer,
        kept: Vec<u8>,
        frames: Vec<(Vec<u8>, Flags)>,
        errors: Vec<FramingError>,
        closed: bool,
    }

    impl Connection {
        fn new(max_message: usize) -> Connection {
            let framer = Framer::new(max_message);
            Connection { framer, kept: Vec::new(), frames: Vec::new(), errors: Vec::new(), closed: false }
        }

        fn read(&mut self, bytes: &[u8]) {
            self.kept.extend_from_slice(bytes);
            let mut at = 0;
            while !self.closed {
                match self.framer.next(&self.kept[at..]) {
                    Step::Frame { payload, flags, consumed } => {
                        assert!(!payload.is_empty() && consumed >= payload.len());
                        self.frames.push((payload.to_vec(), flags));
                        if flags.contains(Flags::TRUNCATED) {
                            self.errors.push(FramingError::Oversize);
                        }
                        at += consumed;
                    }
                    Step::Skip { consumed, error } => {
                        assert!(consumed > 0);
                        self.errors.push(error);
                        at += consumed;
                    }
                    Step::NeedMore { consumed } => {
                        at += consumed;
                        break;
                    }
                    Step::Close(error) => {
                        self.errors.push(error);
                        self.closed = true;
                    }
                }
            }
            self.kept.drain(..at);
        }

        fn end(mut self) -> Connection {
            if !self.closed {
                match self.framer.finish(&self.kept) {
                    Some(Ending::Frame { payload, flags }) => self.frames.push((payload.to_vec(), flags)),
                    Some(Ending::Incomplete(_)) => self.errors.push(FramingError::Incomplete),
                    None => {}
                }
            }
            self
        }

        fn texts(&self) -> Vec<&str> {
            self.frames.iter().map(|(payload, _)| std::str::from_utf8(payload).unwrap()).collect()
        }
    }

    fn connection(max_message: usize, stream: &[u8]) -> Connection {
        let mut connection = Connection::new(max_message);
        connection.read(stream);
        connection.end()
    }

    #[test]
    fn lines_end_at_lf_or_nul_and_lose_one_cr() {
        let got = connection(100, b"<1>a\n\r\n\0<1>b\r\n<1>c\0 <1>d\r\r\ntext\n");
        assert_eq!(got.texts(), ["<1>a", "<1>b", "<1>c", "<1>d\r", "text"]);
        assert!(got.errors.is_empty());
    }

    #[test]
    fn digits_are_a_count_only_with_a_priority_behind_them_or_after_a_count() {
        let got = connection(100, b"2026-03-10 x\n12 monkeys\n3 <1>4 abcd5 <1>xy\n4 text\n");
        assert_eq!(got.texts(), ["2026-03-10 x", "12 monkeys", "<1>", "abcd", "<1>xy", "text"]);
    }

    #[test]
    fn a_stream_goes_on_elsewhere_wherever_it_is_cut() {
        let stream = b"<1>line\r\n3 <1>4 abcd\0<1>a line that is too long\n22 <1>as is this counted one3 <1>2 xy7";
        let whole = connection(10, stream);
        for cut in 0..stream.len() {
            let mut here = Connection::new(10);
            here.read(&stream[..cut]);
            let standing = rmp_serde::to_vec(&here.framer.standing()).unwrap();
            here.framer = Framer::resume(10, rmp_serde::from_slice(&standing).unwrap());
            here.read(&stream[cut..]);
            let there = here.end();
            assert_eq!((there.frames, there.errors), (whole.frames.clone(), whole.errors.clone()), "cut at {cut}");
        }
    }

    #[test]
    fn a_line_ends_the_habit_of_counting() {
        let got = connection(100, b"3 <1>\n<1>line\n4 text\n");
        assert_eq!(got.texts(), ["<1>", "<1>line", "4 text"]);
    }

    #[test]
    fn a_count_of_zero_is_skipped() {
        let got = connection(100, b"0 <1>a\n3 <1>0 3 abc");
        assert_eq!(got.texts(), ["<1>a", "<1>", "abc"]);
        assert_eq!(got.errors, [FramingError::ZeroCount; 2]);
    }

    #[test]
    fn a_count_that_is_too_long_closes() {
        let got = connection(100, b"<1>a\n12345678901 <1>x\n");
        assert_eq!((got.texts(), got.closed), (vec!["<1>a"], true));
        assert_eq!(got.errors, [FramingError::CountTooLong]);
        assert_eq!(connection(100, b"12345678901 x\n").texts(), ["12345678901 x"]);
        let digits = "1".repeat(70);
        assert_eq!(connection(100, format!("{digits} <1>\n").as_bytes()).texts(), [format!("{digits} <1>")]);
    }

    #[test]
    fn oversize_frames_are_cut_and_the_stream_stays_in_step() {
        let got = connection(5, b"<1>abcdef\n<1>ab\r\n9 <1>abcdef3 <1><1>abc\n");
        assert_eq!(got.texts(), ["<1>ab", "<1>ab", "<1>ab", "<1>", "<1>ab"]);
        assert_eq!(got.errors, [FramingError::Oversize; 3]);
        assert_eq!(got.frames[0].1, Flags::TRUNCATED);
    }

    #[test]
    fn a_huge_count_is_discarded_without_keeping_it() {
        let mut got = Connection::new(8);
        got.read(b"9999999999 <1>");
        for _ in 0..1000 {
            got.read(&[b'x'; 1000]);
            assert!(got.kept.len() <= 10);
        }
        let got = got.end();
        assert_eq!(got.texts(), ["<1>xxxxx"]);
        assert_eq!(got.errors, [FramingError::Oversize]);
    }

    #[test]
    fn the_last_line_is_delivered_and_a_cut_count_is_not() {
        let got = connection(100, b"<1>a\n<1>b\r");
        assert_eq!(got.frames[1], (b"<1>b".to_vec(), Flags::NO_TRAILER));
        assert_eq!(connection(100, b"12").texts(), ["12"]);
        let got = connection(100, b"9 <1>ab");
        assert_eq!((got.frames.len(), got.errors), (0, vec![FramingError::Incomplete]));
    }

    #[test]
    fn a_client_hello_closes_only_at_the_streams_start() {
        let got = connection(100, b"\x16\x03\x01\x02\x00");
        assert_eq!((got.frames.len(), got.closed, got.errors), (0, true, vec![FramingError::TlsOnPlainPort]));
        assert_eq!(connection(100, b"<1>a\n\x16\x03\n").texts(), ["<1>a", "\x16\x03"]);
    }

    #[test]
    fn any_split_into_reads_gives_the_same_frames() {
        let words: [&[u8]; 16] = [
            b"<13>",
            b"text",
            b"\n",
            b"\r\n",
            b"\0",
            b" ",
            b"10 <13>abcdef",
            b"3 ",
            b"0 ",
            b"12345678901 ",
            b"7 <1>abcd",
            b"\r",
            b"<",
            b"2026",
            b"99 <1>",
            b"\x16\x03",
        ];
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let stream = (0..random.usize(1..12)).flat_map(|_| words[random.usize(..words.len())]).copied();
            let stream: Vec<u8> = stream.collect();
            let max_message = random.usize(1..20);
            let whole = connection(max_message, &stream);
            let mut pieces = Connection::new(max_message);
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(random.usize(1..=rest.len().min(4)));
                pieces.read(piece);
                assert!(pieces.closed || pieces.kept.len() <= (max_message + 1).max(DIGIT_RUN_MAX + 2));
                rest = behind;
            }
            let pieces = pieces.end();
            assert_eq!(pieces.frames, whole.frames, "{:?} {max_message}", String::from_utf8_lossy(&stream));
            assert_eq!((pieces.errors, pieces.closed), (whole.errors, whole.closed));
        }
    }

    #[test]
    fn a_long_line_in_many_reads_is_searched_once() {
        let mut framer = Framer::new(1 << 20);
        let line = vec![b'x'; 1 << 20];
        for end in (1..line.len()).step_by(4096) {
            assert_eq!(framer.next(&line[..end]), Step::NeedMore { consumed: 0 });
            assert!(matches!(framer.standing.state, State::Line { searched } if searched == end));
        }
    }
}
