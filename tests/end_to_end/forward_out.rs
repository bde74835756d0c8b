//! Messages that leave through fluent-forward, to servers that answer well, badly or not at all.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Value, json};
use twinlog::proto::forward::compression::{Encoding, gzip};
use twinlog::proto::forward::handshake::{Security, User};
use twinlog::proto::forward::message::Mode;

use crate::common::forward_server::{Journaled, events_of, journal, messages_once};
use crate::common::{
    Answer, Daemon, ForwardServer, Framing, Lab, Sink, connect_and_send, free_port, lines, numbered, v4, wait_until,
};

/// A syslog input and a forward output `out`.
fn config(input: u16, to: &[&ForwardServer], more: &str) -> String {
    let to: Vec<String> = to.iter().map(|server| server.target()).collect();
    config_to(input, &to, more)
}

fn config_to(input: u16, to: &[String], more: &str) -> String {
    format!(
        r#"
[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"
timezone = "UTC"

[[output.forward]]
name = "out"
to = {to:?}
retry = {{ min = "20ms", max = "200ms" }}
{more}
"#
    )
}

fn texts(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name} {number}")).collect()
}

/// Waits until everything was delivered, and stops.
#[track_caller]
fn stop(daemon: Daemon) {
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.wait_for("/outputs/out/in_flight", 0);
    daemon.stop();
}

#[test]
fn a_syslog_message_is_the_record_of_fluentds_parser() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::new(v4(free_port()));
    let daemon = lab.start(&config(input, &[&server], ""));
    connect_and_send(
        v4(input),
        b"<165>1 2003-10-11T22:14:15.003Z web1 app 7 ID47 [a@1 k=\"v\"] text\n<13>Oct 11 22:14:15 h su[9]: again\n",
    );
    let got = server.wait_for(2);
    stop(daemon);
    let golden = [
        (
            "syslog.local4.notice",
            json!({"pri": 165, "facility": "local4", "severity": "notice", "host": "web1", "ident": "app", "pid": "7",
                   "msgid": "ID47", "extradata": "[a@1 k=\"v\"]", "message": "text"}),
        ),
        (
            "syslog.user.notice",
            json!({"pri": 13, "facility": "user", "severity": "notice", "host": "h", "ident": "su", "pid": "9",
                   "message": "again"}),
        ),
    ];
    for (tag, record) in golden {
        let got = got.iter().find(|got| got.tag == tag).unwrap_or_else(|| panic!("no chunk is tagged {tag}"));
        assert_eq!((got.mode, got.records()), (Mode::PackedForward, vec![record]));
    }
    // [EventTime, record]: 1065910455 s, 3 000 000 ns.
    let first = &got.iter().find(|got| got.tag == "syslog.local4.notice").unwrap().packed;
    assert_eq!(first[..11], *b"\x92\xd7\x00\x3f\x88\x80\xb7\x00\x2d\xc6\xc0");
}

#[test]
fn entries_leave_as_they_came() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::new(v4(free_port()));
    let plain = b"\x92\x05\x81\xa1a\x01\x92\xd7\0\0\0\0\x06\0\0\0\x07\x81\xa1b\xa2\xff\xfe";
    let nested = b"\x92\x92\x07\x81\xa1m\x01\x81\xa1c\x02";
    let mut compressed = Vec::new();
    gzip(&mut compressed, plain);
    let chunks: [Journaled<'_>; 4] = [
        ("web.access", plain, 2, true),
        ("web.access", nested, 1, false),
        ("db", &compressed, 2, true),
        ("web.access", plain, 2, true),
    ];
    journal(&lab.path("data"), "out", &chunks);
    let daemon = lab.start(&config(input, &[&server], ""));
    let got = server.wait_for(7);
    let (sent, acknowledged) = (daemon.number("/outputs/out/sent"), || daemon.number("/outputs/out/acknowledged"));
    wait_until("events are counted", || acknowledged() == 7);
    assert_eq!(sent, 7);
    stop(daemon);
    assert_eq!(got.len(), 2);
    assert_eq!((got[0].tag.as_str(), got[0].events, got[0].mode), ("web.access", 5, Mode::PackedForward));
    assert_eq!(got[0].packed, [&plain[..], b"\x92\x07\x81\xa1c\x02", plain].concat());
    let as_it_came = Mode::CompressedPackedForward(Encoding::Gzip);
    assert_eq!((got[1].tag.as_str(), got[1].events, got[1].mode), ("db", 2, as_it_came));
    assert_eq!(got[1].packed, plain);
}

