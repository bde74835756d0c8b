//! The loop: wait, take everything that is there, let the node judge, carry out what it says.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::mpsc;

use super::link::{Link, members};
use super::probe::Probe;
use super::{Handle, Happened, Notice, OF_THE_DAEMON, Settings, View, release_stale, since_boot};
use crate::proto::node::{self, Effect, Fault, Node, Report};
use crate::proto::vrrp::advertisement::{Advertisement, Dialect, Expected};
use crate::proto::vrrp::datagram::Datagram;
use crate::proto::vrrp::rejection::Rejection;
use crate::proto::vrrp::settings::{self, Member};
use crate::proto::vrrp::virtual_router::{Cause, State};
use crate::proto::vrrp::{BootTime, Family};
use crate::sys::netlink::{Change, Interface, Monitor, Netlink};
use crate::sys::scheduling::Scheduling;
use crate::sys::vrrp_socket::PACKET_BYTES;

/// Shorter intervals are missed thrice in a row beside busy processes, measured, unless the thread is a real-time one.
const REAL_TIME_BELOW: Duration = Duration::from_millis(50);
/// Longest sleep: the guardian counts the beats.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// How long a node must be well before it takes part again: a cable that is half in comes and goes.
const SETTLE: Duration = Duration::from_secs(2);
/// Time without a beat of the daemon after which its data plane counts as stalled; the control plane beats every 500 ms.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// How long a node that leaves still receives for its neighbours: the peer announces within a millisecond.
const LINGER: Duration = Duration::from_millis(100);
/// How long a foreign pair counts as there after its last advertisement: a few of the longest common interval, 1 s.
const FOREIGN_FOR: Duration = Duration::from_secs(10);
/// The same trouble is told again after so long.
const TROUBLE_AGAIN: Duration = Duration::from_secs(60);

/// The thread's state.
pub(super) struct Election {
    settings: Settings,
    handle: Handle,
    notices: mpsc::Sender<Notice>,
    netlink: Netlink,
    monitor: Monitor,
    link: Option<Link>,
    members: Vec<Member>,
    /// What the peer says that it advertises from.
    peers: Vec<IpAddr>,
    node: Node,
    probe: Option<Probe>,
    fail_overs: u32,
    link_ends: u32,
    beats: (u64, BootTime),
    renew_at: BootTime,
    /// Whether the last release left the addresses on `lo` for a moment.
    lingers: bool,
    trouble: Option<(String, BootTime)>,
    /// Another pair with our number, and when it was heard.
    foreign: Option<(IpAddr, BootTime)>,
    view: View,
    packet: Box<[u8]>,
}

/// What the wake-up found out beside advertisements.
#[derive(Default)]
struct News {
    /// The interface or its own addresses changed.
    interface: bool,
    /// One of the shared addresses has gone, whoever did it.
    address_gone: bool,
    claimed: bool,
    peer_dead: bool,
}

impl Election {
    pub(super) fn new(settings: Settings, handle: Handle, notices: mpsc::Sender<Notice>) -> io::Result<Election> {
        let said = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        let now = since_boot();
        let pair = &settings.pair;
        let mut netlink = Netlink::open()?;
        let monitor = Monitor::open()?;
        let stale = release_stale(&mut netlink, pair.addresses())
            .map_err(said("cannot remove addresses that an earlier run left; CAP_NET_ADMIN is needed"))?;
        let interface = netlink.interface(&pair.interface)?;
        let link = interface.map(|interface| Link::open(&mut netlink, interface, pair)).transpose();
        let link = link.map_err(said(&format!(
            "cannot open sockets on {}; CAP_NET_RAW and CAP_NET_ADMIN are needed",
            pair.interface
        )))?;
        let there = link.as_ref().map(|link| netlink.addresses(Some(link.interface.index))).transpose()?;
        let (members, complete) = members(pair, &there.unwrap_or_default(), &[]);
        let mut faults = Vec::new();
        if !link.as_ref().is_some_and(Link::carries) {
            faults.push(Fault::InterfaceDown);
        }
        if !complete {
            faults.push(Fault::OwnAddressGone);
        }
        let router = settings::Settings {
            vrid: pair.vrid,
            interval: pair.interval,
            priority: pair.own_node().priority,
            preempt: pair.preempt,
            preempt_delay: pair.preempt_delay,
            members: members.clone(),
        };
        let node = Node::new(node::Settings { router, settle: SETTLE }, &faults, now).map_err(io::Error::other)?;
        let mut probe = Probe::open(pair.own_node().address, pair.peer_node().address, pair.port, now)
            .map_err(said(&format!("cannot open UDP port {} of pair.port", pair.port)))?;
        probe.introduce(members.iter().map(|member| member.address));
        handle.shared.wake_up(now);
        let mut election = Election {
            settings,
            handle,
            notices,
            netlink,
            monitor,
            link,
            members,
            peers: Vec::new(),
            node,
            probe: Some(probe),
            fail_overs: 0,
            link_ends: 0,
            beats: (0, now),
            renew_at: now,
            lingers: false,
            trouble: None,
            foreign: None,
            view: View::default(),
            packet: vec![0; PACKET_BYTES].into(),
        };
        stale.into_iter().for_each(|vip| election.tell(Happened::StaleRemoved(vip)));
        election.carry_out(now);
        election.publish(now);
        Ok(election)
    }

