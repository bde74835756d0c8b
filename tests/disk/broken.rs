//! A disk that fails under load.

use std::io::{ErrorKind, Read};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{
    Framing, Lab, SOON, Sink, assert_same, connect_and_send, free_port, lines, message, v4, wait_until,
};
use crate::load::{MEMORY_BYTES_MAX, Sender, thick};
use crate::volume::Volume;

/// Far below `drain.stop_deadline`: there is nothing to wait for.
const STOP: Duration = Duration::from_secs(5);

#[test]
fn a_disk_that_becomes_read_only_closes_the_inputs_and_what_is_durable_is_delivered() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let volume = Volume::mounted_at(lab.path("data"), 512 << 20);
    let config = format!(
        r#"
[journal]
segment_size = "1MiB"

[[input.syslog]]
name = "net"
listen = ["tcp://127.0.0.1:{input}", "udp://127.0.0.1:{input}"]

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
"#
    );
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let mut daemon = lab.start(&config);
    let mut idle = TcpStream::connect(v4(input)).unwrap();
    daemon.wait_for("/inputs/net/connections", 1);
    let messages = thick("load", 100_000);
    let sender = Sender::start(v4(input), &messages);
    wait_until("there is a load", || daemon.number("/journals/0/durable") > 8 << 20);

    volume.fail();
    wait_until("the journal is poisoned", || daemon.node()["journals"][0]["state"] == "poisoned");
    let faults = daemon.node()["faults"].to_string();
    assert!(faults.contains("the journal is poisoned: cannot "), "{faults}");
    // Whether a write or a sync meets the broken disk first is chance.
    assert!(faults.contains("Read-only file system") || faults.contains("Input/output error"), "{faults}");
    // All senders learn of it, also those that say nothing now: what they sent later would be lost.
    sender.finish().expect_err("a sender whose messages are refused must not believe they were taken");
    idle.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(idle.read(&mut [0; 16]).unwrap(), 0, "the silent connection is closed");
    wait_until("connections are refused", || {
        TcpStream::connect(v4(input)).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    wait_until("the port for datagrams is free", || UdpSocket::bind(v4(input)).is_ok());
    daemon.wait_for("/inputs/net/connections", 0);
    let checked = lab.run(["status", "--check"]);
    assert_eq!(checked.status.code(), Some(4), "{checked:?}");
    assert!(String::from_utf8_lossy(&checked.stdout).contains("poisoned"), "{checked:?}");

    sink.resume();
    wait_until("all that is durable is delivered", || {
        let journal = &daemon.node()["journals"][0];
        journal["delivered"] == journal["durable"]
    });
    let delivered = usize::try_from(daemon.number("/outputs/out/acknowledged")).unwrap();
    let got = sink.wait_for(delivered);
    assert!(got.len() > 7000, "8 MiB were durable, and only {} messages arrived", got.len());
    assert_same(&got, &messages[..got.len()]);
    assert!(daemon.peak_memory() < MEMORY_BYTES_MAX, "{} bytes of memory", daemon.peak_memory());

    let asked = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
    assert!(asked.elapsed() < STOP, "the stop took {:?}", asked.elapsed());

    // A restart on a sound disk is the cure.
    volume.repair();
    let daemon = lab.start(&config);
    let last = message("after the repair");
    connect_and_send(v4(input), &lines(std::slice::from_ref(&last)));
    wait_until("a message passes", || sink.messages().last() == Some(&last));
    daemon.stop();
}

#[test]
fn a_journal_removed_under_the_daemon_is_told_and_what_was_taken_is_delivered() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let config = format!(
        r#"
[journal]
segment_size = "1MiB"

[drain]
stop_deadline = "2s"

[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
"#
    );
    let messages = thick("before", 20_000);
    let daemon = lab.start(&config);
    Sender::start(v4(input), &messages).finish().unwrap();
    daemon.wait_until_durable(messages.len());
    let id = daemon.node()["journals"][0]["id"].clone();

    std::fs::remove_dir_all(lab.path("data")).unwrap();
    // The open segment takes what it has room for; the next one cannot be made.
    let left = Sender::start(v4(input), &thick("into the void", 100_000)).finish();
    assert!(left.is_err(), "the sender was left to believe that all was taken");
    wait_until("the journal says so", || daemon.node()["journals"][0]["state"] == "poisoned");
    let faults = daemon.node()["faults"].to_string();
    assert!(faults.contains("cannot create a segment") && faults.contains("No such file"), "{faults}");
    sink.resume();
    let got = sink.wait_for(messages.len());
    assert_same(&got[..messages.len()], &messages);
    daemon.stop();

    // Another life of the disk: no position means two messages.
    let daemon = lab.start(&config);
    assert_ne!(daemon.node()["journals"][0]["id"], id);
    daemon.stop();
}
