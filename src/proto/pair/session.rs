//! One connection's conversation between the nodes, as a value: frames and progress go in, frames and effects come out.
//!
//! Both sides say [`Hello`] first. From the two greetings both derive the same plan, without asking: who ships which
//! journal from where. Then batches flow, each stream with a window of its own in bytes that the other side has not yet
//! declared durable, so that a slow disk there holds up nothing but its own stream.
//!
//! | journal | shipped by | from |
//! | --- | --- | --- |
//! | one that its writer has | the writer | where the other's mirror ends |
//! | an orphan, whose writer no longer has it | whoever has more of it | the same |
//! | shorter at its writer than its mirror | nobody: [`Effect::RolledBack`]; its writer begins a new one | |
//!
//! What the other node says is believed as far as it can be checked: batches prove themselves, a position that cannot be
//! is an error, and an error ends the connection, never a journal.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use super::message::{Frame, FrameError, Held, Hello, Message, PROTOCOL, Status, Stream, batches_head, control};
use super::moving::Move;
use crate::proto::batch::{Batch, BatchError, Stamp};
use crate::proto::position::{JournalId, Mark, NodeName, Position};

/// Longest time between two signs of life that a node gives.
pub const HEARTBEAT: Duration = Duration::from_millis(200);
/// Silence after which the other node counts as away: five heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);
/// How soon the other node hears of deliveries: what was delivered in the meantime is repeated after a crash.
pub const DELIVERED_EVERY: Duration = Duration::from_millis(50);
/// Bytes of one journal on their way to the other disk. At 100 MB/s and 20 ms to be durable there, 2 MiB are on their way.
pub const WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Journals that a node may have: its own, the other's, and one for each disk that was lost and is not delivered.
const JOURNALS_MAX: usize = 64;

/// Why a connection cannot go on. It is closed and dialled again.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SessionError {
    /// Not the protocol's bytes.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other node speaks another protocol.
    #[error(
        "the peer runs twinlog {program} with pair protocol {theirs}, this node speaks {PROTOCOL}; install the same version on both"
    )]
    Protocol {
        /// Its program version.
        program: String,
        /// Its protocol.
        theirs: u16,
    },
    /// Another node than the one that was expected has the key.
    #[error("the other end calls itself {0}, which is not this node's peer")]
    Stranger(NodeName),
    /// A message out of turn.
    #[error("the peer said {0} out of turn")]
    OutOfTurn(&'static str),
    /// A position that cannot be.
    #[error("the peer named a position of {0} that cannot be")]
    Position(JournalId),
    /// Batches that are none, or not the next ones.
    #[error("batches of {journal} at {at} are refused: {cause}")]
    Batch {
        /// Whose.
        journal: JournalId,
        /// Where they should stand.
        at: Position,
        /// Why.
        cause: BatchError,
    },
    /// Nothing was heard.
    #[error("nothing was heard from the peer for {} ms", SILENCE_MAX.as_millis())]
    Silent,
}

impl SessionError {
    /// A name for counting.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            SessionError::Frame(_) => "frame",
            SessionError::Protocol { .. } => "protocol",
            SessionError::Stranger(_) => "stranger",
            SessionError::OutOfTurn(_) => "out_of_turn",
            SessionError::Position(_) => "position",
            SessionError::Batch { .. } => "batch",
            SessionError::Silent => "silent",
        }
    }
}

/// What the world has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The other node has introduced itself.
    Met(Hello),
    /// Make ready to take this journal; a mirror that ends before `at` has a hole up to there.
    Begin {
        /// Which.
        journal: JournalId,
        /// Where it begins.
        at: Mark,
    },
    /// Nothing before this will come.
    SkipTo {
        /// Of which journal.
        journal: JournalId,
        /// Where it goes on.
        to: Mark,
    },
    /// Write these to the mirror; they follow each other and what came before.
    Take {
        /// Of which journal.
        journal: JournalId,
        /// Which.
        batches: Vec<Batch>,
    },
    /// Everything before this is safe on the other node.
    Replicated {
        /// Of which journal.
        journal: JournalId,
        /// How far.
        mark: Mark,
    },
    /// What the other node's outputs have delivered.
    Delivered {
        /// Of which journal.
        journal: JournalId,
        /// How far, by output.
        outputs: BTreeMap<String, Mark>,
    },
    /// How the other node is.
    Heard(Status),
    /// What the other node says of connections that move.
    Moving(Move),
    /// The other node has more of a journal than the node that writes it: its disk went back in time. It is not mirrored.
    RolledBack {
        /// Which.
        journal: JournalId,
        /// What the mirror has.
        mirror: Mark,
        /// What its writer has.
        writer: Mark,
    },
}

