//! The daemon: builds the parts from the configuration and takes them down again, in written order.
//!
//! Two planes. The control plane is one thread with its own runtime: signals, the control socket, the health endpoints;
//! an overloaded data plane cannot hold it up. The data plane is a runtime with a worker for every core, and a thread
//! for the journal. What the one wants of the other is published as a [`Stage`].

mod adrift;
mod drain;
mod election;
mod moves;
mod partner;
mod reload;
mod stop;
mod systemd;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use self::drain::Draining;
use self::election::{Election, Unattended};
use self::moves::Moves;
use self::partner::Partner;
use self::stop::Stop;
use self::systemd::Systemd;
use crate::admin;
use crate::config::{self, Config, SecretError};
use crate::control::{self, REQUESTS_MAX, ReloadRefused, Request};
use crate::events::{self, Recorder};
use crate::hooks::{self, Hooks, Runner};
use crate::input::forward::Repeats;
use crate::input::{self, Departures, Inputs, Kept};
use crate::journal::{self, FileStorage, Journal, Limits, OpenError};
use crate::metrics::Metrics;
use crate::output::{self, Output};
use crate::pair::Told;
use crate::pair::mirrors::MirrorError;
use crate::program::Program;
use crate::proto::pair::moving::Move;
use crate::proto::pair::promise::Acknowledge;
use crate::proto::position::{Incarnation, JournalId};
use crate::proto::stage::Stage;
use crate::status::{self, LastReload, Observed, Pulse, Started};
use crate::supervise::Supervisor;
use crate::sys::notify::Inherited;
use crate::sys::robust_mutex::SharedPage;
use crate::zones::Zones;

/// Reads the configuration anew, for a reload: it and its warnings, as `check` shows them.
pub type Reread<'a> = dyn Fn() -> Result<(Config, Vec<String>), ReloadRefused> + 'a;

/// Why the daemon did not start or did not end well.
#[derive(Debug, Error)]
pub enum RunError {
    /// An address cannot be opened; all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Bind(Vec<input::BindError>),
    /// Files of secrets are not used; all of them. Exit status 78.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Secrets(Vec<SecretError>),
    /// A part cannot be opened.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// The journal cannot be opened. A newer version's or another node's has exit status 78: starting again changes
    /// nothing.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// A mirror cannot be opened.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// An essential task panicked: a bug. The journal was closed in order.
    #[error("{0} failed; stopping")]
    Fault(String),
    /// The peer has more of the own journal than this node. The next start makes a new one.
    #[error("the journal went back in time: the next start begins a new one")]
    Adrift,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |error| RunError::Io(what, error)
}

/// Runs the daemon until SIGTERM or SIGINT; SIGHUP or a request asks `reread` for the configuration anew. `page` is what
/// a guardian looks at, `inherited` what a service manager gave.
///
/// # Errors
/// See [`RunError`].
pub fn run(
    config: Config,
    reread: &Reread<'_>,
    page: Option<Arc<SharedPage>>,
    inherited: Inherited,
) -> Result<(), RunError> {
    let data_plane = Builder::new_multi_thread().enable_all().thread_name("data").build();
    let data_plane = data_plane.map_err(io_error("cannot start the data plane"))?;
    let control_plane = Builder::new_current_thread().enable_all().build();
    let control_plane = control_plane.map_err(io_error("cannot start the control plane"))?;
    let result = control_plane.block_on(async {
        let mut signals = Signals::new().map_err(io_error("cannot wait for signals"))?;
        let mut daemon = Daemon::start(config, &data_plane, page, inherited)?;
        let fault = daemon.serve(&mut signals, reread).await;
        daemon.end(&mut signals).await;
        if daemon.is_adrift {
            let aside = adrift::set_aside(&daemon.current().data_dir, daemon.observed.journal.id());
            return aside.map_err(io_error("cannot set the journal aside")).and(Err(RunError::Adrift));
        }
        fault.map_or(Ok(()), |task| Err(RunError::Fault(task)))
    });
    // A reader that does not read our standard output must not keep the process.
    data_plane.shutdown_timeout(Duration::from_millis(100));
    result
}

/// What a signal asks for.
#[derive(PartialEq, Eq)]
enum Asked {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}

