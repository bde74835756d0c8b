//! The daemon's side of the pair link: what this node tells the other one, and which journals it delivers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::RunError;
use super::election::Role;
use crate::config::{self, Config, read_pair_key};
use crate::events::Recorder;
use crate::journal::Journal;
use crate::metrics::LinkMetrics;
use crate::pair::mirrors::Mirrors;
use crate::pair::{self, Notice, Pair, Told, View};
use crate::proto::pair::delivery::{Deliver, PATIENCE, Peer, deliver, deliver_aside};
use crate::proto::pair::message::Status;
use crate::proto::pair::moving::Move;
use crate::status::{Observed, Partnered};
use crate::supervise::Supervisor;
use crate::vip;

/// How often the other node is shown how this one is. What matters sooner is said at once.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// The other node, as this daemon has it.
pub(super) struct Partner {
    pair: Pair,
    mirrors: Arc<Mirrors>,
    metrics: Arc<LinkMetrics>,
    told: watch::Sender<Status>,
    role: watch::Receiver<Role>,
    view: watch::Receiver<View>,
    /// Raised when a mirror comes or goes.
    mirrored: watch::Receiver<u64>,
    show: Option<JoinHandle<()>>,
}

impl Partner {
    /// Opens the mirrors and the link, if there is a pair. On the data plane: it is where the journals move.
    pub(super) fn start(
        config: &Config,
        own: &Arc<Journal>,
        role: watch::Receiver<Role>,
        supervisor: &Supervisor,
    ) -> Result<Option<(Partner, Told)>, RunError> {
        let Some(pair) = &config.pair else { return Ok(None) };
        let key = read_pair_key(&pair.key_file).map_err(|error| RunError::Secrets(vec![error]))?;
        let outputs = config.outputs.iter().map(|output| output.name.clone()).collect();
        let mirrors = Arc::new(Mirrors::open(&config.data_dir, super::limits(config), outputs)?);
        let metrics = Arc::new(LinkMetrics::default());
        let settings = pair::Settings {
            pair: pair.clone(),
            key: crate::tls::PairKey::new(&key),
            configuration: config::fingerprint(config),
            metrics: metrics.clone(),
        };
        let (told, tells) = watch::channel(Status::default());
        let what = format!("cannot listen on {} port {} for the peer", pair.own_node().address, pair.port);
        let (pair, told_of) =
            Pair::start(settings, own.clone(), mirrors.clone(), tells, supervisor).map_err(super::io_error(what))?;
        let (view, mirrored) = (pair.view(), mirrors.changed());
        Ok(Some((Partner { pair, mirrors, metrics, told, role, view, mirrored, show: None }, told_of)))
    }

    /// What `status` looks at.
    pub(super) fn partnered(&self) -> Partnered {
        Partnered { view: self.view.clone(), mirrors: self.mirrors.clone(), metrics: self.metrics.clone() }
    }

    /// Begins to show the other node how this one is.
    pub(super) fn show(&mut self, observed: &Arc<Observed>) {
        let (told, observed) = (self.told.clone(), observed.clone());
        self.show = Some(tokio::spawn(async move {
            loop {
                let shown = observed.shown();
                told.send_if_modified(|status| std::mem::replace(&mut status.shown, shown.clone()) != shown);
                sleep(SHOW_EVERY).await;
            }
        }));
    }

    /// What this node should deliver now: the journals, and whether each is its own.
    pub(super) fn wanted(&self, own: &Arc<Journal>, is_aside: bool) -> Vec<(Arc<Journal>, bool)> {
        let deliver = if is_aside { deliver_aside(self.is_connected()) } else { self.deliver() };
        match deliver {
            Deliver::Nothing => Vec::new(),
            Deliver::Own => vec![(own.clone(), true)],
            Deliver::OwnAndMirror => self.everything(own),
        }
    }

    fn deliver(&self) -> Deliver {
        let active_for = self.role.borrow().active_since.map(|since| since.elapsed());
        let view = self.view.borrow();
        let role_for = view.peer_role_since.map_or(PATIENCE, |since| since.elapsed());
        let peer = view.peer.as_ref();
        let peer = peer.map(|peer| Peer { is_active: peer.is_active, is_delivering: peer.is_delivering, role_for });
        deliver(active_for, peer)
    }

