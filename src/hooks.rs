//! `[[hook]]`: commands that are run when something happened.
//!
//! Whoever knows that something happened says so with [`Hooks::tell`], which neither waits nor fails: a queue of
//! [`QUEUE_EVENTS`] stands between it and the thread that runs the commands, one after the other, so that a script sees
//! events in their order. What does not fit is counted and logged. Nothing on the way of a failover waits for a hook.
//!
//! A thread of its own, because the ambient capabilities that it clears are the thread's, and what it starts inherits
//! them. So nothing needs to be done between fork and exec, and the daemon, however large, is never copied.
//!
//! A command gets no shell, its own process group, our environment and working directory, our standard error, and no
//! standard output: the daemon's may carry messages. After its `timeout` the whole group is killed.
//!
//! [`watch()`] tells what a node on its own can see: faults, gaps, reloads. A role's changes are told by the
//! daemon's side of the election, the stop by the daemon.

use std::collections::BTreeSet;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{interval, timeout};

use crate::config::{Choice, Config, Hook, HookEvent, HookStyle, UnsafeCommand, check_command};
use crate::metrics::Metrics;
use crate::status::{LastReload, Observed};
use crate::sys::{capabilities, notify};

/// Events that wait for the commands of earlier ones.
pub const QUEUE_EVENTS: usize = 32;

/// How often counters are looked at that nobody announces.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: HookEvent,
    /// When.
    pub at: SystemTime,
    /// Why, in words for an operator.
    pub cause: String,
    /// The node's priority in the election at that time; 0 without one. Commands in keepalived's style are told.
    pub priority: u8,
}

impl Event {
    /// Something that happened just now on a node without an election.
    #[must_use]
    pub fn now(kind: HookEvent, cause: impl Into<String>) -> Event {
        Event { kind, at: SystemTime::now(), cause: cause.into(), priority: 0 }
    }
}

/// Where to tell events. Clones tell the same queue; when the last one is gone, what is queued is still run.
#[derive(Clone, Debug)]
pub struct Hooks {
    queue: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
}

/// The thread that runs the commands. Dropped, it kills the command that runs and leaves out those that wait.
#[derive(Debug)]
pub struct Runner {
    finished: oneshot::Receiver<()>,
    /// Never used: that it is gone is what the thread hears.
    _gone: oneshot::Sender<()>,
}

impl Hooks {
    /// Starts the thread. It runs the hooks of the configuration that is in force at the time of each event.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(config: watch::Receiver<Arc<Config>>, metrics: Arc<Metrics>) -> io::Result<(Hooks, Runner)> {
        let (queue, events) = mpsc::channel(QUEUE_EVENTS);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let counted = metrics.clone();
        let (finish, finished) = oneshot::channel();
        let (_gone, gone) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = run(events, config, &counted) => {}
                    _ = gone => {}
                }
            });
            // Whoever waited may have left.
            let _ = finish.send(());
        };
        thread::Builder::new().name("hooks".to_owned()).spawn(run)?;
        Ok((Hooks { queue, metrics }, Runner { finished, _gone }))
    }

    /// Tells that something happened. Never waits; may be called from any thread.
    pub fn tell(&self, event: Event) {
        let kind = event.kind.word();
        if self.queue.try_send(event).is_err() {
            self.metrics.hook_ran(kind, "dropped");
            tracing::warn!(event = kind, "no hook runs for it: {QUEUE_EVENTS} events wait for earlier ones");
        }
    }
}

impl Runner {
    /// Waits until what is queued has been run, for `limit` at most; then the command that runs is killed. Only when
    /// every [`Hooks`] is gone can there be an end.
    pub async fn finish(mut self, limit: Duration) {
        if timeout(limit, &mut self.finished).await.is_err() {
            tracing::warn!("stopping without waiting longer for hooks");
        }
    }
}

async fn run(mut events: mpsc::Receiver<Event>, config: watch::Receiver<Arc<Config>>, metrics: &Metrics) {
    if let Err(error) = capabilities::stop_passing_on() {
        tracing::error!(%error, "hooks are off: their commands would inherit the daemon's capabilities");
        return;
    }
    while let Some(event) = events.recv().await {
        let config = config.borrow().clone();
        for hook in config.hooks.iter().filter(|hook| hook.on.contains(&event.kind)) {
            let outcome = run_one(hook, &event, config.node.as_str()).await;
            log(hook, &event, &outcome);
            metrics.hook_ran(event.kind.word(), result(&outcome));
        }
    }
}

/// How a run ended that did not end well.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Unsafe(#[from] UnsafeCommand),
    #[error("cannot run it: {0}")]
    Start(io::Error),
    #[error("it ended with {0}")]
    Status(ExitStatus),
    #[error("it took longer than {0:?} and was killed, with all that it had started")]
    Timeout(Duration),
}

