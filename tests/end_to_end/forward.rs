//! Forward senders: what they send is journaled as it is, and acknowledged when it is safe.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::common::forward::{
    Client, Journaled, ack, entries, entry, event_time, forward_mode, gzip, journaled, message_mode, packed,
    packed_with, record, str_of,
};
use crate::common::{Daemon, Lab, free_port, message, udp_to, v4, v6, wait_until, wait_until_within};

/// An output that takes nothing of forward, so that the journal keeps it all.
const OUTPUT: &str = r#"
[[output.file]]
path = "out"
match = { tag = "nothing.of.this" }
"#;

fn config(port: u16, keys: &str) -> String {
    format!("[[input.forward]]\nname = \"apps\"\nlisten = \":{port}\"\n{keys}\n{OUTPUT}")
}

fn start(lab: &Lab, port: u16, keys: &str) -> Daemon {
    lab.start(&config(port, keys))
}

fn chunks(lab: &Lab) -> Vec<Journaled> {
    journaled(&lab.path("data"))
}

/// Sends one acknowledged chunk, to see that all is well.
#[track_caller]
fn is_served(port: u16) {
    let mut client = Client::connect(v4(port));
    client.send(&packed(b"probe", &entry("served"), Some(b"probe")));
    client.expect_ack(b"probe");
}

#[test]
fn every_mode_is_journaled_as_it_came_and_acknowledged_byte_for_byte() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let plain = entries("packed", 3);
    let zipped = [gzip(&entries("zip", 2)), gzip(&entries("zap", 1))].concat();
    let zstd = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
    let nested = [&[0x92, 0x92][..], &event_time(5, 6), b"\x81\xa1k\xa1v", &record("metadata")].concat();
    let mut client = Client::connect(v4(port));
    let mut expected = Vec::new();
    let mut send = |frame: Vec<u8>, tag: &[u8], id: &[u8], entries: &[u8], events: u32| {
        client.send(&frame);
        client.expect_ack(id);
        let (input, tag, id, entries) = ("apps".to_owned(), tag.to_vec(), Some(id.to_vec()), entries.to_vec());
        let transport = twinlog::proto::envelope::Transport::Tcp;
        expected.push(Journaled { input, tag, id, entries, events, transport });
    };
    // fluentd's id has a line feed at its end; one of 40 bytes needs another header.
    send(
        message_mode(b"a.b", "one", Some(b"ZguPIVni+yCePpLbFbLkwA==\n")),
        b"a.b",
        b"ZguPIVni+yCePpLbFbLkwA==\n",
        &entry("one"),
        1,
    );
    send(forward_mode(b"f", "n", 4, Some(&[b'x'; 40])), b"f", &[b'x'; 40], &entries("n", 4), 4);
    send(packed(b"p", &plain, Some(b"1")), b"p", b"1", &plain, 3);
    send(
        packed_with(b"p", &plain, Some(b"2"), &[("compressed", &str_of(b"text")), ("size", &[77])]),
        b"p",
        b"2",
        &plain,
        3,
    );
    send(packed_with(b"p", &zipped, Some(b"3"), &[("compressed", &str_of(b"gzip"))]), b"p", b"3", &zipped, 3);
    send(packed(b"p", &zstd, Some(b"4")), b"p", b"4", &zstd, 3);
    send(packed(b"\xff\xfe", &nested, Some(b"\xff")), b"\xff\xfe", b"\xff", &nested, 1);
    // Without a chunk nothing is answered; without events there is nothing to journal, but an answer.
    client.send(&packed(b"quiet", &plain, None));
    client.send(b"\xc0");
    client.send(&[b"\x92\xa0\x90".to_vec(), packed(b"", b"", Some(b"empty"))].concat());
    client.expect_ack(b"empty");
    daemon.wait_for("/inputs/apps/messages", 21);
    daemon.wait_until_durable(21);
    let got = chunks(&lab);
    assert_eq!(got[..expected.len()], expected);
    assert_eq!((got.len(), got[expected.len()].id.clone()), (expected.len() + 1, None));
    assert_eq!(daemon.node().pointer("/inputs/apps/rejected").unwrap().as_object().unwrap().len(), 0);
    daemon.stop();
}

