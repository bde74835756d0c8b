//! Outputs: each reads the journal from its own cursor and delivers. A slow or dead one holds back nobody else.
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

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::config::{self, OutputKind, SecretError, read_key};
use crate::journal::Journal;
use crate::metrics::OutputMetrics;
use crate::proto::stage::Stage;
use crate::supervise::Supervisor;
use crate::tls;
use crate::zones::Zones;
use encode::{Delimiter, Encoder, Format};
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

/// How long an output lives: until it is told to stop, then for a grace in which it may finish.
#[derive(Clone, Debug)]
pub struct Life {
    name: String,
    stage: watch::Receiver<Stage>,
    grace: Duration,
    ends: Option<Instant>,
}

impl Life {
    /// Name of the output.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the output was told to stop: it delivers what is there and takes its leave.
    pub fn is_stopping(&mut self) -> bool {
        let stopping = *self.stage.borrow_and_update() == Stage::Stopping;
        if stopping && self.ends.is_none() {
            self.ends = Some(Instant::now() + self.grace);
        }
        stopping
    }

    /// Resolves when the output is told to stop.
    pub async fn stopping(&mut self) {
        while !self.is_stopping() {
            if self.stage.changed().await.is_err() {
                // Whoever could tell is gone, and with it the daemon.
                return;
            }
        }
    }

    /// Resolves at the next turn of this life: to false when the output is told to stop, then to true when its grace is
    /// over. Cancelling loses nothing.
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

/// What outputs need besides their settings.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where they read.
    pub journal: Arc<Journal>,
    /// Time zones of the inputs.
    pub zones: Arc<Zones>,
    /// Who is told of a panic.
    pub supervisor: Supervisor,
    /// How long a stopping output may go on to finish.
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

/// One running output.
#[derive(Debug)]
pub struct Output {
    settings: config::Output,
    stage: watch::Sender<Stage>,
    task: JoinHandle<()>,
}

impl Output {
    /// Starts delivering from the cursor of this name.
    #[must_use]
    pub fn start(settings: config::Output, metrics: Arc<OutputMetrics>, context: &Context) -> Output {
        let cursor = context.journal.cursor(&settings.name);
        let reader = context.journal.reader(cursor.mark().position);
        let feed = Feed::new(reader, cursor.clone(), metrics);
        let stage = watch::Sender::new(Stage::Serving);
        let life = Life { name: settings.name.clone(), stage: stage.subscribe(), grace: context.grace, ends: None };
        let filter = Filter::new(settings.matches.clone());
        let backoff = Backoff::new(settings.retry.clone(), fastrand::u64(..));
        let encoder = |format: Format, delimiter| Encoder {
            format,
            delimiter,
            journal: context.journal.id().clone(),
            zones: context.zones.clone(),
        };
        let name = format!("output {}", settings.name);
        let to = match &settings.kind {
            OutputKind::Syslog(syslog) => syslog.to.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            OutputKind::Forward(forward) => forward.to.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            OutputKind::File(file) => file.path.to_string(),
            OutputKind::Stdout(_) => "stdout".to_owned(),
        };
        let start = cursor.mark();
        let behind = context.journal.progress().durable.messages_since(start);
        tracing::info!(output = settings.name, to, from = %start.position, undelivered = behind, "delivering");
        let sink = match &settings.kind {
            OutputKind::Syslog(syslog) if syslog.to[0].protocol.is_stream() => {
                let protocol = syslog.to[0].protocol;
                let encoder = encoder(syslog.format.into(), Delimiter::of(syslog.framing, protocol));
                let stream = Stream {
                    targets: syslog.to.clone(),
                    tls: tls::Client::new(&syslog.tls),
                    framing: syslog.framing,
                    encoder,
                    filter,
                    backoff,
                };
                let task = context.supervisor.spawn(&name, stream.run(feed, life));
                return Output { settings, stage, task };
            }
            OutputKind::Syslog(syslog) => {
                let encoder = encoder(syslog.format.into(), Delimiter::Datagram);
                Sink::Datagram(Datagram::new(syslog.to.clone(), encoder))
            }
            OutputKind::Forward(forward) => {
                let packer = Packer::new(forward, context.journal.id().clone(), filter, context.zones.clone());
                let forward = Forward::new(forward.clone(), packer, &settings.retry);
                let task = context.supervisor.spawn(&name, forward.run(feed, life));
                return Output { settings, stage, task };
            }
            OutputKind::File(file) => Sink::File(File::new(file.clone(), encoder(file.format.into(), Delimiter::Line))),
            OutputKind::Stdout(stdout) => Sink::Stdout(Stdout::new(encoder(stdout.format.into(), Delimiter::Line))),
        };
        let task = context.supervisor.spawn(&name, sink::run(sink, filter, backoff, feed, life));
        Output { settings, stage, task }
    }

    /// The settings it runs with.
    #[must_use]
    pub fn settings(&self) -> &config::Output {
        &self.settings
    }

    /// Tells it to finish what it can and end.
    pub fn stop(&self) {
        self.stage.send_replace(Stage::Stopping);
    }

    /// Waits for its end after [`Output::stop`].
    pub async fn join(self) {
        // A panic was reported to the supervisor.
        let _ = self.task.await;
    }
}
