//! The node's rules, each as a short history. The election below has its own scenarios and simulation.

use super::*;
use crate::proto::vrrp::interval::Interval;
use crate::proto::vrrp::settings::Member;
use crate::proto::vrrp::vip_list::VipList;
use crate::proto::vrrp::{Version, Vrid};

const SETTLE: Duration = Duration::from_secs(2);

fn address(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn at(milliseconds: u64) -> BootTime {
    BootTime(Duration::from_secs(100) + Duration::from_millis(milliseconds))
}

fn settings() -> Settings {
    let member = Member { address: address(11), peers: vec![address(12)], vips: VipList::new(&[address(10)]).unwrap() };
    let router = settings::Settings {
        vrid: Vrid::new(10).unwrap(),
        interval: Interval::new(Version::V3, Duration::from_millis(100)).unwrap(),
        priority: Priority(100),
        preempt: false,
        preempt_delay: Duration::ZERO,
        members: vec![member],
    };
    Settings { router, settle: SETTLE }
}

fn advertisement(priority: u8) -> Advertisement {
    let Settings { router, .. } = settings();
    let vips = router.members[0].vips.clone();
    Advertisement { vrid: router.vrid, priority: Priority(priority), interval: router.interval, vips }
}

/// What is to be done, in words.
fn effects(node: &mut Node) -> Vec<String> {
    std::iter::from_fn(|| node.poll_effect())
        .map(|effect| match effect {
            Effect::Transmit(advertisement) => format!("advertise {}", advertisement.priority),
            Effect::Report(Report::Became { state, cause }) => format!("{state} {}", cause.as_str()),
            Effect::Report(report) => format!("{report:?}"),
            effect => format!("{effect:?}"),
        })
        .collect()
}

fn fresh() -> Node {
    let mut node = Node::new(settings(), &[], at(0)).unwrap();
    assert_eq!(effects(&mut node), ["Release", "Backup startup"]);
    node
}

/// A node that became master at 361 ms, its first announcements made.
fn master() -> Node {
    let mut node = fresh();
    node.handle_timeout(at(361));
    assert_eq!(effects(&mut node), ["advertise 100", "Take", "Master startup", "Announce"]);
    node
}

/// Goes from timeout to timeout until `end`, and says what was to be done.
fn run(node: &mut Node, end: BootTime) -> Vec<String> {
    let mut happened = Vec::new();
    while let Some(next) = node.poll_timeout().filter(|next| *next <= end) {
        node.handle_timeout(next);
        happened.extend(effects(node));
    }
    happened
}

#[test]
fn a_master_announces_on_a_schedule_and_slowly_for_ever() {
    let mut node = master();
    let count = |happened: Vec<String>| happened.iter().filter(|what| *what == "Announce").count();
    assert_eq!(count(run(&mut node, at(361 + 5_000))), REPEAT_AFTER.len());
    assert_eq!(count(run(&mut node, at(361 + 34_999))), 0);
    assert_eq!(count(run(&mut node, at(361 + 95_000))), 3);
}

#[test]
fn a_fault_takes_the_addresses_and_the_node_is_back_after_settling() {
    let mut node = master();
    node.set_fault(at(400), Fault::JournalPoisoned, true);
    node.set_fault(at(400), Fault::InterfaceDown, true);
    assert_eq!(
        effects(&mut node),
        ["FaultBegan(JournalPoisoned)", "advertise 0", "Release", "Initialize shutdown", "FaultBegan(InterfaceDown)"]
    );
    assert_eq!(node.desired(), Desired::default());
    node.set_fault(at(500), Fault::JournalPoisoned, false);
    assert_eq!(node.poll_timeout(), None, "one is left");
    node.set_fault(at(600), Fault::InterfaceDown, false);
    node.set_fault(at(700), Fault::InterfaceDown, true);
    node.set_fault(at(800), Fault::InterfaceDown, false);
    assert_eq!(node.poll_timeout(), Some(at(800) + SETTLE), "counted from the last");
    effects(&mut node);
    node.handle_timeout(at(800) + SETTLE);
    assert_eq!(effects(&mut node), ["Release", "Backup startup"]);
}

#[test]
fn a_node_that_starts_with_a_fault_takes_no_part() {
    let mut node = Node::new(settings(), &[Fault::InterfaceDown], at(0)).unwrap();
    assert_eq!(effects(&mut node), ["FaultBegan(InterfaceDown)"]);
    assert_eq!((node.router().state(), node.poll_timeout()), (State::Initialize, None));
}

#[test]
fn a_hand_over_keeps_the_addresses_until_the_peer_is_heard() {
    let mut node = master();
    node.fail_over(at(400)).unwrap();
    assert_eq!(node.fail_over(at(410)), Err(Refusal::UnderWay));
    assert_eq!(effects(&mut node), ["HandingOver", "advertise 0"]);
    assert!(node.desired().hold_addresses);
    node.handle_advertisement(at(420), address(12), &advertisement(100)).unwrap();
    node.handle_timeout(at(420));
    let expected = ["advertise 0", "Release", "Backup better_master", "HandedOver"];
    assert_eq!(effects(&mut node), expected);
    assert_eq!((node.router().priority(), node.fail_over(at(430))), (Priority(100), Err(Refusal::NotActive)));
}

#[test]
fn nobody_takes_over_and_the_node_goes_on() {
    let mut node = master();
    node.fail_over(at(400)).unwrap();
    let happened = run(&mut node, at(400) + Duration::from_millis(1300));
    assert!(happened.contains(&"HandOverFailed".to_owned()), "{happened:?}");
    assert!(node.desired().active && node.router().priority() == Priority(100));
}

#[test]
fn who_leaves_is_gone_with_a_successor_and_without_one() {
    let mut with = master();
    with.leave(at(400));
    assert!(!with.has_left());
    with.handle_advertisement(at(410), address(12), &advertisement(100)).unwrap();
    with.handle_timeout(at(410));
    assert!(with.has_left() && !with.desired().hold_addresses);

    let mut without = master();
    without.leave(at(400));
    let happened = run(&mut without, at(2000));
    assert!(without.has_left() && !without.desired().hold_addresses, "{happened:?}");
    assert_eq!(without.poll_timeout(), None);

    let mut standby = fresh();
    standby.leave(at(10));
    assert!(standby.has_left());
}

#[test]
fn a_fault_while_leaving_ends_the_leaving() {
    let mut node = master();
    node.leave(at(400));
    node.set_fault(at(410), Fault::InterfaceDown, true);
    assert!(node.has_left());
    node.set_fault(at(420), Fault::InterfaceDown, false);
    assert_eq!(run(&mut node, at(60_000)).iter().filter(|what| what.starts_with("Backup")).count(), 0);
}

#[test]
fn a_late_master_is_asked_for_and_a_proof_of_death_ends_the_waiting() {
    let mut node = fresh();
    node.handle_advertisement(at(10), address(12), &advertisement(200)).unwrap();
    node.handle_timeout(at(10));
    node.handle_peer_death(at(100));
    assert_eq!(effects(&mut node), Vec::<String>::new(), "it was heard just now");
    assert_eq!(node.poll_timeout(), Some(at(160)));
    node.handle_timeout(at(160));
    assert_eq!(effects(&mut node), ["Probe"]);
    node.handle_peer_death(at(161));
    assert_eq!(effects(&mut node), ["advertise 100", "Take", "Master master_died", "Announce"]);
}

#[test]
fn the_end_of_the_link_has_the_master_asked_for_at_once_and_proves_nothing_alone() {
    let mut node = fresh();
    node.handle_advertisement(at(10), address(12), &advertisement(200)).unwrap();
    node.handle_timeout(at(10));
    node.handle_link_end(at(20));
    node.handle_timeout(at(20));
    assert_eq!(effects(&mut node), ["Probe"]);
    node.handle_advertisement(at(25), address(12), &advertisement(200)).unwrap();
    node.handle_timeout(at(25));
    node.handle_peer_death(at(26));
    assert_eq!(effects(&mut node), Vec::<String>::new(), "it was heard after its link had ended");
    node.handle_link_end(at(30));
    node.handle_peer_death(at(31));
    assert_eq!(effects(&mut node), ["Probe", "advertise 100", "Take", "Master master_died", "Announce"]);
}

#[test]
fn a_master_that_is_no_peer_is_not_ended_by_the_peers_death() {
    let mut node = fresh();
    node.handle_advertisement(at(10), address(13), &advertisement(200)).unwrap();
    node.handle_timeout(at(10));
    node.handle_timeout(at(160));
    node.handle_peer_death(at(161));
    assert_eq!(effects(&mut node), ["Probe"]);
}

#[test]
fn the_only_peer_that_leaves_is_followed_at_once() {
    let mut node = fresh();
    node.handle_advertisement(at(10), address(12), &advertisement(200)).unwrap();
    node.handle_timeout(at(10));
    node.handle_advertisement(at(20), address(12), &advertisement(0)).unwrap();
    node.handle_timeout(at(20));
    assert_eq!(effects(&mut node), ["advertise 100", "Take", "Master master_left", "Announce"]);
}

#[test]
fn an_address_that_somebody_removed_is_back_at_once() {
    let mut node = master();
    node.handle_address_lost(at(400));
    assert_eq!(effects(&mut node), ["Take", "AddressRestored", "Announce"]);
    let mut standby = fresh();
    standby.handle_address_lost(at(10));
    assert_eq!(effects(&mut standby), Vec::<String>::new());
}

#[test]
fn a_claim_of_another_is_answered_but_not_during_a_hand_over() {
    let mut node = master();
    node.handle_claim(at(400));
    assert_eq!(effects(&mut node), ["Announce"]);
    node.handle_claim(at(10_399));
    assert_eq!(effects(&mut node), Vec::<String>::new(), "nobody is answered all the time");
    node.handle_claim(at(10_400));
    assert_eq!(effects(&mut node), ["Announce"]);
    node.fail_over(at(30_000)).unwrap();
    effects(&mut node);
    node.handle_claim(at(30_010));
    assert_eq!(effects(&mut node), Vec::<String>::new());
}

#[test]
fn a_full_journal_asks_to_be_relieved_and_keeps_the_addresses_until_then() {
    let mut node = master();
    node.set_fault(at(400), Fault::JournalFull, true);
    assert_eq!(effects(&mut node), ["FaultBegan(JournalFull)", "advertise 1"]);
    assert!(run(&mut node, at(20_000)).contains(&"advertise 1".to_owned()));
    assert!(node.desired().hold_addresses, "nobody came");
    node.handle_advertisement(at(20_000), address(12), &advertisement(100)).unwrap();
    node.handle_timeout(at(20_000));
    assert_eq!(effects(&mut node), ["advertise 1", "Release", "Backup better_master"]);
    node.set_fault(at(20_010), Fault::JournalFull, false);
    assert_eq!(node.router().priority(), Priority(100));
}

#[test]
fn a_full_journal_does_not_end_another_fault_or_a_hand_over() {
    let mut node = master();
    node.set_fault(at(400), Fault::InterfaceDown, true);
    node.set_fault(at(410), Fault::JournalFull, true);
    node.set_fault(at(420), Fault::InterfaceDown, false);
    run(&mut node, at(420) + SETTLE);
    assert_eq!((node.router().state().as_str(), node.router().priority()), ("Backup", Priority::YIELDING));

    let mut node = master();
    node.fail_over(at(400)).unwrap();
    node.set_fault(at(410), Fault::JournalFull, true);
    assert_eq!(node.router().priority(), Priority::LEAVING);
    run(&mut node, at(2_000));
    assert_eq!(node.router().priority(), Priority::YIELDING, "nobody took over");
}
