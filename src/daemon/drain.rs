//! The daemon's side of a drain: it looks for the machine in `proto::drain`, and carries out what that orders.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::Daemon;
use super::moves::Leaving;
use crate::config::HookEvent;
use crate::control::{DrainRefused, DrainReport, DrainWish, FailOverRefused, Unmoved};
use crate::hooks;
use crate::input::Phase;
use crate::journal;
use crate::proto::drain::{self, Drain, LINGER, Order, Until, Verdict, View, Wish, verdict};
use crate::proto::position::Mark;
use crate::proto::stage::Stage;
use crate::receipt::{Connections, Messages, Receipt, Took};

/// How often a drain looks around.
const LOOK: Duration = Duration::from_millis(10);
/// The same while it hands over: clients wait.
const LOOK_SHARPLY: Duration = Duration::from_millis(2);
/// How long a drain may take if nobody says.
const DEADLINE: Duration = Duration::from_secs(600);

/// A drain, from its begin to the `undrain` after it.
pub(super) struct Draining {
    machine: Drain,
    started: (SystemTime, Instant),
    /// The kernel's drops, the refusals and the connections at the begin.
    before: Tally,
    pub(super) leaving: Leaving,
    receipt: Option<Receipt>,
    /// Who waits for a hand-over.
    reply: Option<Reply>,
}

/// Who asked for a hand-over gets its outcome here.
type Reply = oneshot::Sender<Result<(), FailOverRefused>>;

/// What the inputs have counted.
#[derive(Clone, Debug, Default)]
struct Tally {
    kernel_drops: u64,
    refused: BTreeMap<String, u64>,
    connections: u64,
    cut: u64,
}

impl Draining {
    /// When it wants to look around.
    pub(super) fn look_after(&self) -> Option<Duration> {
        let sharply = self.machine.stage() == drain::Stage::HandingOver;
        (!self.machine.is_over()).then_some(if sharply { LOOK_SHARPLY } else { LOOK })
    }

    /// Makes a stop of it.
    pub(super) fn hurry(&mut self, deadline: Instant) {
        self.machine.hurry(deadline);
    }
}

