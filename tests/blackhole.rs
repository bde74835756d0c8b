//! A network that breaks between twinlog and a forward server, or between a client and twinlog: two network namespaces, a
//! veth between them, and nftables in the receiver's. Needs root, iproute2 and nft.
//!
//! The case of the sender: the server's host answers the SYN and drops everything after it. The sender is connected, its
//! kernel takes what it writes, and nothing arrives; then the server dies. Whoever calls written bytes delivered loses them
//! here.
//!
//! The case of the receiver: a client that is connected sends chunks into the void, gives up and sends them again on other
//! connections, under the same ids. Then the network is whole again, and the kernel delivers what is left of the
//! connections that the client has closed.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use common::forward::{Client, entries, journaled, packed};
use common::forward_server::messages_once;
use common::{Answer, ForwardServer, Lab, connect_and_send, free_port, lines, numbered, v4, wait_until_within};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

const SERVER: &str = "10.87.0.2:24224";

/// A thread in a network namespace of its own, which ends with it.
struct Place {
    work: Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

impl Place {
    fn new() -> Place {
        let (work, to_do) = channel::<Box<dyn FnOnce() + Send>>();
        let (told, thread) = channel();
        std::thread::spawn(move || {
            own_network();
            told.send(gettid().as_raw()).unwrap();
            to_do.into_iter().for_each(|work| work());
        });
        Place { work, thread: thread.recv().expect("the thread has a network") }
    }

    /// Does something there; sockets, threads and children that it makes stay there.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.work.send(Box::new(move || drop(done.send(work())))).unwrap();
        result.recv().expect("what is done there does not panic")
    }
}

fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root: it makes network namespaces");
    run("ip link set lo up");
}

#[track_caller]
fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status();
    assert!(status.is_ok_and(|status| status.success()), "{command}");
}

/// Gives this thread a network, joined to another; gives the other.
fn two_hosts() -> Place {
    own_network();
    let there = Place::new();
    run(&format!("ip link add here type veth peer name there netns {}", there.thread));
    run("ip address add 10.87.0.1/24 dev here");
    run("ip link set here up");
    there.run(|| {
        run("ip address add 10.87.0.2/24 dev there");
        run("ip link set there up");
    });
    there
}

fn break_the_path() {
    run("nft add table ip broken");
    run("nft add chain ip broken input { type filter hook input priority 0 ; }");
    run("nft add rule ip broken input tcp dport 24224 tcp flags & syn == 0 drop");
}

fn mend_the_path() {
    run("nft delete table ip broken");
}

/// Runs the case on a thread of its own, whose network is then the sender's.
fn on_a_broken_path(output: &'static str, case: impl FnOnce(&Lab, &Place, &str, u16) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let there = two_hosts();
        there.run(break_the_path);
        let (lab, input) = (Lab::new(), free_port());
        let config = format!(
            r#"
[[input.syslog]]
listen = "tcp://127.0.0.1:{input}"

[[output.forward]]
name = "out"
to = "{SERVER}"
retry = {{ min = "50ms", max = "200ms" }}
{output}
"#
        );
        case(&lab, &there, &config, input);
    });
    thread.join().unwrap();
}

fn server(there: &Place) -> ForwardServer {
    there.run(|| ForwardServer::start(SERVER.parse::<SocketAddr>().unwrap(), Answer::Right, None))
}

fn nothing_is_lost(lab: &Lab, there: &Place, config: &str, input: u16, reason: &str) -> Vec<common::Got> {
    let first = server(there);
    let daemon = lab.start(config);
    connect_and_send(v4(input), &lines(&numbered("m", 3)));
    let errors = format!("/outputs/out/errors/{reason}");
    wait_until_within(std::time::Duration::from_secs(60), "the connection is given up", || daemon.number(&errors) > 0);
    assert!(daemon.number("/outputs/out/sent") >= 3);
    assert_eq!((daemon.number("/outputs/out/acknowledged"), daemon.number("/outputs/out/backlog_messages")), (0, 3));
    assert!(first.close().is_empty(), "nothing came through");
    there.run(mend_the_path);
    let second = server(there);
    let got = second.wait_for(3);
    daemon.wait_for("/outputs/out/backlog_messages", 0);
    daemon.stop();
    got
}

#[test]
fn a_server_that_only_answers_the_syn_loses_nothing() {
    on_a_broken_path("ack_timeout = \"2s\"", |lab, there, config, input| {
        let got = nothing_is_lost(lab, there, config, input, "ack_timeout");
        assert_eq!(messages_once(&got), ["m 0", "m 1", "m 2"]);
    });
}

#[test]
fn nor_does_it_without_acknowledgements_because_the_cursor_follows_the_servers_tcp() {
    on_a_broken_path("require_ack = false", |lab, there, config, input| {
        let got = nothing_is_lost(lab, there, config, input, "connection_lost");
        assert!(got.iter().all(|got| got.chunk.is_none()));
    });
}

#[test]
fn chunks_that_a_client_sent_into_the_void_are_journaled_once_when_the_path_is_mended() {
    const CHUNKS: u8 = 8;
    let thread = std::thread::spawn(|| {
        let there = two_hosts();
        let lab = Arc::new(Lab::new());
        let config = format!(
            r#"
[[input.forward]]
name = "apps"
listen = "{SERVER}"

[[output.syslog]]
to = "tcp://127.0.0.1:{}"
"#,
            free_port()
        );
        let daemon = there.run({
            let lab = lab.clone();
            move || lab.start(&config)
        });
        let to = SERVER.parse().unwrap();
        let chunk = |number: u8| packed(b"t", &entries(&format!("chunk {number}"), 20), Some(&[b'0' + number]));
        let mut connected = Client::connect(to);
        connected.send(&chunk(0));
        connected.expect_ack(b"0");
        there.run(break_the_path);
        // Tries that are given up, as clients do it: the connection is closed, and the same is sent on another.
        for round in 0..3 {
            (1..CHUNKS).for_each(|number| connected.send(&chunk(number)));
            assert!(connected.read_within(Duration::from_millis(500)).is_empty(), "round {round}");
            connected = Client::connect(to);
        }
        assert_eq!(daemon.number("/inputs/apps/messages"), 20);
        there.run(mend_the_path);
        // The kernel still has what was given up on the first connection, and may have it of the others.
        daemon.wait_for("/inputs/apps/messages", 20 * u64::from(CHUNKS));
        (1..CHUNKS).for_each(|number| connected.send(&chunk(number)));
        (1..CHUNKS).for_each(|number| connected.expect_ack(&[b'0' + number]));
        assert!(daemon.number("/inputs/apps/rejected/repeated") >= u64::from(CHUNKS - 1));
        daemon.stop();
        let chunks = journaled(&lab.path("data"));
        let mut ids: Vec<_> = chunks.iter().map(|chunk| chunk.id.clone().unwrap()[0] - b'0').collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..CHUNKS).collect::<Vec<_>>());
        for chunk in &chunks {
            let number = chunk.id.clone().unwrap()[0] - b'0';
            assert_eq!(chunk.entries, entries(&format!("chunk {number}"), 20));
        }
    });
    thread.join().unwrap();
}
