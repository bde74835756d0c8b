//! The real binary under a service manager that is this test: what it says (sd_notify(3)), and that the sockets which the
//! manager keeps lose nothing over a restart. What systemd itself makes of it is tried where there is one: `packaging/lab`.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use common::{
    Daemon, Framing, Lab, Sink, assert_same, connect_and_send, free_port, lines, numbered, sorted, udp_to, v4,
    wait_until,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// A service manager: what was said to it, and what it keeps.
struct Manager {
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    said: Vec<String>,
    kept: BTreeMap<String, Vec<OwnedFd>>,
}

impl Manager {
    fn new(lab: &Lab) -> Manager {
        let socket = UnixDatagram::bind(lab.path("notify")).unwrap();
        let heard = Arc::<Mutex<Heard>>::default();
        let manager = Manager { heard: heard.clone() };
        std::thread::spawn(move || {
            loop {
                let (message, descriptors) = read(&socket);
                heard.lock().unwrap().hear(message, descriptors);
            }
        });
        manager
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    /// Waits until somebody has said `what`, forgets everything up to there and gives that message.
    #[track_caller]
    fn wait_for(&self, what: &str) -> String {
        let mut found = None;
        wait_until(what, || {
            let said = &mut self.heard().said;
            found = said.iter().position(|message| message.contains(what)).map(|at| said.drain(..=at).next_back());
            found.is_some()
        });
        found.flatten().unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.heard().kept.keys().cloned().collect()
    }

    /// Starts the daemon as a service manager would, with all that is kept.
    fn start(&self, lab: &Lab, config: &str, watchdog: Option<Duration>) -> Daemon {
        let mut names = Vec::new();
        let (mut away, mut back) = (String::new(), String::new());
        for (name, socket) in self.heard().kept.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one))) {
            fcntl(socket.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
            let (number, aside, place) = (socket.as_raw_fd(), names.len() + 100, names.len() + 3);
            // Aside first, or one would take another's place.
            writeln!(away, "exec {aside}<&{number} {number}<&-").unwrap();
            writeln!(back, "exec {place}<&{aside} {aside}<&-").unwrap();
            names.push(name.clone());
        }
        let watchdog =
            watchdog.map_or(String::new(), |limit| format!("WATCHDOG_USEC={} WATCHDOG_PID=$$", limit.as_micros()));
        let script = format!(
            "{away}{back}export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES='{}' {watchdog}\nexec {} run --config {}",
            names.len(),
            names.join(":"),
            env!("CARGO_BIN_EXE_twinlog"),
            lab.configure(config).display()
        );
        let mut command = Command::new("bash");
        command.args(["-euc", &script]).current_dir(lab.path("")).env("TWINLOG_NODE", "node-a");
        command.env("NOTIFY_SOCKET", lab.path("notify"));
        lab.start_with(command, lab.path("control.sock"))
    }
}

impl Heard {
    /// Does what a message asks for.
    fn hear(&mut self, message: String, descriptors: Vec<OwnedFd>) {
        let name = message.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
        if message.contains("FDSTORE=1") {
            self.kept.entry(name).or_default().extend(descriptors);
        } else if message.contains("FDSTOREREMOVE=1") {
            self.kept.remove(&name);
        }
        self.said.push(message);
    }
}

/// One message, and the descriptors that came with it.
fn read(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let (mut bytes, mut space) = ([0; 4096], nix::cmsg_space!([RawFd; 16]));
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let rights = got.cmsgs().unwrap().filter_map(|message| match message {
        ControlMessageOwned::ScmRights(numbers) => Some(numbers),
        _ => None,
    });
    // SAFETY: the kernel has just made them for this process.
    #[allow(unsafe_code)]
    let descriptors = rights.flatten().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
    let length = got.bytes;
    (String::from_utf8(bytes[..length].to_vec()).unwrap(), descriptors)
}

fn relay(input: u16, output: u16) -> String {
    format!(
        "[[input.syslog]]\nname = \"net\"\nlisten = \"127.0.0.1:{input}\"\n\
         [[output.syslog]]\nname = \"out\"\nto = \"tcp://127.0.0.1:{output}\"\nretry = {{ min = \"50ms\", max = \"200ms\" }}\n"
    )
}

