//! Two real twinlogs, or one and keepalived: who holds the addresses after whatever happens, and that nothing stays.
//!
//! What is asserted is who is master in the end and that nothing is left behind; gaps are printed, not judged.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use super::lab::keepalived::keepalived;
use super::lab::traffic::{Account, Counter, Generator};
use super::lab::twin::{Keys, PLAIN, Twin, elected};
use super::lab::{Host, Switch, VIP_V4, VIP_V6, wait_until};

const PER_SECOND: u32 = 10_000;

/// Lets something happen while 10 000 datagrams a second come to the address, and draws up the account.
fn under_traffic(what: &str, client: &Host, hosts: [&Host; 2], happening: impl FnOnce()) -> Account {
    let counters = hosts.map(Counter::start);
    let traffic = Generator::start(client, VIP_V4.into(), PER_SECOND);
    traffic.wait_for(3_000);
    happening();
    let settled = traffic.sent() + 5_000;
    traffic.wait_for(settled);
    let sent = traffic.stop();
    // The last ones are under way for a moment.
    std::thread::sleep(Duration::from_millis(100));
    let account = Account::of(sent, &counters.map(Counter::stop));
    let gap = account.longest_gap as f64 / f64::from(PER_SECOND) * 1e3;
    println!("{what}: {} lost, longest gap {gap:.1} ms, {} doubled", account.lost, account.doubled);
    account
}

#[test]
fn two_that_start_at_once_elect_one() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (mut a, mut b) = (Twin::new(&a, &PLAIN), Twin::new(&b, &PLAIN));
    a.start();
    b.start();
    wait_until("one holds both addresses, the other none", || (a.holds() && b.is_bare()) || (b.holds() && a.is_bare()));
    let arp = if a.holds() { a.host } else { b.host };
    a.program().signal(Signal::SIGTERM);
    b.program().signal(Signal::SIGTERM);
    wait_until("both end", || a.has_ended() && b.has_ended());
    assert!(a.is_bare() && b.is_bare());
    assert_eq!(arp.netlink().arp(arp.eth0().index).unwrap().unwrap().ignore, 0, "as it was");
}

#[test]
fn hooks_hear_who_is_active_with_keepalived_s_words() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let hooks = TempDir::with_prefix("twinlog-hooks-").unwrap();
    let (script, heard) = (hooks.path().join("notify.sh"), hooks.path().join("heard"));
    std::fs::write(&script, format!("#!/bin/sh\necho \"$*\" >> {}\n", heard.display())).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let hook = format!(
        "[[hook]]\non = [\"active\", \"standby\", \"stop\"]\ncommand = [\"{}\"]\nstyle = \"keepalived\"\ninstance = \"VI\"\n",
        script.display()
    );
    let (mut one, mut other) = (Twin::new(&a, &Keys { more: &hook, ..PLAIN }), Twin::new(&b, &PLAIN));
    one.start();
    wait_until("a is master", || one.holds());
    other.start();
    wait_until("they know each other", || one.ask(&["status", "--json"]).1.contains("\"peer_answers\": true"));
    one.await_sync();
    assert_eq!(one.ask(&["failover"]).0, Some(0));
    one.program().signal(Signal::SIGTERM);
    wait_until("it ends", || one.has_ended());
    let heard = std::fs::read_to_string(heard).unwrap();
    let told: Vec<&str> = heard.lines().collect();
    let expected =
        ["INSTANCE VI BACKUP 100", "INSTANCE VI MASTER 100", "INSTANCE VI BACKUP 100", "INSTANCE VI STOP 100"];
    assert_eq!(told, expected);
}

#[test]
fn a_planned_move_keeps_the_address_held() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (one, other) = elected(&a, &b);
    let (status, said) = one.ask(&["failover"]);
    assert_eq!((status, said.as_str()), (Some(1), "twinlog: this node is not the active one\n"));
    other.await_sync();
    under_traffic("planned move", &client, [&a, &b], || {
        let (status, said) = other.ask(&["failover"]);
        assert_eq!(status, Some(0), "{said}");
        wait_until("a has taken over", || one.holds() && other.is_bare());
    });
    under_traffic("SIGTERM", &client, [&a, &b], || {
        one.program().signal(Signal::SIGTERM);
        wait_until("b has taken over", || other.holds() && one.is_bare());
    });
    wait_until("a ends", || one.has_ended());
    let (status, said) = other.ask(&["events"]);
    assert!(status == Some(0) && said.contains("handed over") && said.contains("became master  master_left"), "{said}");
    let alone = Instant::now();
    wait_until("nobody answers", || other.ask(&["status", "--json"]).1.contains("\"peer_answers\": false"));
    println!("a peer that has gone is missed after {:?}", alone.elapsed());
    let (status, said) = other.ask(&["failover"]);
    assert!(status == Some(5) && said.contains("--force"), "{said}");
    assert_eq!(other.ask(&["failover", "--force"]).0, Some(1), "nobody takes over");
    assert!(other.holds());
}