#[test]
fn events_leave_through_every_output_that_takes_their_tag() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::new(v4(free_port()));
    let entry = b"\x92\x05\x82\xa4host\xa1h\xa7message\xa1m";
    journal(&lab.path("data"), "out", &[("app.web", entry, 1, true), ("db", &entry.repeat(2), 2, true)]);
    let daemon = lab.start(&config(
        input,
        &[&server],
        r#"
match = { tag = ["app.**", "x"] }

[[output.file]]
name = "json"
path = "json"
format = "json"

[[output.file]]
name = "lines"
path = "lines"
match = { tag = "{app,db}" }

[[output.file]]
name = "none"
path = "none"
match = { severity_at_least = "warning" }
"#,
    ));
    let got = server.wait_for(1);
    for output in ["json", "lines", "none"] {
        daemon.wait_for(&format!("/outputs/{output}/backlog_messages"), 0);
    }
    assert_eq!(daemon.number("/outputs/json/sent"), 3);
    stop(daemon);
    assert_eq!(got.iter().map(|got| got.tag.as_str()).collect::<Vec<_>>(), ["app.web"]);
    let line = "1970-01-01T00:00:05Z\tdb\t{\"host\":\"h\",\"message\":\"m\"}";
    assert_eq!(lab.lines_of("lines"), [line.as_bytes(), line.as_bytes()]);
    assert!(lab.lines_of("none").is_empty());
    let objects: Vec<Value> = lab.lines_of("json").iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(objects[2]["record"], json!({"host": "h", "message": "m"}));
    assert_eq!(
        (&objects[2]["format"], &objects[2]["tag"], &objects[2]["source"]),
        (&json!("forward"), &json!("db"), &json!("192.0.2.7"))
    );
    let ids: Vec<&str> = objects.iter().map(|object| object["id"].as_str().unwrap()).collect();
    assert!(ids[1].ends_with(".0") && ids[2].ends_with(".1"), "{ids:?}");
    let shown =
        lab.command(["journal", "cat", "--raw", "--config", lab.path("twinlog.toml").to_str().unwrap()]).output();
    let shown: Vec<Value> = shown
        .unwrap()
        .stdout
        .split_inclusive(|b| *b == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(shown.iter().map(|object| object["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    assert!(shown[0]["raw_b64"].is_string());
}

#[test]
fn to_a_syslog_server_an_event_is_a_message_of_its_own() {
    let (lab, input, stream_at, datagram_at) = (Lab::new(), free_port(), free_port(), free_port());
    let (stream, datagrams) = (Sink::tcp(v4(stream_at), Framing::Octet), Sink::udp(v4(datagram_at)));
    let server = ForwardServer::new(v4(free_port()));
    let parsed = b"\x92\x05\x85\xa3pri\x22\xa4host\xa1h\xa5ident\xa2su\xa3pid\x07\xa7message\xa6failed";
    let other = b"\x92\x05\x81\xa3log\xa1x";
    journal(&lab.path("data"), "out", &[("docker", &[&parsed[..], other].concat(), 2, true)]);
    let daemon = lab.start(&config(
        input,
        &[&server],
        &format!(
            r#"
[[output.syslog]]
name = "stream"
to = "tcp://127.0.0.1:{stream_at}"
framing = "octet"

[[output.syslog]]
name = "datagrams"
to = "udp://127.0.0.1:{datagram_at}"
format = "rfc5424"
"#
        ),
    ));
    for sink in [&stream, &datagrams] {
        let got: Vec<String> = sink.wait_for(2).into_iter().map(|text| String::from_utf8(text).unwrap()).collect();
        assert!(
            got[0].starts_with("<34>1 1970-01-01T00:00:05Z h su 7 - [twinlog@32473 id=\"node-a/19aa3f0/"),
            "{got:?}"
        );
        assert!(got[0].contains(".0\" src=\"192.0.2.7\"") && got[0].ends_with("] failed"), "{got:?}");
        assert!(got[1].starts_with("<13>1 1970-01-01T00:00:05Z 192.0.2.7 docker - - [twinlog@32473 "), "{got:?}");
        assert!(got[1].ends_with("] {\"log\":\"x\"}"), "{got:?}");
    }
    stop(daemon);
}

#[test]
fn acknowledgements_are_matched_by_id_and_held_ones_move_nothing() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::start(v4(free_port()), Answer::Held, None);
    let daemon = lab.start(&config(input, &[&server], ""));
    let mut sender = TcpStream::connect(v4(input)).unwrap();
    for number in 0..5 {
        sender.write_all(&lines(&numbered(&format!("m{number}"), 10))).unwrap();
        server.wait_for((number + 1) * 10);
    }
    assert_eq!(daemon.number("/outputs/out/acknowledged"), 0);
    daemon.wait_for("/outputs/out/in_flight", 50);
    // Newest first.
    server.answer(Answer::Right);
    daemon.wait_for("/outputs/out/acknowledged", 50);
    stop(daemon);
    let got = server.close();
    let expected: Vec<String> = (0..5).flat_map(|number| texts(&format!("m{number}"), 10)).collect();
    assert_eq!((events_of(&got), messages_once(&got)), (50, expected));
}

#[test]
fn an_acknowledgement_in_pieces_is_one() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::start(v4(free_port()), Answer::Split, None);
    let daemon = lab.start(&config(input, &[&server], "compress = \"gzip\""));
    connect_and_send(v4(input), &lines(&numbered("m", 2000)));
    server.wait_for(2000);
    stop(daemon);
    let got = server.close();
    assert!(got.iter().all(|got| got.mode == Mode::CompressedPackedForward(Encoding::Gzip)));
    assert_eq!((events_of(&got), messages_once(&got)), (2000, texts("m", 2000)));
}

/// What a bad answer does: the connection is given up, and the chunk comes again with the id it had.
#[track_caller]
fn comes_again_after(answer: Answer, reason: &str) {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::start(v4(free_port()), answer, None);
    let daemon = lab.start(&config(input, &[&server], "ack_timeout = \"1s\""));
    let errors = format!("/outputs/out/errors/{reason}");
    connect_and_send(v4(input), &lines(&numbered("m", 100)));
    wait_until("it was given up", || daemon.number(&errors) >= 1);
    assert_eq!(daemon.number("/outputs/out/acknowledged"), 0);
    server.answer(Answer::Right);
    daemon.wait_for("/outputs/out/acknowledged", 100);
    stop(daemon);
    let got = server.close();
    assert!(got.len() >= 2 && got.iter().all(|other| other.chunk == got[0].chunk), "{got:?}");
    assert_eq!(messages_once(&got), texts("m", 100));
}

#[test]
fn a_chunk_that_is_not_acknowledged_comes_again_with_its_id() {
    comes_again_after(Answer::Held, "ack_timeout");
}

#[test]
fn a_chunk_acknowledged_by_another_name_comes_again_with_its_id() {
    comes_again_after(Answer::WrongId, "ack_invalid");
}

#[test]
fn a_chunk_whose_connection_ends_comes_again_with_its_id() {
    comes_again_after(Answer::Close, "connection_lost");
}

#[test]
fn a_server_that_does_not_read_is_waited_for_and_nothing_is_lost() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::start(v4(free_port()), Answer::Deaf, None);
    let daemon = lab.start(&config(input, &[&server], "ack_timeout = \"1s\""));
    connect_and_send(v4(input), &lines(&numbered("m", 100_000)));
    wait_until("it was given up", || daemon.number("/outputs/out/errors/ack_timeout") >= 1);
    server.answer(Answer::Right);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    stop(daemon);
    assert_eq!(messages_once(&server.close()), texts("m", 100_000));
}

