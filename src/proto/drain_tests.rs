use super::*;
use crate::proto::position::Position;

fn mark(messages: u64) -> Mark {
    Mark { position: Position(messages * 100), ordinal: messages }
}

/// An active node beside a peer, with connections that can move and one that cannot.
fn active() -> View {
    let connections = Connections { ending: 0, staying: 5, held: 0, listeners_obeyed: true };
    View {
        holds_addresses: true,
        is_delivering: true,
        peer_is_there: true,
        connections,
        appended: mark(9),
        end: mark(9),
        ..View::default()
    }
}

fn standby() -> View {
    View { peer_is_there: true, peer_is_active: true, appended: mark(9), end: mark(9), ..View::default() }
}

struct Case {
    drain: Drain,
    now: Instant,
    view: View,
}

impl Case {
    fn new(view: View, until: Until, forced: bool) -> Case {
        let now = Instant::now();
        let grace = Duration::from_secs(2);
        let wish = Wish { until, deadline: now + Duration::from_secs(60), forced, grace };
        Case { drain: Drain::new(now, &view, wish), now, view }
    }

    fn look(&mut self) -> Vec<Order> {
        self.drain.handle(self.now, &self.view)
    }

    fn look_after(&mut self, time: Duration) -> Vec<Order> {
        self.now += time;
        self.look()
    }

    /// Up to the order to hand the addresses over, with five connections held.
    fn until_moving(&mut self) {
        assert_eq!(self.look(), [Order::Ask]);
        self.view.peer_takes = Some(true);
        assert_eq!(self.look(), [Order::EndConnections { all: false }]);
        self.view.connections.ending = 1;
        assert_eq!(self.look_after(SETTLE), [], "the one that cannot move is still there");
        self.view.connections.ending = 0;
        assert_eq!(self.look(), [Order::Hold]);
        (self.view.connections.staying, self.view.connections.held) = (0, 5);
        assert_eq!(self.look(), [Order::Tell]);
        assert_eq!(self.look(), []);
        self.view.peer_has = Some(true);
        assert_eq!(self.look(), [Order::HandOver]);
        self.view.is_giving_away = true;
        assert_eq!(self.look(), []);
    }

    fn give_away(&mut self) {
        (self.view.is_giving_away, self.view.holds_addresses, self.view.peer_is_active) = (false, false, true);
    }
}

#[test]
fn each_stage_waits_for_what_it_needs() {
    let mut case = Case::new(active(), Until::Empty, false);
    case.until_moving();
    case.give_away();
    assert_eq!(case.look(), [Order::LetGo, Order::StepAside]);
    assert_eq!(case.drain.stage(), Stage::Quiescing);
    assert_eq!(case.look(), [], "datagrams are still read");
    assert_eq!(case.look_after(LINGER), [Order::Quiesce]);
    (case.view.inputs_have_ended, case.view.is_delivering) = (true, false);
    assert_eq!(case.look(), []);
    assert_eq!(case.drain.stage(), Stage::Flushing);
    case.view.replicated = mark(9);
    assert_eq!(case.look(), [], "it is on the other node, and not yet delivered");
    case.view.delivered = mark(9);
    assert_eq!(case.look(), [Order::Finish]);
    assert!(case.drain.is_over());
    let stages: Vec<Stage> = case.drain.stages().iter().map(|(stage, _)| *stage).collect();
    assert_eq!(stages, [Stage::HandingOver, Stage::Quiescing, Stage::Flushing, Stage::Drained]);
}

#[test]
fn a_standby_hands_nothing_over_and_until_handover_does_not_wait_for_destinations() {
    let mut case = Case::new(View { inputs_have_ended: true, ..standby() }, Until::Handover, false);
    assert_eq!(case.look(), [Order::StepAside, Order::Quiesce]);
    assert_eq!(case.drain.stage(), Stage::Flushing);
    case.view.replicated = mark(9);
    assert_eq!(case.look(), [Order::Finish]);
}

