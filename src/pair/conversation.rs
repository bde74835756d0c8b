//! One connection to the other node, from its first byte to its last.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf, Bytes};
use thiserror::Error;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use super::incoming::Incoming;
use super::mirrors::{self, MirrorError};
use super::{Notice, Shared};
use crate::journal::{Journal, Read, Reader, Refused};
use crate::proto::batch::Batch;
use crate::proto::pair::message::{Frame, Hello, PROTOCOL};
use crate::proto::pair::session::{DELIVERED_EVERY, Effect, SILENCE_MAX, Session, SessionError};
use crate::proto::position::{JournalId, Mark};
use crate::sys::tcp;
use crate::tls::Stream;

/// Bytes that may wait to be written: while there are more, no journal is read.
const OUT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Pieces of them that are written with one call.
const OUT_PIECES: usize = 64;
/// How long the other node may take nothing of what waits: what it has to be told would wait without a bound, and promises
/// with it. Five times what counts as silence.
const STUCK_MAX: Duration = SILENCE_MAX.saturating_mul(5);
/// Mirrors that may be here: a peer that invents journals fills no disk with them.
const MIRRORS_MAX: usize = 64;

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
    /// What this node says is not read.
    #[error("the peer took nothing for {} s", STUCK_MAX.as_secs())]
    Stuck,
    /// More journals than two nodes can have.
    #[error("the peer has one more journal, {0}, and there are {MIRRORS_MAX} mirrors here")]
    Crowded(JournalId),
}

impl Ended {
    /// What the other end did wrong, if it did: a name for counting.
    pub(super) fn rejection(&self) -> Option<&'static str> {
        match self {
            Ended::Session(error) => Some(error.as_str()),
            Ended::Refused(_, Refused::OutOfPlace { .. }) => Some("batch"),
            Ended::Crowded(_) => Some("journals"),
            Ended::Stuck => Some("stuck"),
            Ended::Superseded | Ended::Broken(_) | Ended::Closed | Ended::Mirror(_) | Ended::Refused(..) => None,
        }
    }
}

/// Talks until the connection ends.
pub(super) async fn run(stream: Stream, shared: Arc<Shared>) -> Ended {
    // Every word is waited for: none is to wait until the one before was acknowledged.
    let socket = match stream.tcp().set_nodelay(true).and_then(|()| stream.tcp().as_fd().try_clone_to_owned()) {
        Ok(socket) => socket,
        Err(error) => return error.into(),
    };
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Incoming::new(reader);
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
        outgoing: Outgoing { half: writer, waiting: VecDeque::new(), is_flushed: true, moved_at: Instant::now() },
        shipping: Vec::new(),
        taking: Vec::new(),
        deliveries: Deliveries::of(&shared),
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

/// A journal that is shipped.
struct Shipping {
    journal: JournalId,
    /// What is read of it next. Begun, it goes on whatever else happens meanwhile: a read is a task and a megabyte.
    next: Pin<Box<dyn Future<Output = (Reader, Vec<Batch>)> + Send>>,
}

/// The next batches of a journal.
async fn read(mut reader: Reader) -> (Reader, Vec<Batch>) {
    loop {
        // What cannot be read shows in the position of what comes next.
        if let Read::Batches(batches) = reader.next().await {
            return (reader, batches);
        }
    }
}

/// A journal that is taken.
struct Taking {
    journal: JournalId,
    durable: News<Mark>,
}

/// Resolves when a receiver has something new, to that receiver. Kept until then: a future that is dropped is not woken up.
type News<T> = Pin<Box<dyn Future<Output = watch::Receiver<T>> + Send>>;

fn news<T: Send + Sync + 'static>(mut receiver: watch::Receiver<T>) -> News<T> {
    Box::pin(async move {
        if receiver.changed().await.is_err() {
            // The sender was that of a journal that has gone.
            std::future::pending::<()>().await;
        }
        receiver
    })
}

/// What of the journals tells that something was delivered.
struct Deliveries {
    mirrored: News<u64>,
    moved: Vec<News<()>>,
}

