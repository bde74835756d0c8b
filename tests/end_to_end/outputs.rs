//! Where messages go, and which.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::Value;

use crate::common::{
    Framing, Lab, Sink, assert_same, connect_and_send, first_arrivals, free_port, lines, message, numbered, sorted,
    udp_to, v4, wait_until, wait_until_within,
};

#[test]
fn a_dead_output_holds_no_other_back_and_gets_everything_in_order_later() {
    let (lab, input, alive, dead) = (Lab::new(), free_port(), free_port(), free_port());
    let sink = Sink::tcp(v4(alive), Framing::Lf);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "alive"
to = "tcp://127.0.0.1:{alive}"

[[output.syslog]]
name = "dead"
to = "tcp://127.0.0.1:{dead}"
retry = {{ min = "50ms", max = "200ms" }}
"#
    ));
    let messages = numbered("m", 5000);
    connect_and_send(v4(input), &lines(&messages));
    assert_same(&sink.wait_for(messages.len()), &messages);
    daemon.wait_for("/outputs/dead/backlog_messages", messages.len() as u64);
    wait_until("it was tried again", || daemon.number("/outputs/dead/retries") > 1);
    assert_eq!(daemon.node()["outputs"]["dead"]["connected"], false);
    assert!(daemon.node()["outputs"]["dead"]["last_error"].is_string());

    let revived = Sink::tcp(v4(dead), Framing::Lf);
    assert_same(&revived.wait_for(messages.len()), &messages);
    daemon.wait_for("/outputs/dead/backlog_messages", 0);
    daemon.stop();
}

#[test]
fn the_second_address_stands_in_until_the_first_is_back() {
    let (lab, input, primary, standby) = (Lab::new(), free_port(), free_port(), free_port());
    let (first, second) = (Sink::tcp(v4(primary), Framing::Lf), Sink::tcp(v4(standby), Framing::Lf));
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "out"
to = ["tcp://127.0.0.1:{primary}", "tcp://127.0.0.1:{standby}"]
retry = {{ min = "50ms", max = "200ms" }}
"#
    ));
    let mut sender = TcpStream::connect(v4(input)).unwrap();
    let mut send = |messages: &[Vec<u8>]| sender.write_all(&lines(messages)).unwrap();

    let (before, during) = (numbered("before", 100), numbered("during", 100));
    send(&before);
    first.wait_for(before.len());
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    let mut arrived = first.close();
    send(&during);
    second.wait_for(during.len());
    let revived = Sink::tcp(v4(primary), Framing::Lf);
    // The first address is tried again every 15 s.
    let mut after = Vec::new();
    wait_until_within(Duration::from_secs(40), "the first address has its turn again", || {
        let next = message(&format!("after {}", after.len()));
        send(std::slice::from_ref(&next));
        after.push(next);
        revived.count() > 0
    });
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.stop();

    arrived.extend(second.close());
    arrived.extend(revived.close());
    assert_same(&first_arrivals(arrived), &[before, during, after].concat());
}

#[test]
fn each_output_gets_the_messages_that_match() {
    let (lab, one, two) = (Lab::new(), free_port(), free_port());
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "one"
listen = ["udp://127.0.0.1:{one}", "tcp://127.0.0.1:{one}"]

[[input.syslog]]
name = "two"
listen = "udp://127.0.0.1:{two}"
tag = "site.two.syslog"

[[output.file]]
path = "all"

[[output.file]]
path = "input"
match = {{ input = "two" }}

[[output.file]]
path = "source"
match = {{ source = ["127.0.0.9/32", "2001:db8::/32"] }}

[[output.file]]
path = "facility"
match = {{ facility = ["auth", "local7"] }}

[[output.file]]
path = "severity"
match = {{ severity_at_least = "warning" }}

[[output.file]]
path = "tag"
match = {{ tag = "site.*.syslog" }}

[[output.file]]
path = "both"
match = {{ facility = "auth", severity_at_least = "err" }}
"#
    ));
    // Facility is the number divided by eight, severity the rest: RFC 5424, 6.2.1.
    let auth_err = b"<35>auth.err".to_vec();
    let auth_notice = b"<37>auth.notice".to_vec();
    let user_warning = b"<12>user.warning".to_vec();
    let user_notice = b"<13>user.notice".to_vec();
    let local7_debug = b"<191>local7.debug".to_vec();
    let no_priority = b"no priority is user.notice".to_vec();
    let from_nine = b"<14>user.info from 127.0.0.9".to_vec();
    let at_two = b"<14>user.info at two".to_vec();

    let anywhere = [&auth_err, &auth_notice, &user_warning, &user_notice, &local7_debug, &no_priority];
    for message in anywhere {
        udp_to(v4(one)).send(message).unwrap();
    }
    UdpSocket::bind("127.0.0.9:0").unwrap().send_to(&from_nine, v4(one)).unwrap();
    udp_to(v4(two)).send(&at_two).unwrap();

    wait_until("all messages are in the file for all", || lab.lines_of("all").len() == 8);
    let settled = |output: u32| daemon.number(&format!("/outputs/file-{output}/backlog_messages")) == 0;
    wait_until("every output is through", || (0..7).all(settled));
    daemon.stop();

    let expect = |file: &str, expected: &[&Vec<u8>]| {
        let expected = expected.iter().map(|message| (*message).clone()).collect();
        assert_eq!(sorted(lab.lines_of(file)), sorted(expected), "in {file}");
    };
    expect("input", &[&at_two]);
    expect("source", &[&from_nine]);
    expect("facility", &[&auth_err, &auth_notice, &local7_debug]);
    expect("severity", &[&auth_err, &user_warning]);
    expect("tag", &[&at_two]);
    expect("both", &[&auth_err]);
}

