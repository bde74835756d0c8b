//! Inputs: tasks that read from the network and append to the journal. They listen whatever the node's role is.
//!
//! [`Inputs`] owns a listener for every `listen` entry of the configuration, a listener owns its sockets and tasks. What
//! the tasks follow is a published value, [`Control`]: which input they work for and the stage. So a reload moves an
//! address from one input to another of its kind without closing it; a connection keeps the settings it began with. A
//! restart under a service manager need not close it either: see [`Kept`].

mod accept;
mod answers;
mod departure;
pub mod forward;
mod kept;
mod pace;
pub mod relp;
pub mod tcp;
pub mod udp;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::accept::Surroundings;
pub use self::accept::{Arrival, Begun};
pub use self::departure::{Departures, Held, Phase};
pub use self::kept::Kept;
use crate::config::{Config, Input, Listen, Protocol, RelpInput, SecretError, SyslogInput};
use crate::journal::{Appender, State};
use crate::metrics::{InputMetrics, Metrics};
use crate::proto::envelope::Timestamp;
use crate::proto::pair::moving::CONNECTIONS_MAX;
use crate::proto::stage::Stage;
use crate::supervise::Supervisor;
use crate::sys;

/// Sockets for one UDP address: two receive at the same time, more bought nothing on two cores.
const UDP_SOCKETS_MAX: usize = 4;

/// An address could not be opened.
#[derive(Debug, Error)]
#[error("input {input}: cannot listen on {listen}: {source}")]
pub struct BindError {
    /// Name of the input.
    pub input: String,
    /// What it was to listen on.
    pub listen: Listen,
    /// What the system said.
    pub source: io::Error,
}

/// What a listener's tasks follow.
#[derive(Debug)]
pub struct Control<S> {
    /// The input's settings, for new datagrams and new connections.
    pub settings: Arc<S>,
    /// The input's counters.
    pub metrics: Arc<InputMetrics>,
    /// Serving, or coming to an end.
    pub stage: Stage,
}

// Not derived: the settings themselves need not be cloned.
impl<S> Clone for Control<S> {
    fn clone(&self) -> Control<S> {
        Control { settings: self.settings.clone(), metrics: self.metrics.clone(), stage: self.stage }
    }
}

/// What the tasks need besides.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where messages go.
    pub appender: Appender,
    /// Whether the journal still takes anything.
    pub journal_state: watch::Receiver<State>,
    /// Who is told of a panic.
    pub supervisor: Supervisor,
    /// How long a connection may go on sending once its listener quiesces: `drain.grace`.
    pub grace: Duration,
    /// The chunks that forward inputs know again.
    pub repeats: Arc<forward::Repeats>,
    /// Where connections leave with their addresses.
    pub departures: Departures,
}

impl Context {
    /// What a listener follows to which no connection ever comes from the other node.
    fn surroundings(&self) -> Surroundings {
        let (journal_state, departures) = (self.journal_state.clone(), self.departures.clone());
        Surroundings { journal_state, departures, arrivals: None }
    }
}

/// The settings of one input, as its kind needs them.
#[derive(Clone, Debug)]
pub enum Settings {
    /// `[[input.syslog]]`.
    Syslog(Arc<SyslogInput>),
    /// `[[input.forward]]`, with its secrets.
    Forward(Arc<forward::Settings>),
    /// `[[input.relp]]`.
    Relp(Arc<RelpInput>),
}

/// One configured input and its counters.
#[derive(Clone, Debug)]
pub struct Configured {
    settings: Settings,
    metrics: Arc<InputMetrics>,
}

