//! Syslog over TCP, also inside TLS: a window of bytes that the peer's TCP has not acknowledged.
//!
//! Plain TCP has no acknowledgement of the application, so the best that can be known is that the bytes reached the
//! other kernel. `write` returning says less: what it accepted is lost with the connection. The cursor therefore follows
//! `tcpi_bytes_acked`, and after a broken connection everything beyond it is sent again, under the same ids. Inside TLS
//! those are bytes of ciphertext; `wire` knows which messages they carry.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::encode::{Delimiter, Encoder};
use super::endpoint::{Backoff, Opened, open};
use super::feed::Feed;
use super::filter::Filter;
use super::wire::Wire;
use super::{End, Life};
use crate::config::{Framing, Target};
use crate::proto::position::Mark;
use crate::sys;
use crate::tls;

/// How long the peer's acknowledgement of the last bytes is waited for before looking again: a peer may delay it 40 ms.
pub(super) const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(40)];
/// How often a better address is tried while a lesser one is in use.
pub(super) const FAIL_BACK_EVERY: Duration = Duration::from_secs(15);
/// Bytes sent again and again for this long without any answer: the destination is gone, another has its turn. A
/// destination that is alive and has no room is waited for (`TCP_USER_TIMEOUT` would not tell the two apart).
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How often a connection that takes nothing is looked at.
const LOOK_WHILE_BLOCKED: Duration = Duration::from_millis(100);

/// Bytes that are written before more is encoded: they are still in the processor's cache then.
const WRITE_BYTES: usize = 128 * 1024;

/// How long the peer may take to let us say goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// An output to the first of several TCP or TLS destinations that answers.
pub struct Stream {
    /// In order of preference.
    pub targets: Vec<Target>,
    /// Who shakes hands with those inside TLS.
    pub tls: tls::Client,
    /// How messages are told apart, which may depend on the target.
    pub framing: Framing,
    /// How a message looks there; its delimiter is that of the target in use.
    pub encoder: Encoder,
    /// Which messages go.
    pub filter: Filter,
    /// Pauses between rounds of tries.
    pub backoff: Backoff,
}

/// A connection and what is on its way in it.
struct Link {
    wire: Wire,
    target: usize,
    written: u64,
    /// Ends of batches in `written` bytes, with their marks and messages.
    window: VecDeque<(u64, Mark, u64)>,
}

impl Stream {
    /// Delivers until the output's life ends.
    pub async fn run(mut self, mut feed: Feed, mut life: Life) {
        let mut connected_before = false;
        loop {
            let connecting = async {
                if connected_before {
                    self.pause(&mut feed).await;
                }
                self.connect(&mut feed).await
            };
            let link = tokio::select! {
                link = connecting => link,
                () = life.stopping() => return,
            };
            connected_before = true;
            let name = self.targets[link.target].to_string();
            tracing::info!(output = life.name(), target = name, "connected");
            self.encoder.delimiter = Delimiter::of(self.framing, self.targets[link.target].protocol);
            feed.metrics().set_connected(Some(name.clone()));
            let ended = self.deliver(link, &mut feed, &mut life).await;
            feed.metrics().set_connected(None);
            feed.metrics().in_flight.set(0);
            feed.rewind();
            match ended {
                Ok(End::Stopped) => return,
                Ok(End::Better) => connected_before = false,
                Err(error) => {
                    tracing::warn!(output = life.name(), target = name, %error, "connection lost");
                    feed.metrics().errors.inc("connection_lost");
                    feed.metrics().set_last_error(format!("{name}: {error}"));
                }
            }
        }
    }

    /// A pause that still watches the journal, so that the age of what waits is known.
    async fn pause(&mut self, feed: &mut Feed) {
        feed.metrics().retries.inc();
        let pause = sleep(self.backoff.pause());
        tokio::pin!(pause);
        tokio::select! {
            () = &mut pause => return,
            () = feed.peek() => {}
        }
        pause.await;
    }

    /// Tries the targets in order, round after round, until one answers.
    async fn connect(&mut self, feed: &mut Feed) -> Link {
        loop {
            for (number, target) in self.targets.iter().enumerate() {
                match open(target, &self.tls).await {
                    Ok(Opened { stream, base }) => {
                        let wire = Wire::new(stream, base);
                        return Link { wire, target: number, written: 0, window: VecDeque::new() };
                    }
                    Err(error) => {
                        tracing::debug!(%target, %error, "cannot connect");
                        feed.metrics().errors.inc("connect");
                        feed.metrics().set_last_error(format!("{target}: {error}"));
                    }
                }
            }
            self.pause(feed).await;
        }
    }

