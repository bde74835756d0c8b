//! Start, stop, restart.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{
    Framing, Lab, Sink, assert_same, connect_and_send, first_arrivals, free_port, lines, numbered, v4, wait_until,
};

/// TCP in and TCP out, with pauses that suit a test.
fn relay(input: u16, output: u16) -> String {
    format!(
        r#"
[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
retry = {{ min = "50ms", max = "200ms" }}
"#
    )
}

#[test]
fn what_was_not_delivered_is_delivered_after_a_restart() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let messages = numbered("m", 10_000);
    let daemon = lab.start(&relay(input, output));
    connect_and_send(v4(input), &lines(&messages));
    daemon.wait_for("/inputs/net/messages", messages.len() as u64);
    daemon.stop();

    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&relay(input, output));
    assert_same(&sink.wait_for(messages.len()), &messages);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.stop();

    // Nor is it delivered once more: the cursor was kept.
    let daemon = lab.start(&relay(input, output));
    let more = numbered("more", 10);
    connect_and_send(v4(input), &lines(&more));
    sink.wait_for(messages.len() + more.len());
    daemon.stop();
    assert_same(&sink.close(), &[messages, more].concat());
}

#[test]
fn what_was_durable_survives_a_kill() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let messages = numbered("m", 10_000);
    let daemon = lab.start(&relay(input, output));
    connect_and_send(v4(input), &lines(&messages));
    daemon.wait_until_durable(messages.len());
    daemon.kill();

    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&relay(input, output));
    assert_same(&first_arrivals(sink.wait_for(messages.len())), &messages);
    daemon.stop();
}

#[test]
fn a_stop_takes_in_what_its_senders_have_sent() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&relay(input, output));
    let mut sender = TcpStream::connect(v4(input)).unwrap();
    let messages = numbered("m", 50_000);
    let (begin, rest) = messages.split_at(25_000);
    sender.write_all(&lines(begin)).unwrap();
    daemon.signal(Signal::SIGTERM);
    // Like a sender that minds the half-close: it ends what it was about to say, then it goes.
    sender.write_all(&lines(rest)).unwrap();
    drop(sender);
    let mut daemon = daemon;
    assert!(daemon.ended().success());

    let daemon = lab.start(&relay(input, output));
    assert_same(&first_arrivals(sink.wait_for(messages.len())), &messages);
    daemon.stop();
}

#[test]
fn a_second_sigterm_stops_at_once() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let config = format!("{}\n[drain]\ngrace = \"120s\"\nstop_deadline = \"120s\"\n", relay(input, output));
    let mut daemon = lab.start(&config);
    let messages = numbered("m", 100);
    let connection = connect_and_send(v4(input), &lines(&messages));
    daemon.wait_for("/inputs/net/messages", 100);
    daemon.signal(Signal::SIGTERM);
    wait_until("it no longer accepts connections", || TcpStream::connect(v4(input)).is_err());
    // Again and again: what comes right behind the first is taken for the same wish.
    let begun = Instant::now();
    wait_until("it ends", || {
        daemon.signal(Signal::SIGTERM);
        daemon.exit_status().is_some()
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    drop(connection);

    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&config);
    assert_same(&sink.wait_for(100), &messages);
    daemon.stop();
}

#[test]
fn without_a_configuration_it_receives_on_loopback_and_prints() {
    // The ports are fixed, so the test has a network of its own; without the right to one it takes the machine's.
    std::thread::spawn(|| {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok() {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2 is installed");
            assert!(up.success());
        }
        let lab = Lab::new();
        let daemon = lab.start_with(lab.command(["run"]), lab.path("twinlog-data/control.sock"));
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"<13>over UDP", "127.0.0.1:5514").unwrap();
        connect_and_send(v4(5514), b"<13>over TCP\n");
        wait_until("both are on standard output", || {
            let out = lab.read("stdout");
            ["over UDP", "over TCP"].iter().all(|text| out.windows(8).any(|bytes| bytes == text.as_bytes()))
        });
        daemon.stop();
    })
    .join()
    .unwrap();
}
