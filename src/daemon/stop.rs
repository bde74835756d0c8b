//! The end: a stop is a drain without waiting for destinations, and after it the parts end in written order.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};

use super::drain::Draining;
use super::{Asked, Daemon, HooksAtWork, Signals};
use crate::config::HookEvent;
use crate::hooks;
use crate::journal;
use crate::proto::stage::Stage;

/// A second stop signal within this time of the first says nothing new: `timeout`, for one, signals the process and then its
/// group.
const SAME_WISH: Duration = Duration::from_millis(300);
/// How long a stop waits at its end for the disk with the events file.
const EVENTS_GRACE: Duration = Duration::from_secs(2);
/// How long a stop waits at its end for the commands of hooks.
const HOOKS_GRACE: Duration = Duration::from_secs(5);

/// A stop that somebody asked for, or that a fault made.
pub(super) struct Stop {
    began: Instant,
    deadline: Instant,
    /// The essential task that failed.
    pub(super) fault: Option<String>,
    /// Somebody asked twice.
    hurry: bool,
}

impl Daemon<'_> {
    /// Begins a stop, or hurries the one that is under way.
    pub(super) fn ask_to_stop(&mut self, fault: Option<String>) {
        if let Some(stop) = &mut self.stop {
            stop.hurry |= stop.began.elapsed() >= SAME_WISH;
            return;
        }
        self.systemd.stopping();
        tracing::info!("stopping");
        let began = Instant::now();
        let deadline = began + self.current().drain.stop_deadline;
        self.stop = Some(Stop { began, deadline, fault, hurry: false });
        let priority = self.observed.elected.as_ref().map_or(0, |elected| elected.handle.view().priority);
        if let Some(HooksAtWork { hooks, .. }) = &self.hooks {
            hooks.tell(hooks::Event { priority, ..hooks::Event::now(HookEvent::Stop, "the daemon stops") });
        }
        self.begin_stop(deadline);
    }

    /// Whether the drain of a stop is over: then the parts may end.
    pub(super) fn may_end(&self) -> bool {
        let is_drained = || self.draining.as_ref().is_none_or(|draining: &Draining| draining.look_after().is_none());
        self.stop.as_ref().is_some_and(|stop| stop.hurry || is_drained())
    }

    /// Inputs first, then the journal, then the outputs, each within what is left of the deadline; being asked once more
    /// ends the waiting, never the journal's order.
    pub(super) async fn end(&mut self, signals: &mut Signals) {
        let Some(stop) = self.stop.take() else { return };
        if stop.hurry {
            tracing::warn!("told twice: stopping now");
        } else {
            tokio::select! {
                done = timeout_at(stop.deadline.into(), self.finish()) => if done.is_err() {
                    tracing::warn!("drain.stop_deadline passed: what is not delivered stays in the journal");
                },
                () = asked_again(signals, stop.began) => tracing::warn!("told twice: stopping now"),
            }
        }
        self.returning.iter().for_each(JoinHandle::abort);
        let journal = self.observed.journal.clone();
        let closed = tokio::task::spawn_blocking(move || journal.close(Instant::now()));
        if let Err(error) = closed.await {
            tracing::error!(%error, "cannot close the journal");
        }
        if let Some(election) = self.election.take() {
            election.end().await;
        }
        if let Some(partner) = self.partner.take() {
            partner.end().await;
        }
        if let Some(hooks) = self.hooks.take() {
            hooks.end(HOOKS_GRACE.min(stop.deadline.saturating_duration_since(Instant::now()))).await;
        }
        self.record("stopped", &stop.fault.map_or_else(|| "told to".to_owned(), |task| format!("{task} failed")));
        if let Some((recorder, writer)) = self.events.take() {
            // Only its end is waited for: the last to tell were the election and this.
            drop(recorder);
            let _ = timeout(EVENTS_GRACE, writer).await;
        }
        self.control.abort();
        self.attendance.abort();
        self.admin.iter().for_each(JoinHandle::abort);
        // Whoever asks from now on shall hear "not running", not "connection refused".
        let _ = std::fs::remove_file(&self.current().control_socket);
        let progress = self.observed.journal.progress();
        let left = progress.durable.messages_since(progress.delivered);
        tracing::info!(undelivered = left, "stopped");
    }

    /// What the drain has left: the last of the inputs, and what outputs have in flight.
    async fn finish(&mut self) {
        self.inputs.quiesce();
        self.inputs.join().await;
        let taken = self.observed.journal.progress().appended;
        let mut state = self.observed.journal.state();
        let mut durable = self.observed.journal.appender().durable();
        tokio::select! {
            // Both senders live in the journal.
            _ = durable.wait_for(|durable| *durable >= taken) => {}
            _ = state.wait_for(|state| matches!(state, journal::State::Poisoned(_))) => {}
        }
        self.stage.send_replace(Stage::Stopping);
        for output in self.outputs.values() {
            output.stop();
        }
        for mut output in std::mem::take(&mut self.outputs).into_values() {
            output.join(&[]).await;
        }
    }
}

/// Resolves when a stop is asked for once more.
async fn asked_again(signals: &mut Signals, began: Instant) {
    while signals.next().await != Asked::Stop || began.elapsed() < SAME_WISH {}
}