#[test]
fn a_standby_that_becomes_active_meanwhile_hands_over_first() {
    let mut case = Case::new(View { peer_is_active: false, ..standby() }, Until::Handover, false);
    assert_eq!(case.look(), []);
    case.view = active();
    case.until_moving();
    case.give_away();
    assert_eq!(case.look(), [Order::LetGo, Order::StepAside]);
}

#[test]
fn a_failover_ends_when_the_other_node_has_the_addresses() {
    let mut case = Case::new(active(), Until::Standby, false);
    case.until_moving();
    assert_eq!(case.drain.call_off(), None, "the addresses may be on their way");
    (case.view.is_giving_away, case.view.holds_addresses) = (false, false);
    assert_eq!(case.look(), [Order::LetGo, Order::Resume]);
    assert!(case.drain.is_over() && case.drain.failure().is_none());
}

#[test]
fn without_a_peer_that_takes_connections_all_of_them_end_first() {
    for answer in [Some(false), None] {
        let mut case = Case::new(active(), Until::Handover, false);
        case.look();
        case.view.peer_takes = answer;
        assert_eq!(case.look_after(ANSWER_MAX), [Order::EndConnections { all: true }]);
        assert_eq!(case.look_after(SETTLE), []);
        case.view.connections.staying = 0;
        assert_eq!(case.look(), [Order::Hold, Order::HandOver]);
    }
    let mut alone = Case::new(View { peer_is_there: false, ..active() }, Until::Standby, true);
    assert_eq!(alone.look(), [Order::Ask, Order::EndConnections { all: true }]);
    let cut = alone.drain.wish.grace + ENDING_MORE;
    assert_eq!(alone.look_after(cut), [Order::Hold], "not for ever");
}

#[test]
fn what_goes_wrong_before_the_addresses_move_is_taken_back() {
    let held = |case: &mut Case| {
        case.look();
        case.view.peer_takes = Some(true);
        case.look();
        assert_eq!(case.look_after(SETTLE), [Order::Hold]);
    };
    let ended = [Order::TakeBack, Order::EndConnections { all: true }];
    // The link breaks, and it is forced.
    let mut case = Case::new(active(), Until::Empty, true);
    held(&mut case);
    case.view.peer_is_there = false;
    assert_eq!(case.look(), ended);
    // One connection cannot be held.
    let mut case = Case::new(active(), Until::Empty, false);
    held(&mut case);
    (case.view.connections.staying, case.view.connections.held) = (1, 4);
    assert_eq!(case.look(), []);
    assert_eq!(case.look_after(HOLD_MAX), ended);
    // The other node rebuilds nothing, or says nothing.
    for (answer, wait) in [(Some(false), Duration::ZERO), (None, ANSWER_MAX)] {
        let mut case = Case::new(active(), Until::Empty, false);
        held(&mut case);
        (case.view.connections.staying, case.view.connections.held) = (0, 5);
        assert_eq!(case.look(), [Order::Tell]);
        case.view.peer_has = answer;
        assert_eq!(case.look_after(wait), ended);
        (case.view.connections.held, case.view.connections.staying) = (0, 0);
        assert_eq!(case.look_after(SETTLE), [Order::Hold, Order::HandOver], "they have ended");
    }
    // Somebody calls it off.
    let mut case = Case::new(active(), Until::Empty, false);
    held(&mut case);
    assert_eq!(case.drain.call_off(), Some(vec![Order::TakeBack, Order::CallOff]));
    assert!(case.drain.is_over());
}