#[test]
fn a_killed_daemon_is_replaced_at_once() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (one, other) = elected(&a, &b);
    under_traffic("daemon killed", &client, [&a, &b], || {
        kill(other.daemon(), Signal::SIGKILL).unwrap();
        wait_until("a has taken over", || one.holds());
    });
    assert!(other.is_bare());
    wait_until("the guardian ends", || other.has_ended());
    let (_, said) = one.ask(&["events"]);
    assert!(said.contains("became master  master_left") || said.contains("became master  master_died"), "{said}");
}

#[test]
fn a_killed_guardian_and_daemon_leave_no_address_for_longer_than_the_lease() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (one, mut other) = elected(&a, &b);
    under_traffic("guardian and daemon killed", &client, [&a, &b], || {
        other.program.take().expect("it runs").kill();
        wait_until("a has taken over", || one.holds());
    });
    wait_until("the lease has ended", || other.is_bare());
    let (_, said) = one.ask(&["events"]);
    println!("{said}");
}

#[test]
fn a_lost_host_is_replaced_and_gives_way_when_it_is_back() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (one, other) = elected(&a, &b);
    under_traffic("host lost", &client, [&a, &b], || {
        switch.disable_port(&b);
        wait_until("a has taken over", || one.holds());
    });
    assert!(other.holds(), "it cannot know");
    under_traffic("healed", &client, [&a, &b], || {
        switch.enable_port(&b);
        wait_until("there is one again", || one.holds() != other.holds());
    });
    assert!(one.is_bare() || other.is_bare());
}

#[test]
fn a_partition_makes_two_masters_and_healing_one() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (one, other) = elected(&a, &b);
    switch.part([&a, &b]);
    wait_until("both hold it", || one.holds() && other.holds());
    under_traffic("partition healed", &client, [&a, &b], || {
        switch.heal([&a, &b]);
        wait_until("the higher address has it", || other.holds() && one.is_bare());
    });
}

#[test]
fn a_pulled_cable_is_a_fault_and_the_node_is_a_standby_afterwards() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (one, other) = elected(&a, &b);
    switch.pull_cable(&b);
    wait_until("a has taken over", || one.holds());
    wait_until("b has released it", || other.is_bare());
    let (_, said) = other.ask(&["status", "--json"]);
    assert!(said.contains("the interface eth0 of the pair is down or gone"), "{said}");
    switch.plug_cable(&b);
    wait_until("b takes part again", || other.ask(&["status", "--json"]).1.contains("\"Backup\""));
    assert!(one.holds() && other.is_bare());
}

#[test]
fn a_daemon_that_stands_still_loses_the_addresses_and_comes_back_as_a_standby() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (one, other) = elected(&a, &b);
    let daemon = other.daemon();
    kill(daemon, Signal::SIGSTOP).unwrap();
    wait_until("a has taken over, and the guardian has released", || one.holds() && other.is_bare());
    std::thread::sleep(Duration::from_secs(5));
    kill(daemon, Signal::SIGCONT).unwrap();
    wait_until("b takes part again", || other.ask(&["status", "--json"]).1.contains("\"Backup\""));
    assert!(one.holds() && other.is_bare());

    // With its guardian: nobody but the kernel is left to remove it.
    one.program().pause();
    wait_until("b has taken over", || other.holds());
    wait_until("the lease has ended", || one.is_bare());
    one.program().resume();
    wait_until("a takes part again", || one.ask(&["status", "--json"]).1.contains("\"Backup\""));
    assert!(other.holds() && one.is_bare());
}

#[test]
fn an_address_that_somebody_removes_is_back() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (_one, other) = elected(&a, &b);
    other.host.ip(&format!("address del {VIP_V4}/32 dev eth0"));
    wait_until("it is back", || other.holds() && other.ask(&["status", "--json"]).1.contains("\"restored\": 1"));
    let stale = other.ask(&["vip", "release", "--stale"]);
    assert_eq!(stale.0, Some(5), "{}", stale.1);
}

