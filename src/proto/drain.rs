//! The drain: a node hands over, takes nothing more, and ends with everything it held somewhere else.
//!
//! One machine for `drain`, for a stop of the process, and for their ends. It looks at the node, a [`View`] at a time, and
//! says which [`Order`] is due; each stage owns its deadline and its way on.
//!
//! | stage | what happens | it ends when | or at its deadline |
//! | --- | --- | --- | --- |
//! | handing over | the other node takes the addresses, then the deliveries | it has both | called off, unless forced or stopping |
//! | quiescing | datagrams are read a moment longer; inputs finish what is on its way to them and end | they have ended | they are ended |
//! | flushing | what the journal holds reaches the other node's disk, and the destinations | all of it has | it stays where it is; the receipt says so |
//! | drained | nothing: it is safe to stop | `undrain` | |
//!
//! The point of no return is the end of handing over; before, calling it off leaves the node as it was.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::position::Mark;

/// How long the other node may take to take over: some master down intervals and the outputs' grace.
const HAND_OVER_MAX: Duration = Duration::from_secs(8);

/// How long datagrams are still read when the other node has the addresses: a neighbour may be late to hear of it.
const LINGER: Duration = Duration::from_secs(1);

/// What a drain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Everything is on the other node; who delivers it is not waited for.
    Handover,
    /// Everything is delivered.
    Empty,
}

/// Where a drain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The other node takes over.
    HandingOver,
    /// Inputs come to their end.
    Quiescing,
    /// The journal empties.
    Flushing,
    /// It is safe to stop.
    Drained,
}

impl Stage {
    /// The name in `status` and in receipts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::HandingOver => "handing_over",
            Stage::Quiescing => "quiescing",
            Stage::Flushing => "flushing",
            Stage::Drained => "drained",
        }
    }
}

/// What the machine looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Whether this node holds the addresses.
    pub holds_addresses: bool,
    /// Whether any of its outputs may be sending.
    pub is_delivering: bool,
    /// Whether the other node is there and holds the addresses.
    pub peer_is_active: bool,
    /// Whether the inputs have ended.
    pub inputs_have_ended: bool,
    /// How far the own journal is.
    pub appended: Mark,
    /// How far of it is safe on the other node.
    pub replicated: Mark,
    /// How far of it is delivered.
    pub delivered: Mark,
    /// Messages of the other node's journals that are neither delivered nor on its disk: it has lost that, or has not said so.
    pub only_here: u64,
}

/// What is to be done, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ask the other node for the addresses.
    HandOver,
    /// Leave the election and the deliveries: the other node has both.
    StepAside,
    /// End the inputs.
    Quiesce,
    /// It is over: everything is somewhere else, or the time is.
    Finish,
    /// It could not be: be again what it was before. The reason is in [`Drain::failure`].
    CallOff,
}

/// What it came to, in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was received is delivered or on the other node.
    ZeroLoss,
    /// So many messages are gone.
    Loss(u64),
    /// It cannot be said; why.
    Unproven(String),
}

/// A drain under way. See the module.
#[derive(Clone, Debug)]
pub struct Drain {
    until: Until,
    forced: bool,
    stage: Stage,
    entered: Instant,
    deadline: Instant,
    /// When each stage began.
    stages: Vec<(Stage, Instant)>,
    /// The own journal's delivered mark at the begin: what the receipt counts from.
    from: Mark,
    failure: Option<&'static str>,
    is_over: bool,
    /// Whether the inputs were told to end.
    quiesces: bool,
    /// What is due before anything else.
    first: Option<Order>,
}

