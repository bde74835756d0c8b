//! One client: handshake, frames in, acknowledgements out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout};

use super::Settings;
use super::acknowledgement::Acknowledgement;
use super::budget::Share;
use super::frames::{Asked, End, Frames, Taken, What};
use super::handshake::shake_hands;
use super::repeats::{First, Repeats};
use crate::input::accept::Counted;
use crate::input::answers::{ANSWER_WITHIN, Answers, Cut, Promise, Unanswered};
use crate::input::departure::Stay;
use crate::journal::{Appender, Read};
use crate::metrics::InputMetrics;
use crate::proto::batch::Batch;
use crate::proto::envelope::Transport;
use crate::proto::position::{Mark, Position};

/// How long a connection that goes on beyond the memory budget, so that others wait, may be silent.
const OVERDRAWN_SILENCE: Duration = Duration::from_secs(30);
/// From the wish to close to our FIN at the earliest. A connection that was just accepted seems silent until the runtime has
/// asked the kernel once what is there; it does so before any timer fires.
const LOOK_FIRST: Duration = Duration::from_millis(5);
/// How long a client may take to let go of a connection that we close.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// What a connection is made of.
pub(super) struct Parts<S> {
    pub(super) stream: S,
    pub(super) source: SocketAddr,
    pub(super) transport: Transport,
    pub(super) settings: Arc<Settings>,
    pub(super) metrics: Arc<InputMetrics>,
    pub(super) appender: Appender,
    pub(super) counted: Counted,
    pub(super) repeats: Arc<Repeats>,
    pub(super) share: Share,
}

/// Serves a client until it or the stage says otherwise. While it quiesces it may go on for `grace`.
pub(super) async fn run<S>(mut parts: Parts<S>, mut stay: Stay<Settings>, grace: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut begin = Vec::new();
    if let Some(security) = &parts.settings.security {
        let outcome = tokio::select! {
            outcome = shake_hands(&mut parts.stream, security) => outcome,
            () = stay.is_over() => return,
        };
        match outcome {
            Ok((_, received)) => begin = received,
            Err(refused) => {
                if let Some(reason) = refused.reason() {
                    parts.metrics.rejected.inc(reason);
                    tracing::debug!(source = %parts.source, reason, "handshake: {refused}");
                }
                return;
            }
        }
    }
    Connection::new(parts, begin).serve(stay, grace).await;
}

struct Connection<S> {
    frames: Frames<ReadHalf<S>>,
    answers: Answers<WriteHalf<S>, Acknowledgement>,
    appender: Appender,
    repeats: Arc<Repeats>,
    source: SocketAddr,
    settings: Arc<Settings>,
    metrics: Arc<InputMetrics>,
    counted: Counted,
    /// Where the last batch of this connection ends.
    appended: Mark,
    read_at: Instant,
    /// Nothing more is read.
    ended: bool,
    /// Our FIN is out; until when the client's is waited for.
    closing: Option<Instant>,
    said_goodbye: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(parts: Parts<S>, begin: Vec<u8>) -> Connection<S> {
        let Parts { stream, source, transport, settings, metrics, appender, counted, repeats, share } = parts;
        let (reader, writer) = tokio::io::split(stream);
        let promise = Promise::of(appender.promised());
        Connection {
            frames: Frames::new(
                (reader, begin),
                (source, transport),
                settings.clone(),
                metrics.clone(),
                repeats.clone(),
                appender.memory().clone(),
                share,
            ),
            answers: Answers::new(writer, promise, repeats.clone(), metrics.clone()),
            appender,
            repeats,
            source,
            settings,
            metrics,
            counted,
            appended: Mark::default(),
            read_at: Instant::now(),
            ended: false,
            closing: None,
            said_goodbye: false,
        }
    }

    async fn serve(mut self, stay: Stay<Settings>, grace: Duration) {
        match self.exchange(stay, grace).await {
            Ok(()) => {
                // What is unread would make a reset of the close, which may overtake the last answers.
                let _ = timeout(CLOSE_WITHIN, self.answers.close()).await;
            }
            Err(Cut::Silently) => {}
            Err(Cut::Late) => self.counted.cut(),
            Err(Cut::Because(reason)) => {
                self.metrics.rejected.inc(reason);
                tracing::debug!(source = %self.source, reason, "connection closed without its acknowledgements");
            }
        }
    }

