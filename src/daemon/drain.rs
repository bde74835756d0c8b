//! The daemon's side of a drain: it looks for the machine in `proto::drain`, and carries out what that orders.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

use super::Daemon;
use crate::config::HookEvent;
use crate::control::{DrainRefused, DrainReport, DrainWish};
use crate::hooks;
use crate::proto::drain::{self, Drain, Order, Until, Verdict, View, verdict};
use crate::proto::stage::Stage;
use crate::receipt::{Connections, Messages, Receipt, Took};

/// How often a drain looks around.
pub(super) const LOOK: Duration = Duration::from_millis(10);
/// How long a drain may take if nobody says.
const DEADLINE: Duration = Duration::from_secs(600);

/// A drain, from its begin to the `undrain` after it.
pub(super) struct Draining {
    machine: Drain,
    started: (SystemTime, Instant),
    /// The kernel's drops, the refusals and the connections at the begin.
    before: Tally,
    receipt: Option<Receipt>,
}

/// What the inputs have counted.
#[derive(Clone, Debug, Default)]
struct Tally {
    kernel_drops: u64,
    refused: BTreeMap<String, u64>,
    connections: u64,
}

impl Draining {
    /// Whether it wants to look around.
    pub(super) fn is_under_way(&self) -> bool {
        !self.machine.is_over()
    }
}

impl Daemon<'_> {
    /// Begins a drain, or says why that would not be safe.
    pub(super) fn begin_drain(&mut self, wish: DrainWish) -> Result<DrainReport, DrainRefused> {
        if self.draining.is_some() {
            return Ok(self.drain_report());
        }
        let view = self.look();
        if !wish.force
            && let Some(why) = self.unsafe_to_drain(&view)
        {
            return Err(DrainRefused { reason: why });
        }
        let now = Instant::now();
        let deadline = now + wish.deadline.unwrap_or(DEADLINE);
        let machine = Drain::new(now, &view, wish.until.unwrap_or(Until::Empty), deadline, wish.force);
        self.called_off = None;
        tracing::info!(until = ?wish.until, force = wish.force, "drain begins");
        self.record("drain_began", if wish.force { "asked for, forced" } else { "asked for" });
        let started = (SystemTime::now(), now);
        self.draining = Some(Draining { machine, started, before: self.tally(), receipt: None });
        Ok(self.drain_report())
    }

    /// Looks, and does what is due.
    pub(super) async fn step_drain(&mut self) {
        let view = self.look();
        let Some(draining) = &mut self.draining else { return };
        let orders = draining.machine.handle(Instant::now(), &view);
        let (stage, failure) = (draining.machine.stage(), draining.machine.failure());
        self.stage.send_if_modified(|now| std::mem::replace(now, stage.into()) != stage.into());
        for order in orders {
            tracing::info!(?order, stage = stage.as_str(), "drain");
            match order {
                Order::HandOver => self.observed.elected.iter().for_each(|elected| elected.handle.fail_over()),
                Order::StepAside => {
                    self.aside.send_replace(true);
                    if self.partner.as_ref().is_some_and(super::Partner::is_connected) {
                        self.end_deliveries(&[]).await;
                    }
                }
                Order::Quiesce => self.inputs.quiesce(),
                Order::CallOff => {
                    let why = failure.unwrap_or_default();
                    tracing::error!(why, "the drain is called off");
                    self.record("drain_called_off", why);
                    self.aside.send_replace(false);
                    self.stage.send_replace(Stage::Serving);
                    self.draining = None;
                    self.called_off = failure;
                    return;
                }
                Order::Finish => self.finish_drain().await,
            }
        }
    }

    async fn finish_drain(&mut self) {
        let (view, after) = (self.look(), self.tally());
        let node = self.observed.node.to_string();
        let Some(draining) = &mut self.draining else { return };
        let receipt = receipt(&node, draining, &view, &after);
        tracing::info!(verdict = receipt.verdict, id = receipt.id, "drained");
        draining.receipt = Some(receipt.clone());
        self.record("drained", &receipt.verdict);
        if let Some(at_work) = &self.hooks {
            at_work.hooks.tell(hooks::Event::now(HookEvent::Drained, &receipt.verdict));
        }
        let directory = self.current().data_dir.clone();
        let kept = tokio::task::spawn_blocking(move || receipt.keep(&directory)).await;
        if let Ok(Err(error)) = kept {
            tracing::error!(%error, "cannot keep the receipt");
        }
    }

    /// Ends the drained state, or calls a drain off: the node serves again, as a standby.
    pub(super) fn undrain(&mut self) -> Result<(), DrainRefused> {
        let refused = |reason: String| DrainRefused { reason };
        let Some(draining) = self.draining.take() else { return Err(refused("this node is not drained".to_owned())) };
        if draining.machine.stage() >= drain::Stage::Quiescing {
            if !self.inputs.have_ended() {
                self.draining = Some(draining);
                return Err(refused("the inputs are coming to their end; try again in a moment".to_owned()));
            }
            let inputs = super::configured_inputs(&self.current(), &self.observed.metrics);
            let reopened = inputs.map_err(|errors| errors[0].to_string()).and_then(|inputs| {
                self.inputs.clear();
                let opened = self.inputs.bind(&inputs);
                opened.map(|opened| (inputs, opened)).map_err(|errors| errors[0].to_string())
            });
            match reopened {
                Ok((inputs, opened)) => self.apply_inputs(&inputs, opened),
                Err(why) => {
                    self.draining = Some(draining);
                    return Err(refused(why));
                }
            }
        }
        self.aside.send_replace(false);
        self.stage.send_replace(Stage::Serving);
        tracing::info!("not drained any more");
        self.record("undrained", "asked for");
        Ok(())
    }

    /// How the drain stands, or how the last one was called off.
    pub(super) fn drain_report(&self) -> DrainReport {
        let Some(draining) = &self.draining else {
            let failure = self.called_off.map(str::to_owned);
            return DrainReport { is_over: true, failure, ..DrainReport::default() };
        };
        let view = self.look();
        DrainReport {
            stage: Some(draining.machine.stage()),
            is_over: !draining.is_under_way() && draining.receipt.is_some(),
            failure: None,
            seconds: draining.started.1.elapsed().as_secs_f64(),
            left: view.appended.messages_since(view.delivered),
            receipt: draining.receipt.clone(),
        }
    }

    fn unsafe_to_drain(&self, view: &View) -> Option<String> {
        let Some(partner) = &self.partner else {
            return Some("this node has no peer that could take over; --force drains it all the same".to_owned());
        };
        if !partner.is_connected() {
            return Some("there is no link to the peer; --force drains this node all the same".to_owned());
        }
        if view.holds_addresses && !partner.can_take_over() {
            return Some("the peer cannot take over now; see its faults in `twinlog status`, or --force".to_owned());
        }
        let behind = !self.observed.journal.promise().is_whole();
        if behind && view.holds_addresses {
            let lag = view.appended.messages_since(view.replicated);
            return Some(format!("the peer lacks {lag} messages; wait for it, or --force"));
        }
        None
    }

    fn look(&self) -> View {
        let progress = self.observed.journal.progress();
        let partner = self.partner.as_ref();
        View {
            holds_addresses: self.observed.elected.as_ref().is_some_and(|elected| elected.handle.view().vip_held),
            is_delivering: self.outputs.values().any(crate::output::Output::is_delivering),
            peer_is_active: partner.is_some_and(super::Partner::peer_is_active),
            inputs_have_ended: self.inputs.have_ended(),
            appended: progress.appended,
            replicated: self.observed.journal.promise().replicated(),
            delivered: progress.delivered,
            only_here: partner.map_or(0, super::Partner::only_here),
        }
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for input in &self.current().inputs {
            let metrics = self.observed.metrics.input(input.name());
            tally.kernel_drops += metrics.kernel_drops();
            tally.connections += metrics.connections.get().unsigned_abs();
            for (reason, count) in metrics.rejected.get() {
                *tally.refused.entry((*reason).to_owned()).or_default() += count;
            }
        }
        tally
    }
}

