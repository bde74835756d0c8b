//! What frames are for, and what they are answered.

use thiserror::Error;

use super::frame::{Command, Found, Frame, FrameError, Scanner, Txnr};
use crate::proto::envelope::Flags;
use crate::proto::syslog::decimal;

/// What we say of ourselves, and the only command beside those that every session has. Version 0 is what librelp speaks.
const OFFERS: &str = concat!("relp_version=0\nrelp_software=twinlog,", env!("CARGO_PKG_VERSION"), "\ncommands=syslog");

/// Why a connection is closed. The sender's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SessionError {
    /// The stream is no RELP.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Incomplete,
    /// A command before `open`.
    #[error("a command before open")]
    NotOpen,
    /// The client does not offer to send messages.
    #[error("the client does not offer the command syslog")]
    NoSyslog(Txnr),
    /// Another number than the one that follows: its answer could not be told from another's.
    #[error("transaction {} does not follow the one before", .0.get())]
    OutOfSequence(Txnr),
    /// A command that was not offered.
    #[error("an unknown command")]
    UnknownCommand,
    /// More data than a message may have, of a frame that is none.
    #[error("more data than a message may have, and it is none")]
    TooLong,
}

impl SessionError {
    /// The reason's name in metrics; never changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            SessionError::Frame(error) => error.as_str(),
            SessionError::Incomplete => "incomplete_frame",
            SessionError::NotOpen => "not_open",
            SessionError::NoSyslog(_) => "no_syslog",
            SessionError::OutOfSequence(_) => "out_of_sequence",
            SessionError::UnknownCommand => "unknown_command",
            SessionError::TooLong => "too_long",
        }
    }
}

/// What goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `open`: yes, with what we offer.
    Opened(Txnr),
    /// To `syslog`: the message is safe; to `close`: so it be.
    Done(Txnr),
    /// To `open`: no.
    Refused(Txnr),
    /// To nothing: we close the connection, go elsewhere.
    ServerClose,
}

impl Answer {
    /// Appends its frame.
    pub fn write(self, out: &mut Vec<u8>) {
        match self {
            Answer::Opened(txnr) => respond(out, txnr, &["200 OK\n", OFFERS]),
            Answer::Done(txnr) => respond(out, txnr, &["200 OK"]),
            Answer::Refused(txnr) => respond(out, txnr, &["500 the command syslog is not offered"]),
            Answer::ServerClose => out.extend_from_slice(b"0 serverclose 0\n"),
        }
    }
}

fn respond(out: &mut Vec<u8>, txnr: Txnr, data: &[&str]) {
    decimal::push(out, txnr.get().into());
    out.extend_from_slice(b" rsp ");
    decimal::push(out, data.iter().map(|part| part.len() as u64).sum());
    out.push(b' ');
    data.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    out.push(b'\n');
}

/// A message, to be journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its bytes, line feeds and all. Never empty.
    pub payload: &'a [u8],
    /// [`Flags::TRUNCATED`] if there were more.
    pub flags: Flags,
}

/// What the bytes shown to a [`Session`] begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A frame, or a part of one.
    Took {
        /// Bytes of the input that are done with.
        consumed: usize,
        /// What is to be journaled.
        message: Option<Message<'a>>,
        /// What is owed once everything up to here is safe, this message included.
        answer: Option<Answer>,
    },
    /// Nothing yet: read more, then show what was not consumed again together with what came.
    NeedMore {
        /// Bytes of the input that are done with nevertheless.
        consumed: usize,
    },
    /// Count this, answer what is owed, and close the connection.
    Close {
        /// Why.
        error: SessionError,
        /// The last word.
        answer: Option<Answer>,
    },
}

/// One connection's session, from the server's side.
#[derive(Clone, Debug)]
pub struct Session {
    scanner: Scanner,
    state: State,
    /// The number that the next frame must have. A client may begin with any: librelp begins with 1.
    next: Option<Txnr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but `open` is taken.
    Opening,
    Open,
    /// The client said `close`: nothing that comes behind it counts.
    Closed,
}

impl Session {
    /// A session that begins, and cuts messages at `max_message` bytes.
    #[must_use]
    pub fn new(max_message: usize) -> Session {
        Session { scanner: Scanner::new(max_message), state: State::Opening, next: None }
    }

