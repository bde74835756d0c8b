//! The program as operators and scripts meet it: verbs, what they print, exit statuses. Everything that needs no daemon.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use twinlog::journal::segment::{self, HEADER_LEN};
use twinlog::journal::{FileStorage, Journal, Limits, Settings, WhenFull};
use twinlog::proto::batch::{BatchBuilder, Stamp};
use twinlog::proto::envelope::{Flags, Origin, Timestamp, Transport};
use twinlog::proto::pair::promise::Acknowledge;
use twinlog::proto::position::{Incarnation, JournalId, Mark};

const CONFIG: &str = r#"
[[input.syslog]]
name = "net"
listen = ":5514"
timezone = "UTC"

[[output.stdout]]
name = "out"
"#;
/// 2026-03-10T12:00:00Z.
const NOON: u64 = 1_773_144_000;
const SECOND: u64 = 1_000_000_000;

/// A configuration and a data directory of their own.
struct World(TempDir);

impl World {
    fn new() -> World {
        let world = World(TempDir::new().unwrap());
        let data = world.path("data");
        fs::create_dir(&data).unwrap();
        world.write("twinlog.toml", &format!("data_dir = {data:?}\n{CONFIG}"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.arg("--config").arg(self.path("twinlog.toml")).args(arguments).current_dir(self.0.path());
        command.env_remove("TWINLOG_NODE").env_remove("CLICOLOR_FORCE").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// Takes in ten batches of ten messages, one a second, in segments of 4 KiB; the output has delivered the first five.
    fn fill(&self) -> Vec<Mark> {
        let settings = Settings {
            limits: Limits { segment_size: 4096, max_size: 1 << 20 },
            commit_interval: Duration::ZERO,
            when_full: WhenFull::Block,
            acknowledge: Acknowledge::Durable,
        };
        let storage = Arc::new(FileStorage::open(&self.path("data/own")).unwrap());
        let node = "agg-a".parse().unwrap();
        // An output "slow" that has delivered nothing keeps every segment.
        let journal = Journal::open(storage, &node, settings, &["out", "slow"], Incarnation(0x19a_a3f0)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let appender = journal.appender();
        let marks: Vec<Mark> =
            (0..10).map(|batch| runtime.block_on(appender.append(batch_of(batch))).unwrap()).collect();
        runtime.block_on(appender.durable().wait_for(|durable| *durable >= marks[9])).unwrap();
        journal.cursor("out").advance(marks[4]);
        journal.close(Instant::now() + Duration::from_secs(10));
        marks
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("data/own")).unwrap().map(|entry| entry.unwrap().path());
        let mut segments: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect();
        segments.sort();
        segments
    }
}

fn batch_of(number: u64) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    builder.set_origin(&Origin {
        received_at: Timestamp((NOON + number) * SECOND),
        source: Some("192.0.2.7:514".parse().unwrap()),
        transport: Transport::Udp,
        input: "net",
        tag: b"syslog",
    });
    for message in 0..10 {
        let text = format!("<13>Mar 10 11:59:58 sw-1 app: message {number}.{message} {}", "x".repeat(60));
        builder.push(Flags::NONE, text.as_bytes());
    }
    builder
}

/// What a process left.
#[derive(Debug)]
struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { status: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Changes one byte in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn wrong_usage_is_2_and_says_what_is_possible() {
    let world = World::new();
    for arguments in
        [&["nonsense"][..], &[], &["check", "--nonsense"], &["status", "--watch", "0"], &["tail", "--limit", "0"]]
    {
        let ran = world.run(arguments);
        assert_eq!(ran.status, 2, "{arguments:?}: {ran:?}");
    }
    assert!(world.run(&["journal", "cat", "--from", "yesterday"]).stderr.contains("2026-03-10T11:00:00Z"));
}

#[test]
fn every_verb_has_help_with_its_exit_statuses_or_examples() {
    let world = World::new();
    let help = world.run(&["--help"]);
    assert_eq!(help.status, 0);
    for verb in ["run", "demo", "init", "check", "status", "tail", "journal", "reload", "completions", "man", "version"]
    {
        assert!(help.stdout.lines().any(|line| line.trim_start().starts_with(verb)), "{verb}");
        assert_eq!(world.run(&[verb, "--help"]).status, 0);
    }
    for verb in [
        &["run"][..],
        &["init"],
        &["check"],
        &["status"],
        &["tail"],
        &["reload"],
        &["journal", "verify"],
        &["journal", "cat"],
    ] {
        let ran = world.run(&[verb, &["--help"]].concat());
        assert!(ran.stdout.contains("Exit status: 0"), "{verb:?}");
    }
}

#[test]
fn check_accepts_a_good_file_and_shows_what_is_in_force() {
    let world = World::new();
    let ran = world.run(&["check"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let shown = world.run(&["check", "--show-effective"]);
    assert!(shown.stdout.contains("max_size = \"10GiB\""), "{shown:?}");
    // What is in force is itself a configuration that says the same.
    let copy = world.write("copy.toml", &shown.stdout);
    let again = world.run(&["check", "--show-effective", copy.to_str().unwrap()]);
    assert_eq!(again.stdout, shown.stdout);
}

#[test]
fn check_reports_every_error_with_its_place_and_ends_with_78() {
    let world = World::new();
    let bad = "[[input.syslog]]\nlisten = \":99999\"\nlistn = 1\n\n[[output.stdout]]\nformat = \"xml\"\n";
    let bad = world.write("bad.toml", bad);
    let bad = bad.to_str().unwrap();
    let ran = world.run(&["check", bad]);
    assert_eq!((ran.status, ran.stdout.as_str()), (78, ""), "{ran:?}");
    for line in [2, 3, 6] {
        assert!(ran.stderr.contains(&format!("{bad}:{line}:")), "line {line}: {}", ran.stderr);
    }
    assert!(ran.stderr.ends_with("3 errors\n"), "{}", ran.stderr);
    let json = world.run(&["check", "--json", bad]);
    assert_eq!((json.status, json.json()["ok"].as_bool()), (78, Some(false)));
    assert_eq!(json.json()["diagnostics"].as_array().unwrap().len(), 3);
    assert_eq!(world.run(&["check", "/nowhere/twinlog.toml"]).status, 78);
}

#[test]
fn check_reads_stdin() {
    let world = World::new();
    let mut child = world.command(&["check", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"[[input.syslog]]\nlisten = 5\n").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.status, 78);
    assert!(ran.stderr.starts_with("<stdin>:"), "{ran:?}");
}

#[test]
fn without_a_daemon_the_exit_status_is_3_and_one_line_says_so() {
    let world = World::new();
    let socket = world.path("no.sock");
    let socket = socket.to_str().unwrap();
    for verb in [&["status"][..], &["status", "--check"], &["status", "--json"], &["tail"], &["reload"]] {
        let ran = world.run(&[verb, &["--socket", socket]].concat());
        assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.lines().count()), (3, "", 1), "{verb:?}: {ran:?}");
        assert!(ran.stderr.contains(socket), "{ran:?}");
    }
}

#[test]
fn version_completions_and_manual_pages_are_there() {
    let world = World::new();
    let version = world.run(&["version"]);
    assert_eq!(version.stdout.lines().next(), Some(concat!("twinlog ", env!("CARGO_PKG_VERSION"))));
    assert_eq!(world.run(&["version", "--json"]).json()["version"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "zsh", "fish"] {
        let ran = world.run(&["completions", shell]);
        assert!(ran.status == 0 && ran.stdout.contains("show-effective"), "{shell}");
    }
    assert!(world.run(&["man"]).stdout.contains(".TH TWINLOG 8"));
    assert!(world.run(&["man", "journal", "cat"]).stdout.contains("\\fBtwinlog journal cat\\fR"));
    assert_eq!(world.run(&["man", "nonsense"]).status, 2);
    let pages = world.path("man");
    fs::create_dir(&pages).unwrap();
    assert_eq!(world.run(&["man", "--dir", pages.to_str().unwrap()]).status, 0);
    for page in ["twinlog.8", "twinlog-status.8", "twinlog-journal-verify.8"] {
        assert!(pages.join(page).is_file(), "{page}");
    }
}

#[test]
fn ls_and_stat_tell_what_is_there_and_what_waits() {
    let world = World::new();
    let marks = world.fill();
    let segments = world.run(&["journal", "ls", "--json"]);
    let segments = segments.lines();
    assert!(segments.len() > 2, "{segments:?}");
    assert_eq!(segments.iter().map(|segment| segment["messages"].as_u64().unwrap()).sum::<u64>(), 100);
    assert_eq!(segments[0]["first_received"], "2026-03-10T12:00:00Z");
    for pair in segments.windows(2) {
        assert_eq!(pair[0]["to"], pair[1]["from"]);
    }
    let people = world.run(&["journal", "ls"]);
    assert_eq!(people.stdout.lines().count(), segments.len() + 1);

    let stat = world.run(&["journal", "stat", "--json"]).json();
    assert_eq!((&stat["id"], &stat["messages"]), (&"agg-a/19aa3f0".into(), &100.into()));
    assert_eq!(stat["newest"]["position"], marks[9].position.0);
    assert_eq!(stat["outputs"]["out"]["backlog_messages"], 50);
    assert_eq!(stat["outputs"]["slow"]["backlog_messages"], 100);
    assert!(world.run(&["journal", "stat"]).stdout.contains("out: 50 messages"));
    // The journal's own directory may be named as well.
    let named = world.run(&["journal", "stat", "--json", "--data-dir", world.path("data/own").to_str().unwrap()]);
    assert_eq!(named.json()["messages"], 100);
    let none = world.run(&["journal", "ls", "--data-dir", "/nowhere"]);
    assert_eq!(none.status, 1, "{none:?}");
}

#[test]
fn cat_prints_messages_between_two_places() {
    let world = World::new();
    let marks = world.fill();
    let all = world.run(&["journal", "cat"]);
    let all = all.lines();
    assert_eq!(all.len(), 100);
    assert_eq!(all[0]["timestamp"], "2026-03-10T11:59:58Z");
    assert!(all[0]["msg"].as_str().unwrap().starts_with("message 0.0 "));
    assert!(all[0].get("raw_b64").is_none());

    let count = |arguments: &[&str]| world.run(&[&["journal", "cat"], arguments].concat()).lines().len();
    let from = marks[2].position.to_string();
    assert_eq!(count(&["--from", &from]), 70);
    assert_eq!(count(&["--to", &from]), 30);
    let id = all[42]["id"].as_str().unwrap();
    let from_id = world.run(&["journal", "cat", "--raw", "--from", id]).lines();
    assert_eq!((from_id.len(), &from_id[0]["id"]), (58, &all[42]["id"]));
    assert!(from_id[0]["raw_b64"].is_string());
    assert_eq!(count(&["--from", "2026-03-10T12:00:03Z", "--to", "2026-03-10T12:00:05Z"]), 20);
    assert_eq!(count(&["--output", "out"]), 50);
    assert_eq!(world.run(&["journal", "cat", "--from", "agg-b/1/0"]).status, 1);
    assert_eq!(world.run(&["journal", "cat", "--output", "nobody"]).status, 1);
}

#[test]
fn a_reader_that_leaves_ends_cat_quietly() {
    let world = World::new();
    world.fill();
    let mut child =
        world.command(&["journal", "cat", "--follow"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Nobody reads: the first write fails.
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
}

#[test]
fn verify_finds_a_sound_journal_sound_also_with_an_unfinished_end() {
    let world = World::new();
    world.fill();
    let ran = world.run(&["journal", "verify", "--json"]);
    assert_eq!((ran.status, &ran.json()["messages"]), (0, &100.into()), "{ran:?}");
    let last = world.segments().pop().unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(last).unwrap();
    file.write_all(b"TWB1 and no more").unwrap();
    let ran = world.run(&["journal", "verify", "--json"]);
    assert_eq!((ran.status, &ran.json()["unfinished_bytes"]), (0, &16.into()), "{ran:?}");
    assert_eq!(world.run(&["journal", "cat"]).status, 0);
}

/// Puts old batches behind every segment's own, as in the file of a removed one.
fn use_before(world: &World) {
    let old = fs::read(&world.segments()[0]).unwrap();
    for segment in world.segments() {
        fs::OpenOptions::new().append(true).open(segment).unwrap().write_all(&old[HEADER_LEN..]).unwrap();
    }
}

#[test]
fn segments_in_files_that_were_used_before_read_like_others() {
    let world = World::new();
    world.fill();
    let look = || {
        let ls = world.run(&["journal", "ls", "--json"]).lines();
        let ends: Vec<Value> = ls.iter().map(|segment| segment["to"].clone()).collect();
        let newest = world.run(&["journal", "stat", "--json"]).json()["newest"].clone();
        let [verify, cat] = ["verify", "cat"].map(|verb| world.run(&["journal", verb]));
        (ends, newest, (verify.status, verify.stdout), (cat.status, cat.stdout, cat.stderr))
    };
    let before = look();
    use_before(&world);
    assert_eq!(look(), before);
}

#[test]
fn cat_follows_a_segment_in_a_file_that_was_used_before() {
    let world = World::new();
    let end = world.fill()[9];
    use_before(&world);
    let command = &mut world.command(&["journal", "cat", "--follow"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.by_ref().take(100).filter(Result::is_ok).count(), 100);

    let journal = JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(0x19a_a3f0) };
    let batch = batch_of(10).seal(Stamp::from(&journal), end);
    let last = world.segments().pop().unwrap();
    let start = segment::position_of(last.file_name().unwrap().to_str().unwrap()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(last).unwrap();
    file.write_all_at(batch.bytes(), HEADER_LEN as u64 + end.position.bytes_since(start)).unwrap();
    let next: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(next["msg"].as_str().unwrap().starts_with("message 10.0 "), "{next}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn verify_counts_lost_messages_and_ends_with_7() {
    let world = World::new();
    world.fill();
    damage(&world.segments()[1]);
    let ran = world.run(&["journal", "verify", "--json"]);
    let verdict = ran.json();
    assert_eq!((ran.status, verdict["ok"].as_bool()), (7, Some(false)), "{ran:?}");
    assert_eq!(verdict["lost"].as_u64().unwrap() + verdict["messages"].as_u64().unwrap(), 100, "{ran:?}");
    assert!(world.run(&["journal", "verify"]).stdout.contains("lost"));
    let cat = world.run(&["journal", "cat"]);
    assert_eq!((cat.status, cat.lines().len() as u64), (7, verdict["messages"].as_u64().unwrap()));
    assert!(cat.stderr.contains("cannot be read"), "{cat:?}");
}

#[test]
fn verify_finds_a_missing_segment_and_one_that_is_gone_before_it_was_delivered() {
    let world = World::new();
    world.fill();
    let segments = world.segments();
    fs::remove_file(&segments[1]).unwrap();
    let verdict = world.run(&["journal", "verify", "--json"]);
    assert_eq!(verdict.status, 7);
    assert_eq!(verdict.json()["lost"].as_u64().unwrap() + verdict.json()["messages"].as_u64().unwrap(), 100);
    fs::remove_file(&segments[0]).unwrap();
    let verdict = world.run(&["journal", "verify"]);
    assert_eq!(verdict.status, 7);
    assert!(verdict.stdout.contains("output slow had not delivered them"), "{verdict:?}");
}

#[test]
fn a_damaged_header_loses_nothing_and_is_1() {
    let world = World::new();
    world.fill();
    let segment = &world.segments()[1];
    let mut bytes = fs::read(segment).unwrap();
    bytes[0] ^= 1;
    fs::write(segment, bytes).unwrap();
    let ran = world.run(&["journal", "verify", "--json"]);
    assert_eq!((ran.status, &ran.json()["messages"]), (1, &100.into()), "{ran:?}");
}