impl Drain {
    /// Begins one that is over at `deadline` at the latest. A node that is not the active one has nothing to hand over.
    /// `forced` goes on without a peer that can take over.
    #[must_use]
    pub fn new(now: Instant, view: &View, until: Until, deadline: Instant, forced: bool) -> Drain {
        Drain {
            until,
            forced,
            stage: Stage::HandingOver,
            entered: now,
            deadline,
            stages: vec![(Stage::HandingOver, now)],
            from: view.delivered,
            failure: None,
            is_over: false,
            quiesces: false,
            first: view.holds_addresses.then_some(Order::HandOver),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether it has come to its end, one way or the other.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Why it was called off.
    #[must_use]
    pub fn failure(&self) -> Option<&'static str> {
        self.failure
    }

    /// When each stage began, in order.
    #[must_use]
    pub fn stages(&self) -> &[(Stage, Instant)] {
        &self.stages
    }

    /// Where the receipt begins to count.
    #[must_use]
    pub fn from(&self) -> Mark {
        self.from
    }

    /// Looks, and says what is due now, in this order.
    pub fn handle(&mut self, now: Instant, view: &View) -> Vec<Order> {
        let mut orders: Vec<Order> = self.first.take().into_iter().collect();
        while !self.is_over
            && let Some(due) = self.step(now, view)
        {
            orders.extend(due);
        }
        orders
    }

    /// The next step and its orders; `None` if there is nothing to do but wait.
    fn step(&mut self, now: Instant, view: &View) -> Option<Vec<Order>> {
        let is_late = now >= self.deadline;
        match self.stage {
            Stage::HandingOver => {
                let handed_over = !view.holds_addresses && view.peer_is_active;
                let is_late = is_late || now.saturating_duration_since(self.entered) >= HAND_OVER_MAX;
                if handed_over || (is_late && self.forced) {
                    self.enter(Stage::Quiescing, now);
                    return Some(vec![Order::StepAside]);
                }
                if is_late {
                    self.failure = Some("the peer did not take over in time");
                    self.is_over = true;
                    return Some(vec![Order::CallOff]);
                }
                None
            }
            Stage::Quiescing if !self.quiesces => {
                let lingered = is_late || now.saturating_duration_since(self.entered) >= LINGER;
                lingered.then(|| {
                    self.quiesces = true;
                    vec![Order::Quiesce]
                })
            }
            Stage::Quiescing => (view.inputs_have_ended || is_late).then(|| {
                self.enter(Stage::Flushing, now);
                Vec::new()
            }),
            Stage::Flushing => {
                let everywhere = match self.until {
                    Until::Handover => view.replicated >= view.appended || view.delivered >= view.appended,
                    Until::Empty => view.delivered >= view.appended,
                };
                ((everywhere && view.only_here == 0 && !view.is_delivering_alone()) || is_late).then(|| {
                    self.enter(Stage::Drained, now);
                    self.is_over = true;
                    vec![Order::Finish]
                })
            }
            Stage::Drained => None,
        }
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.entered = now;
        self.stages.push((stage, now));
    }
}

impl View {
    /// Whether this node's outputs still send although the other one should.
    fn is_delivering_alone(&self) -> bool {
        self.is_delivering && self.peer_is_active
    }
}

/// What a drain came to: counts of the own journal from `from` on, and of what the kernel dropped in the meantime.
#[must_use]
pub fn verdict(from: Mark, view: &View, kernel_drops: u64) -> Verdict {
    if kernel_drops > 0 {
        return Verdict::Loss(kernel_drops);
    }
    let elsewhere = view.delivered.max(view.replicated.min(view.appended));
    let here = view.appended.messages_since(elsewhere.max(from)) + view.only_here;
    match here {
        0 => Verdict::ZeroLoss,
        // They are not lost: they are on this node's disk, and nowhere else.
        here => Verdict::Unproven(format!("{here} messages are on this node only")),
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::ZeroLoss => f.write_str("ZERO LOSS"),
            Verdict::Loss(messages) => write!(f, "LOSS {messages}"),
            Verdict::Unproven(why) => write!(f, "UNPROVEN ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::position::Position;

    fn mark(messages: u64) -> Mark {
        Mark { position: Position(messages * 100), ordinal: messages }
    }

    fn active() -> View {
        View { holds_addresses: true, is_delivering: true, appended: mark(9), ..View::default() }
    }

    fn begin(view: &View, until: Until, forced: bool) -> (Drain, Instant) {
        let now = Instant::now();
        (Drain::new(now, view, until, now + Duration::from_secs(60), forced), now)
    }

    #[test]
    fn each_stage_waits_for_what_it_needs() {
        let mut view = active();
        let (mut drain, now) = begin(&view, Until::Empty, false);
        assert_eq!(drain.handle(now, &view), [Order::HandOver]);
        assert_eq!(drain.handle(now, &view), []);
        view = View { holds_addresses: false, peer_is_active: true, ..view };
        assert_eq!(drain.handle(now, &view), [Order::StepAside]);
        assert_eq!(drain.stage(), Stage::Quiescing);
        let now = now + LINGER;
        assert_eq!(drain.handle(now, &view), [Order::Quiesce]);
        view = View { inputs_have_ended: true, is_delivering: false, ..view };
        assert_eq!(drain.handle(now, &view), []);
        assert_eq!(drain.stage(), Stage::Flushing);
        view.replicated = mark(9);
        assert_eq!(drain.handle(now, &view), [], "it is on the other node, and not yet delivered");
        view.delivered = mark(9);
        assert_eq!(drain.handle(now, &view), [Order::Finish]);
        assert!(drain.is_over());
        let stages: Vec<Stage> = drain.stages().iter().map(|(stage, _)| *stage).collect();
        assert_eq!(stages, [Stage::HandingOver, Stage::Quiescing, Stage::Flushing, Stage::Drained]);
    }

    #[test]
    fn until_handover_does_not_wait_for_destinations() {
        let view = View { peer_is_active: true, inputs_have_ended: true, appended: mark(9), ..View::default() };
        let (mut drain, now) = begin(&view, Until::Handover, false);
        assert_eq!(drain.handle(now, &view), [Order::StepAside]);
        assert_eq!(drain.handle(now + LINGER, &view), [Order::Quiesce]);
        assert_eq!(drain.stage(), Stage::Flushing);
        assert_eq!(drain.handle(now + LINGER, &View { replicated: mark(9), ..view }), [Order::Finish]);
    }

    #[test]
    fn a_peer_that_does_not_take_over_leaves_things_as_they_were_unless_forced() {
        let view = active();
        let (mut drain, now) = begin(&view, Until::Empty, false);
        drain.handle(now, &view);
        assert_eq!(drain.handle(now + HAND_OVER_MAX, &view), [Order::CallOff]);
        assert!(drain.is_over() && drain.failure().is_some());
        let (mut drain, now) = begin(&view, Until::Empty, true);
        drain.handle(now, &view);
        assert_eq!(drain.handle(now + HAND_OVER_MAX, &view), [Order::StepAside]);
    }

    #[test]
    fn at_the_deadline_it_is_over_and_says_what_is_only_here() {
        let view = View { peer_is_active: true, appended: mark(9), replicated: mark(4), ..View::default() };
        let (mut drain, now) = begin(&view, Until::Empty, false);
        drain.handle(now, &view);
        let late = now + Duration::from_secs(60);
        assert_eq!(drain.handle(late, &view), [Order::Quiesce, Order::Finish]);
        assert_eq!(verdict(Mark::default(), &view, 0).to_string(), "UNPROVEN (5 messages are on this node only)");
    }

    #[test]
    fn the_verdict_is_never_softer_than_the_counts() {
        let view = View { appended: mark(9), replicated: mark(9), delivered: mark(3), ..View::default() };
        assert_eq!(verdict(mark(2), &view, 0), Verdict::ZeroLoss);
        assert_eq!(verdict(mark(2), &view, 7).to_string(), "LOSS 7");
        let orphaned = View { only_here: 2, ..view };
        assert_eq!(verdict(mark(2), &orphaned, 0), Verdict::Unproven("2 messages are on this node only".to_owned()));
        let nowhere = View { replicated: Mark::default(), ..view };
        assert_eq!(verdict(mark(2), &nowhere, 0), Verdict::Unproven("6 messages are on this node only".to_owned()));
    }
}