    /// Takes the first step into `input`: the stream's bytes from the first one not consumed yet.
    ///
    /// The caller drops `consumed` bytes after each step and goes on until [`Step::NeedMore`] or [`Step::Close`].
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        if self.state == State::Closed {
            return Step::NeedMore { consumed: input.len() };
        }
        let taken = match self.scanner.next(input) {
            Ok(Found::NeedMore { consumed }) => return Step::NeedMore { consumed },
            Ok(Found::Frame { frame, consumed }) => self.frame(&frame).map(|effect| (consumed, effect)),
            Ok(Found::Begin { frame, consumed }) => self.begin(&frame).map(|effect| (consumed, effect)),
            Ok(Found::End { txnr, consumed }) => Ok((consumed, (None, Some(Answer::Done(txnr))))),
            Err(error) => Err(error.into()),
        };
        match taken {
            Ok((consumed, (message, answer))) => Step::Took { consumed, message, answer },
            Err(error @ SessionError::NoSyslog(txnr)) => Step::Close { error, answer: Some(Answer::Refused(txnr)) },
            Err(error) => Step::Close { error, answer: None },
        }
    }

    /// Whether the client said `close`.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// What the end of the stream means, with what the last [`Step::NeedMore`] left.
    ///
    /// # Errors
    /// That it came too early.
    pub fn finish(&self, rest: &[u8]) -> Result<(), SessionError> {
        let ended = self.is_closed() || self.scanner.is_between_frames(rest);
        if ended { Ok(()) } else { Err(SessionError::Incomplete) }
    }

    fn frame<'a>(&mut self, frame: &Frame<'a>) -> Result<Effect<'a>, SessionError> {
        let Frame { txnr, command, data } = *frame;
        if txnr == Txnr::HINT && command == Command::Unknown {
            return Ok((None, None));
        }
        self.follow(txnr)?;
        match (command, self.state) {
            // Old librelp sends it again inside a session, and waits for the answer.
            (Command::Open, _) if offers_syslog(data) => {
                self.state = State::Open;
                Ok((None, Some(Answer::Opened(txnr))))
            }
            (Command::Open, _) => Err(SessionError::NoSyslog(txnr)),
            (Command::Syslog, State::Open) => {
                let message = (!data.is_empty()).then_some(Message { payload: data, flags: Flags::NONE });
                Ok((message, Some(Answer::Done(txnr))))
            }
            (Command::Close, _) => {
                self.state = State::Closed;
                Ok((None, Some(Answer::Done(txnr))))
            }
            (Command::Syslog, _) => Err(SessionError::NotOpen),
            (Command::Unknown, _) => Err(SessionError::UnknownCommand),
        }
    }

    /// The answer waits for the end of the frame: the client has it only then.
    fn begin<'a>(&mut self, frame: &Frame<'a>) -> Result<Effect<'a>, SessionError> {
        self.follow(frame.txnr)?;
        match (frame.command, self.state) {
            (Command::Syslog, State::Open) => {
                Ok((Some(Message { payload: frame.data, flags: Flags::TRUNCATED }), None))
            }
            (Command::Syslog, _) => Err(SessionError::NotOpen),
            _ => Err(SessionError::TooLong),
        }
    }

    fn follow(&mut self, txnr: Txnr) -> Result<(), SessionError> {
        if txnr == Txnr::HINT || self.next.is_some_and(|next| next != txnr) {
            return Err(SessionError::OutOfSequence(txnr));
        }
        self.next = Some(txnr.next());
        Ok(())
    }
}

/// What to journal, what to answer.
type Effect<'a> = (Option<Message<'a>>, Option<Answer>);

