//! The bytes that came are the bytes that leave.

use std::io::Write;
use std::net::TcpStream;

use serde_json::Value;

use crate::common::{
    Framing, Lab, Sink, assert_same, connect_and_send, counted, free_port, lines, message, numbered, sorted, udp_to,
    v4, v6, wait_until,
};

/// Payloads that something on the way might not like.
fn awkward() -> Vec<Vec<u8>> {
    [
        &b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed"[..],
        b"no priority at all",
        b"<999>1 not a priority",
        b"<13>invalid utf-8 \xff\xfe\xc3\x28 end",
        b"<13>NUL \x00 inside",
        b"<13>CR LF \r\n inside",
        b"<13>LF at the end\n",
        b"2026-03-10 12:00:00 digits first",
        b"12 <13>looks like an octet count",
        b"\xef\xbb\xbf<13>byte order mark",
        b" ",
        b"\n",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

#[test]
fn datagrams_and_counted_frames_leave_byte_for_byte_over_both_families() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Octet);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "net"
listen = ["udp://127.0.0.1:{input}", "tcp://127.0.0.1:{input}", "udp://[::1]:{input}", "tcp://[::1]:{input}"]

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"
framing = "octet"
"#
    ));
    let mut expected = Vec::new();
    for address in [v4(input), v6(input)] {
        let udp = udp_to(address);
        let longest = if address.is_ipv4() { 65_507 } else { 65_527 };
        let mut payloads = awkward();
        payloads.push(vec![b'x'; longest]);
        for payload in &payloads {
            udp.send(payload).unwrap();
        }
        expected.append(&mut payloads);

        let payloads: Vec<_> = awkward().into_iter().filter(|payload| payload.starts_with(b"<")).collect();
        connect_and_send(address, &payloads.iter().flat_map(|payload| counted(payload)).collect::<Vec<_>>());
        expected.extend(payloads);
    }
    let got = sink.wait_for(expected.len());
    daemon.wait_for("/inputs/net/messages", expected.len() as u64);
    daemon.stop();
    assert_same(&sorted(got), &sorted(expected));
}

#[test]
fn an_empty_datagram_is_counted_and_holds_nothing_up() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let (tcp, udp) = (Sink::tcp(v4(output), Framing::Lf), Sink::udp(v4(output)));
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "net"
listen = "udp://127.0.0.1:{input}"

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"

[[output.syslog]]
to = "udp://127.0.0.1:{output}"
"#
    ));
    let socket = udp_to(v4(input));
    socket.send(b"").unwrap();
    socket.send(b"<13>after it").unwrap();
    daemon.wait_for("/inputs/net/messages", 2);
    // A stream has no way to say "an empty message"; a datagram has.
    assert_same(&tcp.wait_for(1), &[b"<13>after it".to_vec()]);
    assert_same(&udp.wait_for(2), &[b"".to_vec(), b"<13>after it".to_vec()]);
    daemon.stop();
}

#[test]
fn lines_and_counted_frames_may_be_mixed_on_one_connection() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Octet);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"
framing = "octet"
"#
    ));
    let stream = b"<13>line\n5 <13>a<13>CR LF\r\n2026 is a line's begin\n11 <13>two\nLFs<13>NUL\x0011 <13>counted8 no angle<13>no LF";
    let mut connection = TcpStream::connect(v4(input)).unwrap();
    // Byte by byte at the border of two frames, whatever the segments are.
    let (begin, end) = stream.split_at(13);
    connection.write_all(begin).unwrap();
    for byte in end {
        connection.write_all(&[*byte]).unwrap();
    }
    drop(connection);
    let expected = [
        &b"<13>line"[..],
        b"<13>a",
        b"<13>CR LF",
        b"2026 is a line's begin",
        b"<13>two\nLFs",
        b"<13>NUL",
        b"<13>counted",
        b"no angle",
        b"<13>no LF",
    ];
    assert_same(&sink.wait_for(expected.len()), &expected.map(<[u8]>::to_vec));
    daemon.stop();
}

#[test]
fn a_message_with_a_line_feed_inside_stays_whole_between_lines() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Either);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = "udp://127.0.0.1:{input}"

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"
"#
    ));
    let messages = [b"<13>one".to_vec(), b"<13>two\nlines".to_vec(), b"<13>three".to_vec()];
    let socket = udp_to(v4(input));
    for message in &messages {
        socket.send(message).unwrap();
    }
    assert_same(&sink.wait_for(3), &messages);
    daemon.stop();
}

#[test]
fn what_is_too_long_is_cut_flagged_and_counted_and_the_next_is_whole() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Octet);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "net"
listen = ["udp://127.0.0.1:{input}", "tcp://127.0.0.1:{input}"]
max_message = "480B"

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"
framing = "octet"

[[output.file]]
path = "out.json"
format = "json"
"#
    ));
    let long = message(&"x".repeat(1000));
    let short = |text: &str| message(text);
    let stream =
        [lines(&[long.clone(), short("after a line")]), counted(&long), counted(&short("after a count"))].concat();
    connect_and_send(v4(input), &stream);
    sink.wait_for(4);
    let socket = udp_to(v4(input));
    socket.send(&long).unwrap();
    socket.send(&short("after a datagram")).unwrap();
    let cut = long[..480].to_vec();
    let expected =
        [cut.clone(), short("after a line"), cut.clone(), short("after a count"), cut, short("after a datagram")];
    assert_same(&sink.wait_for(6), &expected);
    daemon.wait_for("/inputs/net/rejected/oversize", 3);
    wait_until("the file has all", || lab.lines_of("out.json").len() == 6);
    daemon.stop();
    let truncated = lab.lines_of("out.json").iter().filter(|line| flags(line).contains(&"truncated".into())).count();
    assert_eq!(truncated, 3);
}

fn flags(line: &[u8]) -> Vec<Value> {
    let message: Value = serde_json::from_slice(line).expect("a line of JSON");
    message["flags"].as_array().expect("a list").clone()
}

#[test]
fn rfc5424_carries_id_source_and_time_and_the_journal_knows_the_same_ids() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Octet);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
listen = ["tcp://127.0.0.1:{input}", "udp://127.0.0.1:{input}"]

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"
framing = "octet"
format = "rfc5424"
"#
    ));
    connect_and_send(v4(input), &lines(&numbered("tcp", 100)));
    sink.wait_for(100);
    udp_to(v4(input)).send(b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed").unwrap();
    let got = sink.wait_for(101);

    let mut ids = Vec::new();
    for text in &got {
        let text = std::str::from_utf8(text).unwrap();
        let element = text.split_once("[twinlog@32473 ").expect("our element").1.split_once(']').expect("its end").0;
        let value = |name: &str| {
            let begin = element.find(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {element}"));
            element[begin + name.len() + 2..].split('"').next().expect("a value").to_owned()
        };
        assert_eq!(value("src"), "127.0.0.1");
        assert!(value("rcv").ends_with('Z'), "{element}");
        let id = value("id");
        assert!(id.starts_with("node-a/"), "{id}");
        ids.push(id);
    }
    assert!(got[100].starts_with(b"<34>1 "));
    assert!(got[100].windows(14).any(|bytes| bytes == b" mymachine su "));
    daemon.stop();

    let cat = lab.command(["journal", "cat", "--data-dir", "data"]).output().unwrap();
    assert!(cat.status.success(), "{}", String::from_utf8_lossy(&cat.stderr));
    let known: Vec<String> = String::from_utf8(cat.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(known, ids);
}