#[test]
fn a_restart_loses_nothing_that_came_meanwhile() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let manager = Manager::new(&lab);
    let daemon = manager.start(&lab, &relay(input, output), None);
    manager.wait_for("READY=1");
    assert_eq!(manager.names(), [format!("net/tcp/127.0.0.1;{input}"), format!("net/udp/127.0.0.1;{input}")]);
    connect_and_send(v4(input), &lines(&numbered("before", 10)));
    sink.wait_for(10);
    daemon.stop();

    let sender = udp_to(v4(input));
    for message in numbered("datagram", 1000) {
        sender.send(&message).unwrap();
    }
    // Its first packet is dropped until somebody listens again.
    let stream = std::thread::spawn(move || connect_and_send(v4(input), &lines(&numbered("stream", 10))));
    assert!(!stream.is_finished());

    let daemon = manager.start(&lab, &relay(input, output), None);
    let all = [numbered("before", 10), numbered("datagram", 1000), numbered("stream", 10)].concat();
    assert_same(&sorted(sink.wait_for(all.len())), &sorted(all));
    drop(stream.join().unwrap());
    assert_eq!(daemon.number("/inputs/net/kernel_drops"), 0);
    // They are kept for the next restart too, without being stored again.
    manager.wait_for("READY=1");
    assert_eq!(manager.names().len(), 2);
    assert!(!manager.heard().said.iter().any(|said| said.contains("FDSTORE=1")));
    daemon.stop();
}

#[test]
fn what_is_not_configured_any_more_is_given_up_and_in_nobodys_way() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let manager = Manager::new(&lab);
    let daemon = manager.start(&lab, &relay(input, output), None);
    manager.wait_for("READY=1");
    let before = manager.names();
    daemon.stop();

    // Every address has the port now, which the old listener would keep from it.
    let everywhere =
        relay(input, output).replace(&format!("listen = \"127.0.0.1:{input}\""), &format!("listen = \":{input}\""));
    let daemon = manager.start(&lab, &everywhere, None);
    for name in before {
        manager.wait_for(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }
    manager.wait_for("READY=1");
    assert_eq!(manager.names(), [format!("net/tcp/[;;];{input}"), format!("net/udp/[;;];{input}")]);
    daemon.stop();
}

#[test]
fn the_watchdog_is_fed_and_the_status_says_how_the_node_is() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let manager = Manager::new(&lab);
    let daemon = manager.start(&lab, &relay(input, output), Some(Duration::from_millis(400)));
    manager.wait_for("READY=1");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1\nSTATUS=standalone, ");
    }
    udp_to(v4(input)).send(b"<13>nobody takes it").unwrap();
    manager.wait_for(" messages/s in, 1 to deliver");
    daemon.stop();
}

#[test]
fn a_reload_and_a_stop_are_announced() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let manager = Manager::new(&lab);
    let daemon = manager.start(&lab, &relay(input, output), None);
    manager.wait_for("READY=1");
    let more = relay(input, output) + "[[output.file]]\npath = \"more\"\n";
    for config in [more.as_str(), "nonsense"] {
        lab.configure(config);
        daemon.signal(Signal::SIGHUP);
        manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
        manager.wait_for("READY=1");
    }
    daemon.signal(Signal::SIGTERM);
    manager.wait_for("STOPPING=1\nEXTEND_TIMEOUT_USEC=");
    drop(daemon);
}

#[test]
fn an_input_that_a_reload_takes_away_is_no_longer_kept() {
    let (lab, first, second, output) = (Lab::new(), free_port(), free_port(), free_port());
    let manager = Manager::new(&lab);
    let daemon = manager.start(&lab, &relay(first, output), None);
    manager.wait_for("READY=1");
    lab.configure(&relay(second, output));
    daemon.signal(Signal::SIGHUP);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    assert_eq!(manager.names(), [format!("net/tcp/127.0.0.1;{second}"), format!("net/udp/127.0.0.1;{second}")]);
    wait_until("nobody has the old one", || UdpSocket::bind(v4(first)).is_ok());
    daemon.stop();
}