impl Deliveries {
    /// There is something to tell at first.
    fn of(shared: &Shared) -> Deliveries {
        let mirrored = news(shared.mirrors.changed());
        let mirrors = shared.mirrors.all();
        let moved = std::iter::once(&shared.own).chain(&mirrors).map(|journal| {
            let mut moved = journal.deliveries();
            moved.mark_changed();
            news(moved)
        });
        Deliveries { mirrored, moved: moved.collect() }
    }

    /// Resolves when there may be something to tell. Cancelling loses nothing.
    async fn changed(&mut self, shared: &Shared) {
        let has_come = poll_fn(|context| {
            if self.mirrored.as_mut().poll(context).is_ready() {
                return Poll::Ready(true);
            }
            let mut is_moved = false;
            for moved in &mut self.moved {
                if let Poll::Ready(receiver) = moved.as_mut().poll(context) {
                    *moved = news(receiver);
                    is_moved = true;
                }
            }
            if is_moved { Poll::Ready(false) } else { Poll::Pending }
        });
        if has_come.await {
            *self = Deliveries::of(shared);
        }
    }
}

struct Conversation {
    session: Session,
    reader: Incoming<ReadHalf<Stream>>,
    outgoing: Outgoing,
    shipping: Vec<Shipping>,
    taking: Vec<Taking>,
    deliveries: Deliveries,
    has_met: bool,
    /// Below what is read and written, to ask how far away the other node is.
    socket: OwnedFd,
    number: u64,
    shared: Arc<Shared>,
}