/// The inputs of a configuration, with their secrets read.
///
/// # Errors
/// Every file of secrets that is not used, and why.
pub fn configured(config: &Config, metrics: &Metrics) -> Result<Vec<Configured>, Vec<SecretError>> {
    let (mut configured, mut errors) = (Vec::new(), Vec::new());
    for input in &config.inputs {
        let settings = match input {
            Input::Syslog(syslog) => Ok(Settings::Syslog(Arc::new(syslog.clone()))),
            Input::Forward(forward) => {
                forward::Settings::load(forward.clone()).map(|settings| Settings::Forward(Arc::new(settings)))
            }
            Input::Relp(relp) => Ok(Settings::Relp(Arc::new(relp.clone()))),
        };
        match settings {
            Ok(settings) => configured.push(Configured { settings, metrics: metrics.input(input.name()) }),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(configured) } else { Err(errors) }
}

impl Settings {
    fn name(&self) -> &str {
        match self {
            Settings::Syslog(settings) => &settings.name,
            Settings::Forward(settings) => &settings.config.name,
            Settings::Relp(settings) => &settings.name,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Settings::Syslog(_) => Kind::Syslog,
            Settings::Forward(_) => Kind::Forward,
            Settings::Relp(_) => Kind::Relp,
        }
    }

    /// The places to listen on.
    fn places(&self) -> impl Iterator<Item = Place> {
        let listen = match self {
            Settings::Syslog(settings) => &settings.listen,
            Settings::Forward(settings) => &settings.config.listen,
            Settings::Relp(settings) => &settings.listen,
        };
        listen.iter().map(|listen| (self.kind(), listen.clone()))
    }
}

/// What is spoken on a socket. One that is open cannot change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Syslog.
    Syslog,
    /// fluent-forward.
    Forward,
    /// RELP.
    Relp,
}

/// What one listener is for.
pub type Place = (Kind, Listen);

/// Opened sockets of one `listen` entry, not yet read from.
#[derive(Debug)]
pub enum Sockets {
    /// All on one address; the kernel spreads senders over them.
    Udp(Vec<UdpSocket>),
    /// One listening socket.
    Tcp(TcpListener),
}

impl Sockets {
    /// Opens what `listen` names.
    ///
    /// # Errors
    /// Names the input and the address.
    pub fn bind(settings: &Settings, listen: &Listen) -> Result<Sockets, BindError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let bound = match (listen.protocol, settings) {
            (Protocol::Udp, Settings::Syslog(settings)) => {
                let buffer = receive_buffer_bytes(settings);
                sys::udp::bind(listen.address, cores.min(UDP_SOCKETS_MAX), buffer).map(Sockets::Udp)
            }
            (Protocol::Udp, Settings::Forward(_)) => {
                sys::udp::bind_answering(listen.address).map(|socket| Sockets::Udp(vec![socket]))
            }
            // Never configured.
            (Protocol::Udp, Settings::Relp(_)) => Err(io::ErrorKind::Unsupported.into()),
            (Protocol::Tcp | Protocol::Tls, _) => sys::tcp::listen(listen.address).map(Sockets::Tcp),
        };
        bound.map_err(|source| BindError { input: settings.name().to_owned(), listen: listen.clone(), source })
    }

    /// The address that was opened; with port 0 in the configuration, the port that the system gave.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        match self {
            Sockets::Udp(sockets) => sockets[0].local_addr(),
            Sockets::Tcp(listener) => listener.local_addr(),
        }
    }
}

fn receive_buffer_bytes(settings: &SyslogInput) -> usize {
    usize::try_from(settings.udp_rcvbuf).unwrap_or(usize::MAX)
}

/// Sockets that are open and not yet read from.
#[derive(Debug)]
pub struct Opened {
    place: Place,
    sockets: Sockets,
    /// The name under which they are [kept](Kept) since the last run.
    kept_as: Option<String>,
}

/// The running side of one `listen` entry.
#[derive(Debug)]
struct Listener {
    publisher: Publisher,
    tasks: Vec<JoinHandle<()>>,
    address: SocketAddr,
    /// The name under which its sockets are [kept](Kept).
    kept_as: Option<String>,
    /// Where live connections of the other node go; `None` if it takes none.
    arrivals: Option<mpsc::Sender<Arrival>>,
}

/// Where a listener's tasks hear what is wanted.
#[derive(Debug)]
enum Publisher {
    Syslog(watch::Sender<Control<SyslogInput>>),
    Forward(watch::Sender<Control<forward::Settings>>),
    Relp(watch::Sender<Control<RelpInput>>),
}

