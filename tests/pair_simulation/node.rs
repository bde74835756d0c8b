//! One node's process: its journals, its part in the election, its link, its deliveries and its drains.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use twinlog::journal::OpenError;
use twinlog::journal::writer::Limits;
use twinlog::proto::batch::{Batch, BatchBuilder};
use twinlog::proto::envelope::{Flags, Origin, Timestamp, Transport};
use twinlog::proto::node::{self, Effect, Fault, Report};
use twinlog::proto::pair::message::Status;
use twinlog::proto::pair::promise::Acknowledge;
use twinlog::proto::position::{Incarnation, JournalId, Mark, NodeName};
use twinlog::proto::vrrp::interval::{Centiseconds, Interval};
use twinlog::proto::vrrp::settings::{Member, Settings as RouterSettings};
use twinlog::proto::vrrp::vip_list::VipList;
use twinlog::proto::vrrp::{BootTime, Priority, Vrid};

use crate::conversation::Link;
use crate::daemon::{Chore, Draining, Inputs};
use crate::delivery::Delivery;
use crate::disks::Disks;
use crate::journal::{Journal, State};
use crate::surroundings::Surroundings;

/// As in `daemon::election`.
const BEAT: Duration = Duration::from_millis(100);
/// The same, made shorter: how long a journal may wait for room.
const FULL_FOR: Duration = Duration::from_secs(2);
/// How long a node must be well before it takes part again.
const SETTLE: Duration = Duration::from_secs(2);
/// As in `proto::pair::promise`: further behind, the other node is not waited for.
const CLOSE_BYTES: u64 = 4 * 1024 * 1024;

/// How both nodes are set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub limits: Limits,
    pub acknowledge: Acknowledge,
    pub preempt: bool,
    pub priorities: [Priority; 2],
}

/// See the module.
pub struct Node {
    pub host: usize,
    pub name: NodeName,
    pub peer: NodeName,
    settings: Settings,
    pub own: Journal,
    pub mirrors: BTreeMap<JournalId, Journal>,
    pub election: node::Node,
    booted: Duration,
    next_beat: Duration,
    /// Whether the addresses are here.
    pub holds: bool,
    /// What the daemon was told that it is.
    pub active_since: Option<Duration>,
    pub is_backup: bool,
    pub link: Link,
    /// How this node is, for the other one.
    pub told: Status,
    pub is_aside: bool,
    pub drain: Option<Draining>,
    pub inputs: Inputs,
    pub deliveries: BTreeMap<(usize, JournalId), Delivery>,
    pub chores: VecDeque<Chore>,
    /// Told to stop.
    pub is_stopping: bool,
    /// It has ended in order; whether in time.
    pub has_ended: Option<bool>,
    was_connected: bool,
    promised: Mark,
    /// What the other node had, by its own word, when it was met anew since the last check.
    pub had_replicated: Mark,
}

pub fn name(host: usize) -> NodeName {
    ["agg-a", "agg-b"][host].parse().unwrap()
}

fn address(host: usize) -> IpAddr {
    [192, 0, 2, host as u8 + 1].into()
}

impl Node {
    /// Starts on these disks. `fresh` is what the host's clock says.
    pub fn start(
        around: &mut Surroundings,
        host: usize,
        disks: &mut Disks,
        settings: Settings,
        booted: Duration,
        fresh: Incarnation,
    ) -> Result<Node, OpenError> {
        let id = JournalId { node: name(host), incarnation: fresh };
        let own = Journal::open(around, host, &disks.own, (&id, true), settings.limits, settings.acknowledge)?;
        around.note(format_args!("host {host} starts {} at {:?}", own.id, own.durable()));
        let promised = own.promise.promised();
        let election = node::Settings { router: router(host, settings), settle: SETTLE };
        let mut node = Node {
            host,
            name: name(host),
            peer: name(1 - host),
            settings,
            own,
            mirrors: BTreeMap::new(),
            election: node::Node::new(election, &[], BootTime(around.now - booted)).unwrap(),
            booted,
            next_beat: around.now,
            holds: false,
            active_since: None,
            is_backup: false,
            link: Link::default(),
            told: Status::default(),
            is_aside: false,
            drain: None,
            inputs: Inputs::Open,
            deliveries: BTreeMap::new(),
            chores: VecDeque::new(),
            is_stopping: false,
            has_ended: None,
            was_connected: false,
            promised,
            had_replicated: Mark::default(),
        };
        let there: Vec<JournalId> = disks.mirrors.keys().cloned().collect();
        for journal in there {
            node.open_mirror(around, disks, &journal, Mark::default())?;
        }
        Ok(node)
    }

    /// The mirror of a journal, made if there is none, as `Mirrors::of`.
    pub fn mirror(
        &mut self,
        around: &mut Surroundings,
        disks: &mut Disks,
        journal: &JournalId,
        at: Mark,
    ) -> Result<&mut Journal, crate::conversation::Ended> {
        if !self.mirrors.contains_key(journal) {
            self.open_mirror(around, disks, journal, at).map_err(crate::conversation::ended)?;
        }
        Ok(self.mirrors.get_mut(journal).unwrap())
    }

    fn open_mirror(
        &mut self,
        around: &mut Surroundings,
        disks: &mut Disks,
        journal: &JournalId,
        at: Mark,
    ) -> Result<(), OpenError> {
        let Limits { segment_size, max_size } = self.settings.limits;
        let limits = Limits { segment_size, max_size: max_size + 2 * segment_size };
        let storage = disks.mirror(journal);
        let mut mirror = Journal::open(around, self.host, &storage, (journal, false), limits, Acknowledge::Durable)?;
        if mirror.durable() == Mark::default() {
            mirror.skip_to(at);
            crate::OUTPUTS.iter().for_each(|output| mirror.cursor(output).advance(at));
        }
        self.mirrors.insert(journal.clone(), mirror);
        Ok(())
    }

