//! One client: frames in, answers out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::frames::{Frames, Taken};
use crate::config::RelpInput;
use crate::input::accept::Counted;
use crate::input::answers::{self, ANSWER_WITHIN, Answers, Cut, Promise, Unanswered};
use crate::input::departure::Stay;
use crate::journal::Appender;
use crate::metrics::InputMetrics;
use crate::proto::envelope::Transport;
use crate::proto::position::Mark;
use crate::proto::relp::Answer;

/// From the wish to close to the last look at what was sent. A connection that was just accepted seems silent until the
/// runtime has asked the kernel once what is there; it does so before any timer fires.
const LOOK_FIRST: Duration = Duration::from_millis(5);
/// How long a client may take to let go of a connection that we close.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

impl answers::Answer for Answer {
    type Memory = ();

    fn write(&self, out: &mut Vec<u8>) {
        Answer::write(*self, out);
    }

    fn is_promise(&self) -> bool {
        matches!(self, Answer::Done(_))
    }

    fn settle<'a>((): &(), _: impl Iterator<Item = (&'a Answer, Mark)>) {}
}

/// What a connection is made of.
pub(super) struct Parts<S> {
    pub(super) stream: S,
    pub(super) source: SocketAddr,
    pub(super) transport: Transport,
    pub(super) settings: Arc<RelpInput>,
    pub(super) metrics: Arc<InputMetrics>,
    pub(super) appender: Appender,
    pub(super) counted: Counted,
}

/// Serves a client until it or the stage says otherwise; then what was taken in may go on for `grace`.
pub(super) async fn run<S>(parts: Parts<S>, stay: Stay<RelpInput>, grace: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Parts { stream, source, transport, settings, metrics, appender, counted } = parts;
    let (reader, writer) = tokio::io::split(stream);
    let promise = Promise::of(appender.promised());
    let connection = Connection {
        frames: Frames::new(reader, (source, transport), settings.clone(), metrics.clone()),
        answers: Answers::new(writer, promise, (), metrics.clone()),
        appender,
        source,
        settings,
        metrics,
        counted,
        appended: Mark::default(),
        read_at: Instant::now(),
        ended: false,
        closing: None,
    };
    connection.serve(stay, grace).await;
}

struct Connection<S> {
    frames: Frames<ReadHalf<S>>,
    answers: Answers<WriteHalf<S>, Answer>,
    appender: Appender,
    source: SocketAddr,
    settings: Arc<RelpInput>,
    metrics: Arc<InputMetrics>,
    counted: Counted,
    /// Where the last batch of this connection ends.
    appended: Mark,
    read_at: Instant,
    /// Nothing more is taken in.
    ended: bool,
    /// The stage wants the connection gone; when it is cut.
    closing: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn serve(mut self, stay: Stay<RelpInput>, grace: Duration) {
        match self.exchange(stay, grace).await {
            Ok(()) => {
                let _ = timeout(CLOSE_WITHIN, self.answers.close()).await;
                // What is unread would make a reset of the close, which may overtake the last answers. It has none, so
                // the client sends it again.
                let until = self.closing.unwrap_or_else(|| Instant::now() + CLOSE_WITHIN);
                let _ = timeout_at(until, self.frames.discard()).await;
            }
            Err(Cut::Silently) => {}
            Err(Cut::Late) => self.counted.cut(),
            Err(Cut::Because(reason)) => {
                self.metrics.rejected.inc(reason);
                tracing::debug!(source = %self.source, reason, "connection closed without its answers");
            }
        }
    }

    /// Takes frames and answers them, until nothing more is to come and all is answered.
    async fn exchange(&mut self, mut stay: Stay<RelpInput>, grace: Duration) -> Result<(), Cut> {
        let mut last_look = Instant::now();
        while !(self.ended && self.answers.is_done()) {
            let (cut_at, cut) = self.deadline().map_or((Instant::now(), None), |(at, cut)| (at, Some(cut)));
            let idle_at = self.idle_deadline();
            tokio::select! {
                biased;
                // Before the reading, which may never have to wait.
                () = sleep_until(cut_at), if cut.is_some() => return Err(cut.unwrap_or(Cut::Silently)),
                () = stay.is_over(), if self.closing.is_none() => {
                    self.closing = Some(Instant::now() + grace);
                    last_look = Instant::now() + LOOK_FIRST.min(grace);
                }
                // Also before the reading: a busy client is never silent, and has what it sends from now on for another.
                () = sleep_until(last_look), if self.closing.is_some() && !self.ended => self.say_goodbye(),
                stepped = self.answers.step(), if !self.answers.is_done() => stepped.map_err(|_| Cut::Silently)?,
                taken = self.frames.next(), if !self.ended && self.answers.has_room() => {
                    self.read_at = Instant::now();
                    self.take_in(taken).await?;
                }
                () = sleep_until(idle_at.unwrap_or_else(Instant::now)), if idle_at.is_some() => {
                    self.metrics.rejected.inc("idle_timeout");
                    self.say_goodbye();
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
        [answer, closing].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When a client that has its answers has been silent for too long.
    fn idle_deadline(&self) -> Option<Instant> {
        let idle = self.settings.idle_timeout.filter(|_| self.answers.is_done() && !self.ended);
        idle.map(|idle| self.read_at + idle)
    }

    /// Appends what a read gave, and owes what it asked for.
    async fn take_in(&mut self, taken: Taken) -> Result<(), Cut> {
        let Taken { batch, asked, ended, .. } = taken;
        if !batch.is_empty() {
            let give_up = self.read_at + ANSWER_WITHIN;
            self.appended = self.answers.append(&self.appender, batch, Some(give_up)).await?;
        }
        asked.into_iter().for_each(|answer| self.owe(answer));
        self.answers.collect();
        self.ended |= ended;
        Ok(())
    }

    fn owe(&mut self, answer: Answer) {
        self.answers.owe(Unanswered { answer, mark: self.appended, received: self.read_at });
    }

    /// Says, behind all answers, that the client shall go elsewhere.
    fn say_goodbye(&mut self) {
        self.read_at = Instant::now();
        self.owe(Answer::ServerClose);
        self.answers.collect();
        self.ended = true;
    }
}