impl Publisher {
    fn new(input: &Configured) -> Publisher {
        let (metrics, stage) = (input.metrics.clone(), Stage::Serving);
        match input.settings.clone() {
            Settings::Syslog(settings) => Publisher::Syslog(watch::Sender::new(Control { settings, metrics, stage })),
            Settings::Forward(settings) => Publisher::Forward(watch::Sender::new(Control { settings, metrics, stage })),
            Settings::Relp(settings) => Publisher::Relp(watch::Sender::new(Control { settings, metrics, stage })),
        }
    }

    /// Has the tasks work for another input, of the same kind.
    fn follow(&self, input: &Configured) {
        let (metrics, stage) = (input.metrics.clone(), Stage::Serving);
        match (self, input.settings.clone()) {
            (Publisher::Syslog(control), Settings::Syslog(settings)) => {
                control.send_replace(Control { settings, metrics, stage });
            }
            (Publisher::Forward(control), Settings::Forward(settings)) => {
                control.send_replace(Control { settings, metrics, stage });
            }
            (Publisher::Relp(control), Settings::Relp(settings)) => {
                control.send_replace(Control { settings, metrics, stage });
            }
            (Publisher::Syslog(_) | Publisher::Forward(_) | Publisher::Relp(_), _) => {
                unreachable!("listeners are found by their kind")
            }
        }
    }

    fn set_stage(&self, stage: Stage) {
        match self {
            Publisher::Syslog(control) => control.send_modify(|control| control.stage = control.stage.max(stage)),
            Publisher::Forward(control) => control.send_modify(|control| control.stage = control.stage.max(stage)),
            Publisher::Relp(control) => control.send_modify(|control| control.stage = control.stage.max(stage)),
        }
    }
}

impl Listener {
    fn has_ended(&self) -> bool {
        self.tasks.iter().all(JoinHandle::is_finished)
    }

    async fn join(self) {
        for task in self.tasks {
            // A panic was reported to the supervisor.
            let _ = task.await;
        }
    }
}

/// All inputs of the node.
#[derive(Debug)]
pub struct Inputs {
    context: Context,
    kept: Kept,
    listeners: BTreeMap<Place, Listener>,
    /// Listeners that a reload took away and that are coming to their end.
    leaving: Vec<Listener>,
}

impl Inputs {
    /// No sockets yet but those `kept` since the last run; [`Inputs::apply`] gives some.
    #[must_use]
    pub fn new(context: Context, kept: Kept) -> Inputs {
        Inputs { context, kept, listeners: BTreeMap::new(), leaving: Vec::new() }
    }

    /// Opens what `inputs` listen on and is not open yet, or takes it back from the last run. All or nothing.
    ///
    /// # Errors
    /// Every address that cannot be opened; what was opened meanwhile is closed again.
    pub fn bind(&mut self, inputs: &[Configured]) -> Result<Vec<Opened>, Vec<BindError>> {
        self.kept.give_up_strangers(inputs);
        let (mut opened, mut errors) = (Vec::new(), Vec::new());
        for Configured { settings, .. } in inputs {
            for place in settings.places().filter(|place| !self.listeners.contains_key(place)) {
                if let Some((name, sockets)) = self.kept.take(&place, settings) {
                    opened.push(Opened { place, sockets, kept_as: Some(name) });
                    continue;
                }
                match Sockets::bind(settings, &place.1) {
                    Ok(sockets) => opened.push(Opened { place, sockets, kept_as: None }),
                    Err(error) => errors.push(error),
                }
            }
        }
        if errors.is_empty() { Ok(opened) } else { Err(errors) }
    }

    /// Follows a new configuration: what was `opened` starts, what nobody listens on any more ends, everything else
    /// goes on with the new settings. Must be called on the runtime.
    ///
    /// # Errors
    /// If a socket cannot be given to the runtime; the others run.
    pub fn apply(&mut self, inputs: &[Configured], opened: Vec<Opened>) -> io::Result<()> {
        let mut opened: BTreeMap<Place, Opened> = opened.into_iter().map(|one| (one.place.clone(), one)).collect();
        let mut gone = std::mem::take(&mut self.listeners);
        let mut result = Ok(());
        for input in inputs {
            for place in input.settings.places() {
                if let Some(listener) = gone.remove(&place) {
                    listener.publisher.follow(input);
                    self.listeners.insert(place, listener);
                } else if let Some(opened) = opened.remove(&place) {
                    match self.start(opened, input) {
                        Ok(listener) => drop(self.listeners.insert(place, listener)),
                        Err(error) => result = Err(error),
                    }
                }
            }
        }
        for ((_, listen), listener) in gone {
            tracing::info!(%listen, "no longer listening");
            listener.publisher.set_stage(Stage::Quiescing);
            listener.kept_as.iter().for_each(|name| self.kept.remove(name));
            self.leaving.push(listener);
        }
        self.leaving.retain(|listener| listener.tasks.iter().any(|task| !task.is_finished()));
        result
    }