#[test]
fn pieces_and_pipelines_are_acknowledged_in_order() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let frames: Vec<Vec<u8>> = (0..300_u32)
        .map(|number| match number % 3 {
            0 => message_mode(b"m", &format!("number {number}"), Some(&number.to_be_bytes())),
            1 => forward_mode(b"f", &format!("number {number}"), 5, Some(&number.to_be_bytes())),
            _ => packed(b"p", &entries(&format!("number {number}"), 500), Some(&number.to_be_bytes())),
        })
        .collect();
    let mut client = Client::connect(v4(port));
    let stream = frames.concat();
    let ours = std::thread::spawn(move || {
        client.send(&stream);
        client
    });
    let mut client = ours.join().unwrap();
    (0..300_u32).for_each(|number| client.expect_ack(&number.to_be_bytes()));
    let before = chunks(&lab);
    assert_eq!(before.len(), 300);

    let mut slow = Client::connect(v4(port));
    for (number, frame) in frames[..3].iter().enumerate() {
        let step = if frame.len() > 2000 { 97 } else { 1 };
        // Another tag, or it would be a repeat.
        frame.chunks(step).for_each(|piece| slow.send(piece));
        slow.expect_ack(&(number as u32).to_be_bytes());
    }
    daemon.wait_for("/inputs/apps/rejected/repeated", 3);
    assert_eq!(chunks(&lab), before, "they were there already");
    daemon.stop();
}

#[test]
fn a_frame_of_many_megabytes_comes_through_whole() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let big = [&[0x92][..], &event_time(1, 2), &record(&"x".repeat(20 << 20))].concat();
    let mut client = Client::connect(v4(port));
    client.send(&[packed(b"big", &big, Some(b"big")), packed(b"small", &entry("after"), Some(b"small"))].concat());
    client.expect_ack(b"big");
    client.expect_ack(b"small");
    let got = chunks(&lab);
    assert_eq!((got.len(), got[0].entries == big, got[1].tag.as_slice()), (2, true, &b"small"[..]));
    daemon.stop();
}

#[test]
fn unsound_entries_are_left_out_and_counted_and_the_rest_is_acknowledged() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let mut client = Client::connect(v4(port));
    let mixed = [entry("good"), b"\x07".to_vec(), b"\x92\xa1x\x80".to_vec(), entry("too")].concat();
    client.send(&packed(b"t", &mixed, Some(b"c")));
    client.expect_ack(b"c");
    daemon.wait_for("/inputs/apps/rejected/invalid_entry", 2);
    assert_eq!(chunks(&lab)[0].entries, [entry("good"), entry("too")].concat());
    daemon.stop();
}

#[test]
fn what_cannot_be_taken_closes_the_connection_with_a_named_reason_and_what_came_before_is_acknowledged() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "max_chunk = \"1MiB\"");
    let bomb = gzip(&entry(&"0".repeat(5 << 20)));
    let zipped = gzip(&entries("zip", 100));
    let corrupt = [&zipped[..zipped.len() / 2], &[0; 20]].concat();
    let deep = [&[0x91; 80][..], &[1]].concat();
    for (reason, wrong) in [
        ("frame_too_large", b"\x92\xa3tag\xc6\xff\xff\xff\xff".to_vec()),
        ("frame_too_large", b"\xdd\xff\xff\xff\xff".to_vec()),
        ("frame_too_large", packed(b"tag", &vec![0; 1 << 20], Some(b"big"))),
        ("inflated_too_large", packed(b"tag", &bomb, Some(b"bomb"))),
        ("corrupt", packed(b"tag", &corrupt, Some(b"c"))),
        ("compression", packed_with(b"tag", b"nonsense", Some(b"c"), &[("compressed", &str_of(b"gzip"))])),
        ("too_deep", deep),
        ("not_messagepack", b"\xc1".to_vec()),
        ("malformed", b"\x93\x01\x02\x03".to_vec()),
        ("malformed", b"\x91\xa3tag".to_vec()),
        ("empty_tag", packed(b"", &entry("x"), Some(b"c"))),
        ("not_logs", packed_with(b"m", &entry("x"), Some(b"c"), &[("fluent_signal", &[1])])),
        ("json", b"[\"tag\", 1, {}]".to_vec()),
        ("json", b"{}".to_vec()),
        ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("tls_on_plain_port", b"\x16\x03\x01\x02\x00\x01".to_vec()),
        ("not_forward", b"<13>a syslog line\n".to_vec()),
    ] {
        let pointer = format!("/inputs/apps/rejected/{reason}");
        let before = daemon.number(&pointer);
        let mut client = Client::connect(v4(port));
        // What the other side closes upon need not be read to its end.
        client.try_send(&[packed(b"ok", &entry(reason), Some(b"before")), wrong, entry("behind")].concat());
        assert_eq!(client.read_to_close(), ack(b"before"), "{reason}");
        daemon.wait_for(&pointer, before + 1);
    }
    let mut cut = Client::connect(v4(port));
    cut.send(&packed(b"t", &entries("cut", 9), Some(b"cut"))[..50]);
    cut.finish();
    assert_eq!(cut.read_to_close(), b"");
    daemon.wait_for("/inputs/apps/rejected/incomplete", 1);
    is_served(port);
    daemon.stop();
    let log = String::from_utf8(lab.read("stderr")).unwrap();
    assert!(log.contains("tag=\"tag\" limit=1048576 reason=\"frame_too_large\""), "{log}");
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = lab.start(&format!("[journal]\ncommit_interval = \"2s\"\n{}", config(port, "")));
    let mut client = Client::connect(v4(port));
    client.send(&packed(b"t", &entry("x"), Some(b"c")));
    daemon.wait_for("/inputs/apps/messages", 1);
    // As long as the journal says that it is not durable there must be no answer.
    loop {
        let got = client.read_within(Duration::from_millis(50));
        let journal = daemon.node()["journals"][0].clone();
        if got.is_empty() {
            continue;
        }
        assert_eq!(got, ack(b"c"));
        assert_eq!(journal["durable"], journal["appended"], "acknowledged, so it is durable");
        break;
    }
    daemon.kill();
    assert_eq!(chunks(&lab).len(), 1);
}

