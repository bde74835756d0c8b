//! How punctual advertisements are while every processor is busy, and what an idle pair costs. A program that prints two
//! tables and judges nothing: `netns-tests/compare.sh timing`; BENCHMARKS.md has its newest output.

use std::time::{Duration, Instant};

use nix::unistd::Pid;
use twinlog::sys::vrrp_socket::{PACKET_BYTES, VrrpSocket};

use super::lab::twin::{Keys, Twin};
use super::lab::{Host, Program, Switch, wait_until};

const VRID: u8 = 77;
/// How long each row is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// proc(5): what `sysconf(_SC_CLK_TCK)` says on every Linux of today.
const TICKS_PER_SECOND: f64 = 100.0;
/// A daemon without this right, as one whose unit does not give it.
const NOT_URGENT: [&str; 2] = ["setpriv", "--bounding-set=-sys_nice"];

#[test]
#[ignore = "takes four minutes and judges nothing: netns-tests/compare.sh timing"]
fn advertisements_are_punctual_and_an_idle_pair_is_cheap() {
    println!("| interval ms | real-time | busy loops | sent | late ms, p50 | p99 | max | over 5 ms | moves |");
    println!("|--:|---|--:|--:|--:|--:|--:|--:|--:|");
    for interval in [100, 10] {
        for (real_time, loops) in [(true, 0), (true, 4), (false, 4)] {
            lateness(interval, real_time, loops);
        }
    }
    println!("\n| interval ms | node | process | CPU % of a core |\n|--:|---|---|--:|");
    for interval in [100, 10] {
        cost(interval);
    }
}

/// Two nodes that know each other; the second is master.
fn pair<'a>(hosts: [&'a Host; 2], interval: u32, starter: &[&str]) -> [Twin<'a>; 2] {
    let more = format!("advert_interval = \"{interval}ms\"");
    let keys = Keys { vip: "\"203.0.113.100/24\"", more: &more, priorities: [100, 100] };
    let mut nodes = hosts.map(|host| Twin::new(host, &keys));
    nodes[1].start_with(starter);
    wait_until("b is master", || nodes[1].holds());
    nodes[0].start_with(starter);
    wait_until("they know each other", || nodes.iter().all(Twin::knows_its_peer));
    nodes
}

/// Prints how late the master's advertisements were, by the time at which a third host's kernel had them. One is due an
/// interval after the one before.
fn lateness(interval: u32, real_time: bool, loops: usize) {
    let switch = Switch::new();
    let hosts = [switch.host("a"), switch.host("b")];
    let client = switch.host("client");
    let nodes = pair([&hosts[0], &hosts[1]], interval, if real_time { &[] } else { &NOT_URGENT });
    let index = client.eth0().index;
    let socket = client.visit(|| VrrpSocket::v4("eth0", index, Some(VRID))).unwrap();
    let _busy: Vec<Program> = (0..loops).map(|_| client.start("sh", ["-c", "while :; do :; done"])).collect();
    let moves = || nodes.iter().map(|node| node.status()["vrrp"]["transitions"].as_u64().unwrap()).sum::<u64>();
    let (before, begin) = (moves(), Instant::now());
    let (mut heard, mut buffer) = (Vec::new(), vec![0; PACKET_BYTES]);
    while begin.elapsed() < LOOK {
        while let Some(received) = socket.receive(&mut buffer).unwrap() {
            heard.push(received.at);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let moved = moves() - before;
    let due = f64::from(interval);
    let mut late: Vec<f64> = heard.windows(2).map(|two| (two[1] - two[0]).as_secs_f64() * 1e3 - due).collect();
    late.sort_by(f64::total_cmp);
    let over = late.iter().filter(|late| **late > 5.0).count();
    let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize];
    let real_time = if real_time { "yes" } else { "no" };
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    let sent = heard.len();
    println!("| {interval} | {real_time} | {loops} | {sent} | {p50:.2} | {p99:.2} | {max:.2} | {over} | {moved} |");
}

/// Prints the processor time of two idle nodes.
fn cost(interval: u32) {
    let switch = Switch::new();
    let hosts = [switch.host("a"), switch.host("b")];
    let nodes = pair([&hosts[0], &hosts[1]], interval, &[]);
    let processes: Vec<(&str, &str, Pid)> = nodes
        .iter()
        .zip(["standby", "active"])
        .flat_map(|(node, role)| {
            let processes = node.program().processes();
            assert_eq!(processes.len(), 2);
            [(role, "guardian", processes[0]), (role, "daemon", processes[1])]
        })
        .collect();
    let ticks = || -> Vec<u64> { processes.iter().map(|(.., process)| ticks_of(*process)).collect() };
    let before = ticks();
    std::thread::sleep(LOOK);
    for (((role, which, _), before), after) in processes.iter().zip(before).zip(ticks()) {
        let share = (after - before) as f64 / TICKS_PER_SECOND / LOOK.as_secs_f64() * 100.0;
        println!("| {interval} | {role} | {which} | {share:.2} |");
    }
}

/// Ticks of user and system time of a process, with all its threads: the 14th and 15th field of `/proc/PID/stat`.
fn ticks_of(process: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
