//! Syslog inside TLS, both ways: who is let in, what is believed, and what a renewal or a refusal costs.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;

use crate::common::{
    Authority, Daemon, Framing, Lab, Sink, assert_same, connect_and_send, counted, first_arrivals, free_port, lines,
    numbered, place, tls_client, tls_connect, tls_server, v4, wait_until,
};

/// An input on `tls://` with the certificate `server`, which keeps its messages as lines of `out`.
fn input_to_file(port: u16, more: &str) -> String {
    format!(
        r#"
[[input.syslog]]
name = "in"
listen = "tls://127.0.0.1:{port}"
tls = {{ cert_file = "server.crt", key_file = "server.key"{more} }}

[[output.file]]
path = "out"
"#
    )
}

/// An input on plain TCP and the output `out` with these keys.
fn tcp_to(input: u16, to: &str, more: &str) -> String {
    format!(
        r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "out"
to = {to}
retry = {{ min = "50ms", max = "200ms" }}
{more}
"#
    )
}

/// Waits until the output's last error says this.
#[track_caller]
fn wait_for_error(daemon: &Daemon, text: &str) {
    let mut last = String::new();
    let error = || daemon.node()["outputs"]["out"]["last_error"].as_str().unwrap_or_default().to_owned();
    wait_until(text, || {
        last = error();
        last.contains(text)
    });
}

#[test]
fn both_versions_and_both_framings_are_taken_byte_for_byte() {
    let (lab, port) = (Lab::new(), free_port());
    let authority = Authority::new(&lab, "good");
    authority.issue(&lab, "server", &["localhost"]);
    let daemon = lab.start(&input_to_file(port, ""));
    let messages = numbered("m", 4000);
    let mut connections = Vec::new();
    for (part, only_12) in messages.chunks(2000).zip([false, true]) {
        let mut stream = tls_connect(v4(port), tls_client(&lab, authority.file(), None, only_12)).unwrap();
        let (octets, lfs) = part.split_at(1000);
        stream.write_all(&octets.iter().flat_map(|message| counted(message)).collect::<Vec<u8>>()).unwrap();
        stream.write_all(&lines(lfs)).unwrap();
        connections.push(stream);
        let upto = connections.len() * 2000;
        daemon.wait_for("/inputs/in/messages", upto as u64);
    }
    assert_eq!(daemon.number("/inputs/in/connections"), 2);
    // One says goodbye, the other only ends: what came before counts in both.
    let polite = &mut connections[0];
    polite.conn.send_close_notify();
    polite.conn.write_tls(&mut polite.sock).unwrap();
    connections[1].sock.shutdown(Shutdown::Write).unwrap();
    daemon.wait_for("/inputs/in/connections", 0);
    assert_eq!(daemon.node()["inputs"]["in"]["rejected"].as_object().map_or(0, serde_json::Map::len), 0);
    daemon.stop();
    assert_same(&lab.lines_of("out"), &messages);
}

#[test]
fn clients_without_a_good_certificate_stay_outside_and_a_silent_one_delays_nobody() {
    let (lab, port) = (Lab::new(), free_port());
    let (good, bad) = (Authority::new(&lab, "good"), Authority::new(&lab, "bad"));
    good.issue(&lab, "server", &["localhost"]);
    good.issue(&lab, "sender", &["sender.test"]);
    bad.issue(&lab, "stranger", &["sender.test"]);
    let daemon = lab.start(&input_to_file(port, ", ca_file = \"good.ca\", client_auth = \"required\""));
    let silent = TcpStream::connect(v4(port)).unwrap();
    for name in [None, Some("stranger")] {
        // TLS 1.2 says so in the handshake, 1.3 at the first read.
        assert!(tls_connect(v4(port), tls_client(&lab, good.file(), name, true)).is_err());
        let mut stream = tls_connect(v4(port), tls_client(&lab, good.file(), name, false)).unwrap();
        let _ = stream.write_all(b"<13>never\n");
        assert!(stream.read(&mut [0; 1]).is_err());
    }
    connect_and_send(v4(port), b"<13>this is no TLS\n");
    daemon.wait_for("/inputs/in/rejected/tls", 5);
    let mut stream = tls_connect(v4(port), tls_client(&lab, good.file(), Some("sender"), false)).unwrap();
    stream.write_all(b"<13>let in\n").unwrap();
    daemon.wait_for("/inputs/in/messages", 1);
    drop(silent);
    daemon.wait_for("/inputs/in/rejected/tls", 6);
    drop(stream);
    daemon.stop();
    assert_same(&lab.lines_of("out"), &[b"<13>let in".to_vec()]);
}