/// A journal on its way to the other node.
#[derive(Clone, Debug)]
struct Shipment {
    stream: Stream,
    journal: JournalId,
    /// Everything before was sent.
    sent: Mark,
    /// Everything before is safe there.
    safe: Mark,
    /// Where an orphan ends. Of a journal that its writer ships there is no end.
    until: Option<Mark>,
}

/// A journal on its way to this node.
#[derive(Clone, Debug)]
struct Taking {
    stream: Stream,
    journal: JournalId,
    stamp: Stamp,
    /// Where the next batch must stand.
    next: Mark,
    /// How far it is durable here: what came over an earlier connection may be ahead of `next`.
    durable: Mark,
    /// What was last declared durable.
    declared: Mark,
    /// As of a [`Shipment`].
    until: Option<Mark>,
}

/// One conversation. See the module.
#[derive(Debug)]
pub struct Session {
    own: Hello,
    peer: NodeName,
    met: bool,
    shipments: Vec<Shipment>,
    takings: Vec<Taking>,
    delivered: BTreeMap<JournalId, BTreeMap<String, Mark>>,
    /// Journals of which the two nodes may have different messages at the same positions: what is delivered of one copy
    /// says nothing of the other.
    adrift: Vec<JournalId>,
    status: Status,
    /// Whether what `status` shows was said.
    has_shown: bool,
    out: VecDeque<Bytes>,
    effects: VecDeque<Effect>,
    heard_at: Instant,
    spoke_at: Instant,
}

impl Session {
    /// A conversation with `peer`, begun by saying `own`.
    #[must_use]
    pub fn new(own: Hello, peer: NodeName, now: Instant) -> Session {
        let out = [control(&Message::Hello(own.clone()))].into();
        Session {
            own,
            peer,
            met: false,
            shipments: Vec::new(),
            takings: Vec::new(),
            delivered: BTreeMap::new(),
            adrift: Vec::new(),
            status: Status::default(),
            has_shown: true,
            out,
            effects: VecDeque::new(),
            heard_at: now,
            spoke_at: now,
        }
    }

    /// Takes what the other node said.
    ///
    /// # Errors
    /// [`SessionError`]: the connection must end.
    pub fn handle_frame(&mut self, now: Instant, frame: Frame) -> Result<(), SessionError> {
        self.heard_at = now;
        match frame {
            Frame::Control(Message::Hello(hello)) if !self.met => self.meet(hello),
            Frame::Control(Message::Hello(_)) => Err(SessionError::OutOfTurn("its greeting")),
            _ if !self.met => Err(SessionError::OutOfTurn("something before its greeting")),
            Frame::Batches { stream, bytes } => self.take(stream, bytes),
            Frame::Control(Message::Skip { stream, to }) => self.skip(stream, to),
            Frame::Control(Message::Durable { stream, mark }) => self.replicated(stream, mark),
            Frame::Control(Message::Delivered { journal, outputs }) => {
                // It need not be told what it said.
                if let Some(told) = self.delivered.get_mut(&journal) {
                    told.clone_from(&outputs);
                }
                self.deliver(journal, outputs);
                Ok(())
            }
            Frame::Control(Message::Status(status)) => {
                self.effects.push_back(Effect::Heard(status));
                Ok(())
            }
            Frame::Control(Message::Move(said)) => {
                self.effects.push_back(Effect::Moving(said));
                Ok(())
            }
        }
    }