/// Whether `offers`, lines of `name=value,value`, have `syslog` among their commands.
fn offers_syslog(offers: &[u8]) -> bool {
    let mut commands = offers.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"commands="));
    commands.any(|values| values.split(|byte| *byte == b',').any(|value| value == b"syslog"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As librelp 1.11 sends it.
    const OPEN: &[u8] =
        b"1 open 86 relp_version=0\nrelp_software=librelp,1.11.0,http://librelp.adiscon.com\ncommands=syslog\n";

    /// What a stream gives: messages, the bytes of the answers, and what was wrong.
    type Outcome = (Vec<(Vec<u8>, Flags)>, String, Option<SessionError>);

    fn read(session: &mut Session, mut stream: &[u8]) -> Outcome {
        let (mut messages, mut out) = (Vec::new(), Vec::new());
        let error = loop {
            match session.next(stream) {
                Step::Took { consumed, message, answer } => {
                    messages.extend(message.map(|message| (message.payload.to_vec(), message.flags)));
                    answer.into_iter().for_each(|answer| answer.write(&mut out));
                    stream = &stream[consumed..];
                }
                Step::NeedMore { consumed } => break session.finish(&stream[consumed..]).err(),
                Step::Close { error, answer } => {
                    answer.into_iter().for_each(|answer| answer.write(&mut out));
                    break Some(error);
                }
            }
        };
        (messages, String::from_utf8(out).unwrap(), error)
    }

    /// One that is open; 2 is the next number.
    fn open() -> Session {
        let mut session = Session::new(10);
        session.scanner = Scanner::new(100);
        assert_eq!(read(&mut session, OPEN).2, None);
        session.scanner = Scanner::new(10);
        session
    }

    #[test]
    fn a_session_of_librelp_is_answered_as_librelp_expects() {
        let stream =
            [OPEN, b"2 syslog 8 <13>a: b\n3 syslog 7 <14>x\ny\n4 syslog 0\n5 close 0\nbehind the end"].concat();
        let (messages, answers, error) = read(&mut Session::new(480), &stream);
        let expected = [b"<13>a: b".to_vec(), b"<14>x\ny".to_vec()].map(|payload| (payload, Flags::NONE));
        assert_eq!((&messages[..], error), (&expected[..], None));
        let (opened, rest) = answers.split_once("commands=syslog\n").unwrap();
        assert_eq!(opened, "1 rsp 65 200 OK\nrelp_version=0\nrelp_software=twinlog,0.1.0\n");
        assert_eq!(rest, "2 rsp 6 200 OK\n3 rsp 6 200 OK\n4 rsp 6 200 OK\n5 rsp 6 200 OK\n");
    }

    #[test]
    fn a_message_that_is_too_long_is_answered_when_its_end_has_come() {
        let mut session = open();
        let cut = (b"0123456789".to_vec(), Flags::TRUNCATED);
        let incomplete = Some(SessionError::Incomplete);
        assert_eq!(read(&mut session, b"2 syslog 12 0123456789"), (vec![cut], String::new(), incomplete));
        assert_eq!(read(&mut session, b"ab"), (vec![], String::new(), incomplete));
        assert_eq!(read(&mut session, b"\n"), (vec![], "2 rsp 6 200 OK\n".to_owned(), None));
    }

    #[test]
    fn numbers_begin_anywhere_follow_each_other_and_wrap() {
        let mut session = Session::new(100);
        let begun = read(&mut session, b"999999998 open 15 commands=syslog\n");
        assert!(begun.1.starts_with("999999998 rsp ") && begun.2.is_none());
        let stream = b"999999999 syslog 1 a\n1 syslog 1 b\n0 whoknows 3 ???\n2 syslog 1 c\n2 syslog 1 d\n";
        let (messages, answers, error) = read(&mut session, stream);
        assert_eq!((messages.len(), answers.lines().count()), (3, 3));
        assert_eq!(error.unwrap().as_str(), "out_of_sequence");
    }

    #[test]
    fn a_client_may_say_open_again_and_must_offer_messages() {
        let again = read(&mut open(), b"2 open 9 commands=\n");
        assert_eq!(again.1, "2 rsp 37 500 the command syslog is not offered\n");
        assert_eq!(again.2.unwrap().as_str(), "no_syslog");
        let mut session = Session::new(100);
        assert_eq!(
            read(&mut session, b"1 open 20 commands=mail,syslog\n2 open 15 commands=syslog\n3 syslog 1 a\n").2,
            None
        );
    }

    #[test]
    fn what_is_not_open_or_not_known_ends_the_session() {
        for (stream, reason) in [
            (&b"1 syslog 1 a\n"[..], "not_open"),
            (b"1 rsp 6 200 OK\n", "unknown_command"),
            (b"1 starttls 0\n", "unknown_command"),
            (b"0 syslog 1 a\n", "out_of_sequence"),
            (b"1 open 100 commands=syslog", "too_long"),
            (b"1 syslog 100 commands=syslog", "not_open"),
            (b"1 open 14 commands=syslog\n", "bad_trailer"),
            (b"1 open 15 commands=sys", "incomplete_frame"),
        ] {
            let error = read(&mut Session::new(15), stream).2;
            assert_eq!(error.map(SessionError::as_str), Some(reason), "{}", stream.escape_ascii());
        }
    }
}
