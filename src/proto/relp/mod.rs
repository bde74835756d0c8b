//! RELP, the syslog whose messages are answered: frames in, messages and answers out.
//!
//! ```text
//! client                                          server
//! 1 open 86 relp_version=0⏎relp_software=…⏎commands=syslog
//!                                                 1 rsp 65 200 OK⏎relp_version=0⏎relp_software=…⏎commands=syslog
//! 2 syslog 21 <13>host app: message
//! 3 syslog 21 <13>host app: another
//!                                                 2 rsp 6 200 OK
//!                                                 3 rsp 6 200 OK
//! 4 close 0
//!                                                 4 rsp 6 200 OK         or, at any time: 0 serverclose 0
//! ```
//!
//! [`frame`] finds the frames of a stream, [`Session`] says what each of them is for and what it is [answered](Answer).
//! What a client is not answered it sends again, on another connection and under another number: nothing in a message tells
//! a repeat.
//!
//! Source: `doc/relp.md` of rsyslog/librelp, and what librelp does where that is silent: a command is not answered with an
//! error unless the connection ends with it, because librelp forgets a message that is refused. Not there: `starttls`,
//! which librelp has not either, and the `rsp` of a client.

pub mod frame;
pub mod session;

pub use frame::FrameError;
pub use session::{Answer, Message, Session, SessionError, Step};
