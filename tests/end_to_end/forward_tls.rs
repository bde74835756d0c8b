//! fluent-forward inside TLS, both ways, and from one twinlog to another; one chunk through every kind of output.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};

use serde_json::Value;
use twinlog::proto::envelope::Transport;
use twinlog::proto::forward::compression::inflate;
use twinlog::proto::forward::entry::Entries;
use twinlog::proto::forward::json::write_json;

use crate::common::forward::{Client, ack, entries, journaled, packed};
use crate::common::forward_server::messages_once;
use crate::common::{
    Authority, Daemon, ForwardServer, Framing, Lab, Sink, connect_and_send, free_port, lines, numbered, place,
    tls_client, tls_connect, v4, wait_until, wait_until_within,
};

/// Where nobody listens: nothing is delivered, so the journal keeps it all.
fn nowhere() -> String {
    format!("[[output.syslog]]\nto = \"tcp://127.0.0.1:{}\"\n", free_port())
}

fn input(port: u16, keys: &str) -> String {
    format!("[[input.forward]]\nname = \"in\"\nlisten = \"127.0.0.1:{port}\"\n{keys}\n")
}

/// A syslog input and a forward output `out` inside TLS.
fn sender(input: u16, to: u16, keys: &str) -> String {
    format!(
        r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.forward]]
name = "out"
to = "127.0.0.1:{to}"
retry = {{ min = "20ms", max = "200ms" }}
tls = {{ ca_file = "good.ca" }}
{keys}
"#
    )
}

#[test]
fn chunks_inside_tls_are_acknowledged_and_who_has_no_certificate_stays_outside() {
    let (lab, port) = (Lab::new(), free_port());
    let authority = Authority::new(&lab, "good");
    authority.issue(&lab, "server", &["localhost"]);
    authority.issue(&lab, "sender", &["sender.test"]);
    let tls = "tls = { cert_file = \"server.crt\", key_file = \"server.key\", ca_file = \"good.ca\" }";
    let daemon = lab.start(&(input(port, tls) + &nowhere()));
    let config = |name, only_12| tls_client(&lab, authority.file(), name, only_12);
    assert!(tls_connect(v4(port), config(None, true)).is_err());
    let mut plain = Client::connect(v4(port));
    plain.send(&packed(b"plain", &entries("never", 1), Some(b"never")));
    // A TLS alert maybe, and no acknowledgement.
    let answer = plain.read_to_close();
    assert!(!answer.windows(3).any(|bytes| bytes == b"ack"), "{}", answer.escape_ascii());
    daemon.wait_for("/inputs/in/rejected/tls", 2);
    let large = entries("large", 30_000);
    for only_12 in [false, true] {
        let mut stream = tls_connect(v4(port), config(Some("sender"), only_12)).unwrap();
        for number in 0..10_u8 {
            let id = [b'a' + u8::from(only_12), b'0' + number];
            stream.write_all(&packed(b"t", &large, Some(&id))).unwrap();
            let mut answer = vec![0; ack(&id).len()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, ack(&id));
        }
        // As clients end: without `close_notify`.
        drop(stream);
    }
    // fluentd's heartbeat: the handshake and nothing more.
    drop(tls_connect(v4(port), config(Some("sender"), false)).unwrap());
    daemon.wait_for("/inputs/in/connections", 0);
    let rejected = daemon.node().pointer("/inputs/in/rejected").cloned().unwrap();
    assert_eq!(rejected, serde_json::json!({ "tls": 2 }));
    daemon.stop();
    let chunks = journaled(&lab.path("data"));
    assert_eq!(chunks.len(), 20);
    assert!(chunks.iter().all(|chunk| chunk.transport == Transport::Tls && chunk.entries == large));
}

#[test]
fn an_output_inside_tls_delivers_with_and_without_acknowledgements() {
    for keys in ["", "require_ack = false"] {
        let (ours, theirs, port, to) = (Lab::new(), Lab::new(), free_port(), free_port());
        Authority::new(&ours, "good").issue(&theirs, "server", &["127.0.0.1"]);
        let tls = "tls = { cert_file = \"server.crt\", key_file = \"server.key\" }";
        let receiver = theirs.start(&(input(to, tls) + &nowhere()));
        let daemon = ours.start(&sender(port, to, keys));
        connect_and_send(v4(port), &lines(&numbered("m", 20_000)));
        receiver.wait_for("/inputs/in/messages", 20_000);
        daemon.wait_for("/outputs/out/acknowledged", 20_000);
        daemon.wait_for("/outputs/out/backlog_messages", 0);
        daemon.wait_for("/outputs/out/in_flight", 0);
        daemon.stop();
        receiver.stop();
        let chunks = journaled(&theirs.path("data"));
        assert!(chunks.iter().all(|chunk| chunk.id.is_some() == keys.is_empty()));
        let texts: Vec<String> = chunks.iter().flat_map(|chunk| texts(&chunk.entries)).collect();
        assert!(texts.iter().eq(numbered_texts(20_000).iter()), "{} messages", texts.len());
    }
}

