//! One election: the state machine of RFC 9568, section 6.4.
//!
//! | state | event | what follows |
//! | --- | --- | --- |
//! | Initialize | startup | Backup for a master down interval; priority 255: Master |
//! | Backup | priority 0, of the master that was heard | wait for the skew time; of the only peer: Master |
//! | | proof that the peer's process, the master, is dead | advertise; Master |
//! | | priority ≥ ours, or no preemption, or its delay runs | learn the interval, wait for a master down interval |
//! | | lower priority, or priority 1 and ours is not | ignored: the wait goes on |
//! | | the wait is over | advertise; Master |
//! | Master | an interval is over | advertise |
//! | | priority 0 | advertise, announce |
//! | | higher priority, or equal and a higher address | advertise once more; Backup for a master down interval |
//! | | lower priority, or equal and a lower address | advertise at once, announce |
//! | any | shutdown | Master: advertise priority 0; Initialize |
//! | any | a deadline missed by two intervals | Backup for a master down interval, in silence |
//!
//! # Driving it
//!
//! At each wake-up: [`handle_advertisement`](VirtualRouter::handle_advertisement) for everything that waits in the
//! sockets, then [`handle_timeout`](VirtualRouter::handle_timeout), then [`poll_output`](VirtualRouter::poll_output) until
//! there is none; sleep until [`poll_timeout`](VirtualRouter::poll_timeout). Time never goes back. In this order a queue
//! that a pause has filled costs one answer and not one for each packet (of a sender only the newest counts), and a
//! silent master is declared dead only after the own queue was found empty.
//!
//! # Two families
//!
//! One virtual router carries both: there is one state, each interval both families are advertised, and an advertisement
//! of either counts. So IPv4 and IPv6 addresses cannot be on two nodes, which a group of two elections could have for
//! a moment, and half a network is enough to keep a second master away. A tie of priorities needs one order of the
//! routers, and the two families' may differ: the first family of the settings decides, the second only after a
//! master down interval in which the first was silent.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use super::advertisement::Advertisement;
use super::interval::Interval;
use super::rejection::{Differences, Rejection};
use super::settings::{InvalidSettings, Member, Settings};
use super::{BootTime, Family, Priority};

/// Senders whose newest advertisement is kept until the next timeout. Two nodes with two families are two; the rest are
/// strangers, and the oldest of them makes room.
const PENDING_MAX: usize = 8;

/// A deadline missed by more than so many intervals means that this node stood still. For a master it is the moment
/// when it has been silent for three intervals, and others have the right to its place.
const STALL_INTERVALS: u32 = 2;

/// The states of RFC 9568, 6.4, each with its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not taking part.
    Initialize,
    /// Listening.
    Backup {
        /// When to take over. The RFC's `Active_Down_Timer`.
        master_down_at: BootTime,
        /// Why, if nothing is heard until then.
        cause: Cause,
        /// When the first of the lower priorities that are not preempted yet was heard.
        outranking_since: Option<BootTime>,
    },
    /// Holding the addresses.
    Master {
        /// When to advertise next. The RFC's `Adver_Timer`.
        advertise_at: BootTime,
        /// When a tie was first heard in the second family alone.
        tied_since: Option<BootTime>,
    },
}

impl State {
    /// The RFC's name (5798's word for a master), as in `status`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Initialize => "Initialize",
            State::Backup { .. } => "Backup",
            State::Master { .. } => "Master",
        }
    }
}

/// Why a state was left for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The router starts: it listens, and hears no master.
    Startup,
    /// It starts as the owner of the addresses.
    Owner,
    /// The master has not been heard for a master down interval.
    MasterSilent,
    /// The master said that it leaves.
    MasterLeft,
    /// The master's host said that its process is dead.
    MasterDied,
    /// The master has a lower priority than ours.
    Preempted,
    /// Another master is better.
    BetterMaster,
    /// This node stood still, and others may have taken its place.
    Stalled,
    /// The router is shut down.
    Shutdown,
}

impl Cause {
    /// The cause's name in `events`; never changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Startup => "startup",
            Cause::Owner => "owner",
            Cause::MasterSilent => "master_silent",
            Cause::MasterLeft => "master_left",
            Cause::MasterDied => "master_died",
            Cause::Preempted => "preempted",
            Cause::BetterMaster => "better_master",
            Cause::Stalled => "stalled",
            Cause::Shutdown => "shutdown",
        }
    }
}

