//! `check --live` between real hosts: who else advertises, and whether the peer is there.

use std::process::Command;

use serde_json::Value;
use twinlog::sys::vrrp_socket::GROUP_V4;

use super::lab::{Host, KEY, Switch, VIP_V4, write_key};

const VRID: u8 = 100;

/// What `check --live --json` says on a host of the pair `a`, `b`, whose addresses are the lab's first two.
fn live(host: &Host) -> (i32, Value) {
    let directory = tempfile::TempDir::with_prefix("twinlog-").unwrap();
    let file = |name: &str| directory.path().join(name);
    std::fs::create_dir(file("data")).unwrap();
    let configuration = format!(
        "data_dir = {:?}\ncontrol_socket = {:?}\n[journal]\nmax_size = \"8MiB\"\nsegment_size = \"1MiB\"\n\
         acknowledge = \"durable\"\n[pair]\nvip = \"{VIP_V4}/24\"\ninterface = \"eth0\"\nnodes = [\n\
         {{ name = \"a\", address = \"203.0.113.1\" }},\n{{ name = \"b\", address = \"203.0.113.2\" }} ]\n\
         [[input.syslog]]\nlisten = \":514\"\n[[output.stdout]]\n",
        file("data"),
        file("control.sock"),
    );
    std::fs::write(file("twinlog.toml"), configuration).unwrap();
    write_key(directory.path(), KEY);
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
    command.arg("--config").arg(file("twinlog.toml")).args(["check", "--live", "--json"]).env_remove("TWINLOG_NODE");
    let output = host.visit(|| command.output()).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    (output.status.code().unwrap(), answer)
}

/// The verdict on the look of this kind that has these words.
#[track_caller]
fn verdict(answer: &Value, check: &str, words: &str) -> String {
    let looks = answer["live"].as_array().unwrap_or_else(|| panic!("nothing looked at: {answer:#}"));
    let found = looks.iter().find(|look| look["check"] == check && look["message"].as_str().unwrap().contains(words));
    found.unwrap_or_else(|| panic!("no {check} with {words:?}: {answer:#}"))["verdict"].as_str().unwrap().to_owned()
}

/// keepalived on a host, as the master of some addresses.
fn keepalived(host: &Host, vip: &str) -> (super::lab::Program, tempfile::TempDir) {
    let directory = tempfile::TempDir::with_prefix("twinlog-").unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let configuration = format!(
        "global_defs {{ vrrp_version 3 }}\nvrrp_instance one {{ interface eth0\n virtual_router_id {VRID}\n priority 110\n\
         advert_int 0.1\n virtual_ipaddress {{ {vip} }} }}\n"
    );
    std::fs::write(file("keepalived.conf"), configuration).unwrap();
    let arguments =
        ["-n", "-l", "-D", "-P", "-f", &file("keepalived.conf"), "-p", &file("pid"), "-r", &file("vrrp.pid")];
    (host.start("keepalived", arguments), directory)
}

/// Waits until somebody advertises to a host.
fn wait_for_a_master(host: &Host) {
    let index = host.eth0().index;
    let socket = host.visit(|| twinlog::sys::vrrp_socket::VrrpSocket::v4("eth0", index, Some(VRID))).unwrap();
    let mut buffer = vec![0; twinlog::sys::vrrp_socket::PACKET_BYTES];
    super::lab::wait_until("a master advertises", || {
        let received = socket.receive(&mut buffer).unwrap();
        received.is_some_and(|received| received.destination == GROUP_V4)
    });
}

#[test]
fn a_quiet_network_with_a_peer_is_fine() {
    let switch = Switch::new();
    let (a, _b) = (switch.host("a"), switch.host("b"));
    let (_, answer) = live(&a);
    assert_eq!(verdict(&answer, "interface", "eth0 is up and has a carrier"), "ok");
    assert_eq!(verdict(&answer, "address", "203.0.113.1, of a, is on eth0"), "ok");
    assert_eq!(verdict(&answer, "ports", "udp://[::]:514 is free"), "ok");
    assert_eq!(verdict(&answer, "privileges", "CAP_NET_RAW"), "ok");
    assert_eq!(verdict(&answer, "peer", "b answers on 203.0.113.2"), "ok");
    assert_eq!(verdict(&answer, "adverts", "nobody else advertised"), "ok");
}

#[test]
fn a_foreign_pair_with_our_vrid_is_an_error_that_names_it_and_a_free_one() {
    let switch = Switch::new();
    let (a, b, stranger) = (switch.host("a"), switch.host("b"), switch.host("stranger"));
    let _keepalived = keepalived(&stranger, "203.0.113.200/24");
    wait_for_a_master(&a);
    switch.pull_cable(&b);
    let (status, answer) = live(&a);
    assert_eq!(status, 1, "{answer:#}");
    let words = "a foreign pair uses our vrid: 203.0.113.3, vrid 100, 203.0.113.200, priority 110, VRRPv3 every 100ms";
    assert_eq!(verdict(&answer, "adverts", words), "error");
    assert!(answer.to_string().contains("set vrid = 101 on both nodes"), "{answer:#}");
    assert_eq!(verdict(&answer, "adverts", "multicast arrives here"), "ok");
    assert_eq!(verdict(&answer, "peer", "b does not answer on 203.0.113.2"), "warning");
}

#[test]
fn the_peer_that_is_master_is_fine_and_anybody_else_with_our_address_is_not() {
    let switch = Switch::new();
    let (a, b, stranger) = (switch.host("a"), switch.host("b"), switch.host("stranger"));
    let vip = format!("{VIP_V4}/32");
    let on_the_peer = keepalived(&b, &vip);
    wait_for_a_master(&a);
    assert_eq!(verdict(&live(&a).1, "adverts", "b, 203.0.113.2, is master"), "ok");
    on_the_peer.0.kill();
    let _keepalived = keepalived(&stranger, &vip);
    wait_for_a_master(&a);
    let (status, answer) = live(&a);
    assert_eq!(status, 1, "{answer:#}");
    assert_eq!(verdict(&answer, "adverts", "203.0.113.3, which is no node of this pair"), "error");
}

#[test]
fn an_interface_without_a_carrier_and_a_fixed_vip_are_errors() {
    let switch = Switch::new();
    let (a, _b) = (switch.host("a"), switch.host("b"));
    a.ip(&format!("address add {VIP_V4}/24 dev eth0"));
    switch.pull_cable(&a);
    let (status, answer) = live(&a);
    assert_eq!(status, 1, "{answer:#}");
    assert_eq!(verdict(&answer, "interface", "eth0 has no carrier"), "error");
    assert_eq!(verdict(&answer, "vip", "is a fixed address of this host"), "error");
}