    /// Until the node has left. `scheduling` is what the thread got.
    pub(super) fn run(&mut self, scheduling: Scheduling) {
        let interval = self.settings.pair.interval.duration();
        if scheduling != Scheduling::RealTime && interval < REAL_TIME_BELOW {
            let what = "advertisements may be late on a busy machine, and the address then moves for no reason";
            self.tell(Happened::Trouble(format!("no real-time scheduling (CAP_SYS_NICE): every {interval:?}, {what}")));
        }
        while !self.node.has_left() {
            self.sleep();
            self.wake_up(since_boot());
        }
        if self.lingers {
            std::thread::sleep(LINGER);
        }
        // Whatever was not said: nothing of ours stays, on `lo` neither, before the interface answers for it again.
        if let Err(error) = release_stale(&mut self.netlink, self.settings.pair.addresses()) {
            self.tell(Happened::Trouble(format!("cannot remove the addresses: {error}")));
        }
        if let Some(link) = &self.link {
            let released = link.release(&mut self.netlink, &self.settings.pair);
            let restored = link.restore(&mut self.netlink);
            if let Err(error) = released.and(restored) {
                self.tell(Happened::Trouble(format!("cannot leave the interface as it was: {error}")));
            }
        }
        if let Some(page) = &self.settings.page {
            page.beat_no_more();
        }
        self.publish(since_boot());
    }