    /// The addresses that are open, with the ports the system gave.
    pub fn addresses(&self) -> impl Iterator<Item = (Protocol, SocketAddr)> {
        self.listeners.iter().map(|((_, listen), listener)| (listen.protocol, listener.address))
    }

    fn start(&self, opened: Opened, input: &Configured) -> io::Result<Listener> {
        let Opened { place, sockets, kept_as } = opened;
        let address = sockets.local_address()?;
        let kept_as = kept_as.or_else(|| self.kept.store(input.settings.name(), &place, &sockets));
        let (kind, listen) = &place;
        let task_name = format!("input {} {listen}", input.settings.name());
        let publisher = Publisher::new(input);
        let takes = *kind == Kind::Syslog && listen.protocol == Protocol::Tcp;
        let (arrivals, receiver) = takes.then(|| mpsc::channel(CONNECTIONS_MAX)).unzip();
        let tasks = match &publisher {
            Publisher::Syslog(control) => {
                self.start_syslog((&task_name, listen.protocol, address), sockets, control, receiver)?
            }
            Publisher::Forward(control) => self.start_forward(&task_name, address, sockets, control)?,
            Publisher::Relp(control) => self.start_relp(&task_name, listen.protocol, address, sockets, control)?,
        };
        Ok(Listener { publisher, tasks, address, kept_as, arrivals })
    }

    fn start_syslog(
        &self,
        (task_name, protocol, address): (&str, Protocol, SocketAddr),
        sockets: Sockets,
        control: &watch::Sender<Control<SyslogInput>>,
        arrivals: Option<mpsc::Receiver<Arrival>>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let input = control.borrow().settings.name.clone();
        let mut tasks = Vec::new();
        match sockets {
            Sockets::Udp(sockets) => {
                let buffer = sys::udp::receive_buffer(&sockets[0])?;
                tracing::info!(input, %address, sockets = sockets.len(), buffer, "listening for syslog over UDP");
                if (buffer as u64) < control.borrow().settings.udp_rcvbuf {
                    let wanted = control.borrow().settings.udp_rcvbuf;
                    tracing::warn!(
                        input,
                        buffer,
                        wanted,
                        "the receive buffer is smaller than udp_rcvbuf: give the daemon CAP_NET_ADMIN, or raise net.core.rmem_max"
                    );
                }
                for (number, socket) in sockets.into_iter().enumerate() {
                    let label = format!("udp://{address}#{number}");
                    let receiver = udp::Socket::new(label, socket, control.subscribe())?;
                    let task = receiver.run(self.context.appender.clone(), self.context.journal_state.clone());
                    tasks.push(self.context.supervisor.spawn(task_name, task));
                }
            }
            Sockets::Tcp(listener) => {
                tracing::info!(input, %address, %protocol, "listening for syslog over TCP");
                let is_tls = protocol == Protocol::Tls;
                let task = tcp::serve(listener, is_tls, control.subscribe(), self.context.clone(), arrivals)?;
                tasks.push(self.context.supervisor.spawn(task_name, task));
            }
        }
        Ok(tasks)
    }