/// A running node.
struct Daemon<'a> {
    data_plane: &'a Runtime,
    config: watch::Sender<Arc<Config>>,
    stage: watch::Sender<Stage>,
    listening: watch::Sender<bool>,
    last_reload: watch::Sender<LastReload>,
    faults: watch::Sender<Vec<String>>,
    observed: Arc<Observed>,
    supervisor: Supervisor,
    inputs: Inputs,
    outputs: BTreeMap<String, Output>,
    requests: mpsc::Receiver<Request>,
    /// The part in the election, if there is a pair.
    election: Option<Election>,
    /// The other node, if there is a pair.
    partner: Option<Partner>,
    hooks: Option<HooksAtWork>,
    /// Whether this node stays out of the election and of the deliveries although it is well.
    aside: watch::Sender<bool>,
    /// A drain, from its begin to the `undrain` after it; a hand-over, or a stop.
    draining: Option<Draining>,
    stop: Option<Stop>,
    /// Live connections on their way.
    moves: Moves,
    /// What the other node says of them.
    moves_heard: Option<mpsc::Receiver<Move>>,
    /// Why the last one was called off, if it was.
    called_off: Option<&'static str>,
    /// The events file, and what writes it.
    events: Option<(Recorder, JoinHandle<()>)>,
    systemd: Arc<Systemd>,
    /// The endpoints on the control plane. Aborted at the end: they hold nothing that could be lost.
    control: JoinHandle<()>,
    /// Whether the peer has more of the own journal than there is here.
    is_adrift: bool,
    /// What takes in again what is left of journals that were. Aborted at the end: the next start begins anew.
    returning: Vec<JoinHandle<()>>,
    /// What tells the service manager how the daemon is. Aborted last.
    attendance: JoinHandle<()>,
    admin: Vec<JoinHandle<()>>,
}

/// The hooks, what looks for something to tell them, and what runs their commands.
struct HooksAtWork {
    hooks: Hooks,
    watch: JoinHandle<()>,
    runner: Runner,
}

impl HooksAtWork {
    /// Runs what was told, for `limit` at most. The last to tell must have ended.
    async fn end(self, limit: Duration) {
        let HooksAtWork { hooks, watch, runner } = self;
        watch.abort();
        // Only its end is waited for, with which its way to tell is gone.
        let _ = watch.await;
        drop(hooks);
        runner.finish(limit).await;
    }
}

impl<'a> Daemon<'a> {
    fn start(
        config: Config,
        data_plane: &'a Runtime,
        page: Option<Arc<SharedPage>>,
        inherited: Inherited,
    ) -> Result<Daemon<'a>, RunError> {
        let started = Started::now();
        let Inherited { notifier, watchdog, descriptors } = inherited;
        let journal = Arc::new(open_journal(&config)?);
        let pulse = Pulse::of(&journal, std::time::Instant::now());
        let supervisor = Supervisor::default();
        let metrics = Arc::new(Metrics::default());
        let configured = configured_inputs(&config, &metrics).map_err(RunError::Secrets)?;
        let shared = config.pair.iter().flat_map(config::Pair::addresses).collect();
        let (departures, handed_in) = Departures::new(shared);
        let context = input::Context {
            appender: journal.appender(),
            journal_state: journal.state(),
            supervisor: supervisor.clone(),
            grace: config.drain.grace,
            repeats: Arc::new(repeats(&config, &journal)),
            departures: departures.clone(),
        };
        let mut inputs = Inputs::new(context, Kept::new(notifier.clone(), descriptors));
        let opened = inputs.bind(&configured).map_err(RunError::Bind)?;
        let socket = control::server::bind(&config.control_socket)
            .map_err(io_error(format!("cannot open the control socket {}", config.control_socket.display())))?;
        let admin = open_admin(&config)?;
        let config = watch::Sender::new(Arc::new(config));
        let hooks = Hooks::start(config.subscribe(), metrics.clone());
        let (hooks, runner) = hooks.map_err(io_error("cannot start the thread of the hooks"))?;
        let (role, roles) = watch::channel(election::Role::default());
        let aside = watch::Sender::new(false);
        let (partner, link_told) = {
            let _on_data_plane = data_plane.enter();
            Partner::start(&config.borrow(), &journal, roles, &supervisor)?.unzip()
        };
        let (election, elected) = Unattended::start(&config.borrow(), page.clone())?.unzip();

