//! Ten thousand connections that say nothing: what they cost.
//!
//! The normal test run opens a thousand and looks at memory. The figures of the ten thousand, and of the processor,
//! need a machine with nothing else to do:
//!
//! ```sh
//! cargo test --release --test scale -- --ignored --nocapture
//! ```

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{Daemon, Framing, Lab, Sink, assert_same, free_port, lines, numbered, v4, wait_until, wait_until_within};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Resident memory, in bytes, that ten thousand idle connections may take.
const MEMORY_MAX: u64 = 150 << 20;
/// Share of one core.
const IDLE_LOAD_MAX: f64 = 0.005;
/// For how long the processor is watched.
const WATCH: Duration = Duration::from_secs(10);

#[test]
fn a_thousand_idle_connections_take_little_memory() {
    let crowd = Crowd::gather(1000);
    let memory = crowd.daemon.peak_memory();
    assert!(memory < MEMORY_MAX, "{memory} bytes of memory");
    crowd.is_heard();
}

#[test]
#[ignore = "measures the processor: for a machine with nothing else to do"]
fn ten_thousand_idle_connections_take_little_memory_and_no_time() {
    let alone = {
        let crowd = Crowd::gather(0);
        let load = crowd.load();
        println!("no connections: {:.1} MB, {:.3} % of a core", megabytes(&crowd), load * 100.0);
        load
    };
    let crowd = Crowd::gather(10_000);
    let memory = crowd.daemon.peak_memory();
    let load = crowd.load();
    println!("10000 idle connections: {:.1} MB at most, {:.3} % of a core", megabytes(&crowd), load * 100.0);
    println!("of it for the connections: {:.3} %", (load - alone) * 100.0);
    assert!(memory < MEMORY_MAX, "{memory} bytes of memory");
    assert!(load < IDLE_LOAD_MAX, "{load} of a core");
    crowd.is_heard();
    println!("after each sent a message: {:.1} MB at most", megabytes(&crowd));
}

fn megabytes(crowd: &Crowd) -> f64 {
    crowd.daemon.peak_memory() as f64 / 1e6
}

/// A daemon and connections to it.
struct Crowd {
    _lab: Lab,
    daemon: Daemon,
    sink: Sink,
    streams: Vec<TcpStream>,
}

impl Crowd {
    fn gather(count: usize) -> Crowd {
        // The daemon inherits it; a test's own ends of the connections count too.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        assert!(hard > count as u64 + 200, "a limit of {hard} files is too small for {count} connections");
        let (lab, input, output) = (Lab::new(), free_port(), free_port());
        let sink = Sink::tcp(v4(output), Framing::Lf);
        let daemon = lab.start(&format!(
            r#"
[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"
max_connections = 20000

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
"#
        ));
        let streams = (0..count).map(|number| connect(number, v4(input))).collect();
        wait_until_within(Duration::from_secs(60), "all connections are open", || {
            daemon.number("/inputs/net/connections") == count as u64
        });
        Crowd { _lab: lab, daemon, sink, streams }
    }

    /// Share of a core that the daemon takes while nothing happens.
    fn load(&self) -> f64 {
        let (begin, before) = (Instant::now(), self.processor_time());
        // The time that passes is what is measured.
        std::thread::sleep(WATCH);
        (self.processor_time() - before).as_secs_f64() / begin.elapsed().as_secs_f64()
    }

    /// From proc_pid_schedstat: nanoseconds on a processor, of all threads.
    fn processor_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).unwrap();
        let nanoseconds = threads.map(|thread| {
            let text = std::fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
            text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Each connection still works.
    fn is_heard(&self) {
        let messages = numbered("m", self.streams.len());
        for (mut stream, message) in self.streams.iter().zip(&messages) {
            stream.write_all(&lines(std::slice::from_ref(message))).unwrap();
        }
        let got = self.sink.wait_for(messages.len());
        assert_same(&common::sorted(got), &common::sorted(messages));
        wait_until("nothing waits", || self.daemon.number("/outputs/out/backlog_messages") == 0);
    }
}

/// Connects when the queue of the listening socket has room.
fn connect(number: usize, to: SocketAddr) -> TcpStream {
    let mut opened = None;
    wait_until(&format!("connection {number} is accepted"), || {
        opened = TcpStream::connect_timeout(&to, Duration::from_secs(5)).ok();
        opened.is_some()
    });
    opened.unwrap()
}
