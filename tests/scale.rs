//! Ten thousand senders that have nothing to say, and a daemon that has nothing to do.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Daemon, Framing, Lab, Sink, free_port, lines, message, sorted, v4};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};

const CONNECTIONS: u64 = 10_000;
/// Below this the test would not show what it is for.
const CONNECTIONS_MIN: u64 = 5_000;
/// Descriptors of a process besides its connections.
const DESCRIPTORS_BESIDES: u64 = 200;
const RESIDENT_BYTES_MAX: u64 = 150 << 20;
/// Share of one core. The exact figure is the benchmark's; this is for a loop that never sleeps.
const IDLE_CPU_MAX: f64 = 0.05;
const IDLE_OVER: Duration = Duration::from_secs(3);

fn config(input: u16, output: u16) -> String {
    format!(
        r#"
[[input.syslog]]
name = "net"
listen = ["udp://127.0.0.1:{input}", "tcp://127.0.0.1:{input}"]

[[output.syslog]]
to = "tcp://127.0.0.1:{output}"
"#
    )
}

/// Allows this process and the children to come as many descriptors as the system lets them; how many connections that
/// makes, on either side.
fn connections_allowed() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = CONNECTIONS + DESCRIPTORS_BESIDES;
    // Root may go beyond the hard limit; who is not has to do with it.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted));
    let limit = if raised.is_ok() { wanted } else { hard };
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard.max(limit)).unwrap();
    let connections = limit.saturating_sub(DESCRIPTORS_BESIDES).min(CONNECTIONS);
    assert!(
        connections >= CONNECTIONS_MIN,
        "this test needs a limit of at least {} open files (ulimit -n), not {limit}",
        CONNECTIONS_MIN + DESCRIPTORS_BESIDES
    );
    connections
}

/// Resident memory in bytes: VmRSS.
fn resident_bytes(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("proc(5)");
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

/// Processor time used so far, of user and system.
fn processor_time(daemon: &Daemon) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    // After the name in parentheses, which may hold spaces: utime and stime are fields 14 and 15 of proc(5).
    let (_, fields) = stat.rsplit_once(") ").expect("proc(5)");
    let ticks: u64 = fields.split(' ').skip(14 - 3).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    let a_second = sysconf(SysconfVar::CLK_TCK).unwrap().expect("every system has it").cast_unsigned();
    Duration::from_millis(ticks * 1000 / a_second)
}

/// Share of one core that the daemon uses while nothing comes.
fn idle_share(daemon: &Daemon) -> f64 {
    let (begin, used) = (Instant::now(), processor_time(daemon));
    // The time is what is measured.
    std::thread::sleep(IDLE_OVER);
    (processor_time(daemon) - used).as_secs_f64() / begin.elapsed().as_secs_f64()
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_each_is_served() {
    let count = connections_allowed();
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&config(input, output));
    let empty = resident_bytes(&daemon);

    let mut connections: Vec<TcpStream> =
        (0..count).map(|_| TcpStream::connect(v4(input)).expect("twinlog accepts connections")).collect();
    daemon.wait_for("/inputs/net/connections", count);
    assert!(processor_time(&daemon) > Duration::ZERO, "that took some time, or the clock does not count");
    let resident = resident_bytes(&daemon);
    let each = resident.saturating_sub(empty) / count;
    println!("{count} idle connections: {resident} bytes resident, {empty} without them, {each} for each");
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes are resident");
    let idle = idle_share(&daemon);
    println!("{:.2} % of a core with them idle", idle * 100.0);
    assert!(idle < IDLE_CPU_MAX, "{:.1} % of a core for nothing", idle * 100.0);

    let mut expected = Vec::new();
    for (number, connection) in connections.iter_mut().enumerate().step_by(connections_between(count)) {
        let line = message(&format!("connection {number}"));
        connection.write_all(&lines(std::slice::from_ref(&line))).unwrap();
        expected.push(line);
    }
    assert_eq!(sorted(sink.wait_for(expected.len())), sorted(expected));
    daemon.wait_for("/inputs/net/connections", count);
    drop(connections);
    daemon.wait_for("/inputs/net/connections", 0);
    daemon.stop();
}

/// The distance at which a hundred are spread over all.
fn connections_between(count: u64) -> usize {
    usize::try_from(count).unwrap().div_ceil(100)
}

#[test]
fn a_daemon_with_nothing_to_do_does_nothing() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let _sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&config(input, output));
    let idle = idle_share(&daemon);
    println!("{:.2} % of a core", idle * 100.0);
    assert!(idle < IDLE_CPU_MAX, "{:.1} % of a core for nothing", idle * 100.0);
    daemon.stop();
}