        // Everything that could fail has not failed.
        let stage = watch::Sender::new(Stage::Serving);
        let listening = watch::Sender::new(true);
        let faults = watch::Sender::new(Vec::new());
        let last_reload = watch::Sender::new(LastReload { successful: true, at: started.time });
        let observed = Arc::new(Observed {
            journal,
            pulse,
            metrics,
            stage: stage.subscribe(),
            listening: listening.subscribe(),
            started,
            program: Program::running().ok(),
            node: config.borrow().node.clone(),
            config: config.subscribe(),
            faults: faults.subscribe(),
            reload: last_reload.subscribe(),
            elected,
            partnered: partner.as_ref().map(Partner::partnered),
        });
        let (recorder, writer) = Recorder::start(&config.borrow().data_dir, observed.node.to_string());
        let before = events::how_the_last_run_ended(&config.borrow().data_dir);
        let cause = format!("{before}, version {}", env!("CARGO_PKG_VERSION"));
        recorder.tell(started.time, "started", Some(cause));
        let election = election.map(|election| {
            let teller = election::Teller { recorder: recorder.clone(), hooks: hooks.clone(), role };
            election.attend(&observed, teller, aside.subscribe())
        });
        let moves_heard = link_told.map(|Told { notices, moves }| {
            let handle = observed.elected.as_ref().map(|elected| elected.handle.clone());
            tokio::spawn(partner::tell(notices, recorder.clone(), handle));
            moves
        });
        let watch = tokio::spawn(hooks::watch(observed.clone(), hooks.clone()));
        let systemd = Systemd::new(notifier, watchdog);
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        tracing::info!(socket = %config.borrow().control_socket.display(), "control socket open");
        let mut daemon = Daemon {
            control: tokio::spawn(control::server::serve(socket, observed.clone(), sender)),
            attendance: tokio::spawn(systemd.clone().attend(observed.clone(), page)),
            admin: serve_admin(admin, &observed),
            data_plane,
            systemd,
            election,
            partner,
            aside,
            draining: None,
            stop: None,
            moves: Moves::new(departures, handed_in),
            moves_heard,
            called_off: None,
            is_adrift: false,
            returning: Vec::new(),
            hooks: Some(HooksAtWork { hooks, runner, watch }),
            events: Some((recorder, writer)),
            stage,
            listening,
            last_reload,
            faults,
            observed,
            supervisor,
            inputs,
            outputs: BTreeMap::new(),
            requests,
            config,
        };
        if let Some(partner) = &mut daemon.partner {
            partner.show(&daemon.observed);
        }
        daemon.start_outputs();
        daemon.take_in_again();
        daemon.apply_inputs(&configured, opened);
        tracing::info!(elapsed = ?started.instant.elapsed(), "ready");
        Ok(daemon)
    }

    /// Has the own journal take in what is left of its predecessors that went back in time.
    fn take_in_again(&mut self) {
        let config = self.current();
        let _on_data_plane = self.data_plane.enter();
        let outputs: Vec<String> = config.outputs.iter().map(|output| output.name.clone()).collect();
        for directory in adrift::found(&config.data_dir) {
            let own = self.observed.journal.clone();
            let taking = adrift::take_in(directory, journal_settings(&config), outputs.clone(), own);
            self.returning.push(self.supervisor.spawn("journal that went back in time", taking));
        }
    }

    fn record(&self, event: &str, cause: &str) {
        if let Some((recorder, _)) = &self.events {
            recorder.tell(SystemTime::now(), event, Some(cause.to_owned()));
        }
    }

    fn current(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    fn apply_inputs(&mut self, inputs: &[input::Configured], opened: Vec<input::Opened>) {
        let _on_data_plane = self.data_plane.enter();
        let applied = self.inputs.apply(inputs, opened);
        self.listening.send_replace(applied.is_ok());
        let fault = applied.err().map(|error| format!("an input cannot read from its socket: {error}"));
        if let Some(fault) = &fault {
            tracing::error!("{fault}");
        }
        self.faults.send_replace(fault.into_iter().collect());
    }

    /// Makes the outputs that are configured, and lets them deliver what is wanted.
    fn start_outputs(&mut self) {
        let config = self.current();
        for settings in &config.outputs {
            // What is delivered elsewhere waits here for the same outputs.
            let _ = self.observed.journal.cursor(&settings.name);
            if !self.outputs.contains_key(&settings.name) {
                let metrics = self.observed.metrics.output(&settings.name);
                self.outputs.insert(settings.name.clone(), Output::new(settings.clone(), metrics));
            }
        }
        if let Some(partner) = &self.partner {
            partner.set_outputs(&config.outputs);
        }
        self.start_deliveries(&self.wanted());
    }

    /// The journals that this node should deliver, and whether each is its own.
    fn wanted(&self) -> Vec<(Arc<Journal>, bool)> {
        let own = &self.observed.journal;
        match &self.partner {
            None => vec![(own.clone(), true)],
            Some(partner) => partner.wanted(own, *self.aside.borrow()),
        }
    }

    fn start_deliveries(&mut self, wanted: &[(Arc<Journal>, bool)]) {
        let _on_data_plane = self.data_plane.enter();
        let config = self.current();
        let context = output::Context {
            zones: Arc::new(Zones::of(&config)),
            supervisor: self.supervisor.clone(),
            grace: config.drain.grace,
        };
        if let Some(partner) = self.partner.as_ref().filter(|_| !wanted.is_empty()) {
            partner.tell_delivering(true);
        }
        for output in self.outputs.values_mut() {
            wanted.iter().for_each(|(journal, is_own)| output.deliver(journal, *is_own, &context));
        }
    }

    /// Ends the deliveries that are not wanted any more, then starts those that are.
    async fn reconcile(&mut self) {
        let kept: Vec<JournalId> = self.wanted().iter().map(|(journal, _)| journal.id().clone()).collect();
        self.end_deliveries(&kept).await;
        // Asked anew: the end of deliveries may have taken its time, and this node may be a standby by now.
        let wanted = self.wanted();
        self.start_deliveries(&wanted);
    }

    /// Leaves what is not in flight of all journals but `kept` to the other node.
    async fn end_deliveries(&mut self, kept: &[JournalId]) {
        self.outputs.values().for_each(|output| output.leave(kept));
        for output in self.outputs.values_mut() {
            output.join(kept).await;
        }
        if let Some(partner) = self.partner.as_ref().filter(|_| kept.is_empty()) {
            partner.tell_delivering(false);
        }
    }

    /// Serves until a signal asks to stop, or an essential task failed, and the drain that follows is over; the failed
    /// task's name.
    async fn serve(&mut self, signals: &mut Signals, reread: &Reread<'_>) -> Option<String> {
        let supervisor = self.supervisor.clone();
        while !self.may_end() {
            let partner = async {
                match &mut self.partner {
                    Some(partner) => partner.changed().await,
                    None => std::future::pending().await,
                }
            };
            let moves_heard = async {
                match &mut self.moves_heard {
                    Some(moves) => moves.recv().await,
                    None => None,
                }
            };
            let look_after = self.draining.as_ref().and_then(Draining::look_after);
            let give_up_at = self.moves.give_up_at();
            tokio::select! {
                () = partner => {
                    if !self.is_adrift && self.partner.as_ref().is_some_and(Partner::is_adrift) {
                        self.is_adrift = true;
                        self.ask_to_stop(Some("the own journal's disk".to_owned()));
                    }
                    self.go_on_with_connections();
                    self.reconcile().await;
                }
                Some(said) = moves_heard => self.hear_of_connections(said),
                () = sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => self.moves.give_up(),
                () = sleep(look_after.unwrap_or_default()), if look_after.is_some() => self.step_drain().await,
                asked = signals.next() => match asked {
                    Asked::Stop => self.ask_to_stop(None),
                    // The log has the outcome; a signal has nobody to tell.
                    Asked::Reload => drop(self.reload(reread).await),
                },
                task = supervisor.fault(), if self.stop.is_none() => {
                    tracing::error!(task, "an essential task panicked");
                    self.ask_to_stop(Some(task));
                }
                Some(request) = self.requests.recv() => self.answer(request, reread).await,
            }
        }
        self.stop.as_ref().and_then(|stop| stop.fault.clone())
    }

    /// Does what somebody asks for. Whoever asked may have left meanwhile.
    async fn answer(&mut self, request: Request, reread: &Reread<'_>) {
        match request {
            Request::Reload { reply } => drop(reply.send(self.reload(reread).await)),
            Request::Drain { wish, reply } => drop(reply.send(self.begin_drain(wish))),
            Request::Undrain { reply } => drop(reply.send(self.undrain().await)),
            Request::DrainReport { reply } => drop(reply.send(self.drain_report())),
            Request::FailOver { force, reply } => self.begin_fail_over(force, reply),
        }
    }
}