#[test]
fn a_frame_cut_in_the_middle_comes_again() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::start(v4(free_port()), Answer::Cut, None);
    let daemon = lab.start(&config(input, &[&server], ""));
    connect_and_send(v4(input), &lines(&numbered("m", 100_000)));
    wait_until("it was cut more than once", || daemon.number("/outputs/out/errors/connection_lost") >= 2);
    server.answer(Answer::Right);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    stop(daemon);
    assert_eq!(messages_once(&server.close()), texts("m", 100_000));
}

#[test]
fn the_second_server_stands_in_until_the_first_has_proven_itself() {
    let (lab, input, first_at) = (Lab::new(), free_port(), v4(free_port()));
    let (first, second) = (ForwardServer::new(first_at), ForwardServer::new(v4(free_port())));
    let daemon = lab.start(&config(input, &[&first, &second], ""));
    let mut sender = TcpStream::connect(v4(input)).unwrap();
    let mut count = 0;
    let mut send = || {
        sender.write_all(&lines(&numbered(&format!("m{count}"), 10))).unwrap();
        count += 1;
    };
    send();
    first.wait_for(10);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    let mut got = first.close();
    send();
    second.wait_for(10);
    // It takes connections and does nothing: one chunk waits on trial, the others go on through the second.
    let deaf = ForwardServer::start(first_at, Answer::Held, None);
    crate::common::wait_until_within(Duration::from_secs(40), "the first is tried again", || {
        send();
        std::thread::sleep(Duration::from_millis(50));
        events_of(&deaf.got()) > 0
    });
    let before = events_of(&second.got());
    send();
    send();
    second.wait_for(before + 20);
    assert_eq!(events_of(&deaf.got()), 10);
    deaf.answer(Answer::Right);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    send();
    deaf.wait_for(20);
    wait_until("only the first is left", || daemon.node()["outputs"]["out"]["target"] == format!("tcp://{first_at}"));
    stop(daemon);
    got.extend(second.close());
    got.extend(deaf.close());
    let expected: Vec<String> = (0..count).flat_map(|number| texts(&format!("m{number}"), 10)).collect();
    let mut messages = messages_once(&got);
    messages.sort_by_key(|message| expected.iter().position(|expected| expected == message));
    assert_eq!(messages, expected);
}