impl Conversation {
    async fn talk(&mut self, first: Option<Frame>) -> Result<(), Ended> {
        let shared = self.shared.clone();
        let mut told = shared.told.clone();
        let mut moves = shared.moves.lock().await;
        // To an earlier connection.
        while moves.try_recv().is_ok() {}
        self.session.set_status(Instant::now(), told.borrow_and_update().clone());
        if let Some(frame) = first {
            self.handle(frame).await?;
        }
        let mut alarm = pin!(sleep_until(self.session.poll_timeout().into()));
        // Between two words on deliveries.
        let (mut pause, mut pauses) = (pin!(sleep(Duration::ZERO)), false);
        loop {
            while let Some(bytes) = self.session.poll_transmit() {
                self.outgoing.push(bytes);
            }
            // What is said and heard puts it off thousands of times a second. That it is early then costs less.
            let due = self.session.poll_timeout().into();
            if alarm.is_elapsed() || due < alarm.deadline() {
                alarm.as_mut().reset(due);
            }
            let has_room = self.outgoing.bytes() < OUT_BYTES_MAX;
            tokio::select! {
                frame = self.reader.frame() => self.handle(frame?).await?,
                written = self.outgoing.write(), if !self.outgoing.is_flushed => written?,
                (journal, batches) = next_batches(&mut self.shipping, &self.session), if has_room => {
                    self.session.ship(Instant::now(), &journal, &batches);
                }
                (journal, mark) = next_durable(&mut self.taking) => {
                    self.session.set_durable(Instant::now(), &journal, mark);
                    self.look_at_the_end_of(&journal);
                }
                () = self.deliveries.changed(&shared), if !pauses => {
                    self.tell_deliveries();
                    pause.as_mut().reset((Instant::now() + DELIVERED_EVERY).into());
                    pauses = true;
                }
                () = &mut pause, if pauses => pauses = false,
                changed = told.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    // In this order: what it had delivered when it said so, if it says that it delivers nothing any more.
                    let status = told.borrow_and_update().clone();
                    self.tell_deliveries();
                    self.session.set_status(Instant::now(), status);
                }
                Some(said) = moves.recv(), if has_room => self.session.say_move(Instant::now(), said),
                () = &mut alarm => {
                    self.session.handle_timeout(Instant::now())?;
                    if self.outgoing.is_stuck() {
                        return Err(Ended::Stuck);
                    }
                }
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
                let mirror = mirror(&shared, &journal, at).await?;
                mirror.skip_to(at);
                self.reader.set_memory(mirror.appender().memory().clone());
                let mut durable = mirror.durable();
                // What came over an earlier connection may have become safe since the greeting.
                durable.mark_changed();
                self.taking.push(Taking { journal, durable: news(durable) });
            }
            Effect::SkipTo { journal, to } => mirror(&shared, &journal, to).await?.skip_to(to),
            Effect::Take { journal, batches } => {
                let at = batches.first().map(Batch::start).unwrap_or_default();
                let mirror = mirror(&shared, &journal, at).await?;
                // Whoever sends it has it.
                mirror.set_replicated(batches.last().map(Batch::end).unwrap_or_default());
                let taken = mirror.take(batches).await;
                taken.map_err(|refused| Ended::Refused(journal, refused))?;
            }
            Effect::Replicated { journal, mark } if journal == *shared.own.id() => shared.own.set_replicated(mark),
            // An orphan's: a drain waits for it.
            Effect::Replicated { journal, mark } => {
                shared.mirrors.get(&journal).iter().for_each(|mirror| mirror.set_replicated(mark));
                self.look_at_the_end_of(&journal);
            }
            Effect::Delivered { journal, outputs } if journal == *shared.own.id() => {
                let (end, told) = (shared.own.progress().durable, outputs.len());
                let outputs = mirrors::within(outputs, end);
                if outputs.len() < told {
                    shared.settings.metrics.rejected.inc("position");
                }
                shared.own.delivered_elsewhere(&outputs);
            }
            Effect::Delivered { journal, outputs } => {
                if let Some(mirror) = shared.mirrors.get(&journal) {
                    mirror.delivered_elsewhere(&outputs);
                }
            }
            Effect::Heard(mut status) => drop(shared.view.send_if_modified(|view| {
                // What is shown wakes up nobody: whoever is asked for it looks.
                view.shown = status.shown.take().or(view.shown.take());
                let is_news = view.peer.as_ref() != Some(&status);
                if view.peer.as_ref().is_none_or(|before| before.is_active != status.is_active) {
                    view.peer_role_since = Some(Instant::now());
                }
                view.peer = Some(status);
                view.round_trip = tcp::delivery(&self.socket).ok().map(|delivery| delivery.round_trip);
                is_news
            })),
            // Without room connections do not move: the link waits for nobody.
            Effect::Moving(said) => drop(shared.moves_heard.try_send(said)),
            // Asked before an earlier connection had its end: the next one asks again.
            Effect::RolledBack { journal, mirror, .. }
                if journal == *shared.own.id() && shared.own.progress().durable.position >= mirror.position =>
            {
                return Err(Ended::Superseded);
            }
            Effect::RolledBack { journal, mirror, writer } => {
                let what = format!(
                    "{journal} is not mirrored: its own node has it up to {}, the mirror up to {}",
                    writer.position, mirror.position
                );
                tracing::error!("{what}");
                shared.view.send_modify(|view| {
                    view.is_adrift |= journal == *shared.own.id();
                    view.error = Some(what.clone());
                });
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
                let next = Box::pin(read(source.reader(at.position)));
                self.shipping.push(Shipping { journal: journal.clone(), next });
            }
            if journal == own {
                shared.own.peer_came(at);
            }
        }
        for mirror in shared.mirrors.all() {
            // A disk that was lost has nothing of it, whatever was there before.
            let there = hello.journals.iter().find(|held| held.journal == *mirror.id());
            mirror.peer_came(there.map_or(Mark::default(), |held| held.durable));
        }
        self.has_met = true;
        self.deliveries = Deliveries::of(shared);
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

    /// An orphan may be delivered before the last of it is on both nodes.
    fn look_at_the_end_of(&mut self, journal: &JournalId) {
        if !self.session.is_living(journal) {
            self.tell_deliveries();
        }
    }