    /// The other node's word on time.
    ///
    /// # Errors
    /// [`SessionError::Silent`].
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        if now.saturating_duration_since(self.heard_at) >= SILENCE_MAX {
            return Err(SessionError::Silent);
        }
        if self.met && now.saturating_duration_since(self.spoke_at) >= HEARTBEAT {
            self.say_status(now);
        }
        Ok(())
    }

    /// When [`handle_timeout`](Session::handle_timeout) is due if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let silent = self.heard_at + SILENCE_MAX;
        if self.met { silent.min(self.spoke_at + HEARTBEAT) } else { silent }
    }

    /// How this node is from now on; said at once if it changed.
    pub fn set_status(&mut self, now: Instant, status: Status) {
        if self.status != status {
            self.has_shown &= self.status.shown == status.shown;
            self.status = status;
            if self.met {
                self.say_status(now);
            }
        }
    }

    /// What this node's outputs have delivered of a journal; said if it changed.
    pub fn set_delivered(&mut self, now: Instant, journal: &JournalId, outputs: BTreeMap<String, Mark>) {
        if self.met && !self.adrift.contains(journal) && self.delivered.get(journal) != Some(&outputs) {
            self.delivered.insert(journal.clone(), outputs.clone());
            self.say(now, &Message::Delivered { journal: journal.clone(), outputs });
        }
    }

    /// How far this node's copy of a journal that comes from the other node is safe. Said as far as it has come over this
    /// connection: the other node knows of no more.
    pub fn set_durable(&mut self, now: Instant, journal: &JournalId, mark: Mark) {
        let Some(at) = self.takings.iter().position(|taking| taking.journal == *journal) else { return };
        self.takings[at].durable = self.takings[at].durable.max(mark);
        self.declare(now, at);
    }

    fn declare(&mut self, now: Instant, at: usize) {
        let Taking { stream, durable, next, declared, .. } = &mut self.takings[at];
        let mark = next.min(durable);
        if mark > declared {
            *declared = *mark;
            let (stream, mark) = (*stream, *mark);
            self.say(now, &Message::Durable { stream, mark });
        }
    }

    /// The journals that this node ships, and where each goes on.
    pub fn shipments(&self) -> impl Iterator<Item = (&JournalId, Mark)> {
        self.shipments.iter().map(|shipment| (&shipment.journal, shipment.sent))
    }

    /// Whether more of a journal may come or go over this connection, or what did is not yet safe. An orphan's end was
    /// known when the nodes met.
    #[must_use]
    pub fn is_living(&self, journal: &JournalId) -> bool {
        let goes =
            |shipment: &Shipment| shipment.journal == *journal && shipment.until.is_none_or(|end| shipment.safe < end);
        let comes =
            |taking: &Taking| taking.journal == *journal && taking.until.is_none_or(|end| taking.declared < end);
        // Of one that is adrift the mirror stays until its writer has another.
        self.adrift.contains(journal) || self.shipments.iter().any(goes) || self.takings.iter().any(comes)
    }

    /// Whether more of a journal may be sent now.
    #[must_use]
    pub fn has_room(&self, journal: &JournalId) -> bool {
        let shipment = self.shipments.iter().find(|shipment| shipment.journal == *journal);
        shipment.is_some_and(|shipment| shipment.sent.position.bytes_since(shipment.safe.position) < WINDOW_BYTES)
    }

    /// Sends batches that are durable here, in order; a gap before them is said.
    pub fn ship(&mut self, now: Instant, journal: &JournalId, batches: &[Batch]) {
        let Some(at) = self.shipments.iter().position(|shipment| shipment.journal == *journal) else { return };
        // A damaged batch in their midst is a gap, too.
        for run in batches.chunk_by(|one, next| one.end() == next.start()) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let Shipment { stream, sent, .. } = self.shipments[at];
            if first.start() != sent {
                self.say(now, &Message::Skip { stream, to: first.start() });
            }
            self.shipments[at].sent = last.end();
            // In frames of about a megabyte at most, or of one batch.
            self.out.push_back(batches_head(stream, run.iter().map(|batch| batch.bytes().len()).sum()));
            self.out.extend(run.iter().map(|batch| batch.bytes().clone()));
        }
        self.spoke_at = now;
    }

    /// Says something of connections that move, if the nodes have met: who hears nothing of it goes on without.
    pub fn say_move(&mut self, now: Instant, said: Move) {
        if self.met {
            self.say(now, &Message::Move(said));
        }
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.out.pop_front()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn say(&mut self, now: Instant, message: &Message) {
        self.out.push_back(control(message));
        self.spoke_at = now;
    }

    /// What the other node shows of this one is long, so it is said when it is news; else the rest, as a sign of life.
    fn say_status(&mut self, now: Instant) {
        let is_said = std::mem::replace(&mut self.has_shown, true);
        let shown = if is_said { None } else { self.status.shown.clone() };
        let Status { is_active, is_delivering, can_take_over, .. } = self.status;
        self.say(now, &Message::Status(Status { is_active, is_delivering, can_take_over, shown }));
    }

    fn meet(&mut self, hello: Hello) -> Result<(), SessionError> {
        if hello.protocol != PROTOCOL {
            return Err(SessionError::Protocol { program: hello.program, theirs: hello.protocol });
        }
        if hello.node != self.peer {
            return Err(SessionError::Stranger(hello.node));
        }
        if hello.journals.len() > JOURNALS_MAX {
            return Err(SessionError::OutOfTurn("that it has more journals than anybody"));
        }
        if hello.journals.iter().any(|held| held.is_own && held.journal.node != self.peer) {
            return Err(SessionError::OutOfTurn("that it writes a journal of another node"));
        }
        self.met = true;
        self.effects.push_back(Effect::Met(hello.clone()));
        let own = std::mem::take(&mut self.own.journals);
        for (stream, held, begin) in plan(&own, &hello.journals) {
            match begin {
                Begin::At(at) => {
                    let (journal, until) = (held.journal.clone(), held.end());
                    self.shipments.push(Shipment { stream, journal, sent: at, safe: at, until });
                }
                Begin::RolledBack(mirror) => self.roll_back(held, mirror),
            }
        }
        for (stream, held, begin) in plan(&hello.journals, &own) {
            match begin {
                Begin::At(at) => {
                    let journal = held.journal.clone();
                    self.effects.push_back(Effect::Begin { journal: journal.clone(), at });
                    let stamp = Stamp::from(&journal);
                    let (next, durable, declared, until) = (at, at, at, held.end());
                    self.takings.push(Taking { stream, journal, stamp, next, durable, declared, until });
                }
                Begin::RolledBack(mirror) => self.roll_back(held, mirror),
            }
        }
        for Held { journal, delivered, .. } in hello.journals {
            self.deliver(journal, delivered);
        }
        // At once: a heartbeat comes only when there is nothing else to say.
        let now = self.heard_at;
        self.say_status(now);
        Ok(())
    }

    fn roll_back(&mut self, held: &Held, mirror: Mark) {
        let (journal, writer) = (held.journal.clone(), held.durable);
        self.adrift.push(journal.clone());
        self.effects.push_back(Effect::RolledBack { journal, mirror, writer });
    }

    fn deliver(&mut self, journal: JournalId, outputs: BTreeMap<String, Mark>) {
        if !self.adrift.contains(&journal) {
            self.effects.push_back(Effect::Delivered { journal, outputs });
        }
    }

    fn taking(&mut self, stream: Stream) -> Result<&mut Taking, SessionError> {
        let found = self.takings.iter_mut().find(|taking| taking.stream == stream);
        found.ok_or(SessionError::OutOfTurn("something of a journal that nobody takes"))
    }

    fn take(&mut self, stream: Stream, mut bytes: Bytes) -> Result<(), SessionError> {
        let taking = self.taking(stream)?;
        let mut batches = Vec::new();
        while !bytes.is_empty() {
            let batch = Batch::decode_at(&bytes, taking.stamp, taking.next.position)
                .and_then(|batch| if batch.start() == taking.next { Ok(batch) } else { Err(BatchError::Foreign) });
            let batch = batch.map_err(|cause| SessionError::Batch {
                journal: taking.journal.clone(),
                at: taking.next.position,
                cause,
            })?;
            bytes = bytes.slice(batch.bytes().len()..);
            taking.next = batch.end();
            batches.push(batch);
        }
        let journal = taking.journal.clone();
        self.effects.push_back(Effect::Take { journal, batches });
        // Here already, some of it maybe.
        let now = self.heard_at;
        if let Some(at) = self.takings.iter().position(|taking| taking.stream == stream) {
            self.declare(now, at);
        }
        Ok(())
    }

    fn skip(&mut self, stream: Stream, to: Mark) -> Result<(), SessionError> {
        let taking = self.taking(stream)?;
        if to.position <= taking.next.position || to.ordinal < taking.next.ordinal || to.position.0 >= 1 << 63 {
            return Err(SessionError::Position(taking.journal.clone()));
        }
        taking.next = to;
        let journal = taking.journal.clone();
        self.effects.push_back(Effect::SkipTo { journal, to });
        Ok(())
    }

    fn replicated(&mut self, stream: Stream, mark: Mark) -> Result<(), SessionError> {
        let shipment = self.shipments.iter_mut().find(|shipment| shipment.stream == stream);
        let shipment = shipment.ok_or(SessionError::OutOfTurn("something of a journal that nobody ships"))?;
        if mark < shipment.safe || mark.position > shipment.sent.position || mark.ordinal > shipment.sent.ordinal {
            return Err(SessionError::Position(shipment.journal.clone()));
        }
        shipment.safe = mark;
        let journal = shipment.journal.clone();
        self.effects.push_back(Effect::Replicated { journal, mark });
        Ok(())
    }
}

impl Held {
    /// Where an orphan ends for good.
    fn end(&self) -> Option<Mark> {
        (!self.is_own).then_some(self.durable)
    }
}

/// Where shipping begins.
enum Begin {
    At(Mark),
    /// The mirror ends here, behind its writer.
    RolledBack(Mark),
}

/// What the node that has `held` ships to the one that has `others`, by its stream.
fn plan<'a>(held: &'a [Held], others: &[Held]) -> Vec<(Stream, &'a Held, Begin)> {
    let journals = held.iter().enumerate().filter_map(|(stream, held)| {
        let other = others.iter().find(|other| other.journal == held.journal);
        Some((Stream::try_from(stream).ok()?, held, begin(held, other)?))
    });
    journals.collect()
}

fn begin(held: &Held, other: Option<&Held>) -> Option<Begin> {
    let there = other.map_or(Mark::default(), |other| other.durable);
    if other.is_some_and(|other| other.is_own) {
        return None;
    }
    let ahead = there.position > held.durable.position;
    match held.is_own {
        true if ahead => Some(Begin::RolledBack(there)),
        false if ahead || there.position == held.durable.position => None,
        _ => Some(Begin::At(if there.position < held.oldest.position { held.oldest } else { there })),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
