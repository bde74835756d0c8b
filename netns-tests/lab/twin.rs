//! twinlog on a host, as a node of a pair.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Host, KEY, Program, VIPS, wait_until, write_key};

/// Both virtual addresses, as `vip` has them.
pub const BOTH_VIPS: &str = "[\"203.0.113.100/24\", \"2001:db8::100\"]";

/// The program under test; `TWINLOG_BIN` names another one.
pub fn twinlog() -> PathBuf {
    std::env::var_os("TWINLOG_BIN").map_or_else(|| env!("CARGO_BIN_EXE_twinlog").into(), PathBuf::from)
}

/// A twinlog of a pair on a host.
pub struct Twin<'a> {
    /// Where it runs.
    pub host: &'a Host,
    /// Configuration, data, socket.
    directory: TempDir,
    /// While it runs.
    pub program: Option<Program>,
    /// The shared addresses.
    pub vips: Vec<IpAddr>,
}

/// Lines of `[pair]` beside the interface and the nodes.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// `vip`.
    pub vip: &'a str,
    /// Whole lines, also of other tables.
    pub more: &'a str,
    /// Of the two nodes.
    pub priorities: [u8; 2],
}

/// Both families, nothing special.
pub const PLAIN: Keys<'static> = Keys { vip: BOTH_VIPS, more: "", priorities: [100, 100] };

impl<'a> Twin<'a> {
    /// Writes its configuration; the second host of the lab is the second node.
    pub fn new(host: &'a Host, keys: &Keys<'_>) -> Twin<'a> {
        let directory = TempDir::with_prefix("twinlog-").unwrap();
        let path = directory.path().display();
        let is_ipv6 = keys.vip.contains("2001") && !keys.vip.contains("203");
        let address = |number: u8| {
            if is_ipv6 { format!("2001:db8::{number}") } else { format!("203.0.113.{number}") }
        };
        let node = |number: u8, name: &str| {
            let priority = keys.priorities[usize::from(number) - 1];
            format!("{{ name = \"{name}\", address = \"{}\", priority = {priority} }}", address(number))
        };
        let text = format!(
            "data_dir = \"{path}/data\"\ncontrol_socket = \"{path}/control\"\n\
             [pair]\nvip = {}\nvrid = 77\ninterface = \"eth0\"\nnodes = [{}, {}]\n{}\n\
             [journal]\nacknowledge = \"durable\"\n[[input.syslog]]\nlisten = \":1514\"\n[[output.stdout]]\n",
            keys.vip,
            node(1, "a"),
            node(2, "b"),
            keys.more
        );
        std::fs::write(directory.path().join("twinlog.toml"), text).unwrap();
        write_key(directory.path(), KEY);
        let vips = VIPS.into_iter().filter(|vip| keys.vip.contains(&vip.to_string())).collect();
        Twin { host, directory, program: None, vips }
    }

    /// A file in its directory.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same, started by another program: `env`, `setpriv` with their arguments.
    #[track_caller]
    pub fn start_with(&mut self, starter: &[&str]) {
        let (program, file) = (twinlog(), self.file("twinlog.toml"));
        let run = [program.to_str().expect("text"), "run", "--config", &file];
        let mut words = starter.iter().copied().chain(run);
        self.program = Some(self.host.start(words.next().expect("at least ours"), words));
        wait_until("the daemon answers", || Path::new(&self.file("control")).exists());
    }

    /// The process, while it runs.
    pub fn program(&self) -> &Program {
        self.program.as_ref().expect("it was started")
    }

    /// Its exit status and what it said.
    pub fn ask(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(twinlog());
        command.args(["--config", &self.file("twinlog.toml"), "--node", self.host.name]).args(arguments);
        let output = self.host.visit(|| command.output()).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    /// Waits until the other node has everything and could take over, and its process has answered.
    #[track_caller]
    pub fn await_sync(&self) {
        assert_eq!(self.ask(&["await", "synced", "--timeout", "10s"]), (Some(0), String::new()));
        wait_until("the peer could take over", || self.status()["safe_to_drain"] == true && self.knows_its_peer());
    }

    /// Its node in `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let (code, said) = self.ask(&["status", "--json"]);
        assert_eq!(code, Some(0), "{said}");
        let mut status: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        status["nodes"][0].take()
    }

    /// Whether it has heard of its peer.
    #[track_caller]
    pub fn knows_its_peer(&self) -> bool {
        self.status()["vrrp"]["peer_answers"] == true
    }

    /// How many of the addresses are on the link.
    pub fn held(&self) -> usize {
        let index = self.host.eth0().index;
        let there = self.host.netlink().addresses(Some(index)).unwrap();
        self.vips.iter().filter(|vip| there.iter().any(|place| place.address == **vip)).count()
    }

    /// Whether all of them are.
    pub fn holds(&self) -> bool {
        self.held() == self.vips.len()
    }

    /// Whether none of them is.
    pub fn is_bare(&self) -> bool {
        self.held() == 0
    }

    /// The process that is not the guardian.
    pub fn daemon(&self) -> Pid {
        let processes = self.program().processes();
        assert_eq!(processes.len(), 2, "a guardian and a daemon");
        processes[1]
    }

    /// Whether its first process has ended.
    pub fn has_ended(&self) -> bool {
        kill(self.program().pid(), None).is_err()
    }
}

/// Two nodes of which `b`, with the higher address, is the master.
#[track_caller]
pub fn elected<'a>(a: &'a Host, b: &'a Host) -> (Twin<'a>, Twin<'a>) {
    let (mut a, mut b) = (Twin::new(a, &PLAIN), Twin::new(b, &PLAIN));
    b.start();
    wait_until("b is master", || b.holds());
    a.start();
    for node in [&a, &b] {
        wait_until("they know each other", || node.knows_its_peer());
    }
    assert!(b.holds() && a.is_bare());
    (a, b)
}
