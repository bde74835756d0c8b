//! Inputs: tasks that read from the network and append to the journal. They listen whatever the node's role is.
//!
//! [`Inputs`] owns a listener for every `listen` entry of the configuration, a listener owns its sockets and tasks. What
//! the tasks follow is a published value, [`Control`]: which input they work for and the stage. So a reload moves an
//! address from one input to another without closing it; a connection keeps the settings it began with.

pub mod tcp;
pub mod udp;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{Listen, Protocol, SyslogInput};
use crate::journal::{Appender, State};
use crate::metrics::InputMetrics;
use crate::proto::envelope::Timestamp;
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
#[derive(Clone, Debug)]
pub struct Control {
    /// The input's settings, for new datagrams and new connections.
    pub settings: Arc<SyslogInput>,
    /// The input's counters.
    pub metrics: Arc<InputMetrics>,
    /// Serving, or coming to an end.
    pub stage: Stage,
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
}

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
    pub fn bind(settings: &SyslogInput, listen: &Listen) -> Result<Sockets, BindError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let buffer = usize::try_from(settings.udp_rcvbuf).unwrap_or(usize::MAX);
        let bound = match listen.protocol {
            Protocol::Udp => sys::udp::bind(listen.address, cores.min(UDP_SOCKETS_MAX), buffer).map(Sockets::Udp),
            Protocol::Tcp | Protocol::Tls => sys::tcp::listen(listen.address).map(Sockets::Tcp),
        };
        bound.map_err(|source| BindError { input: settings.name.clone(), listen: listen.clone(), source })
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

/// The running side of one `listen` entry.
#[derive(Debug)]
struct Listener {
    control: watch::Sender<Control>,
    tasks: Vec<JoinHandle<()>>,
    address: SocketAddr,
}

impl Listener {
    fn set_stage(&self, stage: Stage) {
        self.control.send_modify(|control| control.stage = control.stage.max(stage));
    }

    async fn join(self) {
        for task in self.tasks {
            // A panic was reported to the supervisor.
            let _ = task.await;
        }
    }
}

/// One configured input and its counters.
pub type Configured = (Arc<SyslogInput>, Arc<InputMetrics>);

/// All inputs of the node.
#[derive(Debug)]
pub struct Inputs {
    context: Context,
    listeners: BTreeMap<Listen, Listener>,
    /// Listeners that a reload took away and that are coming to their end.
    leaving: Vec<Listener>,
}

impl Inputs {
    /// No sockets yet; [`Inputs::apply`] gives some.
    #[must_use]
    pub fn new(context: Context) -> Inputs {
        Inputs { context, listeners: BTreeMap::new(), leaving: Vec::new() }
    }

    /// Opens what `inputs` listen on and is not open yet. All or nothing.
    ///
    /// # Errors
    /// Every address that cannot be opened; what was opened meanwhile is closed again.
    pub fn bind<'a>(
        &self,
        inputs: impl Iterator<Item = &'a SyslogInput>,
    ) -> Result<Vec<(Listen, Sockets)>, Vec<BindError>> {
        let (mut opened, mut errors) = (Vec::new(), Vec::new());
        for settings in inputs {
            for listen in settings.listen.iter().filter(|listen| !self.listeners.contains_key(listen)) {
                match Sockets::bind(settings, listen) {
                    Ok(sockets) => opened.push((listen.clone(), sockets)),
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
    pub fn apply(&mut self, inputs: &[Configured], opened: Vec<(Listen, Sockets)>) -> io::Result<()> {
        let mut opened: BTreeMap<Listen, Sockets> = opened.into_iter().collect();
        let mut gone = std::mem::take(&mut self.listeners);
        let mut result = Ok(());
        for (settings, metrics) in inputs {
            let control = Control { settings: settings.clone(), metrics: metrics.clone(), stage: Stage::Serving };
            for listen in &settings.listen {
                if let Some(listener) = gone.remove(listen) {
                    listener.control.send_replace(control.clone());
                    self.listeners.insert(listen.clone(), listener);
                } else if let Some(sockets) = opened.remove(listen) {
                    match self.start(listen, sockets, control.clone()) {
                        Ok(listener) => drop(self.listeners.insert(listen.clone(), listener)),
                        Err(error) => result = Err(error),
                    }
                }
            }
        }
        for (listen, listener) in gone {
            tracing::info!(%listen, "no longer listening");
            listener.set_stage(Stage::Quiescing);
            self.leaving.push(listener);
        }
        self.leaving.retain(|listener| listener.tasks.iter().any(|task| !task.is_finished()));
        result
    }

    /// The addresses that are open, with the ports the system gave.
    pub fn addresses(&self) -> impl Iterator<Item = (Protocol, SocketAddr)> {
        self.listeners.iter().map(|(listen, listener)| (listen.protocol, listener.address))
    }

    fn start(&self, listen: &Listen, sockets: Sockets, control: Control) -> io::Result<Listener> {
        let address = sockets.local_address()?;
        let input = control.settings.name.clone();
        let task_name = format!("input {input} {listen}");
        let control = watch::Sender::new(control);
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
                    tasks.push(self.context.supervisor.spawn(&task_name, task));
                }
            }
            Sockets::Tcp(listener) => {
                tracing::info!(input, %address, protocol = %listen.protocol, "listening for syslog over TCP");
                let is_tls = listen.protocol == Protocol::Tls;
                let acceptor = tcp::Acceptor::new(listener, is_tls, control.subscribe(), self.context.clone())?;
                tasks.push(self.context.supervisor.spawn(&task_name, acceptor.run()));
            }
        }
        Ok(Listener { control, tasks, address })
    }

    /// Takes nothing new and finishes what is on its way.
    pub fn quiesce(&self) {
        for listener in self.listeners.values() {
            listener.set_stage(Stage::Quiescing);
        }
    }

    /// Waits for the tasks' end after [`Inputs::quiesce`].
    pub async fn join(&mut self) {
        for listener in std::mem::take(&mut self.listeners).into_values().chain(self.leaving.drain(..)) {
            listener.join().await;
        }
    }
}

/// Resolves when the listener comes to its end.
async fn quiescing(control: &mut watch::Receiver<Control>) {
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
