//! `twinlog demo`: a pair, a device and a destination on this machine, a planned move and a crash, and the account.
//!
//! Two processes. The first waits for the second, hands it its end, and is what a terminal interrupts. The second is alone
//! in the world ([`split_off_world`]): its network, its files and the nodes that it starts end with it, so that nothing is
//! left behind, whatever ends either.

mod messages;
mod node;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use self::messages::{Account, Device, Sink};
use self::node::{Network, Node};
use super::{Exit, Failure, Shared};
use crate::sys::namespace::split_off_world;
use crate::sys::process::Split;

/// Datagrams a second: a large network's devices on a quiet day.
const PER_SECOND: u32 = 1_000;
/// How long each scene is looked at.
const SCENE: Duration = Duration::from_secs(3);
/// How long anything may take that takes a second.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the destination must hear nothing before all counts as delivered; an output tries again within a second.
const QUIET: Duration = Duration::from_millis(1500);

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct Demo {}

impl Demo {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD];
        let signals: SigSet = signals.into_iter().collect();
        // Before the split: one that comes in between must find somebody.
        signals.thread_block()?;
        match split_off_world(&std::env::temp_dir()) {
            Ok(Split::Parent(stage)) => accompany(stage, &signals),
            Ok(Split::Child) => {
                signals.thread_unblock()?;
                play(shared)
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let message = "the demo makes network namespaces, and for that needs root: sudo twinlog demo";
                Err(Failure::new(Exit::Failed, message).into())
            }
            Err(error) => Err(error).context("cannot make namespaces for the demo"),
        }
    }
}

/// Waits for the process that plays; when told to stop, ends it with all that it has started.
fn accompany(stage: Pid, signals: &SigSet) -> anyhow::Result<Exit> {
    let mut interrupted = false;
    loop {
        // Also at the begin: it may have ended before the signal was waited for.
        match waitpid(stage, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => {
                return Ok([Exit::Done, Exit::Loss]
                    .into_iter()
                    .find(|exit| *exit as i32 == status)
                    .unwrap_or(Exit::Failed));
            }
            WaitStatus::Signaled(..) if interrupted => {
                return Err(Failure::new(Exit::Failed, "interrupted; nothing is left behind").into());
            }
            WaitStatus::Signaled(_, signal, _) => {
                return Err(Failure::new(Exit::Failed, format!("the demo was killed by {signal}")).into());
            }
            _ => {}
        }
        if signals.wait()? != Signal::SIGCHLD {
            interrupted = true;
            kill(stage, Signal::SIGKILL)?;
        }
    }
}

/// What is shown, with the time since the begin.
struct Screen {
    begin: Instant,
    quiet: bool,
}

impl Screen {
    fn say(&self, what: &str) -> io::Result<()> {
        if self.quiet {
            return Ok(());
        }
        writeln!(io::stdout(), "{:5.1} s  {what}", self.begin.elapsed().as_secs_f64())
    }
}

const SCENERY: &str = "\
Two nodes and a sending device, each with a network of its own on this machine, joined by a bridge. Nothing outside changes.

    device and destination 192.0.2.1 ──┬── agg-a 192.0.2.11
                                       └── agg-b 192.0.2.12     shared address 192.0.2.10
";

fn play(shared: &Shared) -> anyhow::Result<Exit> {
    let screen = Screen { begin: Instant::now(), quiet: shared.quiet || shared.json };
    if !screen.quiet {
        writeln!(io::stdout(), "{SCENERY}")?;
    }
    let mut network = Network::new()?;
    let sink = Sink::open()?;
    let key = node::key()?;
    let [mut a, mut b] = [Node::new(&mut network, "agg-a", 11, &key)?, Node::new(&mut network, "agg-b", 12, &key)?];
    b.start()?;
    until("agg-b holds the address", || b.holds())?;
    a.start()?;
    until("the nodes are in sync", || Ok(a.is_in_sync() && b.is_in_sync()))?;
    let device = Device::start(PER_SECOND)?;
    screen.say(&format!(
        "both nodes run, agg-b holds the address; the device sends it {PER_SECOND} syslog datagrams a second"
    ))?;
    std::thread::sleep(SCENE);

    let receipt = b.drain()?;
    until("agg-a holds the address", || Ok(a.holds()? && !b.holds()?))?;
    screen
        .say(&format!("drain, as before an update: `twinlog drain` on agg-b; its receipt says {}", receipt.verdict))?;
    b.undrain()?;
    until("agg-b is a standby in sync", || Ok(a.is_in_sync() && b.is_in_sync() && b.is_standby()))?;
    screen.say("agg-b serves again, as a standby; agg-a holds the address")?;
    std::thread::sleep(SCENE);

    // What is on its way into the journal at the crash belongs to the crash.
    let first_of_crash = device.sent();
    std::thread::sleep(SCENE / 6);
    let crashed_at = Instant::now();
    a.crash(&mut network)?;
    screen.say("crash: everything on agg-a is killed, its cable cut")?;
    until("agg-b holds the address", || b.holds())?;
    let took = crashed_at.elapsed().as_secs_f64();
    screen.say(&format!("agg-b holds the address, {took:.2} s after the crash"))?;
    std::thread::sleep(SCENE);

    a.return_from_crash(&mut network)?;
    until("agg-a is a standby in sync", || Ok(a.is_in_sync() && b.is_in_sync()))?;
    screen.say("agg-a is back as a standby, in sync; agg-b delivers what it had not mirrored before its crash")?;
    let sent = device.stop();
    let received = sink.until_quiet(QUIET, PATIENCE);
    screen.say("the device has stopped, the destination hears nothing more")?;

    let [planned, crash] = [0..first_of_crash, first_of_crash..sent].map(|part| Account::of(part, &received));
    report(shared, &planned, &crash)?;
    Ok(if planned.lost == 0 { Exit::Done } else { Exit::Loss })
}

fn until(what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(Failure::new(Exit::Failed, format!("not within {PATIENCE:?}: {what}")).into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn report(shared: &Shared, planned: &Account, crash: &Account) -> io::Result<()> {
    let all = planned.with(crash);
    let mut out = io::stdout();
    if shared.json {
        let part = |account: &Account| {
            serde_json::json!({
                "sent": account.sent, "delivered": account.delivered(), "lost": account.lost, "repeated": account.repeated,
            })
        };
        let parts = serde_json::json!({ "v": 1, "planned": part(planned), "crash": part(crash), "all": part(&all) });
        return writeln!(out, "{parts}");
    }
    writeln!(out, "\n                             sent  delivered   lost  repeated")?;
    for (name, part) in [("up to the crash", planned), ("crash and after", crash), ("in all", &all)] {
        let (sent, delivered, lost, repeated) = (part.sent, part.delivered(), part.lost, part.repeated);
        writeln!(out, "    {name:<20} {sent:>8} {delivered:>10} {lost:>6} {repeated:>9}")?;
    }
    if planned.lost == 0 {
        writeln!(out, "\nThe drain lost nothing.")?;
    } else {
        writeln!(out, "\nThe drain lost {}: that must not be.", planned.lost)?;
    }
    let gap = f64::from(u32::try_from(crash.longest_gap).unwrap_or(u32::MAX)) / f64::from(PER_SECOND);
    writeln!(
        out,
        "The crash lost {}, at most {gap:.2} s of them in a row: for that long nobody had the address, and UDP has no\n\
         acknowledgement; fluent-forward has, and sends again. What agg-a had taken in, agg-b delivered from its mirror. What\n\
         repeated had left agg-a in the last moment before its crash; it came again under the same id.",
        crash.lost
    )
}
