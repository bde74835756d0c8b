//! A journal that this daemon must not or cannot open: what it says, and how it ends.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use twinlog::journal::segment::{HEADER_LEN, Header, HeaderError, VERSION};

use crate::common::{Framing, Lab, Sink, assert_same, connect_and_send, free_port, lines, numbered, v4};

/// The user and the group that own nothing, on every Linux.
const NOBODY: u32 = 65_534;

/// One input and one file, so that a start needs no peer.
fn config(input: u16) -> String {
    format!(
        r#"
[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"

[[output.file]]
path = "out"
"#
    )
}

/// A lab whose daemon has taken in some messages and was stopped.
fn used_lab() -> Lab {
    let (lab, input) = (Lab::new(), free_port());
    let daemon = lab.start(&config(input));
    drop(connect_and_send(v4(input), &lines(&numbered("message", 100))));
    daemon.wait_until_durable(100);
    daemon.stop();
    lab
}

/// Runs the daemon, which must end by itself.
fn run(command: &mut Command) -> Output {
    command.arg("run").output().expect("the binary starts")
}

/// Runs it in this lab, as this node.
fn run_as_node(lab: &Lab, node: &str) -> Output {
    let config = lab.path("twinlog.toml");
    run(lab.command(["--config", config.to_str().unwrap()]).env("TWINLOG_NODE", node))
}

/// The one line on the standard error.
#[track_caller]
fn only_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one line, not: {text}");
    text.trim_end().to_owned()
}

/// The segments of a stopped node, with what is in them.
fn segments(lab: &Lab) -> Vec<(PathBuf, Vec<u8>)> {
    let files = std::fs::read_dir(lab.path("data/own")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    segments.sort();
    assert!(!segments.is_empty());
    segments
}

#[test]
fn a_directory_of_another_user_is_named_in_one_line() {
    let (lab, input) = (Lab::new(), free_port());
    // The binary may be where only root can go.
    let binary = lab.path("twinlog");
    std::fs::copy(env!("CARGO_BIN_EXE_twinlog"), &binary).unwrap();
    let open_to_all = |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    open_to_all(&lab.path("."));
    let config_file = lab.configure(&config(input));
    let start = || {
        let mut command = Command::new(&binary);
        command.current_dir(lab.path(".")).env("TWINLOG_NODE", "node-a").arg("--config").arg(&config_file);
        run(command.uid(NOBODY).gid(NOBODY))
    };
    let assert_refused = |what: &str| {
        let output = start();
        let line = only_line(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {line}");
        let journal = lab.path("data/own");
        let named = line.contains(journal.to_str().unwrap()) && line.contains("Permission denied");
        assert!(line.starts_with("twinlog: cannot ") && named, "{what}: {line}");
    };

    assert_refused("a data directory that cannot be made");
    std::fs::create_dir_all(lab.path("data/own")).unwrap();
    open_to_all(&lab.path("data"));
    open_to_all(&lab.path("data/own"));
    assert_refused("a directory that cannot be written to");
    std::fs::set_permissions(lab.path("data"), Permissions::from_mode(0o700)).unwrap();
    assert_refused("a directory that cannot be entered");
    open_to_all(&lab.path("data"));
    std::fs::write(lab.path("data/own/lock"), "").unwrap();
    std::fs::set_permissions(lab.path("data/own/lock"), Permissions::from_mode(0o640)).unwrap();
    chown(lab.path("data/own"), Some(NOBODY), Some(NOBODY)).unwrap();
    assert_refused("a journal that root began");
}

#[test]
fn the_journal_of_another_node_is_refused_and_left_as_it_is() {
    let lab = used_lab();
    let before = segments(&lab);
    let output = run_as_node(&lab, "node-b");
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let line = only_line(&output);
    assert!(line.contains("belongs to node node-a, but this node is node-b"), "{line}");
    assert!(line.contains("set --node node-a, or move the journal away"), "{line}");
    assert_eq!(segments(&lab), before);
}

#[test]
fn a_journal_of_a_newer_version_is_refused_and_left_as_it_is() {
    let lab = used_lab();
    let (path, mut bytes) = segments(&lab).remove(0);
    let newer = VERSION + 1;
    bytes[8..10].copy_from_slice(&newer.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER_LEN]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Header::decode(&bytes), Err(HeaderError::Version(newer)), "the header is sound but for its version");
    std::fs::write(&path, &bytes).unwrap();
    let before = segments(&lab);

    let output = run_as_node(&lab, "node-a");
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let line = only_line(&output);
    assert!(line.contains("was written by a newer version of twinlog"), "{line}");
    assert!(line.contains("install that version again, or move the journal away"), "{line}");
    assert!(line.contains(path.file_name().unwrap().to_str().unwrap()), "{line}");
    assert_eq!(segments(&lab), before);
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused_and_the_first_serves_on() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let outputs = format!("[[output.syslog]]\nto = \"tcp://127.0.0.1:{output}\"\n");
    let daemon = lab.start(&format!("[[input.syslog]]\nlisten = \"tcp://127.0.0.1:{input}\"\n{outputs}"));
    let second = lab.path("second.toml");
    let (data, socket, other_input) = (lab.path("data"), lab.path("second.sock"), free_port());
    let text = format!(
        "data_dir = {data:?}\ncontrol_socket = {socket:?}\n\
         [[input.syslog]]\nlisten = \"tcp://127.0.0.1:{other_input}\"\n{outputs}"
    );
    std::fs::write(&second, text).unwrap();

    let refused = run(&mut lab.command(["--config", second.to_str().unwrap()]));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let line = only_line(&refused);
    assert!(line.contains("another twinlog process holds the journal in"), "{line}");
    assert!(line.contains(data.to_str().unwrap()), "{line}");

    let messages = numbered("message", 100);
    connect_and_send(v4(input), &lines(&messages));
    assert_same(&sink.wait_for(messages.len()), &messages);
    daemon.stop();
}
