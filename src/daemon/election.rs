//! The daemon's side of the election: it feeds the thread of the virtual IP, and tells what happens there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::RunError;
use crate::config::{Config, read_password};
use crate::control::{FailOverRefused, Unmoved};
use crate::events::{Event, Events};
use crate::journal;
use crate::metrics::VrrpMetrics;
use crate::proto::node::{Fault, Report};
use crate::status::{Elected, HEARTBEAT_MAX, Observed};
use crate::sys::robust_mutex::SharedPage;
use crate::vip::{self, Handle, Happened, Notice, Vip};

/// Between two beats, and two looks for faults.
const BEAT: Duration = Duration::from_millis(100);
/// How long the journal may have no room before the node no longer holds the addresses. A burst fills it for seconds.
const FULL_FOR: Duration = Duration::from_secs(60);
/// Between two looks at a hand-over.
const LOOK: Duration = Duration::from_millis(5);
/// A little more than the node gives a hand-over.
const HAND_OVER_MAX: Duration = Duration::from_secs(4);

/// A node's part in the election.
pub(super) struct Election {
    vip: Vip,
    beat: Option<JoinHandle<()>>,
    tell: Option<JoinHandle<()>>,
}

impl Election {
    /// Starts the thread, if there is a pair. It takes part at once; [`Election::attend`] has to follow soon.
    pub(super) fn start(
        config: &Config,
        page: Option<Arc<SharedPage>>,
    ) -> Result<Option<(Election, Elected)>, RunError> {
        let Some(pair) = &config.pair else { return Ok(None) };
        let password = pair.auth_pass_file.as_deref().map(read_password).transpose();
        let password = password.map_err(|error| RunError::Secrets(vec![error]))?;
        let metrics = Arc::new(VrrpMetrics::default());
        let vip = Vip::start(vip::Settings { pair: pair.clone(), password, page, metrics: metrics.clone() });
        let vip = vip.map_err(super::io_error("cannot take part in the election"))?;
        let elected = Elected { pair: pair.clone(), handle: vip.handle(), metrics };
        Ok(Some((Election { vip, beat: None, tell: None }, elected)))
    }

    /// Begins to beat and to tell.
    pub(super) fn attend(&mut self, observed: &Arc<Observed>, data_dir: PathBuf) {
        self.beat = Some(tokio::spawn(beat(observed.clone(), self.vip.handle())));
        if let Some(notices) = self.vip.take_notices() {
            let events = Events::of(&data_dir);
            self.tell = Some(tokio::spawn(tell(notices, events, observed.node.to_string())));
        }
    }