#[test]
fn without_the_peer_it_is_called_off_and_no_connection_ends() {
    let taken_back = [Order::TakeBack, Order::CallOff];
    let mut case = Case::new(active(), Until::Empty, false);
    case.look();
    case.view.peer_is_there = false;
    assert_eq!(case.look(), taken_back, "asked");
    let mut case = Case::new(active(), Until::Standby, false);
    case.look();
    case.view.peer_takes = Some(true);
    assert_eq!(case.look_after(SETTLE), [Order::EndConnections { all: false }]);
    assert_eq!(case.look_after(SETTLE), [Order::Hold]);
    case.view.peer_is_there = false;
    assert_eq!(case.look(), taken_back, "held");
    // It takes them and dies, and they are back before anybody has looked.
    let mut case = Case::new(active(), Until::Empty, false);
    case.until_moving();
    let mut case = Case { view: View { is_giving_away: false, ..case.view }, ..case };
    case.drain.gives_away = false;
    assert_eq!(case.look(), []);
    case.view.peer_is_there = false;
    assert_eq!(case.look(), [], "it has to be heard first");
    assert_eq!(case.look_after(ANSWER_MAX), taken_back, "moving");
    // It has the addresses, and dies with them: this node may be needed again.
    let mut case = Case::new(active(), Until::Empty, false);
    case.until_moving();
    case.give_away();
    assert_eq!(case.look(), [Order::LetGo, Order::StepAside]);
    (case.view.peer_is_there, case.view.peer_is_active) = (false, false);
    assert_eq!(case.look_after(LINGER), taken_back);
    // Once its inputs have ended it is the other node's matter.
    let mut case = Case::new(active(), Until::Empty, false);
    case.until_moving();
    case.give_away();
    case.look();
    assert_eq!(case.look_after(LINGER), [Order::Quiesce]);
    (case.view.peer_is_there, case.view.peer_is_active) = (false, false);
    assert_eq!(case.look(), []);
}

#[test]
fn a_failover_to_nobody_leaves_things_as_they_were_even_if_forced() {
    let mut case = Case::new(active(), Until::Standby, true);
    case.until_moving();
    case.view.is_giving_away = false;
    assert_eq!(case.look(), [Order::TakeBack, Order::CallOff]);
}

#[test]
fn a_peer_that_does_not_take_over_leaves_things_as_they_were_unless_forced() {
    for forced in [false, true] {
        let mut case = Case::new(active(), Until::Empty, forced);
        case.until_moving();
        if forced {
            case.view.is_giving_away = false;
            assert_eq!(case.look(), [Order::TakeBack, Order::Quiesce], "with the addresses: they are needed to end");
            case.view.inputs_have_ended = true;
            assert_eq!(case.look(), [Order::StepAside]);
        } else {
            assert_eq!(case.look_after(HAND_OVER_MAX), [Order::TakeBack, Order::CallOff]);
            assert!(case.drain.is_over() && case.drain.failure().is_some());
        }
    }
}

#[test]
fn a_stop_makes_the_best_of_a_drain() {
    let mut case = Case::new(active(), Until::Empty, false);
    assert_eq!(case.look(), [Order::Ask]);
    case.drain.hurry(case.now + Duration::from_secs(5));
    // What would call a drain off.
    (case.view.peer_is_there, case.view.connections.staying) = (false, 0);
    assert_eq!(case.look(), [Order::EndConnections { all: true }]);
    assert_eq!(case.look_after(SETTLE), [Order::Hold, Order::HandOver]);
    case.view.is_giving_away = true;
    case.look();
    case.view.is_giving_away = false;
    assert_eq!(case.look(), [Order::TakeBack, Order::Quiesce]);
    (case.view.inputs_have_ended, case.view.is_delivering) = (true, false);
    assert_eq!(case.look(), [Order::StepAside, Order::Finish], "nobody is there to give it to");
    assert_eq!(verdict(Mark::default(), &case.view, 0).to_string(), "UNPROVEN (9 messages are on this node only)");
}

#[test]
fn at_the_deadline_it_is_over_and_says_what_is_only_here() {
    let mut case = Case::new(View { replicated: mark(4), ..standby() }, Until::Empty, false);
    assert_eq!(case.look(), [Order::StepAside, Order::Quiesce]);
    assert_eq!(case.look_after(Duration::from_secs(60)), [Order::Finish]);
    assert_eq!(verdict(Mark::default(), &case.view, 0).to_string(), "UNPROVEN (5 messages are on this node only)");
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
