//! Syslog over TCP: a window of bytes that the peer's TCP has not acknowledged.
//!
//! Plain TCP has no acknowledgement of the application, so the best that can be known is that the bytes reached the
//! other kernel. `write` returning says less: what it accepted is lost with the connection. The cursor therefore follows
//! `tcpi_bytes_acked`, and after a broken connection everything beyond it is sent again, under the same ids.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::encode::Encoder;
use super::endpoint::{Backoff, connect};
use super::feed::Feed;
use super::filter::Filter;
use super::{End, Life};
use crate::config::Target;
use crate::proto::position::Mark;
use crate::sys;

/// How long the peer's acknowledgement of the last bytes is waited for before looking again: a peer may delay it 40 ms.
pub(super) const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(40)];
/// How often a better address is tried while a lesser one is in use.
pub(super) const FAIL_BACK_EVERY: Duration = Duration::from_secs(15);
/// Bytes sent again and again for this long without any answer: the destination is gone, another has its turn. A
/// destination that is alive and has no room is waited for (`TCP_USER_TIMEOUT` would not tell the two apart).
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How often a connection that takes nothing is looked at.
const LOOK_WHILE_BLOCKED: Duration = Duration::from_millis(100);

/// An output to the first of several TCP destinations that answers.
pub struct Stream {
    /// In order of preference.
    pub targets: Vec<Target>,
    /// How a message looks there.
    pub encoder: Encoder,
    /// Which messages go.
    pub filter: Filter,
    /// Pauses between rounds of tries.
    pub backoff: Backoff,
}

/// A connection and what is on its way in it.
struct Link {
    stream: TcpStream,
    target: usize,
    /// Acknowledged bytes before ours: the SYN.
    base: u64,
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
                let opened = connect(target).await.and_then(|stream| {
                    let base = sys::tcp::delivery(&stream)?.acknowledged;
                    Ok(Link { stream, target: number, base, written: 0, window: VecDeque::new() })
                });
                match opened {
                    Ok(link) => return link,
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
        let mut better = Better::new(&self.targets[..link.target]);
        let mut out = Vec::new();
        let mut look_again = LOOK_AGAIN[0];
        loop {
            if life.is_stopping() && feed.is_at_end() && link.window.is_empty() {
                return Ok(End::Stopped);
            }
            let batches = tokio::select! {
                batches = feed.next() => batches,
                () = sleep(look_again), if !link.window.is_empty() => {
                    look_again = (look_again * 2).min(LOOK_AGAIN[1]);
                    link.look(feed)?;
                    continue;
                }
                closed = closed(&link.stream) => return Err(closed),
                over = life.turn() => if over { return Ok(End::Stopped) } else { continue },
                stream = better.answers() => {
                    drop(stream);
                    tracing::info!(output = life.name(), "a preferred destination answers again");
                    self.finish(&mut link, feed).await?;
                    return Ok(End::Better);
                }
            };
            look_again = LOOK_AGAIN[0];
            out.clear();
            let mut sent = 0;
            for batch in &batches {
                let mut messages = 0;
                for envelope in batch.envelopes().filter(|envelope| self.filter.takes(envelope)) {
                    messages += self.encoder.encode(&envelope, &mut out);
                }
                sent += messages;
                feed.metrics().in_flight.inc_by(messages as i64);
                link.window.push_back((link.written + out.len() as u64, batch.end(), messages));
            }
            link.written += out.len() as u64;
            let mut rest = &out[..];
            while !rest.is_empty() {
                tokio::select! {
                    ready = link.stream.writable() => match ready.and_then(|()| link.stream.try_write(rest)) {
                        Ok(taken) => rest = &rest[taken..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    },
                    () = sleep(LOOK_WHILE_BLOCKED) => link.look(feed)?,
                    over = life.turn() => if over { return Ok(End::Stopped) },
                }
            }
            feed.metrics().sent.inc_by(sent);
            feed.metrics().sent_bytes.inc_by(out.len() as u64);
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
    /// Moves the cursor over the batches that the peer's TCP has acknowledged to their last byte.
    fn look(&mut self, feed: &mut Feed) -> io::Result<()> {
        let delivery = sys::tcp::delivery(&self.stream)?;
        if delivery.silence.is_some_and(|silence| silence > SILENCE_MAX) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to what was sent"));
        }
        let acknowledged = delivery.acknowledged.saturating_sub(self.base);
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
}

/// Resolves when the peer closes or resets. What it may send is nothing we asked for and is thrown away.
async fn closed(stream: &TcpStream) -> io::Error {
    let mut unasked = [0; 1024];
    loop {
        if let Err(error) = stream.readable().await {
            return error;
        }
        match stream.try_read(&mut unasked) {
            Ok(0) => return io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the destination"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error,
        }
    }
}

/// Tries the targets that are preferred to the one in use, now and then, without holding up what is being delivered.
struct Better {
    targets: Arc<[Target]>,
    next: Instant,
    trying: Option<JoinHandle<Option<TcpStream>>>,
}

impl Better {
    fn new(targets: &[Target]) -> Better {
        Better { targets: targets.into(), next: Instant::now() + FAIL_BACK_EVERY, trying: None }
    }

    /// Resolves when one of them answers. Cancelling loses nothing.
    async fn answers(&mut self) -> TcpStream {
        if self.targets.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            if let Some(trying) = &mut self.trying {
                let answered = trying.await;
                self.trying = None;
                self.next = Instant::now() + FAIL_BACK_EVERY;
                if let Ok(Some(stream)) = answered {
                    return stream;
                }
            }
            sleep_until(self.next).await;
            let targets = self.targets.clone();
            self.trying = Some(tokio::spawn(async move {
                for target in targets.iter() {
                    if let Ok(stream) = connect(target).await {
                        return Some(stream);
                    }
                }
                None
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
