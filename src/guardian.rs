//! The guardian: the small parent of a daemon with a pair, which takes the addresses off the link when the daemon cannot.
//!
//! A dying process is slow to be seen: its memory is torn down first, and meanwhile its kernel acknowledges what nobody
//! will read. So the program splits in two before it has threads. The child is the daemon, whose main thread holds a
//! robust mutex for life ([`SharedPage`]); the parent is this, and does four things:
//!
//! 1. When the child dies, or stands still so long that the peer takes over, it removes the addresses and sends
//!    priority 0, both prepared ahead of time.
//! 2. It hands SIGTERM, SIGINT and SIGHUP on. SIGABRT is a service manager's watchdog: the daemon has not given it a sign of
//!    life for long, so this does as when it is dead, and kills it.
//! 3. It ends with the child's status.
//! 4. It passes on what the daemon says to the service manager, which hears a service's main process only. It says nothing
//!    of its own: that this process lives is no sign of that one.
//!
//! It holds no log message and decides nothing about the election. If it dies, the daemon leaves in order.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::config::Pair;
use crate::proto::vrrp::advertisement::{Advertisement, Dialect, Password};
use crate::proto::vrrp::{Family, Priority};
use crate::sys::netlink::{Arp, Netlink, Removal};
use crate::sys::notify::{Inherited, Relay};
use crate::sys::process::{Split, split};
use crate::sys::robust_mutex::SharedPage;
use crate::sys::scheduling;
use crate::sys::vrrp_socket::VrrpSocket;
use crate::vip::members;

/// Least time without a beat after which the daemon counts as standing still. It beats ten times a second.
const HANG_MIN: Duration = Duration::from_millis(400);
/// Between two looks at the beats.
const TICK: Duration = Duration::from_millis(50);
/// Between two attempts to prepare for an interface that is not there, or not whole.
const PREPARE_EVERY: Duration = Duration::from_secs(1);
/// For a thread that calls nothing deep; its memory is locked.
const STACK_BYTES: usize = 128 * 1024;
/// No virtual router has this number: its sockets receive nothing.
const NOTHING: Option<u8> = Some(0);

/// Which of the two processes goes on.
#[derive(Debug)]
pub enum Half {
    /// The daemon; it gives the page to the thread of the virtual IP. With what the service manager gave.
    Daemon(Arc<SharedPage>, Inherited),
    /// The guardian, at its end: the daemon's exit status.
    Guardian(u8),
}

/// Splits the process. The daemon's half returns at once, the guardian's when the daemon has ended. What is `inherited` is
/// the daemon's: of a socket that a second process has open, nobody could say that it is closed.
///
/// # Errors
/// What the system says. There is no daemon then.
pub fn split_off(pair: &Pair, password: Option<Password>, inherited: Inherited) -> io::Result<Half> {
    const SIGNALS: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGABRT];
    let page = SharedPage::new()?;
    let signals = SIGNALS.into_iter().collect::<SigSet>();
    let Inherited { notifier, watchdog, descriptors } = inherited;
    let (notifier, relay) = notifier.through()?;
    // Before the split: one that comes in between must find somebody.
    signals.thread_block()?;
    match split()? {
        Split::Child => {
            signals.thread_unblock()?;
            page.hold_for_life()?;
            Ok(Half::Daemon(Arc::new(page), Inherited { notifier, watchdog, descriptors }))
        }
        Split::Parent(child) => {
            drop((notifier, descriptors));
            let guardian = Guardian { child, page: Arc::new(page), last: Arc::new(Mutex::new(None)), relay };
            Ok(Half::Guardian(guardian.watch(pair, password, &signals)))
        }
    }
}

struct Guardian {
    child: Pid,
    page: Arc<SharedPage>,
    /// What is done last, when it is prepared.
    last: Arc<Mutex<Option<LastRites>>>,
    /// What the daemon says to the service manager.
    relay: Option<Relay>,
}

