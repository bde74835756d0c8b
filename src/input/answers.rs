//! The answers that one connection owes, the same for every protocol that has acknowledgements: what each waits for, and
//! the bytes on their way.
//!
//! An answer says that what it answers is safe. They leave in the order of what was asked, as many in one write as are due.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::journal::Appender;
use crate::metrics::InputMetrics;
use crate::proto::batch::BatchBuilder;
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

/// What a protocol answers.
pub(super) trait Answer: Sized {
    /// What its inputs remember of what was answered.
    type Memory;

    /// Appends the bytes that say it.
    fn write(&self, out: &mut Vec<u8>);

    /// Whether it says that something is safe: the time it takes is what a sender waits for.
    fn is_promise(&self) -> bool {
        true
    }

    /// Notes that these, each with what had to be promised first, are given, or that nobody waits for them any more.
    fn settle<'a>(memory: &Self::Memory, answers: impl Iterator<Item = (&'a Self, Mark)>)
    where
        Self: 'a;
}

/// A frame that asked for an answer.
#[derive(Debug)]
pub(super) struct Unanswered<A> {
    pub(super) answer: A,
    /// What must be promised first.
    pub(super) mark: Mark,
    pub(super) received: Instant,
}

/// Why a connection is cut.
pub(super) enum Cut {
    /// Counted under this name.
    Because(&'static str),
    /// The journal takes nothing, or nobody is there any more.
    Silently,
    /// The node leaves, and the client took its time.
    Late,
}

/// The writing half of a connection and what is owed to it.
pub(super) struct Answers<W, A: Answer> {
    writer: W,
    promise: Promise,
    memory: A::Memory,
    metrics: Arc<InputMetrics>,
    unanswered: VecDeque<Unanswered<A>>,
    /// Acknowledgements on their way. While there are any no others are added: clients parse what one read gives.
    out: Vec<u8>,
    unflushed: bool,
    /// When `out` last became shorter, or was filled.
    moved_at: Instant,
    closed: bool,
}

impl<W: AsyncWrite + Unpin, A: Answer> Answers<W, A> {
    pub(super) fn new(writer: W, promise: Promise, memory: A::Memory, metrics: Arc<InputMetrics>) -> Answers<W, A> {
        Answers {
            writer,
            promise,
            memory,
            metrics,
            unanswered: VecDeque::new(),
            out: Vec::new(),
            unflushed: false,
            moved_at: Instant::now(),
            closed: false,
        }
    }

    /// Owes an answer, after all others.
    pub(super) fn owe(&mut self, frame: Unanswered<A>) {
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
            frame.answer.write(&mut self.out);
            if frame.answer.is_promise() {
                self.metrics.ack_seconds.0.observe((now - frame.received).as_secs_f64());
            }
        }
        self.settle(due);
        self.moved_at = now;
    }

    /// Forgets the first `count` frames: acknowledged, or never to be.
    fn settle(&mut self, count: usize) {
        A::settle(&self.memory, self.unanswered.iter().take(count).map(Unanswered::settled));
        self.unanswered.drain(..count);
    }

    /// Notes that the client sends nothing more: what it may send again comes on another connection.
    pub(super) fn client_finished(&self) {
        A::settle(&self.memory, self.unanswered.iter().map(Unanswered::settled));
    }

    /// Appends a batch and says where it ends. Meanwhile answers go on; with `until`, only up to that time.
    ///
    /// # Errors
    /// The connection is to be cut: it is broken, it is too late, or the batch was refused and is not ours to promise any
    /// more. What was not read makes the cut a reset, which the sender notices.
    pub(super) async fn append(
        &mut self,
        appender: &Appender,
        batch: BatchBuilder,
        until: Option<Instant>,
    ) -> Result<Mark, Cut> {
        let mut append = std::pin::pin!(appender.append(batch));
        loop {
            tokio::select! {
                biased;
                appended = &mut append => return appended.map_err(|_| Cut::Silently),
                stepped = self.step(), if !self.is_done() => stepped.map_err(|_| Cut::Silently)?,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    return Err(Cut::Because("ack_timeout"));
                }
            }
        }
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

impl<A> Unanswered<A> {
    fn settled(&self) -> (&A, Mark) {
        (&self.answer, self.mark)
    }
}

impl<W, A: Answer> Drop for Answers<W, A> {
    fn drop(&mut self) {
        A::settle(&self.memory, self.unanswered.iter().map(Unanswered::settled));
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

    struct Byte;

    impl Answer for Byte {
        type Memory = ();

        fn write(&self, out: &mut Vec<u8>) {
            out.push(b'.');
        }

        fn settle<'a>((): &(), _: impl Iterator<Item = (&'a Byte, Mark)>) {}
    }

    #[tokio::test]
    async fn an_answer_that_does_not_leave_the_tls_buffer_has_a_deadline() {
        let (_durable, promise) = watch::channel(Mark::default());
        let mut answers = Answers::new(Stuck, Promise::of(promise), (), Arc::default());
        answers.owe(Unanswered { answer: Byte, mark: Mark::default(), received: Instant::now() });
        answers.collect();
        answers.step().await.unwrap();
        assert!(!answers.is_done() && answers.waits_for_client());
        assert!(answers.deadline().is_some(), "nobody would ever cut the connection");
    }
}