/// What the world has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send it.
    Advertise(Advertisement),
    /// Add the virtual addresses, then announce them. It follows an advertisement, so that an old master has removed
    /// them before the announcement.
    BecameMaster(Cause),
    /// Remove the virtual addresses if they are held.
    BecameBackup(Cause),
    /// Remove the virtual addresses if they are held.
    BecameInitialize(Cause),
    /// Another router was or is master as well: announce the addresses once more, hosts may have believed it.
    Announce,
}

/// One node's part in one election. See the module on how to drive it.
#[derive(Clone, Debug)]
pub struct VirtualRouter {
    settings: Settings,
    priority: Priority,
    state: State,
    /// The master's, when there is another. RFC 9568, 6.1: `Active_Adver_Interval`.
    active_interval: Interval,
    /// Who was last obeyed as a master, over IPv4 and over IPv6.
    masters: [Option<IpAddr>; 2],
    /// The newest of each sender since the last timeout, in the order of arrival.
    pending: Vec<(IpAddr, Advertisement)>,
    outputs: VecDeque<Output>,
}

impl VirtualRouter {
    /// A router in Initialize.
    pub fn new(settings: Settings) -> Result<VirtualRouter, InvalidSettings> {
        settings.check()?;
        Ok(VirtualRouter {
            priority: settings.priority,
            state: State::Initialize,
            active_interval: settings.interval,
            masters: [None; 2],
            pending: Vec::with_capacity(PENDING_MAX),
            outputs: VecDeque::new(),
            settings,
        })
    }

    /// The state and its deadline.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The priority in force.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Who was last obeyed as a master; `None` while this router is one, or has heard nobody.
    #[must_use]
    pub fn master(&self) -> Option<IpAddr> {
        self.masters.into_iter().flatten().next()
    }

    /// The interval of the master, ours if there is none.
    #[must_use]
    pub fn active_interval(&self) -> Interval {
        self.active_interval
    }

    /// Takes part from now on. RFC 9568, 6.4.1.
    pub fn handle_startup(&mut self, now: BootTime) {
        if self.state != State::Initialize {
            return;
        }
        self.active_interval = self.settings.interval;
        if self.priority == Priority::OWNER {
            self.become_master(now, Cause::Owner);
        } else {
            self.become_backup(now, Cause::Startup, Cause::Startup);
        }
    }

    /// Takes what `source` says, to be judged at the next timeout; says what is strange about it, or why it is ignored.
    pub fn handle_advertisement(
        &mut self,
        source: IpAddr,
        advertisement: &Advertisement,
    ) -> Result<Differences, Rejection> {
        let differences = self.examine(source, advertisement)?;
        self.pending.retain(|(earlier, _)| *earlier != source);
        if self.pending.len() == PENDING_MAX {
            self.pending.remove(0);
        }
        self.pending.push((source, advertisement.clone()));
        Ok(differences)
    }

    /// Judges what was heard, then what is due. Call it at every wake-up.
    pub fn handle_timeout(&mut self, now: BootTime) {
        self.step_back_after_a_stall(now);
        let mut challenged = false;
        let mut pending = std::mem::take(&mut self.pending);
        for (source, advertisement) in pending.drain(..) {
            match self.state {
                State::Initialize => {}
                State::Backup { .. } => self.hear_as_backup(now, source, &advertisement),
                State::Master { .. } => challenged |= self.hear_as_master(now, source, &advertisement),
            }
        }
        self.pending = pending;
        if challenged && matches!(self.state, State::Master { .. }) {
            self.reassert(now);
        }
        self.expire(now);
    }

    /// Takes the word of a peer's host that the process there is dead: whoever waits for that peer takes its place. Says
    /// nothing about a master that is no peer.
    pub fn handle_peer_death(&mut self, now: BootTime) {
        let is_peer = |master: IpAddr| {
            self.settings.member(Family::of(master)).is_some_and(|member| member.peers.contains(&master))
        };
        let waits = matches!(self.state, State::Backup { .. }) && self.master().is_some_and(is_peer);
        if waits && self.priority != Priority::LEAVING {
            self.pending.clear();
            self.become_master(now, Cause::MasterDied);
        }
    }

    /// Leaves the election; a master says so. RFC 9568, 6.4.2 and 6.4.3.
    pub fn handle_shutdown(&mut self) {
        match self.state {
            State::Initialize => return,
            State::Backup { .. } => {}
            State::Master { .. } => self.advertise(Priority::LEAVING),
        }
        self.state = State::Initialize;
        self.masters = [None; 2];
        self.pending.clear();
        self.outputs.push_back(Output::BecameInitialize(Cause::Shutdown));
    }

