//! The link of one node: which connection stands, and what is done with what is said on it. In the place of
//! `pair::{link, conversation}`; the conversation itself is the program's.

use std::time::Duration;

use bytes::BytesMut;
use twinlog::pair::mirrors::within;
use twinlog::proto::batch::Batch;
use twinlog::proto::pair::delivery::is_spent;
use twinlog::proto::pair::message::{Frame, Hello, PROTOCOL, Status};
use twinlog::proto::pair::session::{DELIVERED_EVERY, Effect, SILENCE_MAX, Session};
use twinlog::proto::position::{JournalId, Mark, Position};

use crate::disks::Disks;
use crate::network::Heard;
use crate::node::Node;
use crate::surroundings::Surroundings;

/// As in `pair::link`: of the node that decides which connection stands, and of the other one.
const REDIAL: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(1000)];

/// The other node has closed the connection: whatever made it do so is what may make messages come twice.
const CLOSED: &str = "closed";

/// Why a conversation is over. Only that matters.
#[derive(Debug)]
pub struct Ended(String);

pub fn ended(why: impl ToString) -> Ended {
    Ended(why.to_string())
}

/// A connection on which the other node speaks first.
struct Greeted {
    connection: u64,
    received: BytesMut,
    until: Duration,
}

/// One conversation, see `pair::conversation`.
struct Conversation {
    connection: u64,
    session: Session,
    received: BytesMut,
    /// What is shipped, and how far it was read.
    shipping: Vec<(JournalId, Position)>,
    /// What is taken, and how far it was safe when that was last looked at.
    taking: Vec<(JournalId, Mark)>,
    has_met: bool,
    deliveries_at: Duration,
    told: Status,
}

/// Everything of the link that a node has.
#[derive(Default)]
pub struct Link {
    standing: Option<Conversation>,
    waiting: Vec<Greeted>,
    dial_at: Option<Duration>,
    /// What the other node said of itself, while there is a connection.
    pub peer: Option<Status>,
    /// Since when that is, or is not, active.
    pub peer_role_since: Option<Duration>,
    /// Whether the nodes talk, and since when.
    pub connected_since: Option<Duration>,
}

impl Node {
    fn decides(&self) -> bool {
        self.host == 0
    }

    /// Finds the other node, and talks to it.
    pub fn step_link(&mut self, around: &mut Surroundings, disks: &mut Disks) {
        while let Some(connection) = around.network.connected(around.now, self.host) {
            if self.decides() {
                self.stand(around, disks, connection, BytesMut::new());
            } else {
                let until = around.now + SILENCE_MAX;
                self.link.waiting.push(Greeted { connection, received: BytesMut::new(), until });
            }
        }
        self.await_greetings(around, disks);
        if self.link.standing.is_none() && self.link.waiting.is_empty() {
            self.dial(around);
        } else {
            self.link.dial_at = None;
        }
        self.talk_on(around, disks, None);
    }

    fn dial(&mut self, around: &mut Surroundings) {
        let redial = REDIAL[usize::from(!self.decides())];
        let pause = redial / 2 + around.some(redial);
        let at = *self.link.dial_at.get_or_insert(around.now + pause);
        if at <= around.now {
            let answers = around.listens[1 - self.host];
            let (rng, now) = (&mut around.rng, around.now);
            let again = around.network.dial(rng, now, self.host, answers);
            self.link.dial_at = Some(again.unwrap_or(now + SILENCE_MAX) + pause);
        }
    }

    fn await_greetings(&mut self, around: &mut Surroundings, disks: &mut Disks) {
        for mut greeted in std::mem::take(&mut self.link.waiting) {
            match around.network.receive(around.now, greeted.connection, self.host) {
                Some(Heard::Bytes(bytes)) => {
                    greeted.received.extend_from_slice(&bytes);
                    self.stand(around, disks, greeted.connection, greeted.received);
                }
                None if greeted.until > around.now => self.link.waiting.push(greeted),
                Some(Heard::Closed) | None => around.network.close(around.now, greeted.connection, self.host),
            }
        }
    }