#[test]
fn files_are_named_by_the_time_and_rotated_by_size() {
    let (lab, input) = (Lab::new(), free_port());
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.file]]
path = "logs/%Y/raw"

[[output.file]]
path = "logs/%Y/rotated"
rotate = {{ size = "16KiB" }}

[[output.file]]
path = "logs/%Y/kept"
rotate = {{ size = "16KiB", keep = 2 }}

[[output.file]]
path = "logs/json"
format = "json"
"#
    ));
    let messages = numbered("m", 2000);
    let mut sender = TcpStream::connect(v4(input)).unwrap();
    for some in messages.chunks(100) {
        sender.write_all(&lines(some)).unwrap();
        // A batch is written whole: only a new one can begin a new file.
        let sent = some.last().expect("a chunk is not empty");
        wait_until("they are in the file", || lab.lines_of(&year("raw")).last() == Some(sent));
    }
    wait_until("every output is through", || {
        (0..4).all(|output| daemon.number(&format!("/outputs/file-{output}/backlog_messages")) == 0)
    });
    daemon.stop();

    assert_same(&lab.lines_of(&year("raw")), &messages);
    let pieces = files_like(&lab, "rotated");
    assert!(pieces.len() > 3, "rotated: {pieces:?}");
    let all: Vec<_> = pieces.iter().flat_map(|name| lab.lines_of(&year(name))).collect();
    assert_same(&sorted(all), &sorted(messages.clone()));
    assert_eq!(files_like(&lab, "kept"), ["kept", "kept.1", "kept.2"]);
    let texts: Vec<String> =
        lab.lines_of("logs/json").iter().map(|line| json(line)["msg"].as_str().unwrap().to_owned()).collect();
    assert_eq!(texts, (0..2000).map(|number| format!("m {number}")).collect::<Vec<_>>());
}

fn year(name: &str) -> String {
    format!("logs/{}/{name}", chrono::Local::now().format("%Y"))
}

fn files_like(lab: &Lab, name: &str) -> Vec<String> {
    let directory = std::fs::read_dir(lab.path(&year(""))).expect("the directory of this year");
    let names = directory.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|found| found.starts_with(name)).collect();
    names.sort();
    names
}

fn json(line: &[u8]) -> Value {
    serde_json::from_slice(line).expect("a line of JSON")
}

#[test]
fn messages_on_standard_output_are_lines_of_json_when_asked_for() {
    let (lab, input) = (Lab::new(), free_port());
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"

[[output.stdout]]
format = "json"
"#
    ));
    connect_and_send(
        v4(input),
        b"<34>1 2003-10-11T22:14:15.003Z mymachine su 77 ID47 [x@1 k=\"v\"] failed\n<13>bad \xff\n",
    );
    wait_until("both are on standard output", || lab.lines_of("stdout").len() == 2);
    daemon.stop();
    let lines = lab.lines_of("stdout");
    let message = json(&lines[0]);
    for (key, expected) in [
        ("source", "127.0.0.1"),
        ("input", "net"),
        ("format", "rfc5424"),
        ("host", "mymachine"),
        ("app", "su"),
        ("pid", "77"),
        ("msgid", "ID47"),
        ("structured_data", "[x@1 k=\"v\"]"),
        ("msg", "failed"),
    ] {
        assert_eq!(message[key], expected, "{key}");
    }
    assert_eq!((&message["pri"], &message["facility"], &message["severity"]), (&34.into(), &4.into(), &2.into()));
    assert_eq!(json(&lines[1])["msg_b64"], "YmFkIP8=");
}
