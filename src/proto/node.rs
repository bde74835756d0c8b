//! The node: judges whether it is well, takes part in the election, and says what is wanted of the world.
//!
//! Events with a time go in; [`Effect`]s in their order and one [`Desired`] value come out. The rules:
//!
//! | event | what follows |
//! | --- | --- |
//! | a fault begins | priority 0, the addresses released; the election goes on without this node |
//! | the last fault ends | after `settle` without a new one: Backup, listening |
//! | the journal is full | priority 1: a peer that is well takes over; if it is full too, the master stays |
//! | `fail_over` as master | priority 0 at every interval, *addresses kept* until the peer is heard as master; then standby |
//! | nobody takes over in time | the old priority again, still master; `fail_over` failed |
//! | `leave` | as `fail_over`, but nobody in time means: priority 0 and the addresses released |
//! | became master | advertise, take the addresses, announce them; again after the times of [`REPEAT_AFTER`] |
//! | a sign of another master | announce again from the beginning |
//! | a claim of another host, by ARP or neighbour advertisement | announce once, at most every 10 s |
//! | an address is gone and it was not us | take it again, announce |
//! | the peer, being master, is late, or its link ends | ask its kernel; proof that its process is dead means: take over now |
//!
//! Make before break: in a planned move both hold the addresses for a moment, and the later announcement counts.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::vrrp::advertisement::Advertisement;
use super::vrrp::announcement::REPEAT_AFTER;
use super::vrrp::rejection::{Differences, Rejection};
use super::vrrp::settings::{self, InvalidSettings, Member};
use super::vrrp::virtual_router::{Cause, Output, State, VirtualRouter};
use super::vrrp::{BootTime, Priority};

/// A slow refresh for as long as the node is master: what a healed split brain left in a cache ends with it.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);
/// A claim of another host is answered no more often (RFC 5227, 2.4 and 1.1: `DEFEND_INTERVAL`): two masters that answered
/// each other would move the address for their neighbours all the time, and no connection to it would live.
const DEFEND_EVERY: Duration = Duration::from_secs(10);
/// How long a peer may take from hearing priority 0 to its first advertisement, beside its master down interval.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(1);

/// What a node is, until the configuration changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its part in the election.
    pub router: settings::Settings,
    /// How long a node must be well before it takes part again.
    pub settle: Duration,
}

/// Why a node must not hold the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The pair's interface is down, has no carrier, or is not there.
    InterfaceDown,
    /// The node's own address is not on the interface.
    OwnAddressGone,
    /// The journal takes nothing more before a restart.
    JournalPoisoned,
    /// The journal has no room and has been waiting for long. The only one with which a node still takes part: a master
    /// that lets its senders wait is better than none.
    JournalFull,
    /// An input cannot read from its sockets.
    InputNotListening,
    /// The data plane does not move.
    DataPlaneStalled,
    /// It is well, and drained.
    Drained,
}

impl Fault {
    /// The fault's name in `status`, metrics and `events`; never changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::InterfaceDown => "interface_down",
            Fault::OwnAddressGone => "own_address_gone",
            Fault::JournalPoisoned => "journal_poisoned",
            Fault::JournalFull => "journal_full",
            Fault::InputNotListening => "input_not_listening",
            Fault::DataPlaneStalled => "data_plane_stalled",
            Fault::Drained => "drained",
        }
    }

    /// Whether a node with it leaves the election, or gives way to any other that is in it.
    fn excludes(self) -> bool {
        self != Fault::JournalFull
    }
}

/// What the world has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send it to the group, or to the peer.
    Transmit(Advertisement),
    /// Put the addresses on the link.
    Take,
    /// Take the addresses off the link.
    Release,
    /// Tell the LAN where the addresses are.
    Announce,
    /// Ask the peer's kernel whether its process lives.
    Probe,
    /// Something that `events`, hooks and the log tell.
    Report(Report),
}

/// What happened, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The election's state changed.
    Became {
        /// `Initialize`, `Backup` or `Master`.
        state: &'static str,
        /// Why.
        cause: Cause,
    },
    /// A fault began.
    FaultBegan(Fault),
    /// A fault ended.
    FaultEnded(Fault),
    /// This node asks the peer to take over.
    HandingOver,
    /// The peer has taken over.
    HandedOver,
    /// The peer did not take over in time; this node goes on.
    HandOverFailed,
    /// Somebody else took an address away; it is back.
    AddressRestored,
}