    /// This connection counts from now on.
    fn stand(&mut self, around: &mut Surroundings, disks: &mut Disks, connection: u64, received: BytesMut) {
        if let Some(old) = self.link.standing.take() {
            around.network.close(around.now, old.connection, self.host);
        }
        let own = self.own.held();
        let hello = Hello {
            protocol: PROTOCOL,
            program: String::new(),
            node: self.name.clone(),
            configuration: 0,
            journals: std::iter::once(own).chain(self.mirrors.values().map(|mirror| mirror.held())).collect(),
        };
        let mut session = Session::new(hello, self.peer.clone(), around.instant());
        session.set_status(around.instant(), self.told.clone());
        let conversation = Conversation {
            connection,
            session,
            received: BytesMut::new(),
            shipping: Vec::new(),
            taking: Vec::new(),
            has_met: false,
            deliveries_at: around.now,
            told: self.told.clone(),
        };
        self.link.standing = Some(conversation);
        self.talk_on(around, disks, Some(received));
    }

    fn talk_on(&mut self, around: &mut Surroundings, disks: &mut Disks, first: Option<BytesMut>) {
        let Some(mut conversation) = self.link.standing.take() else { return };
        match self.talk(around, disks, &mut conversation, first) {
            Ok(()) => self.link.standing = Some(conversation),
            Err(Ended(why)) => {
                around.network.close(around.now, conversation.connection, self.host);
                if self.link.connected_since.take().is_some() {
                    around.note(format_args!("host {} lost the link: {why}", self.host));
                    if why != CLOSED {
                        around.disturb();
                    }
                    self.own.promise.peer_left();
                    self.link.peer = None;
                    let now = self.boot_time(around.now);
                    self.election.handle_link_end(now);
                }
            }
        }
    }

    fn talk(
        &mut self,
        around: &mut Surroundings,
        disks: &mut Disks,
        conversation: &mut Conversation,
        first: Option<BytesMut>,
    ) -> Result<(), Ended> {
        // Whoever waits for the mirror's disk does nothing else.
        let has_room = |journal: &JournalId| self.mirrors.get(journal).is_none_or(|mirror| mirror.has_room());
        if !conversation.taking.iter().all(|(journal, _)| has_room(journal)) {
            return Ok(());
        }
        conversation.received.extend_from_slice(&first.unwrap_or_default());
        loop {
            while let Some(frame) = Frame::take(&mut conversation.received).map_err(ended)? {
                conversation.session.handle_frame(around.instant(), frame).map_err(ended)?;
                while let Some(effect) = conversation.session.poll_effect() {
                    self.follow(around, disks, conversation, effect)?;
                }
            }
            match around.network.receive(around.now, conversation.connection, self.host) {
                Some(Heard::Bytes(bytes)) => conversation.received.extend_from_slice(&bytes),
                Some(Heard::Closed) => return Err(ended(CLOSED)),
                None => break,
            }
        }
        self.ship(around, conversation);
        for (journal, seen) in &mut conversation.taking {
            let Some(mirror) = self.mirrors.get(journal) else { continue };
            if mirror.durable() != *seen {
                *seen = mirror.durable();
                conversation.session.set_durable(around.instant(), journal, *seen);
            }
        }
        if conversation.deliveries_at <= around.now {
            conversation.deliveries_at = around.now + DELIVERED_EVERY;
            self.tell_deliveries(around, disks, conversation);
        }
        if conversation.told != self.told {
            conversation.told = self.told.clone();
            self.tell_deliveries(around, disks, conversation);
            conversation.session.set_status(around.instant(), self.told.clone());
        }
        if conversation.session.poll_timeout() <= around.instant() {
            conversation.session.handle_timeout(around.instant()).map_err(ended)?;
        }
        while let Some(bytes) = conversation.session.poll_transmit() {
            let (rng, now) = (&mut around.rng, around.now);
            around.network.send(rng, now, conversation.connection, self.host, bytes);
        }
        Ok(())
    }

    fn ship(&mut self, around: &mut Surroundings, conversation: &mut Conversation) {
        for (journal, at) in &mut conversation.shipping {
            let source = if *journal == self.own.id { Some(&self.own) } else { self.mirrors.get(journal) };
            let Some(source) = source.filter(|_| conversation.session.has_room(journal)) else { continue };
            if let Ok(Some((batches, next))) = source.read(*at) {
                *at = next;
                conversation.session.ship(around.instant(), journal, &batches);
            }
        }
    }