    fn sleep(&self) {
        let now = since_boot();
        let holds = self.node.desired().hold_addresses && self.settings.pair.vip_lease.is_some();
        let renew = holds.then_some(self.renew_at);
        let due = [self.node.poll_timeout(), renew, self.probe.as_ref().map(Probe::ask_at)];
        let sleep = due.into_iter().flatten().map(|at| at.since(now)).min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let mut descriptors = vec![
            PollFd::new(self.handle.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
        ];
        descriptors.extend(self.probe.iter().map(|probe| PollFd::new(probe.as_fd(), PollFlags::POLLIN)));
        let link = self.link.iter().flat_map(Link::descriptors);
        descriptors.extend(link.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)));
        // Which of them it was does not matter: all are looked at. An error is a signal, or would come again.
        let _ = ppoll(&mut descriptors, Some(TimeSpec::from(sleep)), None);
    }

    fn wake_up(&mut self, now: BootTime) {
        self.handle.shared.wake_up(now);
        if let Some(page) = &self.settings.page {
            page.beat();
        }
        let _ = self.handle.wake.read();
        self.hear_the_daemon(now);
        let news = self.hear_the_world(now);
        if news.interface {
            self.look_at_the_interface(now);
        }
        self.note_lateness(now);
        self.node.handle_timeout(now);
        if news.peer_dead {
            self.node.handle_peer_death(now);
        }
        if news.claimed {
            self.node.handle_claim(now);
        }
        self.carry_out(now);
        if news.address_gone {
            self.bring_back(now);
        }
        self.renew(now);
        self.publish(now);
    }

    fn hear_the_daemon(&mut self, now: BootTime) {
        let shared = self.handle.shared.clone();
        let (bits, beats) = (shared.faults.load(Ordering::Relaxed), shared.beats.load(Ordering::Relaxed));
        if beats != self.beats.0 {
            self.beats = (beats, now);
        }
        let silent = now.since(self.beats.1) > STALLED_AFTER;
        for (at, fault) in OF_THE_DAEMON.into_iter().enumerate() {
            let present = bits >> at & 1 == 1 || (fault == Fault::DataPlaneStalled && silent);
            self.node.set_fault(now, fault, present);
        }
        let asked = shared.fail_overs.load(Ordering::Relaxed);
        if asked != self.fail_overs {
            self.fail_overs = asked;
            // Whoever asked looks at the view first, and hears of what comes by a notice.
            let _ = self.node.fail_over(now);
        }
        let ended = shared.link_ends.load(Ordering::Relaxed);
        if ended != self.link_ends {
            self.link_ends = ended;
            self.node.handle_link_end(now);
        }
        if shared.leave.load(Ordering::Relaxed) && !self.node.is_leaving() {
            self.node.leave(now);
        }
    }

    /// Hands everything that waits to the node.
    fn hear_the_world(&mut self, now: BootTime) -> News {
        let mut news = News::default();
        let (pair, index) = (&self.settings.pair, self.link.as_ref().map(|link| link.interface.index));
        let ours = |place: &crate::sys::netlink::Address| pair.addresses().any(|vip| vip == place.address);
        let heard = self.monitor.drain(|change| match change {
            Change::Link(Interface { name, .. }) | Change::LinkGone(Interface { name, .. }) => {
                news.interface |= name == pair.interface;
            }
            Change::Address(place) => news.interface |= Some(place.index) == index && !ours(&place),
            Change::AddressGone(place) if ours(&place) => news.address_gone = true,
            Change::AddressGone(place) => news.interface |= Some(place.index) == index,
            Change::LocalRoute(..) | Change::LocalRouteGone(..) => {}
            Change::Missed => (news.interface, news.address_gone) = (true, true),
        });
        if let Err(error) = heard {
            self.trouble(now, format!("cannot hear of changes to interfaces: {error}"));
        }
        if let Some(probe) = &mut self.probe {
            news.peer_dead = probe.receive(now) || probe.ask_in_turn(now);
            if probe.peers() != self.peers {
                self.peers = probe.peers().to_vec();
                news.interface = true;
            }
        }
        if let Some(link) = &mut self.link {
            for claims in &mut link.claims {
                while let Ok(Some(_)) = claims.receive() {
                    news.claimed = true;
                }
            }
        }
        self.hear_advertisements(now);
        news
    }

    fn hear_advertisements(&mut self, now: BootTime) {
        let Some(link) = &self.link else { return };
        let metrics = &self.settings.metrics;
        let pair = &self.settings.pair;
        let expected = Expected { version: pair.interval.version(), vrid: pair.vrid, password: self.settings.password };
        for socket in link.sockets() {
            while let Ok(Some(received)) = socket.receive(&mut self.packet) {
                let message = &self.packet[received.begin..received.end];
                let hop_limit = received.ttl;
                let datagram =
                    Datagram { source: received.source, destination: received.destination, hop_limit, message };
                let judged = Advertisement::decode(&datagram, Some(&expected))
                    .and_then(|it| self.node.handle_advertisement(now, received.source, &it.advertisement));
                match judged {
                    Ok(differences) => {
                        metrics.adverts_received.inc();
                        differences.names().for_each(|name| metrics.noted.inc(name));
                    }
                    Err(rejection) => {
                        if rejection == Rejection::Foreign {
                            self.foreign = Some((received.source, now));
                        }
                        metrics.rejected.inc(rejection.as_str());
                    }
                }
            }
        }
    }

    /// Opens what is there now, and judges whether it will do.
    fn look_at_the_interface(&mut self, now: BootTime) {
        if let Err(error) = self.try_to_look(now) {
            self.trouble(now, format!("cannot look at {}: {error}", self.settings.pair.interface));
        }
        let carries = self.link.as_ref().is_some_and(Link::carries);
        self.node.set_fault(now, Fault::InterfaceDown, !carries);
    }

    fn try_to_look(&mut self, now: BootTime) -> io::Result<()> {
        let pair = &self.settings.pair;
        let Some(interface) = self.netlink.interface(&pair.interface)? else {
            self.link = None;
            return Ok(());
        };
        let index = interface.index;
        match &mut self.link {
            Some(link) if link.interface.index == index => link.update(interface, pair),
            link => *link = Some(Link::open(&mut self.netlink, interface, pair)?),
        }
        let (members, complete) = members(pair, &self.netlink.addresses(Some(index))?, &self.peers);
        if complete && members != self.members {
            if let Some(probe) = &mut self.probe {
                probe.introduce(members.iter().map(|member| member.address));
            }
            self.members.clone_from(&members);
            self.node.set_members(now, members).map_err(io::Error::other)?;
        }
        self.node.set_fault(now, Fault::OwnAddressGone, !complete);
        Ok(())
    }

    /// How late our own advertisement is.
    fn note_lateness(&self, now: BootTime) {
        if let State::Master { advertise_at, .. } = self.node.router().state()
            && advertise_at <= now
        {
            self.settings.metrics.late_seconds.0.observe(now.since(advertise_at).as_secs_f64());
        }
    }

    fn carry_out(&mut self, now: BootTime) {
        let mut taken_after = Duration::ZERO;
        while let Some(effect) = self.node.poll_effect() {
            let done = match effect {
                Effect::Transmit(advertisement) => self.transmit(&advertisement),
                Effect::Take => {
                    let taken = self.take(now);
                    taken_after = since_boot().since(now);
                    taken
                }
                Effect::Release => self.release(),
                Effect::Announce => self.link.as_ref().map_or(Ok(()), Link::announce),
                Effect::Probe => {
                    if self.probe.as_mut().is_some_and(|probe| probe.ask(now)) {
                        self.node.handle_peer_death(now);
                    }
                    Ok(())
                }
                Effect::Report(report) => {
                    self.note(now, report, taken_after);
                    self.tell(Happened::Node(report));
                    Ok(())
                }
            };
            if let Err(error) = done {
                self.trouble(now, format!("on {}: {error}", self.settings.pair.interface));
            }
        }
    }

    fn transmit(&self, advertisement: &Advertisement) -> io::Result<()> {
        let family = advertisement.vips.family();
        let member = self.members.iter().find(|member| Family::of(member.address) == family);
        let Some((link, member)) = self.link.as_ref().zip(member) else { return Ok(()) };
        let dialect = Dialect { password: self.settings.password, ..Dialect::default() };
        self.settings.metrics.adverts_sent.inc();
        link.transmit(advertisement, &dialect, member, self.settings.pair.unicast)
    }

    fn take(&mut self, now: BootTime) -> io::Result<()> {
        let pair = &self.settings.pair;
        self.renew_at = pair.vip_lease.map_or(now, |lease| now + lease / 4);
        self.link.as_ref().map_or(Ok(()), |link| link.take(&mut self.netlink, pair))
    }

    /// After a hand-over neighbours send here until they have heard the peer's announcement: that is not lost.
    fn release(&mut self) -> io::Result<()> {
        let (Some(link), pair) = (&self.link, &self.settings.pair) else { return Ok(()) };
        self.lingers = self.view.is_handing_over;
        let lingered = if self.lingers { Link::linger(&mut self.netlink, pair) } else { Ok(()) };
        link.release(&mut self.netlink, pair).and(lingered)
    }

    /// A shared address has gone: if it was not we who released it, it comes back.
    fn bring_back(&mut self, now: BootTime) {
        let (Some(link), true) = (&self.link, self.node.desired().hold_addresses) else { return };
        if link.holds(&mut self.netlink, &self.settings.pair).unwrap_or(false) {
            return;
        }
        let lease = self.settings.pair.vip_lease;
        // Renewed at a quarter: it was not the lease unless three were missed.
        if lease.is_some_and(|lease| now.since(self.renew_at) >= lease / 2) {
            self.settings.metrics.lease_expired.inc();
        } else {
            self.settings.metrics.restored.inc();
        }
        self.node.handle_address_lost(now);
        self.carry_out(now);
    }

    fn renew(&mut self, now: BootTime) {
        let pair = &self.settings.pair;
        let (Some(lease), true) = (pair.vip_lease, self.node.desired().hold_addresses) else { return };
        if self.renew_at > now {
            return;
        }
        self.renew_at = now + lease / 4;
        let renewed = self.link.as_ref().map_or(Ok(()), |link| link.renew(&mut self.netlink, pair));
        if let Err(error) = renewed {
            self.trouble(now, format!("cannot renew the addresses on {}: {error}", pair.interface));
        }
    }

    fn note(&self, now: BootTime, report: Report, taken_after: Duration) {
        let Report::Became { state, cause } = report else { return };
        let metrics = &self.settings.metrics;
        metrics.transitioned(state, SystemTime::now());
        // Who starts alone takes over from nobody.
        if state == "Master" && !matches!(cause, Cause::Startup | Cause::Owner) {
            metrics.takeover.silence.observe(now.since(self.node.heard_at()).as_secs_f64());
            metrics.takeover.address.observe(taken_after.as_secs_f64());
        }
    }

    fn publish(&mut self, now: BootTime) {
        let router = self.node.router();
        let view = View {
            state: router.state().as_str(),
            master: router.master(),
            priority: router.priority().0,
            vip_held: self.node.desired().hold_addresses,
            is_handing_over: self.node.is_handing_over(),
            has_left: self.node.has_left(),
            faults: self.node.faults().map(Fault::as_str).collect(),
            peer_answers: self.probe.as_ref().is_some_and(|probe| probe.is_present(now)),
            foreign: self.foreign.filter(|(_, at)| now.since(*at) < FOREIGN_FOR).map(|(source, _)| source),
        };
        if view != self.view {
            self.view.clone_from(&view);
            self.handle.shared.publish(view);
        }
    }

    /// Tells of what does not work, once for each kind and minute.
    fn trouble(&mut self, now: BootTime, what: String) {
        let again = |(before, at): &(String, BootTime)| *before == what && now.since(*at) < TROUBLE_AGAIN;
        if !self.trouble.as_ref().is_some_and(again) {
            self.trouble = Some((what.clone(), now));
            self.tell(Happened::Trouble(what));
        }
    }

    fn tell(&self, what: Happened) {
        if self.notices.try_send(Notice { at: SystemTime::now(), what }).is_err() {
            self.settings.metrics.notices_lost.inc();
        }
    }
}
