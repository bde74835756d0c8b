//! The daemon's side of the election: it feeds the thread of the virtual IP, and tells what happens there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::RunError;
use crate::config::{Config, HookEvent, read_password};
use crate::events::Recorder;
use crate::hooks::{self, Hooks};
use crate::journal;
use crate::metrics::VrrpMetrics;
use crate::proto::node::{Fault, Report};
use crate::proto::vrrp::virtual_router::Cause;
use crate::status::{Elected, HEARTBEAT_MAX, Observed};
use crate::sys::robust_mutex::SharedPage;
use crate::vip::{self, Handle, Happened, Notice, Vip};

/// Between two beats, and two looks for faults that nobody tells of: the thread waits 5 s for a beat.
const BEAT: Duration = Duration::from_millis(500);
/// How long the journal may have no room before the node gives way to a peer that is well. A burst fills it for seconds.
const FULL_FOR: Duration = Duration::from_secs(60);

/// A node's part in the election.
pub(super) struct Election {
    vip: Vip,
    beat: JoinHandle<()>,
    tell: JoinHandle<()>,
}

/// A node's part in the election whose daemon is not there yet: it takes part, and nobody beats.
pub(super) struct Unattended {
    vip: Vip,
    notices: mpsc::Receiver<Notice>,
}

impl Unattended {
    /// Starts the thread, if there is a pair. It takes part at once; [`Unattended::attend`] has to follow soon.
    pub(super) fn start(
        config: &Config,
        page: Option<Arc<SharedPage>>,
    ) -> Result<Option<(Unattended, Elected)>, RunError> {
        let Some(pair) = &config.pair else { return Ok(None) };
        let password = pair.auth_pass_file.as_deref().map(read_password).transpose();
        let password = password.map_err(|error| RunError::Secrets(vec![error]))?;
        let metrics = Arc::new(VrrpMetrics::default());
        let vip = Vip::start(vip::Settings { pair: pair.clone(), password, page, metrics: metrics.clone() });
        let (vip, notices) = vip.map_err(super::io_error("cannot take part in the election"))?;
        let elected = Elected { pair: pair.clone(), handle: vip.handle(), metrics };
        Ok(Some((Unattended { vip, notices }, elected)))
    }

    /// Begins to beat and to tell.
    pub(super) fn attend(self, observed: &Arc<Observed>, teller: Teller, aside: watch::Receiver<bool>) -> Election {
        let Unattended { vip, notices } = self;
        let beat = tokio::spawn(beat(observed.clone(), vip.handle(), aside));
        let tell = tokio::spawn(teller.run(notices, vip.handle()));
        Election { vip, beat, tell }
    }
}

impl Election {
    /// Waits for the thread and for what it had to say.
    pub(super) async fn end(self) {
        let vip = self.vip;
        vip.handle().leave();
        let _ = tokio::task::spawn_blocking(move || vip.join()).await;
        let _ = self.tell.await;
        self.beat.abort();
    }
}

/// Says twice a second that the daemon lives, and at once what is wrong with it.
async fn beat(observed: Arc<Observed>, handle: Handle, mut aside: watch::Receiver<bool>) {
    let mut waiting_since = None;
    let (mut journal, mut listening) = (observed.journal.state(), observed.listening.clone());
    loop {
        let state = journal.borrow_and_update().clone();
        if !matches!(state, journal::State::Waiting(_)) {
            waiting_since = None;
        } else if waiting_since.is_none() {
            waiting_since = Some(Instant::now());
        }
        let faults = [
            (Fault::JournalPoisoned, matches!(state, journal::State::Poisoned(_))),
            (Fault::JournalFull, waiting_since.is_some_and(|since| since.elapsed() > FULL_FOR)),
            (Fault::InputNotListening, !*listening.borrow_and_update()),
            (Fault::DataPlaneStalled, observed.heartbeat_age() > HEARTBEAT_MAX),
            (Fault::Drained, *aside.borrow_and_update()),
        ];
        let present: Vec<Fault> = faults.into_iter().filter(|(_, present)| *present).map(|(fault, _)| fault).collect();
        handle.beat(&present);
        // Whoever could say more may have gone, and then says nothing.
        tokio::select! {
            () = sleep(BEAT) => {}
            Ok(()) = aside.changed() => {}
            Ok(()) = listening.changed() => {}
            Ok(()) = journal.changed() => {}
        }
    }
}

/// What a node is in the election.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Role {
    /// Since when it has been the active one, if it is.
    pub(super) active_since: Option<Instant>,
    /// Whether it would take the addresses if they were free.
    pub(super) is_backup: bool,
}

/// Whom what happens is told to.
pub(super) struct Teller {
    pub(super) recorder: Recorder,
    pub(super) hooks: Hooks,
    pub(super) role: watch::Sender<Role>,
}

impl Teller {
    /// Tells the log, the hooks and the events file, until the thread has ended.
    async fn run(self, mut notices: mpsc::Receiver<Notice>, handle: Handle) {
        while let Some(notice) = notices.recv().await {
            log(&notice.what);
            if let Happened::Node(Report::Became { state, .. }) = &notice.what {
                let active_since = (*state == "Master").then(Instant::now);
                self.role.send_replace(Role { active_since, is_backup: *state == "Backup" });
            }
            if let Some((kind, cause)) = role_of(&notice.what) {
                let (at, cause, priority) = (notice.at, cause.as_str().to_owned(), handle.view().priority);
                self.hooks.tell(hooks::Event { kind, at, cause, priority });
            }
            if let Some((event, cause)) = event_of(&notice.what) {
                self.recorder.tell(notice.at, event, cause);
            }
        }
    }
}

/// The role that a node has from now on, as hooks know it. That it has none is told as its fault, or as the stop.
fn role_of(what: &Happened) -> Option<(HookEvent, Cause)> {
    match what {
        Happened::Node(Report::Became { state: "Master", cause }) => Some((HookEvent::Active, *cause)),
        Happened::Node(Report::Became { state: "Backup", cause }) => Some((HookEvent::Standby, *cause)),
        _ => None,
    }
}

fn log(what: &Happened) {
    match what {
        Happened::Node(Report::Became { state, cause }) => {
            tracing::info!(state, cause = cause.as_str(), "the election's state changed");
        }
        Happened::Node(Report::FaultBegan(Fault::JournalFull)) => {
            tracing::error!("the journal is full: a peer that is well takes the addresses over");
        }
        Happened::Node(Report::FaultBegan(Fault::Drained)) => tracing::info!("out of the election until `undrain`"),
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