/// The `message` of every entry of a stream.
fn texts(stream: &[u8]) -> Vec<String> {
    let mut plain = Vec::new();
    inflate(&mut plain, stream, 64 << 20).unwrap();
    let text = |record: &[u8]| {
        let mut json = Vec::new();
        write_json(&mut json, record).unwrap();
        let record: Value = serde_json::from_slice(&json).unwrap();
        record["message"].as_str().unwrap().to_owned()
    };
    Entries::new(&plain).map(|entry| text(entry.record)).collect()
}

fn numbered_texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("m {number}")).collect()
}

#[test]
fn a_receiver_that_is_killed_again_and_again_loses_nothing_and_repeats_only_under_equal_ids() {
    const MESSAGES: usize = 150_000;
    let (ours, theirs, port, to) = (Lab::new(), Lab::new(), free_port(), free_port());
    Authority::new(&ours, "good").issue(&theirs, "server", &["127.0.0.1"]);
    [&ours, &theirs].iter().for_each(|lab| place(lab, "key", "secret\n"));
    let tls = "tls = { cert_file = \"server.crt\", key_file = \"server.key\" }";
    let receiving = input(to, &format!("shared_key_file = \"key\"\n{tls}")) + &nowhere();
    let mut receiver = theirs.start(&receiving);
    let daemon =
        ours.start(&sender(port, to, "shared_key_file = \"key\"\nself_hostname = \"ours\"\nack_timeout = \"2s\""));
    let sending = std::thread::spawn(move || drop(connect_and_send(v4(port), &lines(&numbered("m", MESSAGES)))));
    let acknowledged = |daemon: &Daemon| daemon.number("/outputs/out/acknowledged");
    for part in 1..4 {
        let enough = (MESSAGES * part / 5) as u64;
        wait_until("some is acknowledged", || acknowledged(&daemon) >= enough);
        receiver.kill();
        receiver = theirs.start(&receiving);
    }
    sending.join().unwrap();
    let limit = std::time::Duration::from_secs(60);
    wait_until_within(limit, "all is acknowledged", || acknowledged(&daemon) == MESSAGES as u64);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.stop();
    receiver.stop();
    let mut once: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for chunk in journaled(&theirs.path("data")) {
        let (id, entries) = (chunk.id.unwrap(), chunk.entries);
        let before = once.entry(id).or_insert_with(|| entries.clone());
        assert!(*before == entries, "an id came with other entries");
    }
    let got: Vec<String> = once.values().flat_map(|entries| texts(entries)).collect();
    assert_eq!(got.len(), MESSAGES, "under another id nothing comes again");
    let got: BTreeSet<String> = got.into_iter().collect();
    assert!(numbered_texts(MESSAGES).iter().all(|text| got.contains(text)));
}

#[test]
fn one_chunk_leaves_through_every_kind_of_output() {
    let (lab, port, syslog) = (Lab::new(), free_port(), free_port());
    let server = ForwardServer::new(v4(free_port()));
    let sink = Sink::tcp(v4(syslog), Framing::Lf);
    let daemon = lab.start(&format!(
        r#"
{}
[[output.file]]
path = "json"
format = "json"

[[output.syslog]]
to = "tcp://127.0.0.1:{syslog}"
format = "rfc5424"

[[output.forward]]
to = "{}"
"#,
        input(port, ""),
        server.target()
    ));
    let mut client = Client::connect(v4(port));
    for number in 0..10_u8 {
        client.send(&packed(b"app.web", &entries("m", 500), Some(&[b'0' + number])));
        client.expect_ack(&[b'0' + number]);
    }
    let got = server.wait_for(5000);
    let sent = sink.wait_for(5000);
    wait_until("the file has them", || lab.lines_of("json").len() == 5000);
    daemon.stop();
    let expected: Vec<String> = (0..10).flat_map(|_| numbered_texts(500)).collect();
    assert_eq!(messages_once(&got), expected);
    let json: Vec<Value> = lab.lines_of("json").iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert!(json.iter().map(|line| line["record"]["message"].as_str().unwrap()).eq(&expected));
    let ids: BTreeSet<&str> = json.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 5000);
    for (message, line) in sent.iter().zip(&json) {
        let message = String::from_utf8_lossy(message);
        let (id, text) = (line["id"].as_str().unwrap(), line["record"].to_string());
        assert!(
            message.starts_with("<13>1 2026-03-10T12:00:00Z 127.0.0.1 app.web - - [twinlog@32473 id=\""),
            "{message}"
        );
        assert!(message.contains(&format!("id=\"{id}\"")) && message.ends_with(&text), "{message} {text}");
    }
}