#[test]
fn a_chunk_that_comes_again_is_journaled_once_also_across_a_kill() {
    let (lab, port) = (Lab::new(), free_port());
    let mut daemon = start(&lab, port, "");
    let frame = packed(b"t", &entries("again", 10), Some(b"id"));
    let other = packed(b"t", &entries("other", 10), Some(b"id"));
    for life in 0..3 {
        for _ in 0..2 {
            let mut client = Client::connect(v4(port));
            client.send(&frame);
            client.expect_ack(b"id");
        }
        daemon.wait_for("/inputs/apps/rejected/repeated", if life == 0 { 1 } else { 2 });
        daemon.kill();
        daemon = start(&lab, port, "");
    }
    let mut client = Client::connect(v4(port));
    // The same id with another content, tag or address is another chunk.
    client.send(&other);
    client.expect_ack(b"id");
    client.send(&packed(b"u", &entries("again", 10), Some(b"id")));
    client.expect_ack(b"id");
    let mut elsewhere = Client::connect(v6(port));
    elsewhere.send(&frame);
    elsewhere.expect_ack(b"id");
    daemon.stop();
    let got = chunks(&lab);
    assert_eq!(got.len(), 4, "{:?}", got.iter().map(|chunk| chunk.entries.len()).collect::<Vec<_>>());
}

#[test]
fn a_chunk_that_comes_again_before_it_is_durable_is_journaled_once_if_its_client_has_left() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = lab.start(&("[journal]\ncommit_interval = \"1s\"\n".to_owned() + &config(port, "")));
    let frame = packed(b"t", &entries("m", 10), Some(b"id"));
    let mut first = Client::connect(v4(port));
    first.send(&frame);
    first.finish();
    daemon.wait_for("/inputs/apps/messages", 10);
    let mut again = Client::connect(v4(port));
    again.send(&frame);
    again.expect_ack(b"id");
    first.expect_ack(b"id");
    assert_eq!(chunks(&lab).len(), 1);
    daemon.stop();
}

/// Events of three bytes have two hundred in JSON.
#[test]
fn a_small_chunk_does_not_take_the_memory_of_all_its_lines() {
    const EVENTS: usize = 1_000_000;
    let (lab, port) = (Lab::new(), free_port());
    let daemon = lab.start(&format!(
        r#"
[[input.forward]]
name = "apps"
listen = "127.0.0.1:{port}"

[[output.file]]
name = "out"
path = "out"
format = "json"

[[output.stdout]]
name = "stdout"
format = "json"
"#
    ));
    let mut client = Client::connect(v4(port));
    client.send(&packed(b"t", &gzip(&b"\x92\0\x80".repeat(EVENTS)), Some(b"id")));
    client.expect_ack(b"id");
    for output in ["out", "stdout"] {
        wait_until_within(Duration::from_secs(120), "all is written", || {
            daemon.number(&format!("/outputs/{output}/backlog_messages")) == 0
        });
    }
    let peak = daemon.peak_memory();
    assert!(peak < 100 << 20, "{} MiB", peak >> 20);
    daemon.stop();
    for file in ["out", "stdout"] {
        assert_eq!(lab.read(file).iter().filter(|byte| **byte == b'\n').count(), EVENTS, "{file}");
    }
}

