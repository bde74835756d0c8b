//! The virtual IP: a thread that takes part in the election and puts the shared addresses where its outcome says.
//!
//! ```text
//! daemon ── wishes, faults, heartbeat ──▶ thread ──▶ VRRP sockets, netlink, frames
//!        ◀── view, counters, notices ────   └─ proto::node decides
//! ```
//!
//! The thread is urgent ([`scheduling`]), touches no disk and waits for nobody: what it is asked and what it says are values
//! that both sides read when they like (`Shared`), and what happened goes into a bounded channel; what does not fit is
//! counted. It reads `CLOCK_BOOTTIME` once for each wake-up, hands in everything that waits, lets the node judge, and
//! carries out the effects in their order.
//!
//! It wakes up ten times a second at least, and beats: a guardian that hears no beats takes the addresses off the link.
//!
//! - `thread`: the loop. `link`: sockets and addresses of the interface. `probe`: whether the peer's process lives.

mod link;
mod probe;
mod thread;

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use link::ROUTE_LIMIT;
pub(crate) use link::members;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use crate::config::Pair;
use crate::metrics::VrrpMetrics;
use crate::proto::node::{Fault, Report};
use crate::proto::vrrp::BootTime;
use crate::proto::vrrp::advertisement::Password;
use crate::sys::netlink::{Lifetime, Netlink};
use crate::sys::robust_mutex::SharedPage;
use crate::sys::scheduling;

/// Notices that wait for the control plane; more are counted and lost.
const NOTICES_MAX: usize = 256;

/// The faults that only the daemon sees, each with its bit.
const OF_THE_DAEMON: [Fault; 5] =
    [Fault::JournalPoisoned, Fault::JournalFull, Fault::InputNotListening, Fault::DataPlaneStalled, Fault::Drained];

/// What the thread is made of.
#[derive(Debug)]
pub struct Settings {
    /// The configuration.
    pub pair: Pair,
    /// Version 2's password.
    pub password: Option<Password>,
    /// The page that the guardian reads.
    pub page: Option<Arc<SharedPage>>,
    /// What is counted.
    pub metrics: Arc<VrrpMetrics>,
}

/// How the election stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// `Initialize`, `Backup` or `Master`.
    pub state: &'static str,
    /// The other one, if it is master.
    pub master: Option<IpAddr>,
    /// The priority in force; 0 while handing over.
    pub priority: u8,
    /// Whether the addresses are on the link.
    pub vip_held: bool,
    /// Whether a hand-over is under way.
    pub is_handing_over: bool,
    /// Whether the node has left for good.
    pub has_left: bool,
    /// What keeps it from taking part, by name.
    pub faults: Vec<&'static str>,
    /// Whether the peer's process answered lately.
    pub peer_answers: bool,
    /// Another pair with our number, heard lately: one of its addresses.
    pub foreign: Option<IpAddr>,
}

/// What happened, and when.
#[derive(Clone, Debug)]
pub struct Notice {
    /// By the system's clock, for people.
    pub at: SystemTime,
    /// What.
    pub what: Happened,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Happened {
    /// To the node.
    Node(Report),
    /// An address that an earlier run left behind was removed.
    StaleRemoved(IpAddr),
    /// Something did not work, in words.
    Trouble(String),
}

/// What both sides read and write.
#[derive(Debug, Default)]
struct Shared {
    leave: AtomicBool,
    /// How often a hand-over was asked for.
    fail_overs: AtomicU32,
    /// How often the pair link came to its end.
    link_ends: AtomicU32,
    faults: AtomicU8,
    beats: AtomicU64,
    /// When the thread last woke up, in milliseconds since the host's boot.
    awake_at: AtomicU64,
    view: Mutex<View>,
}

/// The running thread, as its daemon has it.
#[derive(Debug)]
pub struct Vip {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// Asks and tells the thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    wake: Arc<EventFd>,
}

impl Vip {
    /// Starts the thread in the calling thread's network namespace, and gives what it will say. It takes part in the
    /// election at once.
    ///
    /// # Errors
    /// What the system says, with what was attempted: mostly that capabilities are missing.
    pub fn start(settings: Settings) -> io::Result<(Vip, mpsc::Receiver<Notice>)> {
        let shared = Arc::new(Shared::default());
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (sender, notices) = mpsc::channel(NOTICES_MAX);
        let handle = Handle { shared, wake };
        let mut election = thread::Election::new(settings, handle.clone(), sender)?;
        let thread = std::thread::Builder::new().name("vip".to_owned()).spawn(move || {
            election.run(scheduling::make_urgent());
        })?;
        Ok((Vip { handle, thread }, notices))
    }