impl From<drain::Stage> for Stage {
    fn from(stage: drain::Stage) -> Stage {
        match stage {
            drain::Stage::HandingOver => Stage::HandingOver,
            drain::Stage::Quiescing => Stage::Quiescing,
            drain::Stage::Flushing => Stage::Flushing,
            drain::Stage::Drained => Stage::Drained,
        }
    }
}

fn receipt(node: &str, draining: &Draining, view: &View, after: &Tally) -> Receipt {
    let (started, finished) = (DateTime::<Utc>::from(draining.started.0), Utc::now());
    let from = draining.machine.from();
    let delivered = view.delivered.max(from);
    let elsewhere = view.replicated.min(view.appended).max(delivered);
    let before = &draining.before;
    let refused = after.refused.iter().filter_map(|(reason, count)| {
        let count = count - before.refused.get(reason).copied().unwrap_or_default();
        (count > 0).then(|| (reason.clone(), count))
    });
    let kernel_drops = after.kernel_drops.saturating_sub(before.kernel_drops);
    let verdict = verdict(from, view, kernel_drops);
    let lost = if let Verdict::Loss(lost) = verdict { lost } else { 0 };
    let cut = after.connections;
    Receipt {
        v: 1,
        id: format!("{}-{node}", started.format("%Y%m%dT%H%M%S%3fZ")),
        node: node.to_owned(),
        started: started.to_rfc3339_opts(SecondsFormat::Millis, true),
        finished: finished.to_rfc3339_opts(SecondsFormat::Millis, true),
        verdict: verdict.to_string(),
        lost,
        messages: Messages {
            received: view.appended.messages_since(from),
            delivered: delivered.messages_since(from),
            handed_over: elsewhere.messages_since(delivered),
            refused: refused.collect(),
            kernel_drops,
            repeats_possible: 0,
        },
        connections: Connections { moved: 0, closed: before.connections.saturating_sub(cut), cut },
        stages: took(draining.machine.stages()),
    }
}

/// How long each stage but the last took.
fn took(stages: &[(drain::Stage, Instant)]) -> Vec<Took> {
    let seconds = |from: Instant, to: Instant| (to.duration_since(from).as_secs_f64() * 1e6).round() / 1e6;
    let pairs = stages.iter().zip(stages.iter().skip(1));
    pairs
        .map(|((stage, from), (_, to))| Took { stage: stage.as_str().to_owned(), seconds: seconds(*from, *to) })
        .collect()
}