    /// Every journal that is here.
    fn everything(&self, own: &Arc<Journal>) -> Vec<(Arc<Journal>, bool)> {
        let mirrors = self.mirrors.all().into_iter().map(|mirror| (mirror, false));
        std::iter::once((own.clone(), true)).chain(mirrors).collect()
    }

    /// Resolves when [`wanted`](Partner::wanted) may have changed. Cancelling loses nothing.
    pub(super) async fn changed(&mut self) {
        // Of the two roles, the younger one's.
        let since = [self.role.borrow().active_since, self.view.borrow().peer_role_since];
        let patience = since.into_iter().flatten().max().map(|since| PATIENCE.saturating_sub(since.elapsed()));
        tokio::select! {
            // The senders live as long as the parts that this holds.
            _ = self.role.changed() => {}
            _ = self.view.changed() => {}
            _ = self.mirrored.changed() => {}
            () = sleep(patience.unwrap_or_default()), if patience.is_some_and(|left| !left.is_zero()) => {}
        }
        let Role { active_since, is_backup } = *self.role.borrow_and_update();
        let now = (active_since.is_some(), is_backup);
        self.told.send_if_modified(|status| {
            let before = (status.is_active, status.can_take_over);
            (status.is_active, status.can_take_over) = now;
            before != now
        });
    }

    /// Says whether any output may be sending: before the first does, and after the last has ended.
    pub(super) fn tell_delivering(&self, is_delivering: bool) {
        self.told
            .send_if_modified(|status| std::mem::replace(&mut status.is_delivering, is_delivering) != is_delivering);
    }

    /// Whether this node is the active one.
    pub(super) fn is_active(&self) -> bool {
        self.role.borrow().active_since.is_some()
    }

    /// Says something of connections that move; whether there was room for it.
    pub(super) fn say(&self, said: Move) -> bool {
        self.pair.say(said)
    }

    /// Whether the other node is there and holds the addresses.
    pub(super) fn peer_is_active(&self) -> bool {
        self.view.borrow().peer.as_ref().is_some_and(|peer| peer.is_active)
    }

    /// Whether the other node is there and would take the addresses.
    pub(super) fn can_take_over(&self) -> bool {
        self.view.borrow().peer.as_ref().is_some_and(|peer| peer.can_take_over)
    }

    /// Whether the other node has more of this one's own journal than there is here.
    pub(super) fn is_adrift(&self) -> bool {
        self.view.borrow().is_adrift
    }

    /// Undelivered messages of mirrors that the other node does not have, as far as is known: what is left of a disk that it
    /// lost.
    pub(super) fn only_here(&self) -> u64 {
        let here = |mirror: &Arc<Journal>| {
            let progress = mirror.progress();
            progress.durable.messages_since(progress.delivered.max(mirror.promise().replicated()))
        };
        self.mirrors.all().iter().map(here).sum()
    }

    /// Whether the nodes talk.
    pub(super) fn is_connected(&self) -> bool {
        self.view.borrow().connected_since.is_some()
    }

    /// The outputs have changed: their deliveries are what mirrors wait for.
    pub(super) fn set_outputs(&self, outputs: &[config::Output]) {
        self.mirrors.set_outputs(outputs.iter().map(|output| output.name.clone()).collect());
    }

    /// Ends the link, then the mirrors: what has come is made safe.
    pub(super) async fn end(self) {
        if let Some(show) = self.show {
            show.abort();
        }
        self.pair.end().await;
        let mirrors = self.mirrors;
        if let Err(error) = tokio::task::spawn_blocking(move || mirrors.close()).await {
            tracing::error!(%error, "cannot close the mirrors");
        }
    }
}

/// Tells the events file what happens to the link, and the election that it ended, until that is over.
pub(super) async fn tell(mut notices: mpsc::Receiver<Notice>, recorder: Recorder, election: Option<vip::Handle>) {
    while let Some(notice) = notices.recv().await {
        if let (Notice::Lost(_), Some(election)) = (&notice, &election) {
            election.link_ended();
        }
        let (event, cause) = match notice {
            Notice::Connected => ("link_connected", None),
            Notice::Lost(why) => ("link_lost", Some(why)),
            Notice::RolledBack(what) => ("journal_rolled_back", Some(what)),
        };
        recorder.tell(SystemTime::now(), event, cause);
    }
}