    fn start_forward(
        &self,
        task_name: &str,
        address: SocketAddr,
        sockets: Sockets,
        control: &watch::Sender<Control<forward::Settings>>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let input = control.borrow().settings.config.name.clone();
        let mut tasks = Vec::new();
        match sockets {
            Sockets::Udp(sockets) => {
                tracing::info!(input, %address, "answering heartbeats over UDP");
                for socket in sockets {
                    let heartbeat = forward::Heartbeat::new(socket, control.subscribe())?;
                    let task = heartbeat.run(self.context.journal_state.clone());
                    tasks.push(self.context.supervisor.spawn(task_name, task));
                }
            }
            Sockets::Tcp(listener) => {
                tracing::info!(input, %address, "listening for forward over TCP");
                let task = forward::serve(listener, control.subscribe(), self.context.clone())?;
                tasks.push(self.context.supervisor.spawn(task_name, task));
            }
        }
        Ok(tasks)
    }

    fn start_relp(
        &self,
        task_name: &str,
        protocol: Protocol,
        address: SocketAddr,
        sockets: Sockets,
        control: &watch::Sender<Control<RelpInput>>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let Sockets::Tcp(listener) = sockets else { return Err(io::ErrorKind::Unsupported.into()) };
        let input = control.borrow().settings.name.clone();
        tracing::info!(input, %address, %protocol, "listening for RELP over TCP");
        let is_tls = protocol == Protocol::Tls;
        let task = relp::serve(listener, is_tls, control.subscribe(), self.context.clone())?;
        Ok(vec![self.context.supervisor.spawn(task_name, task)])
    }

    /// Whether a live connection to `local` could go on here.
    #[must_use]
    pub fn would_take(&self, local: SocketAddr) -> bool {
        self.arrivals_at(local).is_some()
    }

    /// Goes on with a connection to `local` that the other node had; whether somebody does.
    pub fn take_over(&self, local: SocketAddr, arrival: Arrival) -> bool {
        self.arrivals_at(local).is_some_and(|arrivals| arrivals.try_send(arrival).is_ok())
    }

    fn arrivals_at(&self, local: SocketAddr) -> Option<&mpsc::Sender<Arrival>> {
        let is_here = |at: SocketAddr| {
            at.port() == local.port()
                && (at.ip().is_unspecified() || at.ip().to_canonical() == local.ip().to_canonical())
        };
        self.listeners.values().filter(|one| is_here(one.address)).find_map(|listener| listener.arrivals.as_ref())
    }

    /// Takes nothing new and finishes what is on its way. What comes from now on waits for the next run, if the sockets are
    /// [kept](Kept).
    pub fn quiesce(&self) {
        for listener in self.listeners.values() {
            listener.publisher.set_stage(Stage::Quiescing);
        }
    }

    /// Whether every task has come to its end after [`Inputs::quiesce`].
    #[must_use]
    pub fn have_ended(&self) -> bool {
        let mut listeners = self.listeners.values().chain(&self.leaving);
        listeners.all(Listener::has_ended)
    }

    /// Forgets listeners whose tasks have ended, so that their places can be opened again.
    pub fn clear(&mut self) {
        let ended: Vec<Listener> =
            self.listeners.extract_if(.., |_, listener| listener.has_ended()).map(|(_, one)| one).collect();
        // Kept for the next process, and in the way of this one: datagrams would wait in a socket that nobody reads.
        self.kept.give_up(ended.into_iter().filter_map(|listener| listener.kept_as));
        self.leaving.retain(|listener| !listener.has_ended());
    }

    /// Waits for the tasks' end after [`Inputs::quiesce`].
    pub async fn join(&mut self) {
        for listener in std::mem::take(&mut self.listeners).into_values().chain(self.leaving.drain(..)) {
            listener.join().await;
        }
    }
}

/// Resolves when the listener comes to its end.
async fn quiescing<S>(control: &mut watch::Receiver<Control<S>>) {
    // Whoever could tell is gone: that is an end too.
    let _ = control.wait_for(|control| control.stage > Stage::Serving).await;
}

/// Resolves when the journal takes nothing any more.
async fn poisoned(state: &mut watch::Receiver<State>) {
    // The sender lives in the journal that the appender holds.
    let _ = state.wait_for(|state| matches!(state, State::Poisoned(_))).await;
}

/// Whether `source` may send. An empty list allows everyone.
fn allowed(allow: &[IpNet], source: IpAddr) -> bool {
    allow.is_empty() || allow.iter().any(|network| network.contains(&source))
}

/// The time of a wake-up.
fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64)
}