    /// To ask and to tell.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the thread's end, which comes after [`Handle::leave`]: the addresses are off the link then. Blocks.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread of the virtual IP panicked");
        }
    }
}

impl Handle {
    /// How the election stands.
    #[must_use]
    pub fn view(&self) -> View {
        self.shared.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Time since the thread last woke up; it does so ten times a second.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        let awake_at = Duration::from_millis(self.shared.awake_at.load(Ordering::Relaxed));
        since_boot().0.saturating_sub(awake_at)
    }

    /// Asks for a hand-over; what came of it is a notice. A node that is not active does nothing.
    pub fn fail_over(&self) {
        self.shared.fail_overs.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    /// Says that the pair link came to its end: whether the peer's process lives is asked at once.
    pub fn link_ended(&self) {
        self.shared.link_ends.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    /// Leaves the election: hands over, releases the addresses, and ends the thread.
    pub fn leave(&self) {
        self.shared.leave.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Says which faults there are now, and that the daemon lives.
    pub fn beat(&self, faults: &[Fault]) {
        let bits = OF_THE_DAEMON.iter().enumerate().map(|(at, fault)| u8::from(faults.contains(fault)) << at);
        let bits = bits.sum();
        self.shared.beats.fetch_add(1, Ordering::Relaxed);
        if self.shared.faults.swap(bits, Ordering::Relaxed) != bits {
            self.wake();
        }
    }

    fn wake(&self) {
        // It fails only if it was written 2^64 times and never read.
        let _ = self.wake.write(1);
    }
}

impl Shared {
    fn wake_up(&self, now: BootTime) {
        self.awake_at.store(u64::try_from(now.0.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn publish(&self, view: View) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

/// The time since the host's boot, sleep included.
fn since_boot() -> BootTime {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every kernel since 2.6.39 has this clock");
    BootTime(time.into())
}

/// Makes this host ready for connections to the shared addresses, which come before them: puts those on `lo`, where nobody
/// who asks is answered, for so long at most, in whole seconds. Returns when the kernel routes to them.
///
/// # Errors
/// What the system says.
pub fn expect(addresses: impl IntoIterator<Item = IpAddr>, within: Duration) -> io::Result<()> {
    let valid = Lifetime::Seconds(u32::try_from(within.as_secs() + 1).unwrap_or(u32::MAX));
    let mut netlink = Netlink::open()?;
    let lo = netlink.interface("lo")?.ok_or(io::ErrorKind::NotFound)?;
    for vip in addresses {
        netlink.add(vip, lo.index, valid)?;
        netlink.wait_for_local_route(vip, lo.index, ROUTE_LIMIT)?;
    }
    Ok(())
}

/// Removes the shared addresses from every interface where an earlier run left them: exactly those with a host prefix.
/// Returns what was removed.
///
/// # Errors
/// What the system says: `EPERM` without `CAP_NET_ADMIN`.
pub fn release_stale(netlink: &mut Netlink, addresses: impl IntoIterator<Item = IpAddr>) -> io::Result<Vec<IpAddr>> {
    let mut removed = Vec::new();
    for vip in addresses {
        let host_prefix = if vip.is_ipv4() { 32 } else { 128 };
        for place in netlink.places_of(vip)?.into_iter().filter(|place| place.prefix == host_prefix) {
            netlink.remove(vip, place.index)?;
            removed.push(vip);
        }
    }
    Ok(removed)
}
