//! `twinlog demo`: what it shows is true, and nothing is left of it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::lab::twin::twinlog;
use super::lab::wait_until;

fn demo(scratch: &TempDir) -> Command {
    let mut command = Command::new(twinlog());
    command.arg("demo").env("TMPDIR", scratch.path()).stdin(Stdio::null());
    command
}

/// Whether a process has a file below this directory among its arguments.
fn is_in_use(directory: &Path) -> bool {
    let directory = directory.to_str().expect("text");
    let arguments = fs::read_dir("/proc").unwrap().flatten().flat_map(|entry| fs::read(entry.path().join("cmdline")));
    arguments.into_iter().any(|arguments| String::from_utf8_lossy(&arguments).contains(directory))
}

#[test]
fn a_planned_move_loses_nothing_and_a_crash_what_was_sent_to_nobody() {
    let scratch = TempDir::with_prefix("twinlog-").unwrap();
    let output = demo(&scratch).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let account: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |part: &str, key: &str| account[part][key].as_u64().unwrap();
    assert_eq!(number("planned", "lost"), 0, "{account}");
    assert!(number("crash", "lost") > 0, "a destination that counts what nobody could send: {account}");
    for part in ["planned", "crash", "all"] {
        assert_eq!(number(part, "delivered") + number(part, "lost"), number(part, "sent"), "{account}");
    }
    assert!(!is_in_use(scratch.path()) && fs::read_dir(scratch.path()).unwrap().next().is_none());
}

#[test]
fn nothing_is_left_of_a_demo_that_is_interrupted() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let scratch = TempDir::with_prefix("twinlog-").unwrap();
        let mut child: Child = demo(&scratch).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("its nodes run", || is_in_use(scratch.path()));
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), (signal != Signal::SIGKILL).then_some(1));
        wait_until("nothing is left", || !is_in_use(scratch.path()));
        assert!(fs::read_dir(scratch.path()).unwrap().next().is_none());
    }
}
