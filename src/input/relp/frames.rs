//! From the stream of one connection to batches: reading, and taking frames out.
//!
//! Reading goes into memory that the worker's thread shares among its connections; a connection owns no buffer while it is
//! between frames.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::config::RelpInput;
use crate::input::now;
use crate::metrics::InputMetrics;
use crate::proto::batch::BatchBuilder;
use crate::proto::envelope::{Flags, Origin, Transport};
use crate::proto::relp::{Answer, Message, Session, SessionError, Step};
use crate::proto::syslog::framing::FramingError;

/// Bytes taken from a connection before another has its turn.
const READ_BYTES: usize = 256 * 1024;
/// The begin of a frame up to this size is put before what is read next; a longer one is read on where it is.
const BEGIN_BYTES: usize = 64 * 1024;
/// Answers that the frames of one read may ask for; the next frame waits in its buffer until those are given.
const ASKED_MAX: usize = 1024;

thread_local! {
    /// Where this worker's connections read into, one at a time and never across an await: room for the begin of a frame,
    /// then for a read.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What one read gave.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) batch: BatchBuilder,
    payload_bytes: u64,
    pub(super) asked: Vec<Answer>,
    /// What comes behind is not looked at any more.
    pub(super) ended: bool,
}

/// The reading half of a connection.
pub(super) struct Frames<R> {
    reader: R,
    source: SocketAddr,
    transport: Transport,
    settings: Arc<RelpInput>,
    metrics: Arc<InputMetrics>,
    session: Session,
    /// What was read and makes no frame yet; if `unread`, also frames that were not looked at yet.
    rest: Vec<u8>,
    unread: bool,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(
        reader: R,
        (source, transport): (SocketAddr, Transport),
        settings: Arc<RelpInput>,
        metrics: Arc<InputMetrics>,
    ) -> Frames<R> {
        let session = Session::new(settings.max_message);
        Frames { reader, source, transport, settings, metrics, session, rest: Vec::new(), unread: false }
    }

    /// Reads once and takes the frames out. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Taken {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Reads up to the client's end and keeps nothing.
    pub(super) async fn discard(&mut self) {
        while std::future::poll_fn(|context| self.poll_discard(context)).await {}
    }