    fn tell_deliveries(&mut self) {
        let now = Instant::now();
        let mirrors = self.shared.mirrors.all();
        for journal in std::iter::once(&self.shared.own).chain(&mirrors) {
            self.session.set_delivered(now, journal.id(), journal.delivered());
        }
        // Which journals the other node still writes, it says first.
        if !self.has_met {
            return;
        }
        let living = |journal: &JournalId| self.session.is_living(journal);
        if mirrors.iter().any(|mirror| !living(mirror.id()) && mirrors::is_delivered(mirror)) {
            // Rarely there is one; its end waits for the disk.
            tokio::task::block_in_place(|| self.shared.mirrors.forget_delivered(living));
        }
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

/// The mirror of a journal, which begins at `at` if it is new. Opening one reads the disk, on a thread of its own.
async fn mirror(shared: &Arc<Shared>, journal: &JournalId, at: Mark) -> Result<Arc<Journal>, Ended> {
    if let Some(mirror) = shared.mirrors.get(journal) {
        return Ok(mirror);
    }
    if shared.mirrors.all().len() >= MIRRORS_MAX {
        return Err(Ended::Crowded(journal.clone()));
    }
    let (shared, journal) = (shared.clone(), journal.clone());
    let opened = tokio::task::spawn_blocking(move || shared.mirrors.of(&journal, at));
    Ok(opened.await.map_err(io::Error::other)??)
}

/// The writing half, and what is to be written.
struct Outgoing {
    half: WriteHalf<Stream>,
    waiting: VecDeque<Bytes>,
    is_flushed: bool,
    /// When something was last written, or nothing was there to be.
    moved_at: Instant,
}

impl Outgoing {
    fn push(&mut self, bytes: Bytes) {
        if self.is_flushed {
            self.moved_at = Instant::now();
        }
        self.waiting.push_back(bytes);
        self.is_flushed = false;
    }

    fn bytes(&self) -> usize {
        self.waiting.iter().map(Bytes::len).sum()
    }

    fn is_stuck(&self) -> bool {
        !self.is_flushed && self.moved_at.elapsed() >= STUCK_MAX
    }

    /// Writes and flushes all of it. Cancelling loses nothing.
    async fn write(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            // Together: a frame's head alone would be a TLS record and a packet.
            let pieces: Vec<IoSlice<'_>> =
                self.waiting.iter().take(OUT_PIECES).map(|bytes| IoSlice::new(bytes)).collect();
            let written = self.half.write_vectored(&pieces).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.moved_at = Instant::now();
            advance(&mut self.waiting, written);
        }
        self.half.flush().await?;
        self.is_flushed = true;
        Ok(())
    }
}

/// Takes `count` bytes from the front.
fn advance(waiting: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(front) = waiting.front_mut() {
        let taken = count.min(front.len());
        front.advance(taken);
        count -= taken;
        if !front.is_empty() {
            return;
        }
        waiting.pop_front();
    }
}

/// The next batches of any journal that may be shipped now. Cancelling loses nothing.
async fn next_batches(shipping: &mut [Shipping], session: &Session) -> (JournalId, Vec<Batch>) {
    poll_fn(|context| {
        for Shipping { journal, next } in shipping.iter_mut().filter(|shipping| session.has_room(&shipping.journal)) {
            if let Poll::Ready((reader, batches)) = next.as_mut().poll(context) {
                *next = Box::pin(read(reader));
                return Poll::Ready((journal.clone(), batches));
            }
        }
        Poll::Pending
    })
    .await
}

/// The next mirror of which more is safe, and how far. Cancelling loses nothing.
async fn next_durable(taking: &mut [Taking]) -> (JournalId, Mark) {
    poll_fn(|context| {
        for Taking { journal, durable } in taking.iter_mut() {
            if let Poll::Ready(receiver) = durable.as_mut().poll(context) {
                let mark = *receiver.borrow();
                *durable = news(receiver);
                return Poll::Ready((journal.clone(), mark));
            }
        }
        Poll::Pending
    })
    .await
}