/// The label of the outcome in `twinlog_hook_runs_total`.
fn result(outcome: &Result<(), Failure>) -> &'static str {
    match outcome {
        Ok(()) => "ok",
        Err(Failure::Unsafe(_)) => "refused",
        Err(Failure::Start(_)) => "not_started",
        Err(Failure::Status(_)) => "failed",
        Err(Failure::Timeout(_)) => "timeout",
    }
}

fn log(hook: &Hook, event: &Event, outcome: &Result<(), Failure>) {
    let (command, event) = (hook.program().display(), event.kind.word());
    match outcome {
        Ok(()) => tracing::debug!(%command, event, "hook run"),
        Err(error) => tracing::warn!(%command, event, %error, "hook failed"),
    }
}

async fn run_one(hook: &Hook, event: &Event, node: &str) -> Result<(), Failure> {
    // Each time: it may have been exchanged since the start.
    check_command(hook.program())?;
    let mut command = Command::new(hook.program());
    // What it would say to the service manager, that would take for our word.
    for name in notify::VARIABLES {
        command.env_remove(name);
    }
    command.args(&hook.command[1..]).process_group(0).kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::inherit());
    let input = match hook.style {
        HookStyle::Json => message(event, node),
        HookStyle::Keepalived => {
            let state = event.kind.keepalived_state().expect("others were refused with the configuration");
            command.args(["INSTANCE", &hook.instance, state, &event.priority.to_string()]);
            String::new()
        }
    };
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(Failure::Start)?;
    let group = Group::of(&child);
    let ended = timeout(hook.timeout, feed_and_wait(&mut child, &input)).await;
    let Ok(ended) = ended else {
        drop(group);
        let _ = child.wait().await;
        return Err(Failure::Timeout(hook.timeout));
    };
    // What it has left running on purpose may go on.
    group.release();
    match ended.map_err(Failure::Start)? {
        status if status.success() => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

/// A command and all that it has started; dropped, they are killed.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Group {
        Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its first process was not waited for yet, so that the number is still that of the group.
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// A command that reads nothing, or ends before it has read all, is as good as any.
async fn feed_and_wait(child: &mut Child, input: &str) -> io::Result<ExitStatus> {
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait().await
}

/// What a command of [`HookStyle::Json`] reads.
fn message(event: &Event, node: &str) -> String {
    let Event { kind, at, cause, priority } = event;
    let time = DateTime::<Utc>::from(*at).to_rfc3339_opts(SecondsFormat::Millis, true);
    let message = json!({
        "v": 1, "event": kind.word(), "time": time, "node": node, "cause": cause, "priority": priority,
    });
    format!("{message}\n")
}

/// Tells what can be seen of a node from outside: new faults and their end, lost messages, reloads. Until it is dropped.
pub async fn watch(observed: Arc<Observed>, hooks: Hooks) {
    let mut reload = observed.reload.clone();
    reload.mark_unchanged();
    let mut seen = Seen { faults: BTreeSet::new(), losses: losses(&observed) };
    let mut clock = interval(LOOK_EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Ok(()) = reload.changed() => hooks.tell(reloaded(*reload.borrow_and_update())),
            _ = clock.tick() => {
                seen.look(&observed.faults(), losses(&observed)).into_iter().for_each(|event| hooks.tell(event));
            }
        }
    }
}

fn reloaded(reload: LastReload) -> Event {
    let cause = if reload.successful { "configuration applied" } else { "configuration refused, the old one stays" };
    Event { at: reload.at, ..Event::now(HookEvent::Reload, cause) }
}

/// What the journal has lost since the start: how much of what.
type Losses = [(u64, &'static str); 3];

fn losses(observed: &Observed) -> Losses {
    let counters = observed.journal.counters();
    [
        (counters.dropped_messages.get(), "message dropped: the journal was full"),
        (counters.abandoned_messages.get(), "message that could not be written"),
        (counters.checksum_errors.get(), "damaged stretch of the journal"),
    ]
}

/// What was seen at the last look.
struct Seen {
    /// Without their digits: a fault that says for how long is the same one.
    faults: BTreeSet<String>,
    losses: Losses,
}

impl Seen {
    fn look(&mut self, faults: &[String], losses: Losses) -> Vec<Event> {
        let mut events = Vec::new();
        let kind = |fault: &String| fault.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        let new: Vec<&str> =
            faults.iter().filter(|fault| !self.faults.contains(&kind(fault))).map(String::as_str).collect();
        if !new.is_empty() {
            events.push(Event::now(HookEvent::Fault, new.join("; ")));
        } else if faults.is_empty() && !self.faults.is_empty() {
            events.push(Event::now(HookEvent::Recovered, "nothing is wrong any more"));
        }
        let more = losses.iter().zip(&self.losses).filter(|((now, _), (before, _))| now > before);
        let more: Vec<String> = more.map(|((now, what), (before, _))| format!("{} × {what}", now - before)).collect();
        if !more.is_empty() {
            events.push(Event::now(HookEvent::Gap, more.join("; ")));
        }
        *self = Seen { faults: faults.iter().map(kind).collect(), losses };
        events
    }
}

#[cfg(test)]
#[path = "hooks/tests.rs"]
mod tests;