    /// Changes the priority; a master tells the others at once.
    ///
    /// With [`Priority::LEAVING`] a master hands over: it says so at every interval and stays master until it hears
    /// another, so that the addresses are always held. Any advertisement of another ends that, with the last priority 0 as
    /// the sign that the addresses are released. A backup with it takes nothing. Any other priority calls it off.
    pub fn set_priority(&mut self, now: BootTime, priority: Priority) {
        if self.priority == priority {
            return;
        }
        self.priority = priority;
        if matches!(self.state, State::Master { .. }) {
            self.advertise_now(now);
        }
    }

    /// Allows or forbids preemption: a node that is not in sync should not take over. The delay begins anew.
    pub fn set_preempt(&mut self, preempt: bool) {
        self.settings.preempt = preempt;
        if let State::Backup { outranking_since, .. } = &mut self.state {
            *outranking_since = None;
        }
    }

    /// Changes the families and their addresses without an election; a master tells the others at once.
    pub fn set_members(&mut self, now: BootTime, members: Vec<Member>) -> Result<(), InvalidSettings> {
        let settings = Settings { members, ..self.settings.clone() };
        settings.check()?;
        self.settings = settings;
        if matches!(self.state, State::Master { .. }) {
            self.advertise_now(now);
        }
        Ok(())
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due if nothing is heard before; `None` in Initialize.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootTime> {
        match self.state {
            State::Initialize => None,
            State::Backup { master_down_at, .. } => Some(master_down_at),
            State::Master { advertise_at, .. } => Some(advertise_at),
        }
    }

    /// What this router would say with `priority`, one advertisement for each family.
    pub fn advertisements(&self, priority: Priority) -> impl Iterator<Item = Advertisement> + '_ {
        let Settings { vrid, interval, .. } = self.settings;
        self.settings.members.iter().map(move |member| Advertisement {
            vrid,
            priority,
            interval,
            vips: member.vips.clone(),
        })
    }

    /// What can be said of an advertisement without knowing the state.
    fn examine(&self, source: IpAddr, advertisement: &Advertisement) -> Result<Differences, Rejection> {
        let member = self.settings.member(Family::of(source)).ok_or(Rejection::Family)?;
        if advertisement.vips.family() != Family::of(source) {
            return Err(Rejection::Family);
        }
        if source == member.address {
            return Err(Rejection::OwnAddress);
        }
        let known = member.peers.contains(&source);
        // An address of ours in it makes it a rival, whoever it is: there must be one master then.
        if !known && !member.vips.overlaps(&advertisement.vips) {
            return Err(Rejection::Foreign);
        }
        Ok(Differences {
            interval: advertisement.interval != self.settings.interval,
            vip_list: !member.vips.same_addresses(&advertisement.vips),
            sender: !known && !member.peers.is_empty(),
        })
    }

    fn step_back_after_a_stall(&mut self, now: BootTime) {
        let (deadline, interval) = match self.state {
            State::Initialize => return,
            State::Backup { master_down_at, .. } => (master_down_at, self.active_interval),
            State::Master { advertise_at, .. } => (advertise_at, self.settings.interval),
        };
        if now.since(deadline) <= interval.duration() * STALL_INTERVALS {
            return;
        }
        match &mut self.state {
            State::Initialize => {}
            State::Master { .. } => self.become_backup(now, Cause::Stalled, Cause::MasterSilent),
            // What was sent meanwhile may be lost, and silence then means nothing: listen anew.
            State::Backup { master_down_at, .. } => {
                *master_down_at = now + self.active_interval.master_down_interval(self.priority);
            }
        }
    }

    /// RFC 9568, 6.4.2.
    fn hear_as_backup(&mut self, now: BootTime, source: IpAddr, heard: &Advertisement) {
        let (own, preempts) = (self.priority, self.preempts());
        let State::Backup { master_down_at, cause, outranking_since } = &mut self.state else { return };
        let master = &mut self.masters[Family::of(source) as usize];
        if heard.priority == Priority::LEAVING {
            // One that was master before this one says a last word; it must not hurry those who know its successor.
            if master.is_some_and(|master| master != source) {
                return;
            }
            let only_peer = self.settings.member(Family::of(source)).is_some_and(|member| member.peers == [source]);
            let wait = if only_peer { Duration::ZERO } else { self.active_interval.skew_time(self.priority) };
            // Never later: the other family says the same, perhaps from an address that is not known as the peer's.
            *master_down_at = (*master_down_at).min(now + wait);
            *cause = Cause::MasterLeft;
            return;
        }
        let yields = heard.priority == Priority::YIELDING;
        if heard.priority >= own || !(preempts || yields) {
            *outranking_since = None;
        } else {
            let since = *outranking_since.get_or_insert(now);
            if yields || now.since(since) >= self.settings.preempt_delay {
                *cause = Cause::Preempted;
                return;
            }
        }
        self.active_interval = heard.interval;
        *master = Some(source);
        *master_down_at = now + heard.interval.master_down_interval(self.priority);
        *cause = Cause::MasterSilent;
    }

