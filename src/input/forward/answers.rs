//! The acknowledgements that one connection owes: what each waits for, and the bytes on their way.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::repeats::{Fingerprint, Repeats};
use crate::metrics::InputMetrics;
use crate::proto::forward::ack::write_ack;
use crate::proto::position::Mark;

/// Frames of one connection that may wait for their acknowledgement; with so many it is not read from.
const UNANSWERED_MAX: usize = 1024;
/// How long a frame waits before its connection is closed instead: most clients wait for ever, and block whoever logs.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How far frames may be acknowledged: what `journal.acknowledge` means, as the journal says it.
#[derive(Clone, Debug)]
pub struct Promise {
    promised: watch::Receiver<Mark>,
}

impl Promise {
    /// A frame may be acknowledged once the journal promises it.
    #[must_use]
    pub fn of(promised: watch::Receiver<Mark>) -> Promise {
        Promise { promised }
    }

    /// Everything before this may be acknowledged.
    fn reached(&mut self) -> Mark {
        *self.promised.borrow_and_update()
    }

    /// Resolves when more may be acknowledged than at the last look.
    async fn moved(&mut self) {
        if self.promised.changed().await.is_err() {
            // The sender lives in the journal, which the appender of the same connection holds.
            std::future::pending::<()>().await;
        }
    }

    /// Resolves when everything before `mark` may be acknowledged.
    pub(super) async fn reaches(&mut self, mark: Mark) {
        while self.reached() < mark {
            self.moved().await;
        }
    }
}

/// A frame that asked for an answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) id: Box<[u8]>,
    /// What must be promised first.
    pub(super) mark: Mark,
    pub(super) received: Instant,
    /// Of a chunk that this connection appended.
    pub(super) fingerprint: Option<Fingerprint>,
}

/// The writing half of a connection and what is owed to it.
pub(super) struct Answers<W> {
    writer: W,
    promise: Promise,
    repeats: Arc<Repeats>,
    metrics: Arc<InputMetrics>,
    unanswered: VecDeque<Unanswered>,
    /// Acknowledgements on their way. While there are any no others are added: clients parse what one read gives.
    out: Vec<u8>,
    unflushed: bool,
    /// When `out` last became shorter, or was filled.
    moved_at: Instant,
    closed: bool,
}

impl<W: AsyncWrite + Unpin> Answers<W> {
    pub(super) fn new(writer: W, promise: Promise, repeats: Arc<Repeats>, metrics: Arc<InputMetrics>) -> Answers<W> {
        Answers {
            writer,
            promise,
            repeats,
            metrics,
            unanswered: VecDeque::new(),
            out: Vec::new(),
            unflushed: false,
            moved_at: Instant::now(),
            closed: false,
        }
    }

    /// Owes an answer, after all others.
    pub(super) fn owe(&mut self, frame: Unanswered) {
        self.unanswered.push_back(frame);
        if self.closed {
            // There is no way to say it any more; the client will ask again.
            self.settle(self.unanswered.len());
        }
    }

    /// Whether nothing is owed and nothing on its way.
    pub(super) fn is_done(&self) -> bool {
        self.unanswered.is_empty() && self.out.is_empty() && !self.unflushed
    }

    /// Whether another frame may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.unanswered.len() < UNANSWERED_MAX
    }

    /// When it is too late for the next answer.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiting = || self.unanswered.front().map(|frame| frame.received);
        let since = if self.waits_for_client() { Some(self.moved_at) } else { waiting() };
        since.map(|since| since + ANSWER_WITHIN)
    }

    /// Whether the next answer waits for the client, which does not read, and not for the journal.
    pub(super) fn waits_for_client(&self) -> bool {
        // Inside TLS what was written may still be here.
        !self.out.is_empty() || self.unflushed
    }

    /// Makes ready, in the frames' order, every answer that is due.
    pub(super) fn collect(&mut self) {
        if !self.out.is_empty() || self.unanswered.is_empty() {
            return;
        }
        let reached = self.promise.reached();
        let due = self.unanswered.iter().take_while(|frame| frame.mark <= reached).count();
        if due == 0 {
            return;
        }
        let now = Instant::now();
        for frame in self.unanswered.iter().take(due) {
            write_ack(&mut self.out, &frame.id);
            self.metrics.ack_seconds.0.observe((now - frame.received).as_secs_f64());
        }
        self.settle(due);
        self.moved_at = now;
    }

    /// Forgets the first `count` frames: acknowledged, or never to be.
    fn settle(&mut self, count: usize) {
        let settled = self.unanswered.drain(..count);
        self.repeats.settled(settled.filter_map(|frame| Some((frame.fingerprint?, frame.mark))));
    }

    /// Notes that the client sends nothing more: what it may send again comes on another connection.
    pub(super) fn client_finished(&self) {
        let owed = self.unanswered.iter();
        self.repeats.settled(owed.filter_map(|frame| Some((frame.fingerprint?, frame.mark))));
    }

    /// Goes one step on: sends, or waits until there is something to send. Cancelling loses nothing.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) async fn step(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            let written = self.writer.write(&self.out).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.out.drain(..written);
            if self.out.is_empty() {
                // A silent connection owns no buffer.
                self.out = Vec::new();
            }
            self.moved_at = Instant::now();
            self.unflushed = true;
        } else if self.unflushed {
            self.writer.flush().await?;
            self.unflushed = false;
        } else {
            self.promise.moved().await;
        }
        self.collect();
        Ok(())
    }

    /// Resolves when everything before `mark` may be acknowledged.
    pub(super) async fn promised(&self, mark: Mark) {
        self.promise.clone().reaches(mark).await;
    }

    /// Says that nothing more will be answered.
    pub(super) async fn close(&mut self) {
        self.closed = true;
        // It may be gone already.
        let _ = self.writer.shutdown().await;
    }
}

impl<W> Drop for Answers<W> {
    fn drop(&mut self) {
        let left = self.unanswered.drain(..);
        self.repeats.settled(left.filter_map(|frame| Some((frame.fingerprint?, frame.mark))));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::*;

    /// Takes everything into a buffer of its own and gets rid of nothing, as TLS above a socket without room.
    struct Stuck;

    impl AsyncWrite for Stuck {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn an_answer_that_does_not_leave_the_tls_buffer_has_a_deadline() {
        let (_durable, promise) = watch::channel(Mark::default());
        let mut answers = Answers::new(Stuck, Promise::of(promise), Arc::default(), Arc::default());
        answers.owe(Unanswered {
            id: b"id"[..].into(),
            mark: Mark::default(),
            received: Instant::now(),
            fingerprint: None,
        });
        answers.collect();
        answers.step().await.unwrap();
        assert!(!answers.is_done() && answers.waits_for_client());
        assert!(answers.deadline().is_some(), "nobody would ever cut the connection");
    }
}