/// What a node wants, as a value: whoever missed an effect can read here what should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Whether the addresses are on the link.
    pub hold_addresses: bool,
    /// Whether this node is the active one.
    pub active: bool,
}

/// Why a hand-over was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to hand over.
    #[error("this node is not the active one")]
    NotActive,
    /// Another hand-over is under way.
    #[error("a hand-over is under way")]
    UnderWay,
}

/// A hand-over under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HandOver {
    until: BootTime,
    /// Whether the node leaves the election whatever happens.
    leaving: bool,
}

/// One node's judgement. See the module.
#[derive(Clone, Debug)]
pub struct Node {
    settings: Settings,
    router: VirtualRouter,
    faults: BTreeSet<Fault>,
    /// When the node may take part again, while it does not.
    well_at: Option<BootTime>,
    hand_over: Option<HandOver>,
    has_left: bool,
    /// When the schedule of announcements began, and how many of it have been made.
    announce: Option<(BootTime, usize)>,
    /// When a claim of another host was last answered.
    defended_at: Option<BootTime>,
    /// When the master was heard last, and when its kernel was asked.
    heard_at: BootTime,
    probe_at: Option<BootTime>,
    /// When the peer closed the pair link, if it was not heard since.
    link_ended_at: Option<BootTime>,
    effects: VecDeque<Effect>,
}

impl Node {
    /// A node that takes part from `now` on, unless it has faults.
    ///
    /// # Errors
    /// [`InvalidSettings`].
    pub fn new(settings: Settings, faults: &[Fault], now: BootTime) -> Result<Node, InvalidSettings> {
        let mut node = Node {
            router: VirtualRouter::new(settings.router.clone())?,
            settings,
            faults: faults.iter().copied().collect(),
            well_at: None,
            hand_over: None,
            has_left: false,
            announce: None,
            defended_at: None,
            heard_at: now,
            probe_at: None,
            link_ended_at: None,
            effects: VecDeque::new(),
        };
        node.faults.iter().for_each(|fault| node.effects.push_back(Effect::Report(Report::FaultBegan(*fault))));
        node.router.set_priority(now, node.priority());
        if !node.is_excluded() {
            node.take_part(now);
        }
        Ok(node)
    }

    /// The election's state.
    #[must_use]
    pub fn router(&self) -> &VirtualRouter {
        &self.router
    }

