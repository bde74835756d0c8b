//! RELP senders: what they send is journaled as it is, and answered when it is safe.

use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::relp::{Client, frame};
use crate::common::{
    Authority, Daemon, Lab, assert_same, free_port, journal, message, numbered, tls_client, tls_connect, v4, v6,
    wait_until,
};

/// An output that takes nothing, so that the journal keeps it all.
const OUTPUT: &str = "[[output.file]]\npath = \"out\"\nmatch = { tag = \"nothing.of.this\" }\n";

fn config(port: u16, keys: &str) -> String {
    format!("[[input.relp]]\nname = \"relp\"\nlisten = \":{port}\"\n{keys}\n{OUTPUT}")
}

fn start(lab: &Lab, port: u16, keys: &str) -> Daemon {
    lab.start(&config(port, keys))
}

#[test]
fn every_message_is_journaled_as_it_came_and_answered_in_order() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let mut messages = numbered("m", 500);
    messages.push(b"two\nlines\n".to_vec());
    messages.push(b"no UTF-8 \xff\x00 and a NUL".to_vec());
    messages.push(vec![b'x'; 60_000]);
    let mut client = Client::connect(v6(port));
    messages.iter().for_each(|text| client.send("syslog", text));
    client.send("close", b"");
    (2..=client.sent).for_each(|txnr| client.expect_ok(txnr));
    assert_eq!(client.next(), None);
    // What was answered is there, without waiting for anything.
    assert_same(&journal::payloads(&lab.path("data")), &messages);
    let node = daemon.node();
    assert_eq!(node["inputs"]["relp"]["messages"], messages.len());
    assert_eq!(node["inputs"]["relp"]["rejected"], json!({}));
    daemon.wait_for("/inputs/relp/connections", 0);
    daemon.stop();
}

#[test]
fn pieces_and_empty_messages_are_answered_and_long_ones_are_cut_and_flagged() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = lab.start(&format!(
        "[[input.relp]]\nname = \"relp\"\nlisten = \"tcp://127.0.0.1:{port}\"\nmax_message = \"480B\"\ntag = \"net\"\n\
         [[output.file]]\npath = \"out\"\nformat = \"json\"\nmatch = {{ tag = \"net\" }}\n"
    ));
    let mut client = Client::connect(v4(port));
    for byte in frame(2, "syslog", &message("slow")) {
        client.send_raw(&[byte]);
    }
    client.expect_ok(2);
    client.sent = 2;
    client.send("syslog", &message(&"x".repeat(100_000)));
    client.expect_ok(3);
    client.send("syslog", b"");
    client.expect_ok(4);
    client.send("syslog", &message("after"));
    client.expect_ok(5);
    wait_until("all are written", || lab.lines_of("out").len() == 3);
    let lines: Vec<serde_json::Value> =
        lab.lines_of("out").iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(lines[0]["msg"], "slow");
    let cut = lines[1]["msg"].as_str().unwrap().len();
    assert_eq!((&lines[1]["flags"], cut), (&json!(["truncated"]), 480 - message("").len()));
    assert_eq!(lines[2]["msg"], "after");
    assert_eq!(daemon.number("/inputs/relp/rejected/oversize"), 1);
    daemon.stop();
}

#[test]
fn what_is_malformed_costs_its_sender_and_is_counted() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let mut good = Client::connect(v4(port));
    for (bytes, reason) in [
        (&b"2 syslog 1 ab\n"[..], "bad_trailer"),
        (b"2 syslog x\n", "bad_length"),
        (b"2 sys-log 1 a\n", "bad_command"),
        (b"two syslog 1 a\n", "bad_number"),
        (b"3 syslog 1 a\n", "out_of_sequence"),
        (b"2 starttls 0\n", "unknown_command"),
    ] {
        let mut bad = Client::connect(v4(port));
        bad.send_raw(bytes);
        assert_eq!(bad.next(), None, "{reason}");
        daemon.wait_for(&format!("/inputs/relp/rejected/{reason}"), 1);
    }
    let mut answered_first = Client::connect(v4(port));
    answered_first.send("syslog", b"kept");
    answered_first.send_raw(b"<13>not RELP any more");
    answered_first.expect_ok(2);
    assert_eq!(answered_first.next(), None);
    for (bytes, reason) in [
        (&b"<13>plain syslog\n"[..], "not_relp"),
        (b"\x16\x03\x01\x02", "tls_on_plain_port"),
        (b"1 syslog 1 a\n", "not_open"),
    ] {
        let mut stream = TcpStream::connect(v4(port)).unwrap();
        std::io::Write::write_all(&mut stream, bytes).unwrap();
        daemon.wait_for(&format!("/inputs/relp/rejected/{reason}"), 1);
    }
    let mut half = Client::connect(v4(port));
    half.send_raw(b"2 syslog 10 half");
    drop(half);
    daemon.wait_for("/inputs/relp/rejected/incomplete_frame", 1);
    good.send("syslog", b"undisturbed");
    good.expect_ok(2);
    assert_same(&journal::payloads(&lab.path("data")), &[b"kept".to_vec(), b"undisturbed".to_vec()]);
    daemon.stop();
}