    /// Delivers over one connection until it ends.
    async fn deliver(&mut self, mut link: Link, feed: &mut Feed, life: &mut Life) -> io::Result<End> {
        let mut better = Better::new(&self.targets[..link.target], &self.tls);
        let mut out = Vec::new();
        let mut look_again = LOOK_AGAIN[0];
        loop {
            if life.is_stopping() && feed.is_at_end() && link.window.is_empty() {
                link.leave().await;
                return Ok(End::Stopped);
            }
            let batches = tokio::select! {
                batches = feed.next() => batches,
                () = sleep(look_again), if !link.window.is_empty() => {
                    look_again = (look_again * 2).min(LOOK_AGAIN[1]);
                    link.look(feed)?;
                    continue;
                }
                closed = closed(&mut link.wire.stream) => return Err(closed),
                over = life.turn() => if over { return Ok(End::Stopped) } else { continue },
                () = better.answers() => {
                    tracing::info!(output = life.name(), "a preferred destination answers again");
                    self.finish(&mut link, feed).await?;
                    link.leave().await;
                    return Ok(End::Better);
                }
            };
            look_again = LOOK_AGAIN[0];
            let mut sent = 0;
            for batch in &batches {
                let mut messages = 0;
                for envelope in batch.envelopes().filter(|envelope| self.filter.takes(envelope)) {
                    let mut left = self.encoder.begin(envelope);
                    while self.encoder.encode_some(&mut left, &mut out, |_| messages += 1) {
                        if link.write(&mut out, feed, life).await? {
                            return Ok(End::Stopped);
                        }
                    }
                }
                sent += messages;
                feed.metrics().in_flight.inc_by(messages as i64);
                link.window.push_back((link.written + out.len() as u64, batch.end(), messages));
                if out.len() >= WRITE_BYTES && link.write(&mut out, feed, life).await? {
                    return Ok(End::Stopped);
                }
            }
            if link.write(&mut out, feed, life).await? {
                return Ok(End::Stopped);
            }
            feed.metrics().sent.inc_by(sent);
            self.backoff.reset();
            link.look(feed)?;
        }
    }

    /// Waits until everything written has arrived.
    async fn finish(&self, link: &mut Link, feed: &mut Feed) -> io::Result<()> {
        let until = Instant::now() + FAIL_BACK_EVERY;
        while !link.window.is_empty() && Instant::now() < until {
            sleep(LOOK_AGAIN[0]).await;
            link.look(feed)?;
        }
        Ok(())
    }
}

impl Link {
    /// Writes `out` to its end and empties it; true if the output's life ends before.
    async fn write(&mut self, out: &mut Vec<u8>, feed: &mut Feed, life: &mut Life) -> io::Result<bool> {
        self.written += out.len() as u64;
        let mut rest = &out[..];
        while !rest.is_empty() || self.wire.holds_back() {
            tokio::select! {
                taken = self.wire.push(rest) => rest = &rest[taken?..],
                () = sleep(LOOK_WHILE_BLOCKED) => self.look(feed)?,
                over = life.turn() => if over { return Ok(true) },
            }
        }
        feed.metrics().sent_bytes.inc_by(out.len() as u64);
        out.clear();
        Ok(false)
    }

    /// Moves the cursor over the batches that the peer's TCP has acknowledged to their last byte.
    fn look(&mut self, feed: &mut Feed) -> io::Result<()> {
        let delivery = sys::tcp::delivery(self.wire.stream.tcp())?;
        if delivery.silence.is_some_and(|silence| silence > SILENCE_MAX) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to what was sent"));
        }
        let acknowledged = self.wire.arrived(delivery.acknowledged);
        let mut arrived = None;
        while let Some(&(end, mark, messages)) = self.window.front()
            && end <= acknowledged
        {
            self.window.pop_front();
            feed.metrics().acknowledged.inc_by(messages);
            feed.metrics().in_flight.dec_by(messages as i64);
            arrived = Some(mark);
        }
        if let Some(mark) = arrived {
            feed.arrived(mark);
        }
        Ok(())
    }

    /// Says the end, where the protocol has a word for it. All has arrived: whether this does is of no matter.
    async fn leave(&mut self) {
        let _ = timeout(GOODBYE_MAX, self.wire.stream.shutdown()).await;
    }
}

/// Resolves when the peer closes or resets. What it may send is nothing we asked for and is thrown away.
async fn closed(stream: &mut tls::Stream) -> io::Error {
    let mut unasked = [0; 1024];
    loop {
        match stream.read(&mut unasked).await {
            Ok(0) => return io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the destination"),
            Ok(_) => {}
            Err(error) => return tls::explain(error),
        }
    }
}

/// Tries the targets that are preferred to the one in use, now and then, without holding up what is being delivered.
struct Better {
    targets: Arc<[Target]>,
    tls: tls::Client,
    next: Instant,
    trying: Option<JoinHandle<bool>>,
}

impl Better {
    fn new(targets: &[Target], tls: &tls::Client) -> Better {
        Better { targets: targets.into(), tls: tls.clone(), next: Instant::now() + FAIL_BACK_EVERY, trying: None }
    }

    /// Resolves when one of them answers. Cancelling loses nothing.
    async fn answers(&mut self) {
        if self.targets.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            if let Some(trying) = &mut self.trying {
                let answered = trying.await;
                self.trying = None;
                self.next = Instant::now() + FAIL_BACK_EVERY;
                if answered.unwrap_or(false) {
                    return;
                }
            }
            sleep_until(self.next).await;
            let (targets, tls) = (self.targets.clone(), self.tls.clone());
            self.trying = Some(tokio::spawn(async move {
                for target in targets.iter() {
                    if open(target, &tls).await.is_ok() {
                        return true;
                    }
                }
                false
            }));
        }
    }
}

impl Drop for Better {
    fn drop(&mut self) {
        if let Some(trying) = &self.trying {
            trying.abort();
        }
    }
}