/// What the own journal may use, and nearly what each mirror may.
fn limits(config: &Config) -> Limits {
    Limits { segment_size: config.journal.segment_size, max_size: config.journal.max_size }
}

fn open_journal(config: &Config) -> Result<Journal, RunError> {
    let directory = config.data_dir.join(journal::OWN_DIRECTORY);
    let storage = FileStorage::open(&directory).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => RunError::Journal(OpenError::Locked(directory.display().to_string())),
        _ => RunError::Io(format!("cannot open the journal in {}", directory.display()), error),
    })?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let fresh = Incarnation(since_epoch.as_millis() as u64);
    let outputs: Vec<&str> = config.outputs.iter().map(|output| output.name.as_str()).collect();
    let journal = Journal::open(Arc::new(storage), &config.node, journal_settings(config), &outputs, fresh)?;
    for finding in journal.findings() {
        tracing::warn!("journal: {finding}");
    }
    let progress = journal.progress();
    tracing::info!(
        directory = %directory.display(),
        journal = %journal.id(),
        bytes = progress.bytes,
        max_size = config.journal.max_size,
        undelivered = progress.durable.messages_since(progress.delivered),
        "journal open"
    );
    Ok(journal)
}

fn journal_settings(config: &Config) -> journal::Settings {
    journal::Settings {
        limits: limits(config),
        commit_interval: config.journal.commit_interval,
        when_full: match config.journal.when_full {
            config::WhenFull::Block => journal::WhenFull::Block,
            config::WhenFull::DropOldest => journal::WhenFull::DropOldest,
        },
        acknowledge: acknowledge(config),
    }
}

