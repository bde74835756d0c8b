//! The drain: a node hands over, takes nothing more, and ends with everything it held somewhere else.
//!
//! One machine for `drain`, for `failover`, for a stop of the process, and for their ends. It looks at the node, a [`View`]
//! at a time, and says which [`Order`]s are due; each stage owns its deadline and its way on.
//!
//! | stage | what happens | it ends when | or at its deadline |
//! | --- | --- | --- | --- |
//! | handing over | the other node takes the connections, the addresses, then the deliveries | it has them | called off, unless forced |
//! | quiescing | datagrams are read a moment longer; inputs finish what is on its way to them and end | they have ended | they are ended; called off before, unless forced, if the other node is lost |
//! | flushing | what the journal holds reaches the other node's disk, and the destinations | all of it has | it stays where it is; the receipt says so |
//! | drained | nothing: it is safe to stop | `undrain` | |
//!
//! Handing over has steps of its own, because no client of the addresses may meet the other node's kernel before that knows
//! of its connection:
//!
//! | step | order | it ends when | or else |
//! | --- | --- | --- | --- |
//! | asking | [`Order::Ask`] | the other node takes live connections, or says why not, or not in time | none moves: all end |
//! | ending | [`Order::EndConnections`] | those that cannot move are answered, closed and gone | after their grace they are cut |
//! | holding | [`Order::Hold`] | the others are still, and the other node was told of each | taken back, and all end |
//! | telling | [`Order::Tell`] | the other node has rebuilt them | taken back, and all end |
//! | moving | [`Order::HandOver`] | the other node has the addresses: [`Order::LetGo`] | taken back; called off, unless forced |
//!
//! Unless it is forced, the loss of the other node calls it off at once: there is nobody for whom connections should end.
//! The point of no return is the end of the inputs; before, calling it off leaves the node as it was, or in the election
//! again.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::position::Mark;

/// How long the other node may take to take over: some master down intervals and the outputs' grace.
const HAND_OVER_MAX: Duration = Duration::from_secs(8);
/// How long it may take to answer: it only has to ask its kernel, and to rebuild what it was told; 10 000 connections take
/// 0.1 s.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// Handshakes that are under way when a listener goes deaf are through after 2 ms, measured.
const SETTLE: Duration = Duration::from_millis(3);
/// How long connections are held before the addresses move without waiting for the last one: clients notice 200 ms.
const HOLD_MAX: Duration = Duration::from_millis(500);
/// How long a connection that could not be rebuilt may take to end while the others are held.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long connections that end may take beyond their grace, which they keep themselves.
pub const ENDING_MORE: Duration = Duration::from_secs(1);
/// How long a neighbour may be late to hear that the other node has the addresses: datagrams are still read, and what comes
/// for a connection that moved is swallowed.
pub const LINGER: Duration = Duration::from_secs(1);

/// What a drain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The other node is the active one; this one goes on as standby.
    Standby,
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

/// The connections that were made to the addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those that come to their end.
    pub ending: usize,
    /// Those that could move and are not held yet.
    pub staying: usize,
    /// Those that are held still; the other node was told of them.
    pub held: usize,
    /// Whether every listener has done what was last ordered.
    pub listeners_obeyed: bool,
}

/// What the machine looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Whether this node holds the addresses.
    pub holds_addresses: bool,
    /// Whether the election is giving them away.
    pub is_giving_away: bool,
    /// Whether any of its outputs may be sending.
    pub is_delivering: bool,
    /// Whether the nodes talk.
    pub peer_is_there: bool,
    /// Whether the other node is there and holds the addresses.
    pub peer_is_active: bool,
    /// Whether the other node takes live connections, as soon as it says so.
    pub peer_takes: Option<bool>,
    /// Whether it has rebuilt those that it was told of, as soon as it says so.
    pub peer_has: Option<bool>,
    /// The connections to the addresses.
    pub connections: Connections,
    /// Whether the inputs have ended.
    pub inputs_have_ended: bool,
    /// How far the own journal is.
    pub appended: Mark,
    /// How far it can ever be somewhere else: all of it, or what is durable of one that failed.
    pub end: Mark,
    /// How far of it is safe on the other node.
    pub replicated: Mark,
    /// How far of it is delivered.
    pub delivered: Mark,
    /// Messages of the other node's journals that are neither delivered nor on its disk: it has lost that, or has not said
    /// so.
    pub only_here: u64,
}

/// What is to be done, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ask the other node whether it takes live connections.
    Ask,
    /// Hear no new connection to the addresses, and end the connections to them: `all`, or those that cannot move.
    EndConnections {
        /// Whether none is to move.
        all: bool,
    },
    /// Hold the other connections still, and tell the other node of each.
    Hold,
    /// Say that it was told of all.
    Tell,
    /// Ask the other node for the addresses.
    HandOver,
    /// Drop the connections that the other node has now.
    LetGo,
    /// Go on with the connections that were held, hear new ones.
    TakeBack,
    /// Leave the election and the deliveries: the other node has both.
    StepAside,
    /// End the inputs.
    Quiesce,
    /// It is over: everything is somewhere else, or the time is.
    Finish,
    /// It is over, and this node goes on as standby.
    Resume,
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