    fn follow(
        &mut self,
        around: &mut Surroundings,
        disks: &mut Disks,
        conversation: &mut Conversation,
        effect: Effect,
    ) -> Result<(), Ended> {
        match effect {
            Effect::Met(hello) => self.meet(around, conversation, &hello),
            Effect::Begin { journal, at } => {
                around.note(format_args!("host {} takes {journal} from {at:?}", self.host));
                self.mirror(around, disks, &journal, at)?.skip_to(at);
                conversation.taking.push((journal, Mark::default()));
            }
            Effect::SkipTo { journal, to } => {
                around.note(format_args!("host {} skips {journal} to {to:?}", self.host));
                self.mirror(around, disks, &journal, to)?.skip_to(to);
            }
            Effect::Take { journal, batches } => {
                let at = batches.first().map(Batch::start).unwrap_or_default();
                let mirror = self.mirror(around, disks, &journal, at)?;
                mirror.promise.set_replicated(batches.last().map(Batch::end).unwrap_or_default());
                let is_taken = mirror.take(batches);
                return if is_taken { Ok(()) } else { Err(ended("the mirror takes nothing")) };
            }
            Effect::Replicated { journal, mark } if journal == self.own.id => self.own.promise.set_replicated(mark),
            Effect::Replicated { journal, mark } => {
                if let Some(mirror) = self.mirrors.get_mut(&journal) {
                    mirror.promise.set_replicated(mark);
                }
            }
            Effect::Delivered { journal, outputs } if journal == self.own.id => {
                self.own.delivered_elsewhere(&within(outputs, self.own.durable()));
            }
            Effect::Delivered { journal, outputs } => {
                if let Some(mirror) = self.mirrors.get(&journal) {
                    mirror.delivered_elsewhere(&outputs);
                }
            }
            Effect::Heard(status) => {
                if self.link.peer.as_ref().is_none_or(|before| before.is_active != status.is_active) {
                    self.link.peer_role_since = Some(around.now);
                }
                self.link.peer = Some(status);
            }
            // Live connections are none of this simulation's.
            Effect::Moving(_) => {}
            Effect::RolledBack { journal, mirror, writer } => {
                panic!("{journal} ends at {writer:?} where it is written, and at {mirror:?} where it is mirrored")
            }
        }
        Ok(())
    }

    fn meet(&mut self, around: &mut Surroundings, conversation: &mut Conversation, hello: &Hello) {
        for (journal, at) in conversation.session.shipments() {
            conversation.shipping.push((journal.clone(), at.position));
            if *journal == self.own.id {
                self.had_replicated = self.had_replicated.max(self.own.promise.replicated());
                self.own.promise.peer_came(at);
            }
        }
        for mirror in self.mirrors.values_mut() {
            let there = hello.journals.iter().find(|held| held.journal == mirror.id);
            mirror.promise.peer_came(there.map_or(Mark::default(), |held| held.durable));
        }
        conversation.has_met = true;
        self.link.connected_since = Some(around.now);
        around.meet();
        around.note(format_args!("host {} talks", self.host));
    }

    fn tell_deliveries(&mut self, around: &mut Surroundings, disks: &mut Disks, conversation: &mut Conversation) {
        let now = around.instant();
        for journal in std::iter::once(&self.own).chain(self.mirrors.values()) {
            conversation.session.set_delivered(now, &journal.id, journal.delivered());
        }
        if !conversation.has_met {
            return;
        }
        let living = |journal: &JournalId| {
            conversation.taking.iter().any(|(taken, _)| taken == journal)
                || conversation.session.shipments().any(|(shipped, _)| shipped == journal)
        };
        let is_spent = |journal: &JournalId| {
            let mirror = &self.mirrors[journal];
            is_spent(living(journal), &mirror.delivered(), mirror.durable())
        };
        let spent: Vec<JournalId> = self.mirrors.keys().filter(|journal| is_spent(journal)).cloned().collect();
        for journal in spent {
            around.note(format_args!("host {} forgets {journal}", self.host));
            around.ledger.forgotten(self.host, &journal);
            self.mirrors.remove(&journal);
            disks.remove(&journal);
        }
    }
}
