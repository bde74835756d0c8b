//! Outputs: each reads a journal from its own cursor and delivers. A slow or dead one holds back nobody else. The active
//! node of a pair delivers its own journal and the other one's mirror, each by a delivery of its own.
//!
//! Here a message is interpreted for the first time, if the output's format or `match` asks for it. The kinds are a
//! closed set: `stream` (syslog over TCP and TLS) and `forward` have a window, the others take a batch or refuse it and
//! share one loop.

pub mod encode;
pub mod endpoint;
pub mod feed;
pub mod file;
pub mod filter;
pub mod forward;
pub mod sink;
pub mod stream;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::config::{self, OutputKind, SecretError, read_key};
use crate::journal::Journal;
use crate::metrics::OutputMetrics;
use crate::proto::position::JournalId;
use crate::proto::syslog::shared_text::SharedText;
use crate::supervise::Supervisor;
use crate::tls;
use crate::zones::Zones;
use encode::{Delimiter, Encoder};
use endpoint::Backoff;
use feed::Feed;
use file::File;
use filter::Filter;
use forward::{Forward, Packer};
use sink::{Datagram, Sink, Stdout};
use stream::Stream;

/// Why a delivery ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The output is stopping.
    Stopped,
    /// A preferred destination answers.
    Better,
}

/// What is wanted of a delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It delivers.
    #[default]
    Deliver,
    /// It delivers what is there and ends.
    Finish,
    /// It finishes what is in flight and ends; the other node delivers the rest.
    Leave,
}

/// How long a delivery lives: until it is told to stop, then for a grace in which it may finish.
#[derive(Clone, Debug)]
pub struct Life {
    name: String,
    wish: watch::Receiver<Wish>,
    grace: Duration,
    ends: Option<Instant>,
}

impl Life {
    /// Name of the output.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was told to stop: it delivers what it still shall and takes its leave.
    pub fn is_stopping(&mut self) -> bool {
        let stopping = *self.wish.borrow_and_update() != Wish::Deliver;
        if stopping && self.ends.is_none() {
            self.ends = Some(Instant::now() + self.grace);
        }
        stopping
    }

    /// Resolves when it is told to stop.
    pub async fn stopping(&mut self) {
        while !self.is_stopping() {
            if self.wish.changed().await.is_err() {
                // Whoever could tell is gone, and with it the daemon.
                return;
            }
        }
    }

    /// Resolves at the next turn of this life: to false when it is told to stop, then to true when its grace is over.
    /// Cancelling loses nothing.
    pub async fn turn(&mut self) -> bool {
        match self.ends {
            None => {
                self.stopping().await;
                false
            }
            Some(ends) => {
                sleep_until(ends).await;
                true
            }
        }
    }
}

/// What deliveries need besides their settings.
#[derive(Clone, Debug)]
pub struct Context {
    /// Time zones of the inputs.
    pub zones: Arc<Zones>,
    /// Who is told of a panic.
    pub supervisor: Supervisor,
    /// How long a stopping delivery may go on to finish.
    pub grace: Duration,
}

