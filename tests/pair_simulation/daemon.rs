//! What the daemon of a node decides: which journals it delivers, and how a drain goes on. In the place of
//! `daemon::{partner, drain}`; what is decided comes from `proto::pair::delivery` and `proto::drain`.

use std::time::{Duration, Instant};

use twinlog::proto::drain::{Connections, Drain, Order, Stage, Until, Verdict, View, Wish, verdict};
use twinlog::proto::pair::delivery::{Deliver, PATIENCE, Peer, deliver, deliver_aside};
use twinlog::proto::position::JournalId;

use crate::OUTPUTS;
use crate::delivery::Delivery;
use crate::journal::Journal;
use crate::node::Node;
use crate::surroundings::Surroundings;

/// Whether messages are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    Open,
    /// What is on its way is still taken, until then.
    Ending(Duration),
    Ended,
}

/// What the daemon has to do next. While it waits for the end of deliveries it does nothing else.
#[derive(Debug)]
pub enum Chore {
    /// End the deliveries of all journals but these.
    End(Vec<JournalId>),
    /// Deliver these.
    Start,
    Obey(Order),
}

/// A drain, from its begin to the `undrain` after it.
pub struct Draining {
    pub machine: Drain,
    deadline: Instant,
    pub is_forced: bool,
}

impl Node {
    /// The outputs.
    pub fn step_deliveries(&mut self, around: &mut Surroundings) {
        let (own, mirrors) = (&self.own, &self.mirrors);
        let journal = |id: &JournalId| if *id == own.id { Some(own) } else { mirrors.get(id) };
        self.deliveries.retain(|(_, id), delivery| delivery.step(journal(id), around));
    }

    /// The daemon's loop.
    pub fn step_daemon(&mut self, around: &mut Surroundings) {
        if let Inputs::Ending(at) = self.inputs
            && at <= around.now
        {
            self.inputs = Inputs::Ended;
        }
        if !self.do_chores(around) {
            return;
        }
        (self.told.is_active, self.told.can_take_over) = (self.active_since.is_some(), self.is_backup);
        let wanted = self.wanted(around.now);
        let is_wanted = |id: &JournalId| wanted.contains(id);
        let under_way = |id: &JournalId| self.deliveries.keys().any(|(_, journal)| journal == id);
        if !wanted.iter().all(under_way) || !self.deliveries.keys().all(|(_, id)| is_wanted(id)) {
            self.chores.push_back(Chore::End(wanted));
            self.chores.push_back(Chore::Start);
        }
        if self.do_chores(around) {
            self.step_drain(around);
            self.do_chores(around);
        }
    }

    fn wanted(&self, now: Duration) -> Vec<JournalId> {
        let role_for = self.link.peer_role_since.map_or(PATIENCE, |since| now - since);
        let peer = self.link.peer.as_ref();
        let peer = peer.map(|peer| Peer { is_active: peer.is_active, is_delivering: peer.is_delivering, role_for });
        let active_for = self.active_since.map(|since| now - since);
        let deliver = match self.is_aside {
            true => deliver_aside(self.link.connected_since.is_some()),
            false => deliver(active_for, peer),
        };
        let own = std::iter::once(&self.own);
        match deliver {
            Deliver::Nothing => Vec::new(),
            Deliver::Own => own.map(|journal| journal.id.clone()).collect(),
            Deliver::OwnAndMirror => own.chain(self.mirrors.values()).map(|journal| journal.id.clone()).collect(),
        }
    }

    /// Does what is to be done; false if that takes longer.
    fn do_chores(&mut self, around: &mut Surroundings) -> bool {
        while let Some(chore) = self.chores.pop_front() {
            match chore {
                Chore::End(kept) => {
                    let leaving = self.deliveries.iter_mut().filter(|((_, id), _)| !kept.contains(id));
                    if leaving.map(|(_, delivery)| delivery.leave(around.now)).count() > 0 {
                        self.chores.push_front(Chore::End(kept));
                        return false;
                    }
                    self.told.is_delivering &= !kept.is_empty();
                }
                Chore::Start => {
                    let wanted = self.wanted(around.now);
                    self.start_deliveries(around, &wanted);
                }
                Chore::Obey(order) => self.obey(around, order),
            }
        }
        true
    }

    fn start_deliveries(&mut self, around: &mut Surroundings, wanted: &[JournalId]) {
        self.told.is_delivering |= !wanted.is_empty();
        for id in wanted {
            let journal = if *id == self.own.id { Some(&self.own) } else { self.mirrors.get(id) };
            let Some(journal) = journal else { continue };
            for (output, name) in OUTPUTS.iter().enumerate() {
                if !self.deliveries.contains_key(&(output, id.clone())) {
                    self.check_may_deliver(journal);
                    self.deliveries.insert((output, id.clone()), Delivery::new(output, journal));
                    around.note(format_args!("host {} delivers {id} to {name}", self.host));
                }
            }
        }
    }

    /// A delivery begins: only where that is allowed.
    fn check_may_deliver(&self, journal: &Journal) {
        let is_alone_aside = self.is_aside && self.link.connected_since.is_none();
        assert!(self.active_since.is_some() || is_alone_aside, "host {} delivers as a standby", self.host);
        let other_delivers = self.link.peer.as_ref().is_some_and(|peer| peer.is_active && peer.is_delivering);
        let is_own = journal.id == self.own.id;
        assert!(is_own || !other_delivers, "host {} delivers a mirror beside the other active node", self.host);
    }