#[test]
fn in_round_robin_all_servers_work_and_a_dead_ones_chunks_go_to_the_others() {
    let (lab, input) = (Lab::new(), free_port());
    let servers = [0; 3].map(|_| ForwardServer::start(v4(free_port()), Answer::Right, None));
    let [a, b, c] = servers;
    let daemon = lab.start(&config(input, &[&a, &b, &c], "balance = \"round_robin\"\nack_timeout = \"1s\""));
    wait_until("all are connected", || a.connections() + b.connections() + c.connections() == 3);
    let mut sender = TcpStream::connect(v4(input)).unwrap();
    for number in 0..30 {
        sender.write_all(&lines(&numbered(&format!("m{number}"), 10))).unwrap();
        daemon.wait_for("/outputs/out/acknowledged", (number + 1) * 10);
    }
    for server in [&a, &b, &c] {
        assert!(events_of(&server.got()) > 0, "one was left out");
    }
    c.answer(Answer::Held);
    for number in 30..60 {
        sender.write_all(&lines(&numbered(&format!("m{number}"), 10))).unwrap();
    }
    daemon.wait_for("/outputs/out/acknowledged", 600);
    stop(daemon);
    let got = [a.close(), b.close(), c.close()].concat();
    let mut messages = messages_once(&got);
    messages.sort();
    let mut expected: Vec<String> = (0..60).flat_map(|number| texts(&format!("m{number}"), 10)).collect();
    expected.sort();
    assert_eq!(messages, expected);
}

