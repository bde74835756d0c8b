//! Setting up a pair: `twinlog init` as an operator and a script use it, and `check --live` where no network is needed.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const FLAGS: [&str; 11] = [
    "--yes",
    "--vip=192.0.2.10/24",
    "--interface=eth9",
    "--vrid=51",
    "--node=agg-a=192.0.2.11",
    "--node",
    "agg-b=192.0.2.12,90",
    "--output",
    "tcp://siem.example.net:514",
    "--output",
    "forward://collector.example.net",
];

/// A directory for the configuration.
struct World(TempDir);

impl World {
    fn new() -> World {
        World(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.arg("--config").arg(self.path("etc/twinlog.toml")).args(arguments).current_dir(self.0.path());
        command.env_remove("TWINLOG_NODE").env_remove("CLICOLOR_FORCE").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        ran(self.command(arguments).output().unwrap())
    }

    fn init(&self, more: &[&str]) -> (i32, String, String) {
        self.run(&[&["init"], &FLAGS[..], more].concat())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("etc")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn ran(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn flags_make_a_configuration_that_both_nodes_accept_and_a_key() {
    let world = World::new();
    let (status, stdout, stderr) = world.init(&[]);
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(world.names(), ["pair.key", "twinlog.toml"]);
    assert_eq!(world.path("etc/pair.key").metadata().unwrap().mode() & 0o137, 0);
    assert_eq!(fs::read(world.path("etc/pair.key")).unwrap().len(), 45, "32 bytes in base64, and a line end");
    let next: Vec<&str> = stdout.lines().skip(2).map(str::trim).collect();
    assert!(next[0].starts_with("scp -p ") && next[0].contains("pair.key root@192.0.2.12:"), "{next:?}");
    assert!(next[1].ends_with("check --live") && next[2] == "systemctl enable --now twinlog", "{next:?}");
    let file = world.path("etc/twinlog.toml");
    for node in ["agg-a", "agg-b"] {
        let (status, stdout, stderr) =
            world.run(&["--node", node, "check", file.to_str().unwrap(), "--show-effective"]);
        assert_eq!(status, 0, "{stderr}");
        assert!(stdout.contains("vrid = 51") && stdout.contains(&format!("# node {node}")), "{stdout}");
    }
}

#[test]
fn a_second_time_changes_nothing_and_another_configuration_needs_force() {
    let world = World::new();
    assert_eq!(world.init(&[]).0, 0);
    let read = |name: &str| fs::read_to_string(world.path(name)).unwrap();
    let (config, key) = (read("etc/twinlog.toml"), read("etc/pair.key"));
    let (status, stdout, _) = world.init(&[]);
    assert!(status == 0 && stdout.contains("is as it should be"), "{stdout}");
    let (status, _, stderr) = world.init(&["--output", "udp://other.example.net"]);
    assert_eq!(status, 5, "{stderr}");
    assert!(stderr.contains("--force"), "{stderr}");
    assert_eq!((read("etc/twinlog.toml"), read("etc/pair.key")), (config.clone(), key.clone()));
    assert_eq!(world.init(&["--output", "udp://other.example.net", "--force"]).0, 0);
    assert_eq!((read("etc/twinlog.toml.bak"), read("etc/pair.key")), (config, key), "the other node has that key");
    assert_eq!(world.names(), ["pair.key", "twinlog.toml", "twinlog.toml.bak"]);
}

#[test]
fn what_is_missing_or_wrong_writes_nothing() {
    let world = World::new();
    let (status, _, stderr) = world.run(&["init", "--yes", "--interface", "lo"]);
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("--vip") && stderr.contains("--output") && stderr.contains("--node"), "{stderr}");
    let (status, _, stderr) = world.init(&["--vip", "192.0.2.11"]);
    assert_eq!(status, 78, "{stderr}");
    assert!(stderr.contains("is the address of agg-a") && stderr.contains("nothing was written"), "{stderr}");
    assert_eq!(world.init(&["--node", "nonsense=x"]).0, 2);
    assert_eq!(world.names(), [""; 0]);
}

const KEEPALIVED: &str = "global_defs {\n router_id x\n}\nvrrp_instance VI_1 {\n state MASTER\n interface eth9\n \
    virtual_router_id 51\n priority 150\n nopreempt\n authentication {\n auth_type PASS\n auth_pass s3cr3t\n }\n \
    unicast_src_ip 192.0.2.11\n unicast_peer {\n 192.0.2.12\n }\n virtual_ipaddress {\n 192.0.2.10/24 dev eth9\n }\n \
    notify \"/etc/keepalived/notify.sh core\"\n}\n";

#[test]
fn keepalived_is_taken_over_and_the_rest_is_listed() {
    let world = World::new();
    let keepalived = world.path("keepalived.conf");
    fs::write(&keepalived, KEEPALIVED).unwrap();
    let keepalived = keepalived.to_str().unwrap();
    let nodes = ["--node", "agg-a=192.0.2.11", "--node", "agg-b=192.0.2.12,100", "--output", "tcp://siem.example.net"];
    let arguments = [&["init", "--yes", "--from-keepalived", keepalived][..], &nodes].concat();
    let (status, _, stderr) = world.run(&arguments);
    assert_eq!(status, 0, "{stderr}");
    for line in ["keepalived.conf:2: not taken over: router_id", "keepalived.conf:5: not taken over: state MASTER"] {
        assert!(stderr.contains(line), "{stderr}");
    }
    assert!(!stderr.contains("s3cr3t"));
    assert_eq!(world.names(), ["pair.key", "twinlog.toml", "vrrp.password"]);
    assert_eq!(fs::read_to_string(world.path("etc/vrrp.password")).unwrap(), "s3cr3t\n");
    let (status, effective, stderr) = world.run(&["--node", "agg-a", "check", "--show-effective", "etc/twinlog.toml"]);
    assert_eq!(status, 0, "{stderr}");
    for line in [
        "vrid = 51",
        "vrrp_version = 2",
        "advert_interval = \"1s\"",
        "preempt = false",
        "unicast = true",
        "priority = 150",
        "on = [\"active\", \"standby\", \"fault\", \"stop\"]",
        "command = [\"/etc/keepalived/notify.sh\", \"core\"]",
        "instance = \"VI_1\"",
    ] {
        assert!(effective.contains(line), "{line} is not in\n{effective}");
    }
}

#[test]
fn of_several_instances_one_has_to_be_named() {
    let world = World::new();
    let keepalived = world.path("keepalived.conf");
    fs::write(&keepalived, format!("{KEEPALIVED}{}", KEEPALIVED.replace("VI_1", "VI_2"))).unwrap();
    let arguments =
        ["init", "--yes", "--from-keepalived", keepalived.to_str().unwrap(), "--output", "tcp://siem.example.net"];
    let (status, _, stderr) = world.run(&arguments);
    assert_eq!(status, 2);
    assert!(stderr.contains("--instance: VI_1, VI_2"), "{stderr}");
    assert_eq!(world.run(&[&arguments[..], &["--instance", "VI_3"]].concat()).0, 2);
    assert_eq!(world.names(), [""; 0]);
    let nodes = ["--instance", "VI_2", "--node", "agg-a=192.0.2.11", "--node", "agg-b=192.0.2.12"];
    let (status, _, stderr) = world.run(&[&arguments[..], &nodes].concat());
    assert_eq!(status, 0, "{stderr}");
    assert!(fs::read_to_string(world.path("etc/twinlog.toml")).unwrap().contains("VI_2"));
}

#[test]
fn live_tells_taken_ports_and_destinations_that_do_not_answer() {
    let world = World::new();
    let data = world.path("data");
    fs::create_dir_all(&data).unwrap();
    fs::create_dir_all(world.path("etc")).unwrap();
    let [taken, there, gone] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [port, target, nobody] = [&taken, &there, &gone].map(|listener| listener.local_addr().unwrap());
    drop(gone);
    let socket = world.path("control.sock");
    let text = format!(
        "data_dir = {data:?}\ncontrol_socket = {socket:?}\n[[input.syslog]]\nlisten = \"tcp://{port}\"\n\
         [[output.syslog]]\nname = \"there\"\nto = \"tcp://{target}\"\n\
         [[output.syslog]]\nname = \"gone\"\nto = \"tcp://{nobody}\"\n"
    );
    fs::write(world.path("etc/twinlog.toml"), text).unwrap();
    let (status, stdout, stderr) = world.run(&["check", "--live", "--json"]);
    assert_eq!(status, 1, "{stdout}{stderr}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    let looks = answer["live"].as_array().unwrap();
    let find = |check: &str, words: &str| {
        let found =
            looks.iter().find(|look| look["check"] == check && look["message"].as_str().unwrap().contains(words));
        found.unwrap_or_else(|| panic!("no {check} with {words:?} in {stdout}"))["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(find("ports", &format!("(pid {})", std::process::id())), "error");
    assert_eq!(find("output", "there: "), "ok");
    assert_eq!(find("output", "gone: "), "error");
    for check in ["disk", "clock"] {
        find(check, "");
    }
    let (status, stdout, _) = world.run(&["check", "--live"]);
    assert_eq!(status, 1);
    assert!(stdout.lines().any(|line| line.starts_with("error    output")), "{stdout}");
    assert!(stdout.contains(" = fix: "), "{stdout}");
}
