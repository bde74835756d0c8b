//! tshark, which knows these protocols from other people's code, looks at everything that a pair sends.

use std::collections::BTreeSet;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use super::lab::twin::{Keys, PLAIN, Twin, elected};
use super::lab::{Host, Program, Switch, VIP_V4, VIP_V6, succeed, wait_until};

/// Everything that a host hears, in a file.
struct Capture {
    program: Program,
    directory: TempDir,
}

impl Capture {
    fn start(host: &Host) -> Capture {
        let directory = TempDir::with_prefix("twinlog-").unwrap();
        let file = directory.path().join("capture.pcapng");
        let program = host.start("tshark", ["-i", "eth0", "-w", file.to_str().expect("text")]);
        wait_until("tshark listens", || program.output().contains("Capturing on 'eth0'"));
        Capture { program, directory }
    }

    /// Ends it; what was heard is in the file then.
    fn stop(self) -> TempDir {
        self.program.signal(Signal::SIGINT);
        wait_until("tshark ends", || kill(self.program.pid(), None).is_err());
        self.directory
    }
}

/// What tells the frames that are looked for apart.
const FIELDS: [&str; 7] = [
    "vrrp.version",
    "vrrp.prio",
    "vrrp.auth_type",
    "ip.dst",
    "ipv6.dst",
    "arp.src.proto_ipv4",
    "icmpv6.nd.na.target_address",
];

/// tshark, reading a capture through a display filter.
fn tshark(capture: &TempDir, filter: &str) -> Command {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-o", "ip.check_checksum:TRUE", "-Y", filter, "-r"]);
    tshark.arg(capture.path().join("capture.pcapng"));
    tshark
}

/// A node of version 2 with a password takes the address and leaves.
fn version_2(host: &Host) {
    let pass = TempDir::with_prefix("twinlog-").unwrap();
    let file = pass.path().join("pass");
    super::pair::write_secret(&file, "s3cr3t\n");
    let more = format!("vrrp_version = 2\nauth_pass_file = {file:?}");
    let mut node = Twin::new(host, &Keys { vip: "\"203.0.113.100\"", more: &more, ..PLAIN });
    node.start();
    wait_until("it is master", || node.holds());
    node.program().signal(Signal::SIGTERM);
    wait_until("it ends", || node.has_ended());
}

#[test]
fn tshark_finds_nothing_wrong_with_what_we_send() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let capture = Capture::start(&client);
    {
        let (one, other) = elected(&a, &b);
        other.await_sync();
        assert_eq!(other.ask(&["failover"]).0, Some(0));
        wait_until("a has taken over", || one.holds() && other.is_bare());
        // Its guardian says the last word.
        kill(one.daemon(), Signal::SIGKILL).unwrap();
        wait_until("b has taken over", || other.holds());
    }
    version_2(&a);
    let capture = capture.stop();

    let mut fields = tshark(&capture, "vrrp or arp.isgratuitous or icmpv6.type == 136");
    fields.args(["-T", "fields"]).args(FIELDS.iter().flat_map(|field| ["-e", field]));
    let seen = succeed(&mut fields);
    let seen: BTreeSet<Vec<&str>> = seen.lines().map(|line| line.split('\t').collect()).collect();
    let (vip_v4, vip_v6) = (VIP_V4.to_string(), VIP_V6.to_string());
    for wanted in [
        ["3", "100", "", "224.0.0.18", "", "", ""],
        ["3", "0", "", "224.0.0.18", "", "", ""],
        ["3", "100", "", "", "ff02::12", "", ""],
        ["3", "0", "", "", "ff02::12", "", ""],
        ["2", "100", "1", "224.0.0.18", "", "", ""],
        ["2", "0", "1", "224.0.0.18", "", "", ""],
        ["", "", "", "", "", &vip_v4, ""],
        ["", "", "", "", "ff02::1", "", &vip_v6],
    ] {
        assert!(seen.contains(&wanted[..]), "no {wanted:?} in {seen:#?}");
    }
    let bad = ["vrrp.checksum", "icmpv6.checksum", "ip.checksum"].map(|sum| format!("{sum}.status == 0"));
    let wrong = format!("_ws.malformed or _ws.expert.severity == 8388608 or {}", bad.join(" or "));
    let wrong = succeed(&mut tshark(&capture, &format!("(vrrp or arp or icmpv6) and ({wrong})")));
    assert_eq!(wrong, "");
}
