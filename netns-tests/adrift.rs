//! A node whose disk went back in time, as one does that is restored from a snapshot.

use super::aggregators::{Aggregator, Client, Destination, assert_arrived, pair};
use super::lab::{Switch, VIP_V4, wait_until};

#[test]
fn a_node_whose_disk_went_back_in_time_begins_a_new_journal_and_nothing_is_lost() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let mut destination = Destination::new(&c);
    let [first, mut second] = pair([&a, &b], "");
    let shared = Client::start(&d, VIP_V4.into(), "shared");
    shared.wait_for_more(50);
    second.die();
    second.copy_data("data", "snapshot");
    second.start();
    wait_until("both are in sync", || first.is_in_sync() && second.is_in_sync());
    // What the snapshot does not have, and the mirror does.
    let direct = Client::start(&d, b.v4().into(), "direct");
    direct.wait_for_more(200);
    let direct = direct.stop();
    second.die();
    second.wipe();
    second.copy_data("snapshot", "data");

    // Before it hears of that, it takes in others at the same positions.
    switch.pull_cable(&b);
    second.start();
    let alone = Client::start(&b, b.v4().into(), "alone");
    alone.wait_for_more(20);
    let alone = alone.stop();
    switch.plug_cable(&b);
    wait_until("it ends by itself", || second.has_ended());
    second.start();
    wait_until("both are in sync", || first.is_in_sync() && second.is_in_sync());
    shared.wait_for_more(20);
    let shared = shared.stop();

    destination.open();
    for (name, acknowledged) in [("shared", shared), ("direct", direct), ("alone", alone)] {
        let repeats = assert_arrived(&destination, name, acknowledged);
        println!("{name}: {acknowledged} acknowledged, all arrived; {repeats} repeats under the same id");
    }
    let journals = |node: &Aggregator<'_>| node.status()["nodes"][0]["journals"].as_array().map_or(0, Vec::len);
    wait_until("the old journal is delivered, and gone", || journals(&first) == 2 && journals(&second) == 2);
    assert!(!second.has_ended());
}