    pub fn boot_time(&self, now: Duration) -> BootTime {
        BootTime(now - self.booted)
    }

    /// Takes a message in; the batch that it stands in.
    pub fn receive(&mut self, contents: &[Vec<u8>]) -> Option<Batch> {
        let mut builder = BatchBuilder::new();
        let (received_at, transport) = (Timestamp(1), Transport::Tcp);
        builder.set_origin(&Origin { received_at, source: None, transport, input: "net", tag: b"" });
        contents.iter().for_each(|content| builder.push(Flags::NONE, content));
        if self.inputs == Inputs::Ended { None } else { self.own.append(builder) }
    }

    /// The journals' threads.
    pub fn step_journals(&mut self, around: &mut Surroundings, is_slow: bool) {
        self.own.step(around, is_slow);
        self.mirrors.values_mut().for_each(|mirror| mirror.step(around, is_slow));
    }

    /// The thread of the virtual IP.
    pub fn step_election(&mut self, around: &mut Surroundings) {
        let now = self.boot_time(around.now);
        if around.now >= self.next_beat || self.is_aside != self.election.faults().any(|fault| fault == Fault::Drained)
        {
            self.next_beat = around.now + BEAT;
            let state = self.own.state;
            let is_full = matches!(state, State::Waiting(since) if around.now - since > FULL_FOR);
            self.election.set_fault(now, Fault::JournalPoisoned, state == State::Poisoned);
            self.election.set_fault(now, Fault::JournalFull, is_full);
            self.election.set_fault(now, Fault::Drained, self.is_aside);
        }
        while let Some(advertisement) = around.network.advertisement(around.now, self.host) {
            // A node that takes no part hears nothing.
            let _ = self.election.handle_advertisement(now, address(1 - self.host), &advertisement);
        }
        self.election.handle_timeout(now);
        if around.network.refusal(around.now, self.host) {
            self.election.handle_peer_death(now);
        }
        while let Some(effect) = self.election.poll_effect() {
            self.carry_out(around, effect);
        }
    }

    fn carry_out(&mut self, around: &mut Surroundings, effect: Effect) {
        match effect {
            Effect::Transmit(advertisement) => {
                let (rng, now) = (&mut around.rng, around.now);
                around.network.advertise(rng, now, self.host, advertisement);
            }
            Effect::Take => self.holds = true,
            Effect::Release => self.holds = false,
            Effect::Announce => {}
            Effect::Probe => {
                let refuses = around.refuses[1 - self.host];
                let (rng, now) = (&mut around.rng, around.now);
                around.network.probe(rng, now, self.host, refuses);
            }
            Effect::Report(report) => {
                around.note(format_args!("host {} {report:?}", self.host));
                if let Report::Became { state, .. } = report {
                    self.active_since = (state == "Master").then_some(around.now);
                    self.is_backup = state == "Backup";
                }
            }
        }
    }

    /// The process is gone, with or without its guardian.
    pub fn die(self, around: &mut Surroundings, is_guarded: bool) {
        if is_guarded {
            let farewells: Vec<_> = self.election.router().advertisements(Priority::LEAVING).collect();
            for farewell in farewells {
                let (rng, now) = (&mut around.rng, around.now);
                around.network.advertise(rng, now, self.host, farewell);
            }
        }
        self.deliveries.into_values().for_each(|delivery| delivery.die(around));
    }

    /// Whether a journal takes nothing more.
    pub fn is_poisoned(&self) -> bool {
        std::iter::once(&self.own).chain(self.mirrors.values()).any(|journal| journal.state == State::Poisoned)
    }

    /// What is true of a node at every moment.
    pub fn check(&mut self, around: &Surroundings) {
        self.own.check(around);
        self.mirrors.values_mut().for_each(|mirror| mirror.check(around));
        assert_eq!(self.holds, self.election.desired().hold_addresses, "the addresses are where they are wanted");
        let (promised, replicated) = (self.own.promise.promised(), self.own.promise.replicated());
        let had_replicated = std::mem::take(&mut self.had_replicated);
        if promised > self.promised.max(replicated).max(had_replicated) {
            // More was promised that is here only.
            let lag = self.own.durable().position.bytes_since(replicated.position);
            let connected = self.was_connected && self.link.connected_since.is_some_and(|since| since < around.now);
            let may = match self.settings.acknowledge {
                Acknowledge::Durable => true,
                Acknowledge::Replicated { alone } => alone && (!connected || lag > CLOSE_BYTES),
            };
            assert!(may, "promised {promised:?}, of which the other node, which is there, has {replicated:?}");
        }
        self.promised = promised;
        self.was_connected = self.link.connected_since.is_some();
    }

    /// Whether what ends at `mark` is promised, and whether on this node's disk alone.
    pub fn promises(&self, mark: Mark) -> Option<bool> {
        let is_alone = match self.settings.acknowledge {
            Acknowledge::Durable => true,
            Acknowledge::Replicated { alone } => alone && mark > self.own.promise.replicated(),
        };
        (self.own.promise.promised() >= mark).then_some(is_alone)
    }
}

fn router(host: usize, settings: Settings) -> RouterSettings {
    RouterSettings {
        vrid: Vrid::new(77).unwrap(),
        interval: Interval::V3(Centiseconds::new(10).unwrap()),
        priority: settings.priorities[host],
        preempt: settings.preempt,
        preempt_delay: Duration::ZERO,
        members: vec![Member {
            address: address(host),
            peers: vec![address(1 - host)],
            vips: VipList::new(&["192.0.2.10".parse().unwrap()]).unwrap(),
        }],
    }
}
