//! Who may send, how many, and how long.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::common::{
    Framing, Lab, Sink, assert_same, connect_and_send, first_arrivals, free_port, lines, message, numbered, tcp_to_tcp,
    udp_to, v4,
};

/// Connects from another address of 127.0.0.0/8.
fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).expect("twinlog accepts connections");
    socket.into()
}

/// Whether the other side has closed the connection.
fn is_closed_by_peer(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    match stream.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn allow_refuses_other_senders_and_counts_them() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "net"
listen = ["udp://127.0.0.1:{input}", "tcp://127.0.0.1:{input}"]
allow = ["127.0.0.2/31"]

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"
"#
    ));
    let mut stranger = TcpStream::connect(v4(input)).unwrap();
    let _ = stranger.write_all(&lines(&[message("a stranger's line")]));
    assert!(is_closed_by_peer(&mut stranger));
    udp_to(v4(input)).send(b"<13>a stranger's datagram").unwrap();
    daemon.wait_for("/inputs/net/rejected/denied", 2);

    connect_from([127, 0, 0, 2], v4(input)).write_all(&lines(&[message("a friend's line")])).unwrap();
    sink.wait_for(1);
    UdpSocket::bind("127.0.0.3:0").unwrap().send_to(b"<13>a friend's datagram", v4(input)).unwrap();
    assert_same(&sink.wait_for(2), &[message("a friend's line"), b"<13>a friend's datagram".to_vec()]);
    daemon.wait_for("/inputs/net/messages", 2);
    daemon.stop();
}

#[test]
fn connections_beyond_the_limit_are_closed_and_counted_and_the_others_go_on() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&tcp_to_tcp(input, "max_connections = 2", output));
    let mut first = connect_and_send(v4(input), &lines(&[message("first")]));
    let second = connect_and_send(v4(input), &lines(&[message("second")]));
    daemon.wait_for("/inputs/net/connections", 2);
    let mut third = TcpStream::connect(v4(input)).unwrap();
    assert!(is_closed_by_peer(&mut third));
    daemon.wait_for("/inputs/net/rejected/max_connections", 1);

    first.write_all(&lines(&[message("first again")])).unwrap();
    sink.wait_for(3);
    drop(second);
    daemon.wait_for("/inputs/net/connections", 1);
    connect_and_send(v4(input), &lines(&[message("a free place")]));
    let got = sink.wait_for(4);
    assert_same(&got[2..], &[message("first again"), message("a free place")]);
    daemon.stop();
}

#[test]
fn a_silent_connection_is_closed_after_its_time_and_loses_nothing() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&tcp_to_tcp(input, "idle_timeout = \"1s\"", output));
    // The second line has no end: it is a message all the same once its connection is over.
    let mut silent = connect_and_send(v4(input), b"<13>whole\n<13>half");
    assert!(is_closed_by_peer(&mut silent));
    daemon.wait_for("/inputs/net/rejected/idle_timeout", 1);
    daemon.wait_for("/inputs/net/connections", 0);
    assert_same(&sink.wait_for(2), &[b"<13>whole".to_vec(), b"<13>half".to_vec()]);
    daemon.stop();
}

#[test]
fn what_trickles_in_is_read_to_the_last_byte() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&tcp_to_tcp(input, "", output));
    let mut stream = TcpStream::connect(v4(input)).unwrap();
    stream.set_nodelay(true).unwrap();
    let messages = numbered("m", 3001);
    let (last, trickle) = messages.split_last().unwrap();
    let mut sent = 0;
    // Bytes that come one by one and in pieces, then silence: none of them is waited for, and the connection stays.
    for some in trickle.chunks(1000) {
        for (number, message) in some.iter().enumerate() {
            let line = lines(std::slice::from_ref(message));
            let (begin, end) = line.split_at(number % line.len());
            stream.write_all(begin).unwrap();
            std::thread::sleep(Duration::from_micros(number as u64 % 5 * 100));
            stream.write_all(end).unwrap();
        }
        sent += some.len();
        assert_same(&first_arrivals(sink.wait_for(sent)), &messages[..sent]);
    }
    // One in the middle of which the connection ends.
    stream.write_all(last).unwrap();
    drop(stream);
    assert_same(&first_arrivals(sink.wait_for(messages.len())), &messages);
    daemon.stop();
}

#[test]
fn every_datagram_is_received_or_counted_as_dropped_by_the_kernel() {
    const SENT: u64 = 5000;
    let (lab, input) = (Lab::new(), free_port());
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "net"
listen = "udp://127.0.0.1:{input}"
udp_rcvbuf = "64KiB"

[[output.file]]
path = "out"
"#
    ));
    daemon.signal(Signal::SIGSTOP);
    let socket = udp_to(v4(input));
    for number in 0..SENT {
        socket.send(&message(&format!("datagram {number}"))).unwrap();
    }
    daemon.signal(Signal::SIGCONT);
    let counted = |daemon: &crate::common::Daemon| {
        (daemon.number("/inputs/net/messages"), daemon.number("/inputs/net/kernel_drops"))
    };
    crate::common::wait_until("all datagrams are accounted for", || {
        let (messages, drops) = counted(&daemon);
        messages + drops == SENT
    });
    let (messages, drops) = counted(&daemon);
    assert!(messages > 0 && drops > 0, "{messages} received, {drops} dropped");
    daemon.stop();
    assert_eq!(lab.lines_of("out").len() as u64, messages);
}