#[test]
fn a_higher_priority_preempts_only_if_told_to() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let keys = Keys { priorities: [100, 150], ..PLAIN };
    let (mut one, mut other) = (Twin::new(&a, &keys), Twin::new(&b, &keys));
    one.start();
    wait_until("a is master", || one.holds());
    other.start();
    wait_until("b hears a", || other.ask(&["status", "--json"]).1.contains("203.0.113.1\""));
    assert!(one.holds() && other.is_bare());
    other.program.take().expect("it runs").kill();
    let keys = Keys { more: "preempt = true\npreempt_delay = \"0s\"", ..keys };
    let mut other = Twin::new(&b, &keys);
    other.start();
    wait_until("b has taken over", || other.holds() && one.is_bare());
}

/// Writes a file that only we may read.
pub fn write_secret(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}

/// A keepalived of lower priority gives way to a twinlog that preempts, and takes over when that leaves.
fn with_keepalived(keys: &Keys<'_>, instance: &str, version: u8) {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let mut ours = Twin::new(&a, keys);
    if keys.more.contains("auth_pass_file") {
        write_secret(Path::new(&ours.file("pass")), "s3cr3t\n");
        let text = std::fs::read_to_string(ours.file("twinlog.toml")).unwrap();
        std::fs::write(ours.file("twinlog.toml"), text.replace("PASS", &ours.file("pass"))).unwrap();
    }
    let vip = ours.vips[0];
    let theirs = || b.netlink().places_of(vip).unwrap().len() == 1;
    let (_keepalived, _files) = keepalived(&b, instance, version);
    wait_until("keepalived is master", theirs);
    ours.start();
    wait_until("the higher priority has it", || ours.holds() && !theirs());
    ours.program().signal(Signal::SIGTERM);
    wait_until("keepalived has it again", || theirs() && ours.is_bare());
    wait_until("twinlog ends", || ours.has_ended());
}

#[test]
fn keepalived_of_version_2_with_a_password_is_a_peer() {
    let more = "preempt = true\npreempt_delay = \"0s\"\nvrrp_version = 2\nauth_pass_file = \"PASS\"";
    let keys = Keys { vip: "\"203.0.113.100\"", more, priorities: [150, 100] };
    let instance = format!(
        "priority 100\n advert_int 1\n authentication {{ auth_type PASS\n auth_pass s3cr3t }}\n \
         virtual_ipaddress {{ {VIP_V4}/32 }}"
    );
    with_keepalived(&keys, &instance, 2);
}

#[test]
fn keepalived_of_version_3_is_a_peer_over_ipv4() {
    let more = "preempt = true\npreempt_delay = \"0s\"";
    let keys = Keys { vip: "\"203.0.113.100\"", more, priorities: [150, 100] };
    with_keepalived(&keys, &format!("priority 100\n advert_int 0.1\n virtual_ipaddress {{ {VIP_V4}/32 }}"), 3);
}

#[test]
fn keepalived_of_version_3_is_a_peer_over_ipv6() {
    let more = "preempt = true\npreempt_delay = \"0s\"";
    // RFC 9568, 5.2.9, wants a link-local address first, and keepalived the same number of them.
    let keys = Keys { vip: "[\"fe80::100\", \"2001:db8::100\"]", more, priorities: [150, 100] };
    let instance = format!("priority 100\n advert_int 0.1\n virtual_ipaddress {{ fe80::100\n {VIP_V6} }}");
    with_keepalived(&keys, &instance, 3);
}

#[test]
fn of_equal_priorities_the_higher_address_wins_against_keepalived() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let keys = Keys { vip: "\"203.0.113.100\"", ..PLAIN };
    let mut ours = Twin::new(&a, &keys);
    let theirs = || b.netlink().places_of(VIP_V4.into()).unwrap().len() == 1;
    switch.part([&a, &b]);
    ours.start();
    let instance = format!("priority 100\n advert_int 0.1\n virtual_ipaddress {{ {VIP_V4}/32 }}");
    let (_keepalived, _files) = keepalived(&b, &instance, 3);
    wait_until("both are masters", || ours.holds() && theirs());
    switch.heal([&a, &b]);
    wait_until("the higher address has it", || theirs() && ours.is_bare());
}