    /// Hands over and releases the addresses; returns when that is done.
    pub(super) async fn leave(&self) {
        let handle = self.vip.handle();
        handle.leave();
        let deadline = Instant::now() + HAND_OVER_MAX;
        while !handle.view().has_left && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for the thread and for what it had to say.
    pub(super) async fn end(self) {
        let vip = self.vip;
        vip.handle().leave();
        let _ = tokio::task::spawn_blocking(move || vip.join()).await;
        if let Some(tell) = self.tell {
            let _ = tell.await;
        }
        if let Some(beat) = self.beat {
            beat.abort();
        }
    }
}

/// Says ten times a second that the daemon lives, and what is wrong with it.
async fn beat(observed: Arc<Observed>, handle: Handle) {
    let mut waiting_since = None;
    loop {
        let state = observed.journal.state().borrow().clone();
        if !matches!(state, journal::State::Waiting(_)) {
            waiting_since = None;
        } else if waiting_since.is_none() {
            waiting_since = Some(Instant::now());
        }
        let faults = [
            (Fault::JournalPoisoned, matches!(state, journal::State::Poisoned(_))),
            (Fault::JournalFull, waiting_since.is_some_and(|since| since.elapsed() > FULL_FOR)),
            (Fault::InputNotListening, !*observed.listening.borrow()),
            (Fault::DataPlaneStalled, observed.heartbeat_age() > HEARTBEAT_MAX),
        ];
        let present: Vec<Fault> = faults.into_iter().filter(|(_, present)| *present).map(|(fault, _)| fault).collect();
        handle.beat(&present);
        tokio::time::sleep(BEAT).await;
    }
}

/// Logs what happens and writes it to the events file, until the thread has ended.
async fn tell(mut notices: mpsc::Receiver<Notice>, mut events: Events, node: String) {
    while let Some(notice) = notices.recv().await {
        log(&notice.what);
        let Some((event, cause)) = event_of(&notice.what) else { continue };
        let at = DateTime::<Utc>::from(notice.at).to_rfc3339_opts(SecondsFormat::Micros, true);
        let event = Event { v: 1, at, node: node.clone(), event: event.to_owned(), cause };
        // The disk may take its time; the election does not wait for it.
        let written = tokio::task::spawn_blocking(move || {
            let outcome = events.append(&event);
            (events, outcome)
        });
        let Ok((back, outcome)) = written.await else { return };
        events = back;
        if let Err(error) = outcome {
            tracing::warn!(%error, "cannot write to the events file");
        }
    }
}

fn log(what: &Happened) {
    match what {
        Happened::Node(Report::Became { state, cause }) => {
            tracing::info!(state, cause = cause.as_str(), "the election's state changed");
        }
        Happened::Node(Report::FaultBegan(fault)) => {
            tracing::error!(fault = fault.as_str(), "this node cannot hold the addresses");
        }
        Happened::Node(Report::FaultEnded(fault)) => tracing::info!(fault = fault.as_str(), "a fault has ended"),
        Happened::Node(Report::HandingOver) => {
            tracing::info!("handing over: the addresses stay until the peer has them")
        }
        Happened::Node(Report::HandedOver) => tracing::info!("the peer has taken over"),
        Happened::Node(Report::HandOverFailed) => tracing::warn!("the peer did not take over in time"),
        Happened::Node(Report::AddressRestored) => {
            tracing::warn!("somebody removed a shared address: it is back, and announced");
        }
        Happened::StaleRemoved(vip) => tracing::warn!(%vip, "removed an address that an earlier run left behind"),
        Happened::Trouble(what) => tracing::warn!("{what}"),
    }
}

/// The event's name and cause; `None` for what only the log tells.
fn event_of(what: &Happened) -> Option<(&'static str, Option<String>)> {
    let named = |fault: &Fault| Some(fault.as_str().to_owned());
    Some(match what {
        Happened::Node(Report::Became { state, cause }) => {
            let event = match *state {
                "Master" => "became_master",
                "Backup" => "became_backup",
                _ => "left_election",
            };
            (event, Some(cause.as_str().to_owned()))
        }
        Happened::Node(Report::FaultBegan(fault)) => ("fault_began", named(fault)),
        Happened::Node(Report::FaultEnded(fault)) => ("fault_ended", named(fault)),
        Happened::Node(Report::HandingOver) => ("hand_over_began", None),
        Happened::Node(Report::HandedOver) => ("handed_over", None),
        Happened::Node(Report::HandOverFailed) => ("hand_over_failed", None),
        Happened::Node(Report::AddressRestored) => ("vip_restored", None),
        Happened::StaleRemoved(vip) => ("stale_vip_removed", Some(vip.to_string())),
        Happened::Trouble(_) => return None,
    })
}

/// Hands over on request; the node stays in service as standby.
pub(super) async fn fail_over(elected: Option<Elected>, force: bool) -> Result<(), FailOverRefused> {
    let refused = |why, reason: &str| Err(FailOverRefused { why, reason: reason.to_owned() });
    let Some(Elected { handle, pair, .. }) = elected else {
        return refused(Unmoved::NotActive, "this node has no [pair]");
    };
    let view = handle.view();
    if !view.vip_held {
        return refused(Unmoved::NotActive, "this node is not the active one");
    }
    if !view.peer_answers && !force {
        let peer = &pair.peer_node().name;
        return refused(Unmoved::Unsafe, &format!("{peer} does not answer; --force asks it all the same"));
    }
    handle.fail_over();
    let (deadline, mut began) = (Instant::now() + HAND_OVER_MAX, false);
    loop {
        let view = handle.view();
        if !view.vip_held {
            return Ok(());
        }
        if began && !view.is_handing_over || Instant::now() > deadline {
            return refused(Unmoved::NobodyTookOver, "the peer did not take over in time; this node goes on");
        }
        began |= view.is_handing_over;
        tokio::time::sleep(LOOK).await;
    }
}
