//! tshark, which knows these protocols from other people's code, looks at everything that a pair sends.

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

/// The frames of a capture that a display filter lets through, as tshark shows them.
fn frames(capture: &TempDir, filter: &str) -> Vec<String> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-o", "ip.check_checksum:TRUE", "-Y", filter, "-r"]);
    succeed(tshark.arg(capture.path().join("capture.pcapng"))).lines().map(str::to_owned).collect()
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
        assert_eq!(other.ask(&["failover"]).0, Some(0));
        wait_until("a has taken over", || one.holds() && other.is_bare());
        // Its guardian says the last word.
        kill(one.daemon(), Signal::SIGKILL).unwrap();
        wait_until("b has taken over", || other.holds());
    }
    version_2(&a);
    let capture = capture.stop();

    for filter in [
        "vrrp.version == 3 and ip.dst == 224.0.0.18",
        "vrrp.version == 3 and ipv6.dst == ff02::12",
        "vrrp.version == 2 and vrrp.auth_type == 1",
        "vrrp.version == 3 and ip and vrrp.prio == 0",
        "vrrp.version == 3 and ipv6 and vrrp.prio == 0",
        "vrrp.version == 2 and vrrp.prio == 0",
        &format!("arp.isgratuitous and arp.opcode == 1 and arp.src.proto_ipv4 == {VIP_V4}"),
        &format!("icmpv6.type == 136 and ipv6.dst == ff02::1 and icmpv6.nd.na.target_address == {VIP_V6}"),
    ] {
        assert!(!frames(&capture, filter).is_empty(), "none of {filter}");
    }
    let bad = ["vrrp.checksum", "icmpv6.checksum", "ip.checksum"].map(|sum| format!("{sum}.status == 0"));
    let wrong = format!("_ws.malformed or _ws.expert.severity == 8388608 or {}", bad.join(" or "));
    let ours = frames(&capture, &format!("(vrrp or arp or icmpv6) and ({wrong})"));
    assert!(ours.is_empty(), "{ours:#?}");
}