#[test]
fn a_stop_answers_what_was_taken_in_and_says_goodbye() {
    let (lab, port) = (Lab::new(), free_port());
    let mut daemon = start(&lab, port, "");
    let (mut idle, mut busy) = (Client::connect(v4(port)), Client::connect(v4(port)));
    (0..100).for_each(|number| busy.send("syslog", format!("m {number}").as_bytes()));
    // Taken in: their answers wait for nothing but the disk.
    daemon.wait_for("/inputs/relp/messages", 100);
    daemon.signal(Signal::SIGTERM);
    (2..102).for_each(|txnr| busy.expect_ok(txnr));
    busy.expect_goodbye();
    idle.expect_goodbye();
    drop((busy, idle));
    assert!(daemon.ended().success());
}

#[test]
fn what_is_sent_while_the_node_leaves_is_answered_or_not_journaled() {
    let (lab, port) = (Lab::new(), free_port());
    let mut daemon = start(&lab, port, "");
    let mut client = Client::connect(v4(port));
    let mut answered = 0;
    // A window as librelp has it, kept full: such a client is never at rest.
    let mut leaving = false;
    loop {
        while client.sent - answered < 128 {
            let message = format!("m {}", client.sent + 1);
            if !client.try_send("syslog", message.as_bytes()) {
                break;
            }
        }
        let Some(frame) = client.next() else { break };
        if frame.command == "serverclose" {
            break;
        }
        answered = frame.txnr;
        if answered > 1000 && !leaving {
            leaving = true;
            daemon.signal(Signal::SIGTERM);
        }
    }
    drop(client);
    assert!(daemon.ended().success());
    let expected: Vec<Vec<u8>> = (2..=answered).map(|txnr| format!("m {txnr}").into_bytes()).collect();
    assert_same(&journal::payloads(&lab.path("data")), &expected);
}

#[test]
fn who_is_silent_too_long_is_told_and_who_may_not_send_is_not_heard() {
    let (lab, port) = (Lab::new(), free_port());
    let keys = "idle_timeout = \"1s\"\nmax_connections = 1\nallow = [\"127.0.0.1\"]";
    let daemon = start(&lab, port, keys);
    let mut client = Client::connect(v4(port));
    let mut second = TcpStream::connect(v4(port)).unwrap();
    assert_eq!(std::io::Read::read(&mut second, &mut [0; 10]).unwrap_or(0), 0);
    let mut stranger = TcpStream::connect(v6(port)).unwrap();
    assert_eq!(std::io::Read::read(&mut stranger, &mut [0; 10]).unwrap_or(0), 0);
    client.expect_goodbye();
    drop(client);
    for reason in ["idle_timeout", "max_connections", "denied"] {
        assert_eq!(daemon.number(&format!("/inputs/relp/rejected/{reason}")), 1, "{reason}");
    }
    daemon.stop();
}

#[test]
fn inside_tls_it_is_the_same_and_says_so() {
    let (lab, plain, encrypted) = (Lab::new(), free_port(), free_port());
    let authority = Authority::new(&lab, "ours");
    authority.issue(&lab, "server", &["localhost"]);
    let daemon = lab.start(&format!(
        "[[input.relp]]\nname = \"relp\"\nlisten = [\"tcp://127.0.0.1:{plain}\", \"tls://127.0.0.1:{encrypted}\"]\n\
         tls = {{ cert_file = \"server.crt\", key_file = \"server.key\" }}\n{OUTPUT}"
    ));
    let mut inside = Client::of(tls_connect(v4(encrypted), tls_client(&lab, authority.file(), None, false)).unwrap());
    inside.send("syslog", b"inside");
    inside.expect_ok(2);
    let mut outside = Client::connect(v4(plain));
    outside.send("syslog", b"outside");
    outside.expect_ok(2);
    let transports: Vec<_> = journal::batches(&lab.path("data"))
        .iter()
        .flat_map(|batch| {
            batch.envelopes().map(|envelope| format!("{:?}", envelope.origin.transport)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(transports, ["Tls", "Tcp"]);
    daemon.signal(Signal::SIGTERM);
    inside.expect_goodbye();
    drop((inside, outside));
    let mut daemon = daemon;
    assert!(daemon.ended().success());
}

#[test]
fn a_reload_closes_no_connection() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let mut client = Client::connect(v4(port));
    client.send("syslog", b"before");
    client.expect_ok(2);
    lab.configure(&config(port, "max_message = \"1KiB\""));
    assert!(lab.run(["reload"]).status.success());
    client.send("syslog", &[b'x'; 5000]);
    client.expect_ok(3);
    let mut next = Client::connect(v4(port));
    next.send("syslog", &[b'y'; 5000]);
    next.expect_ok(2);
    let lengths: Vec<usize> = journal::payloads(&lab.path("data")).iter().map(Vec::len).collect();
    assert_eq!(lengths, [6, 5000, 1024]);
    daemon.stop();
}