/// What an acknowledged message means, with or without a pair.
fn acknowledge(config: &Config) -> Acknowledge {
    match (config.journal.acknowledge, &config.pair) {
        (config::Acknowledge::Replicated, Some(pair)) => {
            Acknowledge::Replicated { alone: pair.on_peer_loss == config::PeerLoss::Degrade }
        }
        _ => Acknowledge::Durable,
    }
}

/// The inputs with their secrets, if those of the outputs can be used too.
fn configured_inputs(config: &Config, metrics: &Metrics) -> Result<Vec<input::Configured>, Vec<SecretError>> {
    match (input::configured(config, metrics), output::check_secrets(&config.outputs)) {
        (Ok(configured), Ok(())) => Ok(configured),
        (inputs, outputs) => Err([inputs.err(), outputs.err()].into_iter().flatten().flatten().collect()),
    }
}

fn open_admin(config: &Config) -> Result<Vec<tokio::net::TcpListener>, RunError> {
    let open = |address: &SocketAddr| {
        let opened = crate::sys::tcp::listen(*address).and_then(tokio::net::TcpListener::from_std);
        opened.map_err(io_error(format!("cannot listen on {address} for [admin]")))
    };
    config.admin.listen.iter().map(open).collect()
}

fn serve_admin(listeners: Vec<tokio::net::TcpListener>, observed: &Arc<Observed>) -> Vec<JoinHandle<()>> {
    let serve = |listener: tokio::net::TcpListener| {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "status page and metrics");
        }
        tokio::spawn(admin::serve(listener, observed.clone()))
    };
    listeners.into_iter().map(serve).collect()
}

/// What forward inputs know again: of the journal's tail, if there was an input for it.
fn repeats(config: &Config, journal: &Journal) -> Repeats {
    let has_forward = config.inputs.iter().any(|input| matches!(input, config::Input::Forward(_)));
    if has_forward { Repeats::of(journal, status::timestamp(SystemTime::now())) } else { Repeats::default() }
}