    /// What is wrong, in no order of weight.
    pub fn faults(&self) -> impl Iterator<Item = Fault> + '_ {
        self.faults.iter().copied()
    }

    /// Whether a hand-over is under way.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.hand_over.is_some()
    }

    /// Whether the node leaves, or has left.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.has_left || self.hand_over.is_some_and(|hand_over| hand_over.leaving)
    }

    /// Whether the node has left the election for good.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.has_left
    }

    /// When the master was heard last; when the node began to take part, if it has not been heard since.
    #[must_use]
    pub fn heard_at(&self) -> BootTime {
        self.heard_at
    }

    /// What is wanted now.
    #[must_use]
    pub fn desired(&self) -> Desired {
        let master = matches!(self.router.state(), State::Master { .. });
        Desired { hold_addresses: master, active: master }
    }

    /// Takes what `source` says; it is judged at the next [`handle_timeout`](Node::handle_timeout).
    ///
    /// # Errors
    /// Why it is ignored.
    pub fn handle_advertisement(
        &mut self,
        now: BootTime,
        source: IpAddr,
        advertisement: &Advertisement,
    ) -> Result<Differences, Rejection> {
        let differences = self.router.handle_advertisement(source, advertisement)?;
        self.heard_at = now;
        self.probe_at = None;
        self.link_ended_at = None;
        Ok(differences)
    }

    /// A fault begins or ends.
    pub fn set_fault(&mut self, now: BootTime, fault: Fault, present: bool) {
        if present == self.faults.contains(&fault) {
            return;
        }
        if present {
            self.faults.insert(fault);
        } else {
            self.faults.remove(&fault);
        }
        let report = if present { Report::FaultBegan } else { Report::FaultEnded };
        self.effects.push_back(Effect::Report(report(fault)));
        match (fault.excludes(), present) {
            (true, true) => {
                self.well_at = None;
                self.step_down(now);
            }
            (true, false) if !self.is_excluded() => self.well_at = Some(now + self.settings.settle),
            (true, false) => {}
            // Whoever hands over has said 0, which is less than this would be.
            (false, _) if self.hand_over.is_some() => {}
            (false, _) => {
                self.router.set_priority(now, self.priority());
                self.collect(now);
            }
        }
    }

    /// Somebody else took an address off the link.
    pub fn handle_address_lost(&mut self, now: BootTime) {
        if self.desired().hold_addresses {
            self.effects.push_back(Effect::Take);
            self.effects.push_back(Effect::Report(Report::AddressRestored));
            self.announce_from(now);
        }
    }

    /// Another host claims one of the addresses, by ARP or neighbour advertisement.
    pub fn handle_claim(&mut self, now: BootTime) {
        let defends = self.defended_at.is_none_or(|at| now.since(at) >= DEFEND_EVERY);
        if defends && self.desired().hold_addresses && !self.is_handing_over() {
            self.defended_at = Some(now);
            self.effects.push_back(Effect::Announce);
        }
    }

    /// The pair link came to its end. That alone proves nothing: a node that waits for a master asks its kernel at once.
    pub fn handle_link_end(&mut self, now: BootTime) {
        if self.next_probe().is_some() {
            self.link_ended_at = Some(now);
            self.effects.push_back(Effect::Probe);
            self.probe_at = Some(now + self.router.active_interval().duration() / 2);
        }
    }

    /// The peer's kernel answered that nobody listens: its process is dead.
    pub fn handle_peer_death(&mut self, now: BootTime) {
        // A proof that was overtaken by an advertisement proves nothing; nor does one about a peer that was heard just now
        // and has not closed its link since.
        if now.since(self.heard_at) >= self.late_after() || self.link_ended_at.is_some() {
            self.router.handle_peer_death(now);
            self.collect(now);
        }
    }

    /// Changes the addresses of the election, as when the link's own address is known only now.
    ///
    /// # Errors
    /// [`InvalidSettings`].
    pub fn set_members(&mut self, now: BootTime, members: Vec<Member>) -> Result<(), InvalidSettings> {
        self.router.set_members(now, members)?;
        self.collect(now);
        Ok(())
    }

    /// Asks the peer to take over; this node stays in service.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn fail_over(&mut self, now: BootTime) -> Result<(), Refusal> {
        match (self.desired().active, self.hand_over) {
            (false, _) => Err(Refusal::NotActive),
            (true, Some(_)) => Err(Refusal::UnderWay),
            (true, None) => {
                self.hand_over(now, false);
                Ok(())
            }
        }
    }

    /// Leaves the election for good: an active node hands over first. [`has_left`](Node::has_left) says when it is done.
    pub fn leave(&mut self, now: BootTime) {
        if let Some(hand_over) = &mut self.hand_over {
            hand_over.leaving = true;
        } else if self.desired().active {
            self.hand_over(now, true);
        } else {
            self.step_down(now);
            self.has_left = true;
        }
    }

    /// Judges what was heard, then what is due. Call it at every wake-up, after everything that waits was handed in.
    pub fn handle_timeout(&mut self, now: BootTime) {
        if self.well_at.is_some_and(|at| at <= now) && !self.has_left {
            self.take_part(now);
        }
        self.router.handle_timeout(now);
        self.collect(now);
        self.end_hand_over(now);
        if self.next_announcement().is_some_and(|at| at <= now)
            && let Some((_, made)) = &mut self.announce
        {
            self.effects.push_back(Effect::Announce);
            *made += 1;
            // One that is late is made once, not as often as it was missed.
            while self.next_announcement().is_some_and(|at| at <= now) {
                self.announce = self.announce.map(|(began, made)| (began, made + 1));
            }
        }
        self.probe_if_late(now);
    }

    /// When [`handle_timeout`](Node::handle_timeout) is due if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let announce = self.next_announcement();
        let hand_over = self.hand_over.map(|hand_over| hand_over.until);
        let well = self.well_at.filter(|_| !self.has_left);
        [self.router.poll_timeout(), announce, hand_over, well, self.next_probe()].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn is_excluded(&self) -> bool {
        self.faults.iter().any(|fault| fault.excludes())
    }

    /// What the node deserves, hand-overs aside.
    fn priority(&self) -> Priority {
        if self.faults.contains(&Fault::JournalFull) { Priority::YIELDING } else { self.settings.router.priority }
    }

    fn take_part(&mut self, now: BootTime) {
        self.well_at = None;
        self.heard_at = now;
        self.router.handle_startup(now);
        self.collect(now);
    }

    fn step_down(&mut self, now: BootTime) {
        // Whoever was about to leave has now left.
        self.has_left |= self.hand_over.take().is_some_and(|hand_over| hand_over.leaving);
        self.router.handle_shutdown();
        self.collect(now);
        self.router.set_priority(now, self.priority());
    }

    fn hand_over(&mut self, now: BootTime, leaving: bool) {
        let patience = self.settings.router.interval.duration() * 3 + TAKE_OVER_PATIENCE;
        self.hand_over = Some(HandOver { until: now + patience, leaving });
        self.effects.push_back(Effect::Report(Report::HandingOver));
        self.router.set_priority(now, Priority::LEAVING);
        self.collect(now);
    }

    fn end_hand_over(&mut self, now: BootTime) {
        let Some(HandOver { until, leaving }) = self.hand_over else { return };
        let handed_over = !self.desired().active;
        if !handed_over && now < until {
            return;
        }
        self.hand_over = None;
        self.effects.push_back(Effect::Report(if handed_over { Report::HandedOver } else { Report::HandOverFailed }));
        if leaving {
            self.step_down(now);
            self.has_left = true;
        } else {
            self.router.set_priority(now, self.priority());
            self.collect(now);
        }
    }

    /// Turns what the router wants into effects.
    fn collect(&mut self, now: BootTime) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Advertise(advertisement) => self.effects.push_back(Effect::Transmit(advertisement)),
                Output::BecameMaster(cause) => {
                    self.effects.push_back(Effect::Take);
                    self.report("Master", cause);
                    self.announce_from(now);
                }
                Output::BecameBackup(cause) => self.release("Backup", cause),
                Output::BecameInitialize(cause) => self.release("Initialize", cause),
                Output::Announce => self.announce_from(now),
            }
        }
    }

    fn release(&mut self, state: &'static str, cause: Cause) {
        self.announce = None;
        self.effects.push_back(Effect::Release);
        self.report(state, cause);
    }

    fn report(&mut self, state: &'static str, cause: Cause) {
        self.effects.push_back(Effect::Report(Report::Became { state, cause }));
    }

    /// Begins the schedule of announcements anew; the first is made now.
    fn announce_from(&mut self, now: BootTime) {
        self.effects.push_back(Effect::Announce);
        self.announce = Some((now, 0));
    }

    fn next_announcement(&self) -> Option<BootTime> {
        let (began, made) = self.announce?;
        let last = REPEAT_AFTER[REPEAT_AFTER.len() - 1];
        let after = REPEAT_AFTER.get(made).copied().unwrap_or_else(|| {
            let beyond = u32::try_from(made + 1 - REPEAT_AFTER.len()).unwrap_or(u32::MAX);
            last + ANNOUNCE_EVERY.saturating_mul(beyond)
        });
        Some(began + after)
    }

    /// A master that has not been heard for so long is late: by half an interval.
    fn late_after(&self) -> Duration {
        self.router.active_interval().duration() * 3 / 2
    }

    /// When to ask the peer's kernel next; `None` if there is no master but this node, or none is known.
    fn next_probe(&self) -> Option<BootTime> {
        let backup = matches!(self.router.state(), State::Backup { .. });
        (backup && self.router.master().is_some()).then(|| self.probe_at.unwrap_or(self.heard_at + self.late_after()))
    }

    fn probe_if_late(&mut self, now: BootTime) {
        if self.next_probe().is_some_and(|at| at <= now) {
            self.effects.push_back(Effect::Probe);
            self.probe_at = Some(now + self.router.active_interval().duration() / 2);
        }
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