/// Looks at the files of secrets that outputs name. They are read again for each connection; this says beforehand which
/// would be refused then.
///
/// # Errors
/// Every file that would not be used, and why.
pub fn check_secrets(outputs: &[config::Output]) -> Result<(), Vec<SecretError>> {
    let logins = outputs.iter().filter_map(|output| match &output.kind {
        OutputKind::Forward(forward) => forward.login.as_ref(),
        OutputKind::Syslog(_) | OutputKind::File(_) | OutputKind::Stdout(_) => None,
    });
    let files = logins.flat_map(|login| [Some(&login.shared_key_file), login.user.as_ref().map(|(_, file)| file)]);
    let errors: Vec<SecretError> = files.flatten().filter_map(|file| read_key(file).err()).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// One configured output, and its deliveries: one for each journal that this node delivers.
#[derive(Debug)]
pub struct Output {
    settings: config::Output,
    metrics: Arc<OutputMetrics>,
    /// What its deliveries share, for the kinds that write to one place.
    sink: Option<Arc<sink::Shared>>,
    deliveries: BTreeMap<JournalId, Delivery>,
}

/// An output at work on one journal.
#[derive(Debug)]
struct Delivery {
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Output {
    /// An output that delivers nothing yet.
    #[must_use]
    pub fn new(settings: config::Output, metrics: Arc<OutputMetrics>) -> Output {
        let sink = match &settings.kind {
            OutputKind::Syslog(syslog) if !syslog.to[0].protocol.is_stream() => {
                Some(Sink::Datagram(Datagram::new(syslog.to.clone())))
            }
            OutputKind::File(file) => Some(Sink::File(File::new(file.clone()))),
            OutputKind::Stdout(_) => Some(Sink::Stdout(Stdout)),
            OutputKind::Syslog(_) | OutputKind::Forward(_) => None,
        };
        let sink = sink.map(|sink| Arc::new(tokio::sync::Mutex::new(sink)));
        Output { settings, metrics, sink, deliveries: BTreeMap::new() }
    }

    /// Starts delivering a journal from the cursor of this output's name, unless it does so already.
    pub fn deliver(&mut self, journal: &Arc<Journal>, is_own: bool, context: &Context) {
        if self.deliveries.contains_key(journal.id()) {
            return;
        }
        let settings = &self.settings;
        let (wish, wished) = watch::channel(Wish::Deliver);
        let cursor = journal.cursor(&settings.name);
        let start = cursor.mark();
        let behind = journal.progress().durable.messages_since(start);
        let name = &settings.name;
        tracing::info!(
            output = name, to = destinations(&settings.kind), journal = %journal.id(), from = %start.position,
            undelivered = behind, "delivering"
        );
        let feed = Feed::new(journal.reader(start.position), is_own, cursor, self.metrics.clone(), wished.clone());
        let life = Life { name: name.clone(), wish: wished, grace: context.grace, ends: None };
        let filter = Filter::new(settings.matches.clone());
        let backoff = Backoff::new(settings.retry.clone(), fastrand::u64(..));
        let (journal, zones) = (journal.id().clone(), context.zones.clone());
        let text = SharedText::new(&journal);
        let encoder = |format, delimiter| Encoder { format, delimiter, text: text.clone(), zones: zones.clone() };
        let task = format!("output {name}");
        let task = match (&settings.kind, &self.sink) {
            (kind, Some(sink)) => {
                let (format, delimiter) = sink::looks(kind);
                let run = sink::run(sink.clone(), encoder(format, delimiter), filter, backoff, feed, life);
                context.supervisor.spawn(&task, run)
            }
            (OutputKind::Forward(forward), None) => {
                let packer = Packer::new(forward, journal.clone(), filter, zones);
                let forward = Forward::new(forward.clone(), packer, &settings.retry);
                context.supervisor.spawn(&task, forward.run(feed, life))
            }
            (OutputKind::Syslog(syslog), None) => {
                let delimiter = Delimiter::of(syslog.framing, syslog.to[0].protocol);
                let stream = Stream {
                    targets: syslog.to.clone(),
                    tls: tls::Client::new(&syslog.tls),
                    framing: syslog.framing,
                    encoder: encoder(syslog.format.into(), delimiter),
                    filter,
                    backoff,
                };
                context.supervisor.spawn(&task, stream.run(feed, life))
            }
            (OutputKind::File(_) | OutputKind::Stdout(_), None) => unreachable!("these have a sink"),
        };
        self.deliveries.insert(journal, Delivery { wish, task });
    }

    /// The settings it runs with.
    #[must_use]
    pub fn settings(&self) -> &config::Output {
        &self.settings
    }

    /// Whether it delivers anything.
    #[must_use]
    pub fn is_delivering(&self) -> bool {
        !self.deliveries.is_empty()
    }

    /// Tells every delivery to finish what it can and end.
    pub fn stop(&self) {
        for delivery in self.deliveries.values() {
            delivery.wish.send_replace(Wish::Finish);
        }
    }

    /// Tells the deliveries of all journals but `kept` to finish what is in flight and end.
    pub fn leave(&self, kept: &[JournalId]) {
        let leaving = self.deliveries.iter().filter(|(journal, _)| !kept.contains(journal));
        for (_, delivery) in leaving {
            delivery.wish.send_replace(Wish::Leave);
        }
    }

    /// Waits for the end of what [`Output::stop`] or [`Output::leave`] told to end: all but `kept`.
    pub async fn join(&mut self, kept: &[JournalId]) {
        let leaving: Vec<JournalId> =
            self.deliveries.keys().filter(|journal| !kept.contains(journal)).cloned().collect();
        for journal in leaving {
            if let Some(delivery) = self.deliveries.remove(&journal) {
                // A panic was reported to the supervisor.
                let _ = delivery.task.await;
            }
        }
    }
}

fn destinations(kind: &OutputKind) -> String {
    let list = |targets: &mut dyn Iterator<Item = String>| targets.collect::<Vec<_>>().join(", ");
    match kind {
        OutputKind::Syslog(syslog) => list(&mut syslog.to.iter().map(ToString::to_string)),
        OutputKind::Forward(forward) => list(&mut forward.to.iter().map(ToString::to_string)),
        OutputKind::File(file) => file.path.to_string(),
        OutputKind::Stdout(_) => "stdout".to_owned(),
    }
}