    /// Whether a master with a lower priority has to go. An owner's does always. RFC 9568, 6.1: `Preempt_Mode`.
    fn preempts(&self) -> bool {
        self.settings.preempt || self.priority == Priority::OWNER
    }

    /// RFC 9568, 6.4.3. True if there is a rival to be told that this router is master.
    fn hear_as_master(&mut self, now: BootTime, source: IpAddr, heard: &Advertisement) -> bool {
        if heard.priority == Priority::LEAVING {
            // Two that leave would answer each other for ever.
            return self.priority != Priority::LEAVING;
        }
        let better = self.is_better(now, source, heard.priority);
        if better == Some(true) {
            self.give_way(now, source, heard.interval);
        }
        better == Some(false)
    }

    /// Whether a master at `source` with `priority` has the right to the addresses; `None` if it cannot be said yet.
    fn is_better(&mut self, now: BootTime, source: IpAddr, priority: Priority) -> Option<bool> {
        let wait = self.settings.interval.master_down_interval(self.priority);
        let first = self.settings.members[0].address;
        let own = self.settings.member(Family::of(source))?.address;
        let State::Master { tied_since, .. } = &mut self.state else { return None };
        if Family::of(first) == Family::of(source) {
            *tied_since = None;
        } else if priority == self.priority {
            let since = *tied_since.get_or_insert(now);
            if now.since(since) < wait {
                return None;
            }
        }
        // Addresses of one family compare as the unsigned numbers that they are.
        Some((priority, source) > (self.priority, own))
    }

    /// A rival that is worse: it hears us at once, bridges and hosts learn the right way again.
    fn reassert(&mut self, now: BootTime) {
        self.advertise_now(now);
        self.outputs.push_back(Output::Announce);
    }

    /// A rival that is better. The last advertisement tells it that there was another master, so that it announces the
    /// addresses; without it, hosts that believe us would send to us until their entries age.
    fn give_way(&mut self, now: BootTime, master: IpAddr, interval: Interval) {
        self.advertise(self.priority);
        self.active_interval = interval;
        self.masters[Family::of(master) as usize] = Some(master);
        self.become_backup(now, Cause::BetterMaster, Cause::MasterSilent);
    }

    fn expire(&mut self, now: BootTime) {
        match &mut self.state {
            State::Backup { master_down_at, .. } if *master_down_at <= now && self.priority == Priority::LEAVING => {
                *master_down_at = now + self.active_interval.master_down_interval(self.priority);
            }
            State::Backup { master_down_at, cause, .. } if *master_down_at <= now => {
                let cause = *cause;
                self.become_master(now, cause);
            }
            State::Master { advertise_at, .. } if *advertise_at <= now => self.advertise_now(now),
            _ => {}
        }
    }

    fn become_master(&mut self, now: BootTime, cause: Cause) {
        self.masters = [None; 2];
        self.active_interval = self.settings.interval;
        self.state = State::Master { advertise_at: now, tied_since: None };
        self.advertise_now(now);
        self.outputs.push_back(Output::BecameMaster(cause));
    }

    /// Listens for a master down interval; `then` is the cause if nothing is heard.
    fn become_backup(&mut self, now: BootTime, cause: Cause, then: Cause) {
        let master_down_at = now + self.active_interval.master_down_interval(self.priority);
        self.state = State::Backup { master_down_at, cause: then, outranking_since: None };
        self.outputs.push_back(Output::BecameBackup(cause));
    }

    /// Advertises as a master, and next an interval from now.
    fn advertise_now(&mut self, now: BootTime) {
        self.advertise(self.priority);
        if let State::Master { advertise_at, .. } = &mut self.state {
            *advertise_at = now + self.settings.interval.duration();
        }
    }

    fn advertise(&mut self, priority: Priority) {
        let advertisements: Vec<Advertisement> = self.advertisements(priority).collect();
        self.outputs.extend(advertisements.into_iter().map(Output::Advertise));
    }
}