fn secret(lab: &Lab, name: &str, content: &str) {
    std::fs::write(lab.path(name), content).unwrap();
    std::fs::set_permissions(lab.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_server_is_logged_in_to_and_one_with_another_key_gets_nothing() {
    let (lab, input) = (Lab::new(), free_port());
    let security = |key: &[u8]| Security {
        self_hostname: "server".to_owned(),
        shared_key: key.to_vec(),
        users: vec![User { name: "ada".to_owned(), password: b"pass".to_vec() }],
    };
    let impostor = ForwardServer::start(v4(free_port()), Answer::Right, Some(security(b"other")));
    let server = ForwardServer::start(v4(free_port()), Answer::Right, Some(security(b"key")));
    secret(&lab, "key", "key\n");
    secret(&lab, "password", "pass\n");
    let keys =
        "shared_key_file = \"key\"\nself_hostname = \"client\"\nusername = \"ada\"\npassword_file = \"password\"";
    let daemon = lab.start(&config(input, &[&impostor, &server], keys));
    connect_and_send(v4(input), &lines(&numbered("m", 100)));
    let got = server.wait_for(100);
    assert!(daemon.number("/outputs/out/errors/handshake") >= 1);
    stop(daemon);
    assert_eq!((messages_once(&got), impostor.close().len()), (texts("m", 100), 0));
    let log = String::from_utf8(lab.read("stderr")).unwrap();
    assert!(log.contains("cannot log in") && !log.contains("pass\""), "{log}");
}

#[test]
fn secrets_that_others_may_read_are_refused_by_check_and_run_and_reload_and_not_used_meanwhile() {
    let (lab, input, at) = (Lab::new(), free_port(), v4(free_port()));
    let text = config_to(
        input,
        &[at.to_string()],
        "shared_key_file = \"key\"\nself_hostname = \"c\"\nusername = \"ada\"\npassword_file = \"password\"",
    );
    let path = lab.configure(&text);
    let may_read = |mode| std::fs::set_permissions(lab.path("key"), std::fs::Permissions::from_mode(mode)).unwrap();
    secret(&lab, "key", "key\n");
    may_read(0o644);
    for verb in ["check", "run"] {
        let done = lab.command([verb, "--config", path.to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(78), "{verb}: {said}");
        assert!(said.contains("others may read key (mode 0644)") && said.contains("chmod 0640 key"), "{verb}: {said}");
        assert!(said.contains("cannot read password"), "{verb}: {said}");
    }
    secret(&lab, "password", "pass\n");
    may_read(0o600);
    let daemon = lab.start(&text);
    may_read(0o644);
    let refused = lab.run(["reload"]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("others may read key"), "{refused:?}");
    let security = Security { self_hostname: "s".to_owned(), shared_key: b"key".to_vec(), users: Vec::new() };
    let server = ForwardServer::start(at, Answer::Right, Some(security));
    connect_and_send(v4(input), &lines(&numbered("m", 10)));
    wait_until("it is refused", || daemon.number("/outputs/out/errors/secret") >= 1);
    may_read(0o600);
    assert!(lab.run(["reload"]).status.success());
    server.wait_for(10);
    stop(daemon);
}

#[test]
fn without_acknowledgements_the_cursor_follows_the_servers_tcp() {
    let (lab, input) = (Lab::new(), free_port());
    let server = ForwardServer::new(v4(free_port()));
    let daemon = lab.start(&config(input, &[&server], "require_ack = false"));
    connect_and_send(v4(input), &lines(&numbered("m", 5000)));
    let got = server.wait_for(5000);
    stop(daemon);
    assert!(got.iter().all(|got| got.chunk.is_none()));
    assert_eq!(events_of(&got), 5000);
}

#[test]
fn a_server_that_waits_for_a_handshake_is_not_taken_for_one_that_has_everything() {
    let (lab, input) = (Lab::new(), free_port());
    let security = Security { self_hostname: "s".to_owned(), shared_key: b"key".to_vec(), users: Vec::new() };
    let server = ForwardServer::start(v4(free_port()), Answer::Right, Some(security));
    let daemon = lab.start(&config(input, &[&server], "require_ack = false"));
    wait_until("it asks for the key", || daemon.number("/outputs/out/errors/handshake") >= 2);
    connect_and_send(v4(input), &lines(&numbered("m", 10)));
    wait_until("it was tried again", || daemon.number("/outputs/out/errors/handshake") >= 5);
    assert!(server.close().is_empty());
    daemon.stop();
}

#[test]
fn a_kill_and_a_restart_repeat_chunks_with_their_ids_and_lose_nothing() {
    let (lab, input, at) = (Lab::new(), free_port(), v4(free_port()));
    let server = ForwardServer::start(at, Answer::Held, None);
    let text = config(input, &[&server], "");
    let daemon = lab.start(&text);
    connect_and_send(v4(input), &lines(&numbered("before", 20_000)));
    daemon.wait_until_durable(20_000);
    wait_until("some are in flight", || !server.got().is_empty());
    daemon.kill();
    let held = server.got().len();
    let daemon = lab.start(&text);
    server.answer(Answer::Right);
    connect_and_send(v4(input), &lines(&numbered("after", 1000)));
    daemon.wait_for("/outputs/out/acknowledged", 21_000);
    // And once more in order, with something on its way.
    server.answer(Answer::Held);
    connect_and_send(v4(input), &lines(&numbered("last", 1000)));
    wait_until("it is on its way", || daemon.number("/outputs/out/in_flight") > 0);
    server.answer(Answer::Right);
    daemon.stop();
    let daemon = lab.start(&text);
    stop(daemon);
    let got = server.close();
    let again = got[held..].iter().filter(|later| got[..held].iter().any(|first| first.chunk == later.chunk)).count();
    assert!(again > 0, "what the first daemon had sent came again");
    assert_eq!(messages_once(&got), [texts("before", 20_000), texts("after", 1000), texts("last", 1000)].concat());
}

#[test]
fn a_server_that_comes_late_gets_everything() {
    let (lab, input, at) = (Lab::new(), free_port(), v4(free_port()));
    let daemon = lab.start(&config_to(input, &[at.to_string()], ""));
    connect_and_send(v4(input), &lines(&numbered("m", 50_000)));
    wait_until("it was tried", || daemon.number("/outputs/out/errors/connect") >= 2);
    daemon.wait_until_durable(50_000);
    let server = ForwardServer::new(at);
    server.wait_for(50_000);
    stop(daemon);
    assert_eq!(messages_once(&server.close()), texts("m", 50_000));
}
