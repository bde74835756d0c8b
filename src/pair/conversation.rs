//! One connection to the other node, from its first byte to its last.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use super::mirrors::{self, MirrorError};
use super::{Notice, Shared};
use crate::journal::{Journal, Read, Reader, Refused};
use crate::proto::batch::Batch;
use crate::proto::pair::message::{Frame, Hello, PROTOCOL};
use crate::proto::pair::session::{DELIVERED_EVERY, Effect, SILENCE_MAX, Session, SessionError};
use crate::proto::position::{JournalId, Mark};
use crate::sys::tcp;
use crate::tls::Stream;

/// Bytes that are read in one call.
const READ_BYTES: usize = 256 * 1024;
/// Bytes that may wait to be written: while there are more, no journal is read.
const OUT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Why a conversation is over.
#[derive(Debug, Error)]
pub(super) enum Ended {
    /// Another connection stands.
    #[error("another connection to the peer took its place")]
    Superseded,
    /// The connection.
    #[error("the connection to the peer broke: {0}")]
    Broken(#[from] io::Error),
    /// The other node closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// What the other node said, or did not say.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The mirror cannot be opened.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The mirror takes nothing more.
    #[error("the mirror of {0} takes nothing: {1}")]
    Refused(JournalId, Refused),
}

/// Talks until the connection ends.
pub(super) async fn run(stream: Stream, shared: Arc<Shared>) -> Ended {
    let socket = match stream.tcp().as_fd().try_clone_to_owned() {
        Ok(socket) => socket,
        Err(error) => return error.into(),
    };
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Incoming { half: reader, received: BytesMut::new() };
    let mut first = None;
    if !shared.settings.decides() {
        match timeout(SILENCE_MAX, reader.frame()).await {
            Ok(Ok(frame)) => first = Some(frame),
            Ok(Err(ended)) => return ended,
            Err(_) => return SessionError::Silent.into(),
        }
    }
    // In the order in which it is decided, or heard of; not that in which connections came to be.
    let number = shared.stand();
    let mut standing = shared.standing.subscribe();
    let hello = hello(&shared);
    let peer = shared.settings.pair.peer_node().name.clone();
    let mut conversation = Conversation {
        session: Session::new(hello, peer, Instant::now()),
        reader,
        writer,
        out: VecDeque::new(),
        is_flushed: true,
        shipping: Vec::new(),
        taking: Vec::new(),
        has_met: false,
        socket,
        number,
        shared: shared.clone(),
    };
    let ended = tokio::select! {
        ended = conversation.talk(first) => ended.err().unwrap_or(Ended::Closed),
        // The sender lives in `shared`.
        _ = standing.wait_for(|standing| *standing > number) => Ended::Superseded,
    };
    conversation.part(&ended);
    ended
}

fn hello(shared: &Shared) -> Hello {
    let mirrors = shared.mirrors.all();
    let mirrors = mirrors.iter().map(|mirror| mirrors::held(mirror, false));
    Hello {
        protocol: PROTOCOL,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        node: shared.settings.pair.own_node().name.clone(),
        configuration: shared.settings.configuration,
        journals: std::iter::once(mirrors::held(&shared.own, true)).chain(mirrors).collect(),
    }
}

/// The reading half, and what of it is no whole frame yet.
struct Incoming {
    half: ReadHalf<Stream>,
    received: BytesMut,
}

impl Incoming {
    /// The next frame. Cancelling loses nothing.
    async fn frame(&mut self) -> Result<Frame, Ended> {
        loop {
            if let Some(frame) = Frame::take(&mut self.received).map_err(SessionError::from)? {
                return Ok(frame);
            }
            self.received.reserve(Frame::missing(&self.received).max(READ_BYTES));
            match self.half.read_buf(&mut self.received).await {
                Ok(0) => return Err(Ended::Closed),
                // Without a goodbye, as when the process ends.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Ended::Closed),
                read => read?,
            };
        }
    }
}

/// A journal that is shipped.
struct Shipping {
    journal: JournalId,
    reader: Reader,
}

/// A journal that is taken.
struct Taking {
    journal: JournalId,
    durable: watch::Receiver<Mark>,
}

struct Conversation {
    session: Session,
    reader: Incoming,
    writer: WriteHalf<Stream>,
    out: VecDeque<Bytes>,
    is_flushed: bool,
    shipping: Vec<Shipping>,
    taking: Vec<Taking>,
    has_met: bool,
    /// Below what is read and written, to ask how far away the other node is.
    socket: OwnedFd,
    number: u64,
    shared: Arc<Shared>,
}

impl Conversation {
    async fn talk(&mut self, first: Option<Frame>) -> Result<(), Ended> {
        let mut told = self.shared.told.clone();
        self.session.set_status(Instant::now(), told.borrow_and_update().clone());
        if let Some(frame) = first {
            self.handle(frame).await?;
        }
        let mut deliveries = interval(DELIVERED_EVERY);
        deliveries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(bytes) = self.session.poll_transmit() {
                self.out.push_back(bytes);
                self.is_flushed = false;
            }
            let has_room = self.out.iter().map(Bytes::len).sum::<usize>() < OUT_BYTES_MAX;
            tokio::select! {
                frame = self.reader.frame() => self.handle(frame?).await?,
                written = write(&mut self.writer, &mut self.out), if !self.is_flushed => {
                    written?;
                    self.is_flushed = self.out.is_empty();
                }
                (journal, batches) = next_batches(&mut self.shipping, &self.session), if has_room => {
                    self.session.ship(Instant::now(), &journal, &batches);
                }
                (journal, mark) = next_durable(&mut self.taking) => {
                    self.session.set_durable(Instant::now(), &journal, mark);
                }
                _ = deliveries.tick() => self.tell_deliveries(),
                changed = told.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    // In this order: what it had delivered when it said so, if it says that it delivers nothing any more.
                    let status = told.borrow_and_update().clone();
                    self.tell_deliveries();
                    self.session.set_status(Instant::now(), status);
                }
                () = sleep_until(self.session.poll_timeout().into()) => self.session.handle_timeout(Instant::now())?,
            }
        }
    }

    async fn handle(&mut self, frame: Frame) -> Result<(), Ended> {
        self.session.handle_frame(Instant::now(), frame)?;
        while let Some(effect) = self.session.poll_effect() {
            self.follow(effect).await?;
        }
        Ok(())
    }

    async fn follow(&mut self, effect: Effect) -> Result<(), Ended> {
        let shared = self.shared.clone();
        match effect {
            Effect::Met(hello) => self.meet(&hello),
            Effect::Begin { journal, at } => {
                let mirror = self.mirror(&journal, at).await?;
                mirror.skip_to(at);
                self.taking.push(Taking { journal, durable: mirror.durable() });
            }
            Effect::SkipTo { journal, to } => self.mirror(&journal, to).await?.skip_to(to),
            Effect::Take { journal, batches } => {
                let at = batches.first().map(Batch::start).unwrap_or_default();
                let taken = self.mirror(&journal, at).await?.take(batches).await;
                taken.map_err(|refused| Ended::Refused(journal, refused))?;
            }
            Effect::Replicated { journal, mark } if journal == *shared.own.id() => shared.own.set_replicated(mark),
            // An orphan's: nobody waits for it.
            Effect::Replicated { .. } => {}
            Effect::Delivered { journal, outputs } if journal == *shared.own.id() => {
                let end = shared.own.progress().durable;
                shared.own.delivered_elsewhere(&mirrors::within(outputs, end));
            }
            Effect::Delivered { journal, outputs } => {
                if let Some(mirror) = shared.mirrors.get(&journal) {
                    mirror.delivered_elsewhere(&outputs);
                }
            }
            Effect::Heard(status) => drop(shared.view.send_if_modified(|view| {
                let is_news = view.peer.as_ref() != Some(&status);
                view.shown = status.shown.clone().or(view.shown.take());
                view.peer = Some(status);
                view.round_trip = tcp::delivery(&self.socket).ok().map(|delivery| delivery.round_trip);
                is_news
            })),
            Effect::RolledBack { journal, mirror, writer } => {
                let what = format!(
                    "{journal} is not mirrored: its own node has it up to {}, the mirror up to {}",
                    writer.position, mirror.position
                );
                tracing::error!("{what}");
                shared.view.send_modify(|view| view.error = Some(what.clone()));
                let _ = shared.notices.try_send(Notice::RolledBack(what));
            }
        }
        Ok(())
    }

    fn meet(&mut self, hello: &Hello) {
        let shared = &self.shared;
        let own = shared.own.id();
        for (journal, at) in self.session.shipments() {
            let source = if journal == own { Some(shared.own.clone()) } else { shared.mirrors.get(journal) };
            if let Some(source) = source {
                self.shipping.push(Shipping { journal: journal.clone(), reader: source.reader(at.position) });
            }
            if journal == own {
                shared.own.peer_came(at);
            }
        }
        self.has_met = true;
        let same = hello.configuration == shared.settings.configuration;
        tracing::info!(peer = %hello.node, program = hello.program, same_configuration = same, "the pair link stands");
        shared.view.send_modify(|view| {
            view.connected_since = Some(SystemTime::now());
            view.program = Some(hello.program.clone());
            view.same_configuration = Some(same);
            view.error = None;
        });
        let _ = shared.notices.try_send(Notice::Connected);
    }

    /// The mirror of a journal, which begins at `at` if it is new. Opening one reads the disk, on a thread of its own.
    async fn mirror(&self, journal: &JournalId, at: Mark) -> Result<Arc<Journal>, Ended> {
        if let Some(mirror) = self.shared.mirrors.get(journal) {
            return Ok(mirror);
        }
        let (shared, journal) = (self.shared.clone(), journal.clone());
        let opened = tokio::task::spawn_blocking(move || shared.mirrors.of(&journal, at));
        Ok(opened.await.map_err(io::Error::other)??)
    }

    fn tell_deliveries(&mut self) {
        let now = Instant::now();
        let mirrors = self.shared.mirrors.all();
        for journal in std::iter::once(&self.shared.own).chain(&mirrors) {
            self.session.set_delivered(now, journal.id(), journal.delivered());
        }
        let taken: Vec<&JournalId> = self.taking.iter().map(|taking| &taking.journal).collect();
        let shipped: BTreeMap<&JournalId, Mark> = self.session.shipments().collect();
        // Which journals the other node still writes, it says first.
        if !self.has_met {
            return;
        }
        let living = |journal: &JournalId| taken.contains(&journal) || shipped.contains_key(journal);
        // Rarely there is one; its end waits for the disk.
        tokio::task::block_in_place(|| self.shared.mirrors.forget_delivered(living));
    }

    /// Leaves things as they are without a connection, unless another one has taken over.
    fn part(&self, ended: &Ended) {
        let shared = &self.shared;
        // Held to the end, so that no other one stands in between, whose news would be overwritten with ours.
        let standing = shared.standing.borrow();
        if *standing != self.number || shared.view.borrow().connected_since.is_none() {
            return;
        }
        shared.own.peer_left();
        let why = ended.to_string();
        tracing::warn!("the pair link is gone: {why}");
        shared.view.send_modify(|view| {
            view.connected_since = None;
            view.peer = None;
            view.error = Some(why.clone());
        });
        let _ = shared.notices.try_send(Notice::Lost(why));
        drop(standing);
    }
}

