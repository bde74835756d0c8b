//! A daemon that stands still for a while and then goes on: a virtual machine that is moved, a debugger, a thrashing host.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{Framing, Lab, Sink, assert_same, free_port, message, udp_to, v4, wait_until};
use crate::load::{Sender, thick};

#[test]
fn two_seconds_of_standstill_lose_nothing_over_tcp_and_every_lost_datagram_is_counted() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&format!(
        r#"
[[input.syslog]]
name = "stream"
listen = "tcp://127.0.0.1:{input}"

[[input.syslog]]
name = "datagrams"
listen = "udp://127.0.0.1:{input}"
udp_rcvbuf = "64KiB"

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
"#
    ));
    let streamed = thick("stream", 40_000);
    let sender = Sender::start(v4(input), &streamed);
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    let datagrams = std::thread::spawn(move || {
        let socket = udp_to(v4(input));
        let mut sent = HashSet::new();
        // Ten in a millisecond: nothing for a daemon that runs, far too much for one that does not.
        while !told.load(Ordering::Relaxed) {
            for _ in 0..10 {
                let datagram = message(&format!("datagram {}", sent.len()));
                socket.send(&datagram).unwrap();
                sent.insert(datagram);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        sent
    });
    wait_until("both loads flow", || {
        daemon.number("/inputs/stream/messages") > 1000 && daemon.number("/inputs/datagrams/messages") > 100
    });
    daemon.signal(Signal::SIGSTOP);
    // The time is what is tested.
    std::thread::sleep(Duration::from_secs(2));
    daemon.signal(Signal::SIGCONT);
    let at_the_end = daemon.number("/inputs/datagrams/messages");
    wait_until("datagrams flow again", || daemon.number("/inputs/datagrams/messages") > at_the_end + 1000);
    over.store(true, Ordering::Relaxed);
    let sent = datagrams.join().unwrap();
    sender.finish().unwrap();

    let counted = || (daemon.number("/inputs/datagrams/messages"), daemon.number("/inputs/datagrams/kernel_drops"));
    wait_until("all datagrams are accounted for", || {
        let (taken, dropped) = counted();
        taken + dropped == sent.len() as u64
    });
    let (taken, dropped) = counted();
    assert!(dropped > 0, "two seconds do not fit into a buffer of 64 KiB");
    let got = sink.wait_for(streamed.len() + usize::try_from(taken).unwrap());
    daemon.stop();
    let (arrived, stream): (Vec<_>, Vec<_>) = got.into_iter().partition(|message| sent.contains(message));
    assert_same(&stream, &streamed);
    assert_eq!(arrived.len() as u64, taken);
    assert_eq!(arrived.iter().collect::<HashSet<_>>().len() as u64, taken, "no datagram came twice");
}