    /// Takes frames and answers them, until the stream ended and all is answered.
    async fn exchange(&mut self, mut stay: Stay<Settings>, grace: Duration) -> Result<(), Cut> {
        let mut goodbye_at = Instant::now();
        while !(self.ended && self.answers.is_done()) {
            let (at, cut) = self.deadline().map_or((Instant::now(), None), |(at, cut)| (at, Some(cut)));
            let is_at_rest = self.answers.is_done() && self.frames.is_between_frames();
            tokio::select! {
                biased;
                // Before the reading, which may never have to wait.
                () = sleep_until(at), if cut.is_some() => return Err(cut.unwrap_or(Cut::Silently)),
                () = stay.is_over(), if self.closing.is_none() => {
                    self.closing = Some(Instant::now() + grace);
                    goodbye_at = Instant::now() + LOOK_FIRST.min(grace);
                }
                stepped = self.answers.step(), if !self.answers.is_done() => stepped.map_err(|_| Cut::Silently)?,
                taken = self.frames.next(), if !self.ended && self.answers.has_room() => {
                    self.read_at = Instant::now();
                    self.take_in(taken).await?;
                }
                // Everything that was sent is read and answered: our FIN asks the client to go elsewhere. One that came
                // before the answer would make fluentd avoid the node for ten seconds.
                () = sleep_until(goodbye_at), if self.closing.is_some() && is_at_rest && !self.said_goodbye => {
                    self.said_goodbye = true;
                    self.frames.fall_silent();
                    let _ = timeout(CLOSE_WITHIN, self.answers.close()).await;
                }
            }
        }
        Ok(())
    }

    /// When this connection is cut if nothing happens, and why.
    fn deadline(&self) -> Option<(Instant, Cut)> {
        let answer = self.answers.deadline().map(|at| {
            let reason = if self.answers.waits_for_client() { "not_reading" } else { "ack_timeout" };
            (at, Cut::Because(reason))
        });
        let closing = self.closing.map(|at| (at, Cut::Late));
        let idle = self.settings.config.idle_timeout.filter(|_| self.answers.is_done());
        let idle = idle.map(|idle| (self.read_at + idle, Cut::Because("idle_timeout")));
        let overdrawn = self.frames.share.is_overdrawn();
        let overdrawn = overdrawn.then(|| (self.read_at + OVERDRAWN_SILENCE, Cut::Because("stalled")));
        [answer, closing, idle, overdrawn].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Appends what a read gave, and owes what it asked for.
    async fn take_in(&mut self, taken: Taken) -> Result<(), Cut> {
        let Taken { batch, unasked, received, asked, suspect, end } = taken;
        let mut start = Position::ZERO;
        if !batch.is_empty() {
            let length = batch.len() as u64;
            // Who asked hears of it in time; who did not has nothing but us.
            let give_up = (!unasked).then(|| self.read_at + ANSWER_WITHIN);
            self.appended = self.answers.append(&self.appender, batch, give_up).await?;
            start = Position(self.appended.position.0.saturating_sub(length));
        }
        let first = First { start, end: self.appended };
        for Asked { id, what } in asked {
            let (mark, fingerprint) = match what {
                What::New(fingerprint) => {
                    self.repeats.appended(fingerprint, first, received);
                    (first.end, Some(fingerprint))
                }
                What::Repeat(first) => (first.end, None),
                What::Nothing => (Mark::default(), None),
            };
            let answer = Acknowledgement { id, fingerprint };
            self.answers.owe(Unanswered { answer, mark, received: self.read_at });
        }
        self.answers.collect();
        if let Some(first) = suspect {
            let copy = timeout(ANSWER_WITHIN, self.journaled(first)).await.ok().flatten();
            self.frames.judge(first, copy.as_ref());
        }
        if end.is_some() {
            self.ended = true;
            self.answers.client_finished();
        }
        if let Some(End::Fault(closed, tag)) = end {
            let (input, source) = (&self.settings.config.name, self.source);
            let (reason, limit) = (closed.reason(), self.settings.config.max_chunk);
            let tag = tag.map(|tag| tag[..tag.len().min(100)].escape_ascii().to_string()).unwrap_or_default();
            self.metrics.rejected.inc(reason);
            if closed.wants_a_look() {
                tracing::warn!(input, %source, tag, limit, reason, "connection closed: {closed}");
            } else {
                tracing::debug!(input, %source, tag, limit, reason, "connection closed: {closed}");
            }
        }
        Ok(())
    }

    /// The journal's own copy of a batch, as soon as it may be promised; `None` if it is not there any more.
    async fn journaled(&self, first: First) -> Option<Batch> {
        self.answers.promised(first.end).await;
        match self.appender.reader(first.start).next().await {
            Read::Batches(batches) => batches.into_iter().next().filter(|batch| batch.start().position == first.start),
            Read::Skipped { .. } => None,
        }
    }
}