/// What somebody wants of a drain.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What it is for.
    pub until: Until,
    /// When it is over at the latest.
    pub deadline: Instant,
    /// Whether it goes on without a peer that can take over.
    pub forced: bool,
    /// How long a connection that ends may go on.
    pub grace: Duration,
}

/// The steps of handing over. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Asking,
    Ending,
    Holding,
    Telling,
    Moving,
}

/// A drain under way. See the module.
#[derive(Clone, Debug)]
pub struct Drain {
    wish: Wish,
    stage: Stage,
    step: Step,
    /// When the step, or the stage after the last one, began.
    since: Instant,
    /// When each stage began.
    stages: Vec<(Stage, Instant)>,
    /// The own journal's delivered mark at the begin: what the receipt counts from.
    from: Mark,
    failure: Option<&'static str>,
    is_over: bool,
    /// Whether connections are to move.
    moves: bool,
    /// Whether the node had the addresses to give.
    had_addresses: bool,
    /// Whether the election has begun to give them away.
    gives_away: bool,
    /// Whether the nodes talked when it began.
    had_peer: bool,
    /// Whether it has left the election and the deliveries.
    aside: bool,
    /// Whether the inputs were told to end.
    quiesces: bool,
    /// What is due before anything else.
    first: Option<Order>,
}