impl Guardian {
    fn watch(&self, pair: &Pair, password: Option<Password>, signals: &SigSet) -> u8 {
        // Without the right to it the guardian is only slower when the machine is busy.
        let _ = scheduling::lock_memory();
        let _ = scheduling::make_urgent();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = match SignalFd::with_flags(signals, flags) {
            Ok(signals) => signals,
            Err(error) => {
                tracing::error!(%error, "the guardian cannot wait for signals");
                let _ = kill(self.child, Signal::SIGTERM);
                return self.wait(WaitPidFlag::empty()).unwrap_or(1);
            }
        };
        self.wait_for_death();
        let hang = pair.interval.master_down_interval(Priority(1)).max(HANG_MIN);
        let (mut beats, mut beat_at, mut acted) = (0, Instant::now(), false);
        let mut prepare_at = Instant::now();
        loop {
            if prepare_at <= Instant::now() {
                prepare_at += PREPARE_EVERY;
                self.prepare(pair, password);
            }
            let mut ready = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            ready.extend(self.relay.iter().map(|relay| PollFd::new(relay.as_fd(), PollFlags::POLLIN)));
            let _ = poll(&mut ready, PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO));
            // What the manager does not take, the daemon says again.
            let _ = self.relay.as_ref().map(Relay::pass_on);
            while let Ok(Some(signal)) = signals.read_signal() {
                match Signal::try_from(signal.ssi_signo.cast_signed()) {
                    Ok(Signal::SIGCHLD) | Err(_) => {}
                    Ok(Signal::SIGABRT) => {
                        self.act();
                        tracing::error!("the service manager's watchdog: the daemon is killed");
                        let _ = kill(self.child, Signal::SIGKILL);
                    }
                    Ok(signal) => drop(kill(self.child, signal)),
                }
            }
            if let Some(status) = self.wait(WaitPidFlag::WNOHANG) {
                self.act();
                self.restore();
                return status;
            }
            let now = self.page.heartbeats();
            if now != beats {
                (beats, beat_at, acted) = (now, Instant::now(), false);
            } else if beats > 0 && beats != SharedPage::NO_MORE && !acted && beat_at.elapsed() > hang {
                acted = true;
                self.act();
                tracing::error!(after = ?beat_at.elapsed(), "the daemon stands still: its addresses are off the link");
            }
        }
    }

    /// The child's status if it has ended, as a shell would have it.
    fn wait(&self, flags: WaitPidFlag) -> Option<u8> {
        match waitpid(self.child, Some(flags)) {
            Ok(WaitStatus::Exited(_, status)) => Some(u8::try_from(status & 0xff).unwrap_or(1)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as u8),
            Ok(_) | Err(nix::errno::Errno::EINTR) => None,
            Err(_) => Some(1),
        }
    }

    /// A thread that acts the moment the daemon dies, before anything else tells of it.
    fn wait_for_death(&self) {
        let (page, last) = (self.page.clone(), self.last.clone());
        let thread = std::thread::Builder::new().name("guardian".to_owned()).stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            let _ = scheduling::make_urgent();
            while !page.is_held() {
                std::thread::sleep(TICK);
            }
            if page.wait_for_death().is_ok()
                && let Some(last) = &mut *last.lock().unwrap_or_else(PoisonError::into_inner)
            {
                last.act();
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "the guardian learns of the daemon's death only when its memory is torn down");
        }
    }

    fn act(&self) {
        if let Some(last) = &mut *self.last.lock().unwrap_or_else(PoisonError::into_inner) {
            last.act();
        }
    }

    fn restore(&self) {
        if let Some(last) = &mut *self.last.lock().unwrap_or_else(PoisonError::into_inner) {
            last.restore();
        }
    }

    /// Prepares for the interface as it is, unless that is done.
    fn prepare(&self, pair: &Pair, password: Option<Password>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let index = Netlink::open().and_then(|mut netlink| netlink.interface(&pair.interface));
        let index = index.ok().flatten().map(|interface| interface.index);
        if index.is_some() && last.as_ref().is_some_and(|last| last.complete && Some(last.index) == index) {
            return;
        }
        let arp_before = last.as_ref().filter(|last| Some(last.index) == index).and_then(|last| last.arp_before);
        match LastRites::prepare(pair, password, arp_before) {
            Ok(Some(prepared)) => *last = Some(prepared),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the guardian cannot prepare to release the addresses"),
        }
    }
}

/// What is done when the daemon is dead: made ahead of time, so that doing it allocates nothing.
struct LastRites {
    index: u32,
    /// Whether the interface had all its own addresses.
    complete: bool,
    netlink: Netlink,
    removals: Vec<Removal>,
    farewells: Vec<Farewell>,
    arp_before: Option<Arp>,
}

/// A priority 0, ready to be sent.
struct Farewell {
    socket: Arc<VrrpSocket>,
    message: Vec<u8>,
    source: IpAddr,
    destination: IpAddr,
}

impl LastRites {
    /// `None` if the interface is not there.
    fn prepare(pair: &Pair, password: Option<Password>, arp_before: Option<Arp>) -> io::Result<Option<LastRites>> {
        let mut netlink = Netlink::open()?;
        let Some(interface) = netlink.interface(&pair.interface)? else { return Ok(None) };
        let index = interface.index;
        let (members, complete) = members(pair, &netlink.addresses(Some(index))?, &[]);
        let dialect = Dialect { password, ..Dialect::default() };
        let mut farewells = Vec::new();
        for member in members {
            let family = Family::of(member.address);
            let socket = Arc::new(match family {
                Family::V4 => VrrpSocket::v4(&interface.name, index, NOTHING)?,
                Family::V6 => VrrpSocket::v6(&interface.name, index, NOTHING)?,
            });
            let (vrid, interval, source) = (pair.vrid, pair.interval, member.address);
            let farewell = Advertisement { vrid, priority: Priority::LEAVING, interval, vips: member.vips };
            for destination in if pair.unicast { member.peers } else { vec![family.group()] } {
                let message = farewell.encode(&dialect, source, destination);
                farewells.push(Farewell { socket: socket.clone(), message, source, destination });
            }
        }
        let removals = pair.addresses().map(|vip| Removal::of(vip, index)).collect();
        let arp_before = match arp_before {
            None => netlink.arp(index)?.filter(|arp| *arp != Arp::QUIET),
            known => known,
        };
        Ok(Some(LastRites { index, complete, netlink, removals, farewells, arp_before }))
    }

    /// The addresses first: whoever hears the farewell may take them at once. Errors have nobody who could do more.
    fn act(&mut self) {
        for removal in &mut self.removals {
            let _ = self.netlink.carry_out(removal);
        }
        for Farewell { socket, message, source, destination } in &self.farewells {
            let _ = socket.send(message, *source, *destination);
        }
    }

    fn restore(&mut self) {
        if let Some(arp) = self.arp_before {
            let _ = self.netlink.set_arp(self.index, arp);
        }
    }
}