#[test]
fn renewed_files_serve_new_connections_and_bad_ones_change_nothing() {
    let (lab, port) = (Lab::new(), free_port());
    let (old, new) = (Authority::new(&lab, "old"), Authority::new(&lab, "new"));
    old.issue(&lab, "server", &["localhost"]);
    let config = input_to_file(port, "");
    let daemon = lab.start(&config);
    let mut open = tls_connect(v4(port), tls_client(&lab, old.file(), None, false)).unwrap();
    open.write_all(b"<13>before\n").unwrap();
    daemon.wait_for("/inputs/in/messages", 1);

    new.issue(&lab, "server", &["localhost"]);
    let connects = |ca: &str| tls_connect(v4(port), tls_client(&lab, ca, None, false)).ok();
    wait_until("the new certificate is shown", || connects(new.file()).is_some());
    assert!(connects(old.file()).is_none());
    open.write_all(b"<13>after\n").unwrap();
    daemon.wait_for("/inputs/in/messages", 2);

    place(&lab, "server.key", "nothing of use");
    let logged = || String::from_utf8_lossy(&lab.read("stderr")).matches("renewed TLS files cannot be used").count();
    wait_until("the bad key was looked at", || {
        assert!(connects(new.file()).is_some());
        logged() > 0
    });
    let refused = lab.run(["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(78), "{said}");
    assert!(said.contains("there is no private key in it") && said.contains("server.key"), "{said}");
    assert!(connects(new.file()).is_some());
    open.write_all(b"<13>still\n").unwrap();
    daemon.wait_for("/inputs/in/messages", 3);
    assert_eq!(logged(), 1);
    drop(open);
    daemon.stop();
}

#[test]
fn a_stop_ends_the_connection_with_fin_alone_and_reads_to_the_end() {
    let (lab, port) = (Lab::new(), free_port());
    let authority = Authority::new(&lab, "good");
    authority.issue(&lab, "server", &["localhost"]);
    let daemon = lab.start(&input_to_file(port, ""));
    let mut stream = tls_connect(v4(port), tls_client(&lab, authority.file(), None, false)).unwrap();
    stream.write_all(b"<13>first\n").unwrap();
    daemon.wait_for("/inputs/in/messages", 1);
    let stopping = std::thread::spawn(move || daemon.stop());
    // Senders that never read see nothing else: no record stands before it, neither `close_notify` nor a session ticket.
    let mut first = [0; 1];
    assert_eq!(stream.sock.peek(&mut first).unwrap(), 0);
    assert_eq!(stream.read(&mut first).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    stream.write_all(b"<13>last\n").unwrap();
    stream.conn.send_close_notify();
    stream.conn.write_tls(&mut stream.sock).unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
    stopping.join().unwrap();
    assert_same(&lab.lines_of("out"), &[b"<13>first".to_vec(), b"<13>last".to_vec()]);
}

#[test]
fn an_output_inside_tls_counts_octets_and_a_plain_standby_gets_lines() {
    let (lab, input, primary, standby) = (Lab::new(), free_port(), free_port(), free_port());
    let authority = Authority::new(&lab, "good");
    authority.issue(&lab, "server", &["siem.test"]);
    authority.issue(&lab, "client", &["twinlog.test"]);
    let first = Sink::tls(v4(primary), Framing::Octet, tls_server(&lab, "server", Some(authority.file())));
    let second = Sink::tcp(v4(standby), Framing::Lf);
    let daemon = lab.start(&tcp_to(
        input,
        &format!("[\"tls://127.0.0.1:{primary}\", \"tcp://127.0.0.1:{standby}\"]"),
        "tls = { ca_file = \"good.ca\", cert_file = \"client.crt\", key_file = \"client.key\", server_name = \"siem.test\" }",
    ));
    let messages = numbered("m", 20_000);
    let (before, after) = messages.split_at(15_000);
    connect_and_send(v4(input), &lines(before));
    assert_same(&first.wait_for(before.len()), before);
    daemon.wait_for("/outputs/out/acknowledged", before.len() as u64);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    first.close();
    connect_and_send(v4(input), &lines(after));
    assert_same(&second.wait_for(after.len()), after);
    daemon.stop();
}

#[test]
fn nothing_is_lost_when_a_destination_inside_tls_goes_and_comes_back() {
    let (lab, input, port) = (Lab::new(), free_port(), free_port());
    let authority = Authority::new(&lab, "good");
    authority.issue(&lab, "server", &["127.0.0.1"]);
    let sink = || Sink::tls(v4(port), Framing::Octet, tls_server(&lab, "server", None));
    let mut destination = sink();
    let daemon = lab.start(&tcp_to(input, &format!("\"tls://127.0.0.1:{port}\""), "tls = { ca_file = \"good.ca\" }"));
    let messages = numbered("m", 60_000);
    let mut arrived = Vec::new();
    for part in messages.chunks(20_000) {
        // A window that is full when the connection ends, and a kernel that has acknowledged some of it.
        wait_until("it is connected", || daemon.node()["outputs"]["out"]["connected"] == true);
        destination.stall();
        let before = daemon.number("/outputs/out/sent");
        connect_and_send(v4(input), &lines(part));
        wait_until("some is on its way", || daemon.number("/outputs/out/sent") > before);
        arrived.extend(destination.close());
        destination = sink();
    }
    wait_until("all arrived", || daemon.number("/outputs/out/backlog_messages") == 0);
    daemon.stop();
    arrived.extend(destination.close());
    let mut arrived = first_arrivals(arrived);
    arrived.sort();
    let mut expected = messages;
    expected.sort();
    assert_same(&arrived, &expected);
}

#[test]
fn a_destination_that_is_not_believed_gets_nothing_and_the_reason_is_shown() {
    let (lab, input, port) = (Lab::new(), free_port(), free_port());
    let (good, bad) = (Authority::new(&lab, "good"), Authority::new(&lab, "bad"));
    bad.issue(&lab, "server", &["127.0.0.1"]);
    let config = tcp_to(input, &format!("\"tls://127.0.0.1:{port}\""), "tls = { ca_file = \"good.ca\" }");
    let stranger = Sink::tls(v4(port), Framing::Octet, tls_server(&lab, "server", None));
    let daemon = lab.start(&config);
    let messages = numbered("m", 100);
    connect_and_send(v4(input), &lines(&messages));
    wait_for_error(&daemon, "its certificate is signed by nobody that ca_file names");
    assert_eq!(stranger.close(), Vec::<Vec<u8>>::new());
    good.issue(&lab, "server", &["elsewhere.test"]);
    let misnamed = Sink::tls(v4(port), Framing::Octet, tls_server(&lab, "server", None));
    wait_for_error(&daemon, "its certificate is not for 127.0.0.1 but for elsewhere.test");
    assert_eq!(misnamed.close(), Vec::<Vec<u8>>::new());
    good.issue_until(&lab, "server", &["127.0.0.1"], 2021);
    let expired = Sink::tls(v4(port), Framing::Octet, tls_server(&lab, "server", None));
    wait_for_error(&daemon, "its certificate expired on 2021-12-31");
    assert_eq!(expired.close(), Vec::<Vec<u8>>::new());
    good.issue(&lab, "server", &["127.0.0.1"]);
    let believed = Sink::tls(v4(port), Framing::Octet, tls_server(&lab, "server", None));
    assert_same(&believed.wait_for(messages.len()), &messages);
    daemon.stop();
}

/// In TLS 1.3 the server looks at our certificate only after we could have begun to send, and its kernel acknowledges
/// what its TLS throws away.
#[test]
fn a_destination_that_wants_a_certificate_costs_no_message_until_it_has_one() {
    let (lab, input, port) = (Lab::new(), free_port(), free_port());
    let authority = Authority::new(&lab, "good");
    authority.issue(&lab, "server", &["127.0.0.1"]);
    authority.issue(&lab, "client", &["twinlog.test"]);
    let sink = Sink::tls(v4(port), Framing::Octet, tls_server(&lab, "server", Some(authority.file())));
    let config = |tls: &str| tcp_to(input, &format!("\"tls://127.0.0.1:{port}\""), tls);
    let daemon = lab.start(&config("tls = { ca_file = \"good.ca\" }"));
    let messages = numbered("m", 1000);
    connect_and_send(v4(input), &lines(&messages));
    daemon.wait_for("/inputs/syslog-0/messages", messages.len() as u64);
    wait_for_error(&daemon, "it asks for a certificate of ours");
    wait_until("it was tried again", || daemon.number("/outputs/out/retries") > 2);
    assert_eq!(daemon.number("/outputs/out/acknowledged"), 0);
    lab.configure(&config("tls = { ca_file = \"good.ca\", cert_file = \"client.crt\", key_file = \"client.key\" }"));
    let done = lab.run(["reload"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_same(&sink.wait_for(messages.len()), &messages);
    daemon.stop();
}

#[test]
fn check_and_run_point_at_the_file_that_is_wrong() {
    let lab = Lab::new();
    Authority::new(&lab, "good").issue(&lab, "server", &["localhost"]);
    std::fs::set_permissions(lab.path("server.key"), PermissionsExt::from_mode(0o644)).unwrap();
    let path = lab.configure(&input_to_file(free_port(), ", ca_file = \"missing\""));
    let path = path.to_str().unwrap();
    let said =
        |output: std::process::Output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
    let (status, text) = said(lab.run(["check", "--config", path]));
    assert!(status == Some(78) && text.contains("others may read this private key (mode 0644)"), "{text}");
    assert!(text.contains(":7:") && text.contains("chmod 0640 server.key"), "{text}");
    assert!(text.contains("missing: cannot read it") && text.contains("2 errors"), "{text}");
    let (status, text) = said(lab.run(["run", "--config", path]));
    assert!(status == Some(78) && text.contains("others may read this private key"), "{text}");
    // Another machine's file is judged without its keys.
    let (status, text) = said(lab.run(["check", path]));
    assert_eq!(status, Some(0), "{text}");
}