fn secrets(lab: &Lab, users: bool) -> String {
    let write = |name: &str, text: &str| {
        std::fs::write(lab.path(name), text).unwrap();
        std::fs::set_permissions(lab.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("key", "secret\n");
    write("users", "ada:lovelace\n");
    let users = if users { "users_file = \"users\"" } else { "" };
    format!("shared_key_file = \"key\"\nself_hostname = \"logs\"\n{users}")
}

#[test]
fn only_who_knows_the_key_and_a_password_is_let_in() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, &secrets(&lab, true));
    let mut good = Client::connect(v4(port));
    let (accepted, pong) = good.shake_hands(b"secret", "ada", b"lovelace");
    assert!(accepted && pong.windows(5).any(|bytes| bytes == b"\xa4logs"), "{}", pong.escape_ascii());
    good.send(&packed(b"t", &entry("in"), Some(b"c")));
    good.expect_ack(b"c");
    for (key, user, password, why) in [
        (&b"secrex"[..], "ada", &b"lovelace"[..], "shared_key mismatch"),
        (b"secret", "ada", b"byron", "username/password mismatch"),
        (b"secret", "bob", b"lovelace", "username/password mismatch"),
    ] {
        let mut bad = Client::connect(v4(port));
        let (accepted, pong) = bad.shake_hands(key, user, password);
        assert!(!accepted && String::from_utf8_lossy(&pong).contains(why), "{}", pong.escape_ascii());
        assert_eq!(bad.read_to_close(), b"");
    }
    let mut rude = Client::connect(v4(port));
    assert!(rude.read_within(Duration::from_secs(10)).starts_with(b"\x92\xa4HELO"));
    rude.send(&packed(b"t", &entry("not in"), Some(b"c")));
    assert!(String::from_utf8_lossy(&rude.read_to_close()).contains("invalid ping message"));
    daemon.wait_for("/inputs/apps/rejected/auth", 4);
    // A heartbeat over TCP is no mistake.
    drop(TcpStream::connect(v4(port)).unwrap());
    // Whoever says nothing, or only a little, is cut.
    let mut silent = Client::connect(v4(port));
    silent.send(b"\x96\xa4PI");
    assert!(silent.read_to_close().starts_with(b"\x92\xa4HELO"));
    daemon.wait_for("/inputs/apps/rejected/handshake_timeout", 1);
    assert_eq!(daemon.number("/inputs/apps/rejected/auth"), 4);
    daemon.wait_for("/inputs/apps/connections", 1);
    daemon.stop();
    assert_eq!(chunks(&lab).len(), 1);
}