    #[allow(clippy::needless_update, reason = "a drain may look at more, of which there is none here")]
    fn look(&self) -> View {
        let only_here = self.mirrors.values().map(|mirror| {
            let elsewhere = mirror.delivered_by_all().max(mirror.promise.replicated());
            mirror.durable().messages_since(elsewhere)
        });
        View {
            only_here: only_here.sum(),
            holds_addresses: self.holds,
            is_giving_away: self.election.is_handing_over(),
            is_delivering: !self.deliveries.is_empty(),
            peer_is_there: self.link.connected_since.is_some(),
            // No connection of these senders can move.
            peer_takes: Some(false),
            connections: Connections { listeners_obeyed: true, ..Connections::default() },
            peer_is_active: self.link.peer.as_ref().is_some_and(|peer| peer.is_active),
            inputs_have_ended: self.inputs == Inputs::Ended,
            appended: self.own.appended(),
            end: self.own.appended(),
            replicated: self.own.promise.replicated(),
            delivered: self.own.delivered_by_all(),
            ..View::default()
        }
    }

    fn step_drain(&mut self, around: &mut Surroundings) {
        let view = self.look();
        let Some(draining) = self.drain.as_mut().filter(|draining| !draining.machine.is_over()) else { return };
        let orders = draining.machine.handle(around.instant(), &view);
        let called_off = draining.machine.failure().is_some();
        self.chores.extend(orders.into_iter().map(Chore::Obey));
        if draining.machine.is_over() && !called_off {
            let verdict = verdict(draining.machine.from(), &view, 0);
            around.note(format_args!("host {} drained: {verdict}", self.host));
            if verdict == Verdict::ZeroLoss {
                let here = around.ledger.only_on(self.host, self.link.connected_since);
                assert_eq!(here, None, "drained with ZERO LOSS, and this is on host {} only", self.host);
            }
        }
    }

    fn obey(&mut self, around: &mut Surroundings, order: Order) {
        around.note(format_args!("host {} {order:?}", self.host));
        match order {
            Order::HandOver => {
                let now = self.boot_time(around.now);
                // A node that lost the addresses meanwhile has handed over.
                let _ = self.election.fail_over(now);
            }
            Order::StepAside => {
                self.is_aside = true;
                if self.link.connected_since.is_some() {
                    self.chores.push_front(Chore::End(Vec::new()));
                }
            }
            Order::Quiesce => self.inputs = Inputs::Ending(around.now + around.some(Duration::from_millis(500))),
            Order::CallOff => {
                self.is_aside = false;
                self.drain = None;
            }
            // What ends a drain is seen at its machine.
            _ => {}
        }
    }

    /// `drain`; false if it is refused.
    pub fn begin_drain(&mut self, around: &mut Surroundings, until: Until, time: Duration, is_forced: bool) -> bool {
        if self.drain.is_some() || !is_forced && !self.is_safe_to_drain() {
            return false;
        }
        let (now, view) = (around.instant(), self.look());
        let wish = Wish { until, deadline: now + time, forced: is_forced, grace: Duration::from_secs(2) };
        let machine = Drain::new(now, &view, wish);
        self.drain = Some(Draining { machine, deadline: now + time, is_forced });
        true
    }

    fn is_safe_to_drain(&self) -> bool {
        let can_take_over = self.link.peer.as_ref().is_some_and(|peer| peer.can_take_over);
        let is_whole = self.own.promise.is_whole();
        self.link.connected_since.is_some() && (!self.holds || can_take_over && is_whole)
    }

    /// `undrain`; false if it is refused.
    pub fn undrain(&mut self) -> bool {
        let Some(draining) = self.drain.as_mut().filter(|_| !self.is_stopping) else { return false };
        let may_end = match draining.machine.stage() {
            Stage::HandingOver => draining.machine.call_off().is_some(),
            _ => self.inputs == Inputs::Ended,
        };
        if !may_end {
            return false;
        }
        (self.drain, self.inputs, self.is_aside) = (None, Inputs::Open, false);
        true
    }

    /// SIGTERM: what a drain does, whatever comes of it.
    pub fn stop(&mut self, around: &mut Surroundings) {
        self.is_stopping = true;
        let time = Duration::from_secs(5);
        match &mut self.drain {
            Some(draining) => {
                draining.machine.hurry(around.instant() + time);
                draining.is_forced = true;
            }
            None => drop(self.begin_drain(around, Until::Handover, time, true)),
        }
    }

    /// Ends in order once everything is done.
    pub fn step_stop(&mut self, around: &mut Surroundings) {
        let is_over = self.drain.as_ref().is_none_or(|draining| draining.machine.is_over());
        if self.is_stopping && is_over && self.chores.is_empty() {
            self.own.close(around);
            self.mirrors.values_mut().for_each(|mirror| mirror.close(around));
            let is_in_time = self.drain.as_ref().is_some_and(|draining| around.instant() < draining.deadline);
            self.has_ended = Some(is_in_time);
        }
    }
}
