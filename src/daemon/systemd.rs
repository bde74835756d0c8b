//! What the service manager hears of the daemon (sd_notify(3), systemd.service(5)): that it serves, how it is, that it
//! lives.
//!
//! A task of the control plane tells it all, so that a control thread that misses its deadlines is not heard of. A sign of
//! life for `WatchdogSec=` further needs a journal that moves and, with a pair, an election whose thread beats: that a
//! process is there, or a task runs, proves neither.
//!
//! A stop takes as long as `drain.stop_deadline` allows, whatever `TimeoutStopSec=` says: while it goes on and the journal
//! moves, more time is asked for, a little at a time.
//!
//! With a pair it goes through the guardian, the service's main process, so that both must live to be heard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::status::text::{self, Earlier};
use crate::status::{HEARTBEAT_MAX, Observed};
use crate::sys::notify::Notifier;
use crate::sys::robust_mutex::SharedPage;

/// Between two messages. A watchdog in more of a hurry is fed four times in its interval.
const EVERY: Duration = Duration::from_secs(1);
/// The time that a stop asks for at once: enough to notice that nothing moves, and for the last steps, in which nobody asks.
const MORE: Duration = Duration::from_secs(15);
/// How long the start waits for a pair's role: a node without its interface has none, and is as ready as it can be.
const ROLE_MAX: Duration = Duration::from_secs(5);
/// Between two looks for the role.
const LOOK: Duration = Duration::from_millis(20);

/// The service manager, if there is one.
#[derive(Debug)]
pub(super) struct Systemd {
    notifier: Notifier,
    watchdog: Option<Duration>,
    is_stopping: AtomicBool,
}

impl Systemd {
    pub(super) fn new(notifier: Notifier, watchdog: Option<Duration>) -> Arc<Systemd> {
        Arc::new(Systemd { notifier, watchdog, is_stopping: AtomicBool::new(false) })
    }

    /// Says that the daemon serves as soon as its role is known, and how it is from then on; until aborted.
    pub(super) async fn attend(self: Arc<Systemd>, observed: Arc<Observed>, page: Option<Arc<SharedPage>>) {
        if !self.notifier.is_there() {
            return;
        }
        // Whether it was known in time, the first status says.
        let _ = timeout(ROLE_MAX, role(&observed)).await;
        if !self.is_stopping.load(Ordering::Relaxed) {
            self.announce("READY=1");
        }
        let mut clock = interval(self.watchdog.map_or(EVERY, |watchdog| EVERY.min(watchdog / 4)));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut line = Line::default();
        let mut beats = 0;
        loop {
            clock.tick().await;
            let journal_moves = observed.heartbeat_age() <= HEARTBEAT_MAX;
            let election_moves = page.as_ref().is_none_or(|page| {
                let before = std::mem::replace(&mut beats, page.heartbeats());
                beats != before || beats == SharedPage::NO_MORE
            });
            let vital = match self.is_stopping.load(Ordering::Relaxed) {
                true if journal_moves => format!("EXTEND_TIMEOUT_USEC={}\n", MORE.as_micros()),
                false if journal_moves && election_moves => "WATCHDOG=1\n".to_owned(),
                _ => String::new(),
            };
            // Said again in a second: it may be lost.
            let _ = self.notifier.tell(&format!("{vital}STATUS={}", line.of(&observed)));
        }
    }

    /// Says that a new configuration is being applied; [`Systemd::ready`] says when that is over.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.announce(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// Says that the daemon serves again, with the old configuration or a new one.
    pub(super) fn ready(&self) {
        self.announce("READY=1");
    }

    /// Says that the daemon comes to its end.
    pub(super) fn stopping(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.announce(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", MORE.as_micros()));
    }

    fn announce(&self, message: &str) {
        if let Err(error) = self.notifier.announce(message) {
            tracing::warn!(%error, message, "the service manager does not hear");
        }
    }
}

/// Resolves when the election has said what this node is, or what keeps it out; at once without a pair.
async fn role(observed: &Observed) {
    let Some(elected) = &observed.elected else { return };
    loop {
        let view = elected.handle.view();
        if matches!(view.state, "Backup" | "Master") || !view.faults.is_empty() {
            return;
        }
        sleep(LOOK).await;
    }
}

/// The line of `systemctl status`, with the rate since the last one.
#[derive(Default)]
struct Line(Option<(crate::status::Status, Instant)>);

impl Line {
    fn of(&mut self, observed: &Observed) -> String {
        let (status, now) = (observed.status(SystemTime::now()), Instant::now());
        let before = self.0.as_ref();
        let earlier = before.map(|(status, at)| Earlier { status, seconds: now.duration_since(*at).as_secs_f64() });
        let line = text::one_line(&status, earlier);
        self.0 = Some((status, now));
        line
    }
}