    /// Whether there was something.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        SCRATCH.with_borrow_mut(|bytes| {
            bytes.resize(BEGIN_BYTES + READ_BYTES, 0);
            let mut room = ReadBuf::new(bytes);
            let read = ready!(Pin::new(&mut self.reader).poll_read(context, &mut room));
            Poll::Ready(read.is_ok() && !room.filled().is_empty())
        })
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Taken> {
        SCRATCH.with_borrow_mut(|bytes| {
            if !self.unread {
                bytes.resize(BEGIN_BYTES + READ_BYTES, 0);
                let mut room = ReadBuf::new(&mut bytes[BEGIN_BYTES..]);
                let read = match ready!(Pin::new(&mut self.reader).poll_read(context, &mut room)) {
                    Ok(()) => room.filled().len(),
                    // Inside TLS: FIN without `close_notify`. Frames tell whether something is missing.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                    Err(error) => {
                        tracing::debug!(source = %self.source, %error, "connection broke");
                        self.metrics.rejected.inc("connection_error");
                        return Poll::Ready(Taken { ended: true, ..Taken::default() });
                    }
                };
                if read == 0 {
                    return Poll::Ready(self.finish());
                }
                if self.rest.len() <= BEGIN_BYTES {
                    let begin = BEGIN_BYTES - self.rest.len();
                    bytes[begin..BEGIN_BYTES].copy_from_slice(&self.rest);
                    let (taken, consumed) = self.take(&bytes[begin..BEGIN_BYTES + read]);
                    self.rest = bytes[begin + consumed..BEGIN_BYTES + read].to_vec();
                    return Poll::Ready(taken);
                }
                self.rest.extend_from_slice(&bytes[BEGIN_BYTES..BEGIN_BYTES + read]);
            }
            let rest = std::mem::take(&mut self.rest);
            let (taken, consumed) = self.take(&rest);
            self.rest = if consumed == 0 { rest } else { rest[consumed..].to_vec() };
            Poll::Ready(taken)
        })
    }

    /// Takes the frames at the front; also says how many bytes they are.
    fn take(&mut self, filled: &[u8]) -> (Taken, usize) {
        let mut taken = Taken::default();
        // Room for the headers of messages of 64 bytes and more; shorter ones cost a reallocation.
        let room = filled.len() + filled.len() / 8 + 128;
        let mut at = 0;
        self.unread = false;
        loop {
            if taken.asked.len() >= ASKED_MAX {
                self.unread = at < filled.len();
                break;
            }
            match self.session.next(&filled[at..]) {
                Step::Took { consumed, message, answer } => {
                    at += consumed;
                    message.into_iter().for_each(|message| self.push(&mut taken, message, room));
                    taken.asked.extend(answer);
                }
                Step::NeedMore { consumed } => {
                    at += consumed;
                    taken.ended = self.session.is_closed();
                    break;
                }
                Step::Close { error, answer } => {
                    taken.asked.extend(answer);
                    self.fault(error, &mut taken);
                    at = filled.len();
                    break;
                }
            }
        }
        self.count(&taken);
        (taken, at)
    }

    fn push(&self, taken: &mut Taken, message: Message<'_>, room: usize) {
        if taken.batch.is_empty() {
            taken.batch = self.builder(room);
        }
        if message.flags.contains(Flags::TRUNCATED) {
            self.metrics.rejected.inc(FramingError::Oversize.as_str());
        }
        taken.payload_bytes += message.payload.len() as u64;
        taken.batch.push(message.flags, message.payload);
    }

    fn finish(&self) -> Taken {
        let mut taken = Taken { ended: true, ..Taken::default() };
        if let Err(error) = self.session.finish(&self.rest) {
            self.fault(error, &mut taken);
        }
        taken
    }

    /// The sender's fault: what came before it counts, what comes behind does not.
    fn fault(&self, error: SessionError, taken: &mut Taken) {
        let (input, source, reason) = (&self.settings.name, self.source, error.as_str());
        self.metrics.rejected.inc(reason);
        tracing::debug!(input, %source, reason, "connection closed: {error}");
        taken.ended = true;
    }

    fn builder(&self, capacity: usize) -> BatchBuilder {
        let mut builder = BatchBuilder::with_capacity(capacity);
        builder.set_origin(&Origin {
            received_at: now(),
            source: Some(self.source),
            transport: self.transport,
            input: &self.settings.name,
            tag: self.settings.tag.as_bytes(),
        });
        builder
    }

    fn count(&self, taken: &Taken) {
        if !taken.batch.is_empty() {
            self.metrics.relp.messages.inc_by(taken.batch.messages().into());
            self.metrics.relp.bytes.inc_by(taken.payload_bytes);
            self.metrics.saw_message(now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_ask_for_so_many_answers_at_a_time_and_none_is_lost() {
        let mut stream = b"1 open 15 commands=syslog\n".to_vec();
        (2..5002).for_each(|txnr| stream.extend(format!("{txnr} syslog 1 a\n").into_bytes()));
        let settings = Arc::new(RelpInput::new("relp".to_owned(), Vec::new()));
        let from = ("192.0.2.7:51400".parse().unwrap(), Transport::Tcp);
        let mut frames = Frames::new(&stream[..], from, settings, Arc::default());
        let (mut reads, mut answers, mut messages) = (0, 0, 0);
        while answers < 5001 {
            let taken = frames.next().await;
            assert!(!taken.ended && taken.asked.len() <= ASKED_MAX);
            (reads, answers, messages) = (reads + 1, answers + taken.asked.len(), messages + taken.batch.messages());
        }
        assert_eq!((reads, messages), (5, 5000));
        assert!(frames.next().await.ended);
    }
}