impl Drain {
    /// Begins one. A node that does not hold the addresses has nothing to hand over.
    #[must_use]
    pub fn new(now: Instant, view: &View, wish: Wish) -> Drain {
        let (step, first) = if view.holds_addresses { (Step::Asking, Some(Order::Ask)) } else { (Step::Moving, None) };
        Drain {
            wish,
            stage: Stage::HandingOver,
            step,
            since: now,
            stages: vec![(Stage::HandingOver, now)],
            from: view.delivered,
            failure: None,
            is_over: false,
            moves: false,
            had_addresses: view.holds_addresses,
            gives_away: false,
            had_peer: view.peer_is_there,
            aside: false,
            quiesces: false,
            first,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What it is for.
    #[must_use]
    pub fn until(&self) -> Until {
        self.wish.until
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

    /// Makes a stop of it: it goes on without a peer, and no further than to the other node.
    pub fn hurry(&mut self, deadline: Instant) {
        let deadline = self.wish.deadline.min(deadline);
        self.wish = Wish { until: Until::Handover, deadline, forced: true, ..self.wish };
    }

    /// Calls it off: what is due then; `None` if it is too late, because the addresses may be on their way or inputs have
    /// ended.
    pub fn call_off(&mut self) -> Option<Vec<Order>> {
        let can = self.stage == Stage::HandingOver && (self.step != Step::Moving || !self.had_addresses);
        can.then(|| self.give_up("called off by undrain"))
    }

    /// Looks, and says what is due now, in this order.
    pub fn handle(&mut self, now: Instant, view: &View) -> Vec<Order> {
        let mut orders: Vec<Order> = self.first.take().into_iter().collect();
        while !self.is_over
            && let Some(due) = self.next(now, view)
        {
            orders.extend(due);
        }
        orders
    }

    /// The next orders; `None` if there is nothing to do but wait.
    fn next(&mut self, now: Instant, view: &View) -> Option<Vec<Order>> {
        let is_late = now >= self.wish.deadline;
        let waited = now.saturating_duration_since(self.since);
        match self.stage {
            Stage::HandingOver => self.hand_over(now, view, is_late, waited),
            Stage::Quiescing if !self.quiesces && self.had_addresses && !self.wish.forced && !view.peer_is_active => {
                Some(self.give_up("the peer was lost when it had taken over"))
            }
            Stage::Quiescing if !self.quiesces => {
                // Nobody was late to hear of addresses that have not moved.
                let lingered = is_late || waited >= LINGER || !(self.had_addresses && self.aside);
                lingered.then(|| {
                    self.quiesces = true;
                    vec![Order::Quiesce]
                })
            }
            Stage::Quiescing => (view.inputs_have_ended || is_late).then(|| {
                self.enter(Stage::Flushing, now);
                self.step_aside()
            }),
            Stage::Flushing => ((self.is_empty(view) && !view.is_delivering_alone()) || is_late).then(|| {
                self.enter(Stage::Drained, now);
                self.is_over = true;
                vec![Order::Finish]
            }),
            Stage::Drained => None,
        }
    }

    fn hand_over(&mut self, now: Instant, view: &View, is_late: bool, waited: Duration) -> Option<Vec<Order>> {
        let Connections { ending, staying, held, listeners_obeyed } = view.connections;
        if self.step != Step::Moving && !view.peer_is_there && !self.wish.forced {
            return Some(self.give_up("the peer was lost before it had taken over"));
        }
        match self.step {
            Step::Asking => {
                let no_answer = !view.peer_is_there || is_late || waited >= ANSWER_MAX;
                (view.peer_takes.is_some() || no_answer).then(|| {
                    self.moves = view.peer_takes == Some(true) && !no_answer;
                    self.go(Step::Ending, now, vec![Order::EndConnections { all: !self.moves }])
                })
            }
            Step::Ending => {
                let have_ended = listeners_obeyed && ending == 0 && (self.moves || staying == 0) && waited >= SETTLE;
                let enough = is_late || waited >= self.wish.grace + ENDING_MORE;
                (have_ended || enough).then(|| self.go(Step::Holding, now, vec![Order::Hold]))
            }
            Step::Holding if self.moves && !view.peer_is_there => Some(self.end_all(now)),
            Step::Holding => {
                let all = listeners_obeyed && staying == 0 && ending == 0;
                match (all || waited >= HOLD_MAX, held > 0) {
                    (false, _) => None,
                    (true, true) if staying > 0 => Some(self.end_all(now)),
                    (true, true) => Some(self.go(Step::Telling, now, vec![Order::Tell])),
                    (true, false) => Some(self.go(Step::Moving, now, vec![Order::HandOver])),
                }
            }
            Step::Telling => match view.peer_has {
                // What the other node could not rebuild ends meanwhile.
                Some(true) if ending == 0 || waited >= LAST_WORDS => {
                    Some(self.go(Step::Moving, now, vec![Order::HandOver]))
                }
                Some(true) => None,
                None if view.peer_is_there && waited < ANSWER_MAX => None,
                _ => Some(self.end_all(now)),
            },
            Step::Moving => self.move_addresses(now, view, is_late || waited >= HAND_OVER_MAX, waited >= ANSWER_MAX),
        }
    }

    fn move_addresses(&mut self, now: Instant, view: &View, is_late: bool, had_time: bool) -> Option<Vec<Order>> {
        if view.holds_addresses && !self.had_addresses && !is_late {
            // A standby at the begin that became the active one since.
            self.had_addresses = true;
            return Some(self.go(Step::Asking, now, vec![Order::Ask]));
        }
        self.gives_away |= view.is_giving_away;
        // One that takes the addresses and dies may be replaced before anybody saw that they were on their way.
        let is_lost = self.had_peer && !view.peer_is_there && had_time;
        let nobody_came = (self.gives_away || is_lost) && !view.is_giving_away && view.holds_addresses;
        let is_enough = self.wish.forced || self.wish.until == Until::Standby;
        if !view.holds_addresses && (view.peer_is_active || is_enough) {
            let mut orders = if self.had_addresses { vec![Order::LetGo] } else { Vec::new() };
            if self.wish.until == Until::Standby {
                self.is_over = true;
                orders.push(Order::Resume);
            } else {
                self.enter(Stage::Quiescing, now);
                orders.extend(self.step_aside());
            }
            return Some(orders);
        }
        match nobody_came || is_late {
            true if self.wish.forced && self.wish.until != Until::Standby => {
                // With the addresses: connections end before they do.
                self.enter(Stage::Quiescing, now);
                Some(vec![Order::TakeBack])
            }
            true => Some(self.give_up("the peer did not take over in time")),
            false => None,
        }
    }

    /// Connections do not move after all: they go on, and end.
    fn end_all(&mut self, now: Instant) -> Vec<Order> {
        self.moves = false;
        self.go(Step::Ending, now, vec![Order::TakeBack, Order::EndConnections { all: true }])
    }

    fn give_up(&mut self, why: &'static str) -> Vec<Order> {
        self.failure = Some(why);
        self.is_over = true;
        vec![Order::TakeBack, Order::CallOff]
    }

    fn step_aside(&mut self) -> Vec<Order> {
        if std::mem::replace(&mut self.aside, true) { Vec::new() } else { vec![Order::StepAside] }
    }

    fn go(&mut self, step: Step, now: Instant, orders: Vec<Order>) -> Vec<Order> {
        self.step = step;
        self.since = now;
        orders
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.since = now;
        self.stages.push((stage, now));
    }

    /// Whether everything is where it is wanted.
    fn is_empty(&self, view: &View) -> bool {
        let is_delivered = view.delivered >= view.end;
        let is_elsewhere = is_delivered || view.replicated >= view.end;
        // Forced, with nobody to give it to, it stays here.
        let has_nobody = self.wish.forced && !view.peer_is_there;
        match self.wish.until {
            Until::Empty => is_delivered && view.only_here == 0,
            Until::Standby | Until::Handover => (is_elsewhere && view.only_here == 0) || has_nobody,
        }
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
#[path = "drain_tests.rs"]
mod tests;