#[test]
fn a_key_that_others_may_read_is_refused_by_check_and_run_and_reload() {
    let (lab, port) = (Lab::new(), free_port());
    let keys = secrets(&lab, false);
    let path = lab.configure(&config(port, &keys));
    std::fs::set_permissions(lab.path("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    for verb in ["check", "run"] {
        let mut command = lab.command([verb, "--config", path.to_str().unwrap()]);
        let done = command.output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(78), "{verb}: {said}");
        assert!(said.contains("others may read key (mode 0644)") && said.contains("chmod 0640 key"), "{verb}: {said}");
    }
    let daemon = start(&lab, port, "");
    lab.configure(&config(port, &keys));
    let refused = lab.run(["reload"]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("others may read key"), "{refused:?}");
    is_served(port);
    // With the rights right it is applied: the address stays, new connections must prove themselves.
    let mut before = Client::connect(v4(port));
    before.send(&packed(b"t", &entry("1"), Some(b"1")));
    before.expect_ack(b"1");
    std::fs::set_permissions(lab.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(lab.run(["reload"]).status.success());
    let mut after = Client::connect(v4(port));
    assert!(after.shake_hands(b"secret", "", b"").0);
    before.send(&packed(b"t", &entry("2"), Some(b"2")));
    before.expect_ack(b"2");
    daemon.stop();
}

#[test]
fn heartbeats_are_answered_from_where_they_were_sent_to_with_one_byte() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "allow = [\"127.0.0.0/24\", \"::1\"]");
    let ask = |socket: &UdpSocket, question: &[u8]| {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send(question).unwrap();
        let mut answer = [7; 16];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(answer[..length], [0]);
    };
    // A connected socket takes answers from the address it sent to only.
    ask(&udp_to(v4(port)), b"\0");
    ask(&udp_to(v6(port)), b"\0");
    let second = UdpSocket::bind("127.0.0.1:0").unwrap();
    second.connect(("127.0.0.9", port)).unwrap();
    ask(&second, b"\0");
    let stranger = UdpSocket::bind("127.0.9.1:0").unwrap();
    stranger.send_to(b"\0", v4(port)).unwrap();
    daemon.wait_for("/inputs/apps/rejected/denied", 1);
    udp_to(v4(port)).send(&[0; 100]).unwrap();
    let server = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    server.set_reuse_port(true).unwrap();
    server.bind(&SocketAddr::from(([127, 0, 0, 77], port)).into()).unwrap();
    let server = UdpSocket::from(server);
    server.send_to(b"\0", v4(port)).unwrap();
    daemon.wait_for("/inputs/apps/rejected/not_a_heartbeat", 2);
    for socket in [&stranger, &server] {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 16]).is_err(), "no answer");
    }
    daemon.stop();
}

#[test]
fn connections_without_a_word_are_neither_logged_nor_mistakes() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let before = lab.read("stderr").len();
    for _ in 0..200 {
        drop(TcpStream::connect(v4(port)).unwrap());
    }
    daemon.wait_for("/inputs/apps/connections", 0);
    is_served(port);
    assert_eq!(String::from_utf8_lossy(&lab.read("stderr")[before..]), "");
    assert_eq!(daemon.node().pointer("/inputs/apps/rejected").unwrap().as_object().unwrap().len(), 0);
    daemon.stop();
}

#[test]
fn a_stop_takes_in_and_acknowledges_what_was_sent_before_it_says_goodbye() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = lab.start(&format!("[journal]\ncommit_interval = \"500ms\"\n{}", config(port, "")));
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(v4(port))).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&packed(b"t", &entries(&format!("client {number}"), 100), Some(b"last")));
    }
    daemon.signal(Signal::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.read_to_close(), ack(b"last"), "the answer, then the end");
    }
    drop(clients);
    let mut daemon = daemon;
    assert!(daemon.ended().success());
    assert_eq!(chunks(&lab).len(), 20);
}

#[test]
fn a_client_that_reads_no_answers_is_not_read_from_for_ever() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    let mut deaf = Client::connect(v4(port));
    let id = [b'i'; 480];
    let frame = packed(b"", b"", Some(&id));
    let pushing = std::thread::spawn(move || {
        let many = frame.repeat(1000);
        // 480 MB of answers fit no socket's buffer.
        (0..1000).all(|_| deaf.try_send(&many))
    });
    is_served(port);
    wait_until("it is cut, or stalls", || pushing.is_finished() || daemon.number("/inputs/apps/connections") == 1);
    is_served(port);
    assert!(daemon.peak_memory() < 300 << 20, "{} bytes", daemon.peak_memory());
    daemon.kill();
    assert!(!pushing.join().unwrap(), "somebody must have cut it");
}

#[test]
fn syslog_and_forward_share_a_daemon_and_moving_an_address_between_them_is_refused_whole() {
    let (lab, port, other) = (Lab::new(), free_port(), free_port());
    let syslog = |port| format!("[[input.syslog]]\nname = \"net\"\nlisten = \":{port}\"\n");
    let daemon = lab.start(&(syslog(other) + &config(port, "")));
    udp_to(v4(other)).send(&message("syslog")).unwrap();
    daemon.wait_for("/inputs/net/messages", 1);
    is_served(port);
    let third = free_port();
    lab.configure(&(syslog(port) + &config(third, "")));
    assert!(!lab.run(["reload"]).status.success(), "a socket cannot change what is spoken on it");
    is_served(port);
    lab.configure(&config(third, ""));
    assert!(lab.run(["reload"]).status.success());
    is_served(third);
    assert!(TcpStream::connect(v4(port)).is_err(), "no longer listening");
    daemon.stop();
}