impl Daemon<'_> {
    /// Begins a drain, or says why that would not be safe.
    pub(super) fn begin_drain(&mut self, wish: DrainWish) -> Result<DrainReport, DrainRefused> {
        let refused = |reason: String| Err(DrainRefused { reason });
        match &self.draining {
            Some(draining) if draining.machine.until() == Until::Standby => {
                return refused("a failover is under way; try again in a moment".to_owned());
            }
            Some(_) => return Ok(self.drain_report()),
            None => {}
        }
        if !wish.force
            && let Some(why) = self.unsafe_to_drain(&self.look())
        {
            return refused(why);
        }
        let deadline = Instant::now() + wish.deadline.unwrap_or(DEADLINE);
        self.called_off = None;
        tracing::info!(until = ?wish.until, force = wish.force, "drain begins");
        self.record("drain_began", if wish.force { "asked for, forced" } else { "asked for" });
        self.begin(wish.until.unwrap_or(Until::Empty), deadline, wish.force, None);
        Ok(self.drain_report())
    }

    /// Begins a hand-over after which this node goes on as standby, or says why not.
    pub(super) fn begin_fail_over(&mut self, force: bool, reply: Reply) {
        let refused = |why, reason: String| Err(FailOverRefused { why, reason });
        let outcome = match &self.observed.elected {
            None => refused(Unmoved::NotActive, "this node has no [pair]".to_owned()),
            Some(elected) if !elected.handle.view().vip_held => {
                refused(Unmoved::NotActive, "this node is not the active one".to_owned())
            }
            Some(_) if self.draining.is_some() => refused(Unmoved::Busy, "a drain is under way".to_owned()),
            Some(elected) if !force && !elected.handle.view().peer_answers => {
                let peer = &elected.pair.peer_node().name;
                refused(Unmoved::Unsafe, format!("{peer} does not answer; --force asks it all the same"))
            }
            Some(_) => match self.unsafe_to_drain(&self.look()).filter(|_| !force) {
                Some(why) => refused(Unmoved::Unsafe, why),
                None => Ok(()),
            },
        };
        match outcome {
            Ok(()) => self.begin(Until::Standby, Instant::now() + DEADLINE, force, Some(reply)),
            // Whoever asked may have left.
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    /// Begins the drain that a stop is, or makes one of what is under way.
    pub(super) fn begin_stop(&mut self, deadline: Instant) {
        match &mut self.draining {
            Some(draining) => draining.hurry(deadline),
            None => self.begin(Until::Handover, deadline, true, None),
        }
    }

    fn begin(&mut self, until: Until, deadline: Instant, forced: bool, reply: Option<Reply>) {
        let (now, view) = (Instant::now(), self.look());
        let wish = Wish { until, deadline, forced, grace: self.current().drain.grace };
        let leaving = self.moves.begin();
        let (machine, started) = (Drain::new(now, &view, wish), (SystemTime::now(), now));
        self.draining = Some(Draining { machine, started, before: self.tally(), leaving, receipt: None, reply });
    }

    /// Looks, and does what is due.
    pub(super) async fn step_drain(&mut self) {
        self.tell_of_held();
        let view = self.look();
        let Some(draining) = &mut self.draining else { return };
        let orders = draining.machine.handle(Instant::now(), &view);
        self.show_stage();
        self.carry_out(orders).await;
    }

    fn show_stage(&self) {
        let Some(draining) = &self.draining else { return };
        let stage = match draining.machine.stage() {
            drain::Stage::Drained if self.stop.is_some() => Stage::Stopping,
            stage => stage.into(),
        };
        self.stage.send_if_modified(|now| std::mem::replace(now, stage) != stage);
    }

    async fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            tracing::info!(?order, "drain");
            match order {
                Order::Ask => self.ask_the_peer(),
                Order::EndConnections { all } => self.moves.departures.want(Phase::End { all }),
                Order::Hold => self.moves.departures.want(Phase::Hold),
                Order::Tell => self.tell_of_all(),
                Order::HandOver => self.observed.elected.iter().for_each(|elected| elected.handle.fail_over()),
                Order::LetGo => self.let_go(),
                Order::TakeBack => self.take_back(),
                Order::StepAside => {
                    self.aside.send_replace(true);
                    if self.partner.as_ref().is_some_and(super::Partner::is_connected) {
                        self.end_deliveries(&[]).await;
                    }
                }
                Order::Quiesce => self.inputs.quiesce(),
                Order::Resume | Order::CallOff => self.end_without_receipt(order),
                Order::Finish => self.finish_drain().await,
            }
        }
    }

    /// The other node has the addresses, and this one serves on; or it could not be.
    fn end_without_receipt(&mut self, order: Order) {
        let Some(Draining { machine, reply, .. }) = self.draining.take() else { return };
        let outcome = if order == Order::Resume {
            self.listen_again_soon();
            Ok(())
        } else {
            let why = machine.failure().unwrap_or_default();
            tracing::warn!(why, "the hand-over is called off");
            if machine.until() != Until::Standby {
                self.record("drain_called_off", why);
                self.called_off = machine.failure();
            }
            self.aside.send_replace(false);
            let reason = format!("{why}; this node goes on");
            Err(FailOverRefused { why: Unmoved::NobodyTookOver, reason })
        };
        self.stage.send_replace(Stage::Serving);
        // Whoever asked may have left.
        let _ = reply.map(|reply| reply.send(outcome));
    }

    /// Has the listeners hear again once nobody sends here what belongs to connections that moved.
    fn listen_again_soon(&self) {
        let departures = self.moves.departures.clone();
        // Bounded in time; nobody needs to wait for it.
        drop(tokio::spawn(async move {
            sleep(LINGER).await;
            if departures.phase() == Phase::Gone {
                departures.want(Phase::Stay);
            }
        }));
    }

    async fn finish_drain(&mut self) {
        if self.partner.is_none() && self.stop.is_some() {
            // Nobody is there to whom anything could be handed over: what is not delivered stays, as always.
            return;
        }
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
    pub(super) async fn undrain(&mut self) -> Result<(), DrainRefused> {
        let refused = |reason: &str| Err(DrainRefused { reason: reason.to_owned() });
        if self.stop.is_some() {
            return refused("the daemon stops");
        }
        let Some(draining) = &mut self.draining else { return refused("this node is not drained") };
        if draining.machine.stage() == drain::Stage::HandingOver {
            let Some(orders) = draining.machine.call_off() else {
                return refused("the addresses are on their way to the peer; try again in a moment");
            };
            self.carry_out(orders).await;
            return Ok(());
        }
        if !self.inputs.have_ended() {
            return refused("the inputs are coming to their end; try again in a moment");
        }
        let inputs = super::configured_inputs(&self.current(), &self.observed.metrics);
        let reopened = inputs.map_err(|errors| errors[0].to_string()).and_then(|inputs| {
            self.inputs.clear();
            self.moves.departures.want(Phase::Stay);
            let opened = self.inputs.bind(&inputs);
            opened.map(|opened| (inputs, opened)).map_err(|errors| errors[0].to_string())
        });
        match reopened {
            Ok((inputs, opened)) => self.apply_inputs(&inputs, opened),
            Err(why) => return refused(&why),
        }
        self.draining = None;
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
            is_over: draining.machine.is_over() && draining.receipt.is_some(),
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
            return Some("there is no link to the peer; --force goes on all the same".to_owned());
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
        let elected = self.observed.elected.as_ref().map(|elected| elected.handle.view()).unwrap_or_default();
        let leaving = self.draining.as_ref().map(|draining| &draining.leaving);
        let is_poisoned = matches!(*self.observed.journal.state().borrow(), journal::State::Poisoned(_));
        let connections = self.moves.departures.count();
        View {
            holds_addresses: elected.vip_held,
            is_giving_away: elected.is_handing_over,
            is_delivering: self.outputs.values().any(crate::output::Output::is_delivering),
            peer_is_there: partner.is_some_and(super::Partner::is_connected),
            peer_is_active: partner.is_some_and(super::Partner::peer_is_active),
            peer_takes: leaving.and_then(|leaving| leaving.peer_takes),
            // Those that it could not rebuild are no longer held, but come to their end.
            peer_has: leaving.and_then(|leaving| leaving.peer_has.filter(|_| connections.held <= leaving.held.len())),
            connections,
            inputs_have_ended: self.inputs.have_ended(),
            appended: progress.appended,
            end: match is_poisoned {
                // Of a journal that is adrift nothing more is mirrored or delivered.
                _ if self.is_adrift => Mark::default(),
                true => progress.durable,
                false => progress.appended,
            },
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
            tally.cut += metrics.connections_cut.get();
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
    // Those that have not ended are with the process.
    let cut = after.cut.saturating_sub(before.cut) + after.connections;
    let moved = draining.leaving.moved;
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
        connections: Connections { moved, closed: before.connections.saturating_sub(moved + cut), cut },
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