/// Writes some of `out`, or flushes what was written last.
async fn write(writer: &mut WriteHalf<Stream>, out: &mut VecDeque<Bytes>) -> io::Result<()> {
    while let Some(front) = out.front_mut() {
        let written = writer.write(front).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        front.advance(written);
        if front.is_empty() {
            out.pop_front();
        }
        if !out.is_empty() {
            return Ok(());
        }
    }
    writer.flush().await
}

/// The next batches of any journal that may be shipped now. Cancelling loses nothing.
async fn next_batches(shipping: &mut [Shipping], session: &Session) -> (JournalId, Vec<Batch>) {
    let mut waiting: Vec<_> = shipping
        .iter_mut()
        .filter(|shipping| session.has_room(&shipping.journal))
        .map(|Shipping { journal, reader }| {
            Box::pin(async move {
                loop {
                    // What cannot be read shows in the position of what comes next.
                    if let Read::Batches(batches) = reader.next().await {
                        return (journal.clone(), batches);
                    }
                }
            })
        })
        .collect();
    poll_fn(|context| {
        let ready = waiting.iter_mut().map(|next| next.as_mut().poll(context)).find(Poll::is_ready);
        ready.unwrap_or(Poll::Pending)
    })
    .await
}

/// The next mirror of which more is safe, and how far.
async fn next_durable(taking: &mut [Taking]) -> (JournalId, Mark) {
    poll_fn(|context| {
        for Taking { journal, durable } in taking.iter_mut() {
            let changed = pin!(durable.changed()).poll(context);
            if let Poll::Ready(Ok(())) = changed {
                let mark = *durable.borrow_and_update();
                return Poll::Ready((journal.clone(), mark));
            }
        }
        Poll::Pending
    })
    .await
}
