//! The client libraries of fluent-forward: Python's, Node's and Go's. Whoever asks for acknowledgements gets them all,
//! or the client says so by its exit status.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::forward::{journaled, record};
use crate::common::{Daemon, Lab, free_port};
use crate::programs::peers;
use twinlog::proto::forward::compression::inflate;
use twinlog::proto::forward::entry::{Entries, Time};

fn start(lab: &Lab, port: u16, keys: &str) -> Daemon {
    lab.start(&format!(
        "[[input.forward]]\nname = \"apps\"\nlisten = \":{port}\"\n{keys}\n[[output.file]]\npath = \"out\"\n\
         match = {{ tag = \"none\" }}\n"
    ))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/forward").join(name)
}

fn forward_peer(path: &str) -> PathBuf {
    let path = peers().join("forward").join(path);
    assert!(path.exists(), "{} is not there: run tests/peers/install.sh", path.display());
    path
}

fn node() -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", forward_peer("node/node_modules")).arg(script("client.js"));
    command
}

#[track_caller]
fn run(mut command: Command, arguments: &[&str]) {
    let done = command.args(arguments).output().expect("the client starts");
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Every event in the journal: tag, time, record.
fn events(lab: &Lab) -> Vec<(String, Time, Vec<u8>)> {
    let mut events = Vec::new();
    for chunk in journaled(&lab.path("data")) {
        let mut plain = Vec::new();
        inflate(&mut plain, &chunk.entries, 1 << 24).unwrap();
        let tag = String::from_utf8(chunk.tag).unwrap();
        events.extend(Entries::new(&plain).map(|entry| (tag.clone(), entry.time, entry.record.to_vec())));
    }
    events
}

#[track_caller]
fn assert_complete(lab: &Lab, tag: &str, name: &str, count: usize) -> Vec<Time> {
    let of_tag = events(lab).into_iter().filter(|(of, _, _)| of == tag);
    let (times, mut records): (Vec<Time>, Vec<Vec<u8>>) = of_tag.map(|(_, time, record)| (time, record)).unzip();
    let mut expected: Vec<Vec<u8>> = (0..count).map(|number| record(&format!("{name} {number}"))).collect();
    records.sort();
    expected.sort();
    assert_eq!(records.len(), count, "{tag}");
    assert!(records == expected, "{tag}: {}", records[0].escape_ascii());
    times
}

#[test]
fn python_delivers_synchronously_and_asynchronously() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    for kind in ["sync", "async"] {
        let mut command = Command::new(forward_peer("python/bin/python"));
        command.arg(script("client.py"));
        run(command, &[&port.to_string(), kind, "200"]);
    }
    daemon.wait_for("/inputs/apps/messages", 400);
    daemon.wait_until_durable(400);
    let seconds = assert_complete(&lab, "python.sync", "sync", 200);
    assert!(seconds.iter().all(|time| matches!(time, Time::Seconds(_))));
    let precise = assert_complete(&lab, "python.async", "async", 200);
    assert!(precise.iter().all(|time| matches!(time, Time::EventTime { .. })));
    daemon.stop();
}

#[test]
fn node_gets_its_acknowledgements_in_every_mode_with_and_without_a_key() {
    for keys in ["", "shared_key_file = \"key\"\nself_hostname = \"logs\""] {
        let (lab, port) = (Lab::new(), free_port());
        std::fs::write(lab.path("key"), "secret\n").unwrap();
        std::fs::set_permissions(lab.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let daemon = start(&lab, port, keys);
        let modes = ["Message", "Forward", "PackedForward", "CompressedPackedForward"];
        for mode in modes {
            let port = port.to_string();
            let key: &[&str] = if keys.is_empty() { &[] } else { &["secret"] };
            run(node(), &[&[port.as_str(), mode, "100"][..], key].concat());
            // Acknowledged, so it is there.
            assert_complete(&lab, &format!("node.{mode}"), mode, 100);
        }
        daemon.wait_for("/inputs/apps/messages", 400);
        daemon.stop();
    }
}

#[test]
fn go_gets_its_acknowledgements() {
    let (lab, port) = (Lab::new(), free_port());
    let daemon = start(&lab, port, "");
    run(Command::new(forward_peer("go-client")), &[&port.to_string(), "200"]);
    assert_complete(&lab, "go.ack", "ack", 200);
    daemon.stop();
}
