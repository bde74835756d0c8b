//! Disks that fill up, fail, vanish or belong to somebody else, under the real daemon.
//!
//! A [`Disk`] is a small ext4 in a file, mounted through a loop device. That needs root and loop devices; without them
//! those tests say so on stderr and do nothing.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{
    Daemon, Framing, Lab, Sink, assert_same, connect_and_send, first_arrivals, free_port, lines, message, numbered, v4,
    wait_until, wait_until_within,
};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
/// For what writes a hundred megabytes on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// A file system of its own; unmounted with the value.
struct Disk {
    mounted_at: PathBuf,
}

impl Disk {
    /// Mounts `size` bytes at `name` in the lab. `None`, said loudly, where that cannot be.
    fn mount(lab: &Lab, name: &str, size: u64) -> Option<Disk> {
        let (image, mounted_at) = (lab.path(&format!("{name}.img")), lab.path(name));
        File::create(&image).unwrap().set_len(size).unwrap();
        std::fs::create_dir(&mounted_at).unwrap();
        // No blocks kept for root: the tests are root.
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).output();
        let mounted =
            made.and_then(|_| Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted_at).output());
        match mounted {
            Ok(output) if output.status.success() => Some(Disk { mounted_at }),
            failed => {
                eprintln!("SKIPPED, NOT TESTED: a loop device cannot be mounted (this test needs root): {failed:?}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounted_at.join(name)
    }

    /// Takes all space but `rest` bytes.
    fn fill_but(&self, rest: u64) {
        let stat = nix::sys::statvfs::statvfs(&self.mounted_at).unwrap();
        let length = (stat.blocks_available() * stat.fragment_size()).saturating_sub(rest);
        run("fallocate", [Path::new("-l"), Path::new(&length.to_string()), &self.path("ballast")]);
    }

    fn free(&self) {
        std::fs::remove_file(self.path("ballast")).unwrap();
    }

    /// What the kernel does with a file system whose disk fails: it takes no write any more.
    fn fail(&self) {
        run("mount", [Path::new("-o"), Path::new("remount,abort"), &self.mounted_at]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mounted_at).output();
    }
}

#[track_caller]
fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a Path>) {
    let output = Command::new(program).args(arguments.into_iter().map(Path::as_os_str)).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

fn relay(input: u16, output: u16) -> String {
    format!(
        r#"
[journal]
segment_size = "1MiB"

[drain]
grace = "100ms"
stop_deadline = "2s"

[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
retry = {{ min = "50ms", max = "200ms" }}
"#
    )
}

/// Messages of about 1 KB, so that disks are full soon.
fn thick(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| message(&format!("{number} {}", "x".repeat(1000)))).collect()
}

/// Sends in a thread of its own until all is sent or the connection breaks; counts the bytes that the kernel took.
fn send_in_background(to: SocketAddr, bytes: Vec<u8>) -> (Arc<AtomicUsize>, JoinHandle<std::io::Result<()>>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    let thread = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(to)?;
        for chunk in bytes.chunks(64 * 1024) {
            stream.write_all(chunk)?;
            counter.fetch_add(chunk.len(), Ordering::Relaxed);
        }
        Ok(())
    });
    (taken, thread)
}

/// Whether so many messages were taken in, and all of them are safe.
fn are_durable(daemon: &Daemon, count: usize) -> bool {
    let journal = &daemon.node()["journals"][0];
    journal["messages_total"] == count && journal["durable"] == journal["appended"]
}

fn state(daemon: &Daemon) -> String {
    daemon.node()["journals"][0]["state"].as_str().unwrap().to_owned()
}

fn faults(daemon: &Daemon) -> String {
    daemon.node()["faults"].to_string()
}

#[test]
fn a_full_disk_makes_senders_wait_and_loses_nothing() {
    let lab = Lab::new();
    let Some(disk) = Disk::mount(&lab, "data", 256 * MIB) else { return };
    disk.fill_but(24 * MIB);
    let (input, output) = (free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let daemon = lab.start(&relay(input, output));
    // More than the disk's rest, the queue before it (64 MiB) and all socket buffers together.
    let messages = thick(160_000);
    let bytes = lines(&messages);
    let all = bytes.len();
    let (taken, sender) = send_in_background(v4(input), bytes);

    wait_until_within(LONG, "the journal waits", || state(&daemon) == "waiting");
    let shown = faults(&daemon);
    assert!(shown.contains("No space left on device"), "{shown}");
    // The sender stands still when for two seconds nothing more was taken.
    let mut since = (0, Instant::now());
    wait_until_within(LONG, "the sender has to wait", || {
        let now = taken.load(Ordering::Relaxed);
        if now != since.0 {
            since = (now, Instant::now());
        }
        now > 0 && since.1.elapsed() > Duration::from_secs(2)
    });
    assert!(taken.load(Ordering::Relaxed) < all, "all {all} bytes were taken: the sender never had to wait");
    assert_eq!(state(&daemon), "waiting");
    let healthy = lab.run(["status", "--check"]);
    assert_eq!(healthy.status.code(), Some(4), "{healthy:?}");

    disk.free();
    wait_until_within(LONG, "all messages are durable", || are_durable(&daemon, messages.len()));
    sender.join().unwrap().unwrap();
    wait_until("the fault is gone", || faults(&daemon) == "[]");
    sink.resume();
    assert_same(&sink.wait_for(messages.len()), &messages);
    daemon.stop();
}

#[test]
fn a_daemon_killed_on_a_full_disk_makes_room_by_delivering() {
    let lab = Lab::new();
    let Some(disk) = Disk::mount(&lab, "data", 64 * MIB) else { return };
    disk.fill_but(8 * MIB);
    let (input, output) = (free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let config = relay(input, output);
    let daemon = lab.start(&config);
    let messages = thick(20_000);
    let (_, sender) = send_in_background(v4(input), lines(&messages));
    wait_until_within(LONG, "the journal waits", || state(&daemon) == "waiting");
    let durable = daemon.number("/journals/0/durable");
    daemon.kill();
    // All may have been taken by the kernel before the kill; that is no promise of ours.
    let _ = sender.join().unwrap();

    // The disk is as full as before: only what is delivered makes room.
    sink.resume();
    let daemon = lab.start(&config);
    assert!(daemon.number("/journals/0/durable") >= durable);
    wait_until_within(LONG, "everything is delivered", || daemon.number("/outputs/out/backlog_messages") == 0);
    let more: Vec<Vec<u8>> = numbered("more", 100);
    connect_and_send(v4(input), &lines(&more));
    wait_until("the new messages arrive", || sink.messages().ends_with(&more));
    assert_eq!(faults(&daemon), "[]");
    daemon.stop();
    let got = first_arrivals(sink.close());
    let arrived = got.len() - more.len();
    assert!(arrived as u64 * 1100 >= durable, "{arrived} messages of {durable} bytes arrived");
    assert_same(&got[..arrived], &messages[..arrived]);
}

#[test]
fn a_new_journal_on_a_full_disk_is_refused() {
    let lab = Lab::new();
    let Some(disk) = Disk::mount(&lab, "data", 16 * MIB) else { return };
    disk.fill_but(0);
    assert_refused(&refused(&lab, "node-a"), 1, "No space left on device");
}

#[test]
fn a_disk_that_fails_is_told_and_what_was_durable_survives() {
    let lab = Lab::new();
    let Some(disk) = Disk::mount(&lab, "data", 64 * MIB) else { return };
    let (input, output) = (free_port(), free_port());
    let config = relay(input, output);
    let messages = numbered("before", 5000);
    let daemon = lab.start(&config);
    connect_and_send(v4(input), &lines(&messages));
    wait_until("messages are durable", || are_durable(&daemon, messages.len()));

    disk.fail();
    // Whoever sends now must notice: its connection ends.
    let (_, sender) = send_in_background(v4(input), lines(&thick(100_000)));
    assert!(sender.join().unwrap().is_err(), "the sender was left to believe that all was taken");
    wait_until("the journal says so", || state(&daemon) == "poisoned");
    let shown = faults(&daemon);
    assert!(shown.contains("the journal is poisoned: cannot "), "{shown}");
    // A new sender is not taken in either.
    wait_until("nobody is accepted", || TcpStream::connect(v4(input)).is_err());
    daemon.stop();

    drop(disk);
    let image = lab.path("data.img");
    run("mount", [Path::new("-o"), Path::new("loop"), &image, &lab.path("data")]);
    let _disk = Disk { mounted_at: lab.path("data") };
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&config);
    let got = sink.wait_for(messages.len());
    assert_same(&got[..messages.len()], &messages);
    daemon.stop();
}

#[test]
fn an_output_file_on_a_full_disk_catches_up_without_repeats() {
    let lab = Lab::new();
    let Some(disk) = Disk::mount(&lab, "out", 32 * MIB) else { return };
    disk.fill_but(2 * MIB);
    let (input, output) = (free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let file = disk.path("all.log");
    let daemon = lab.start(&format!(
        "{}\n[[output.file]]\nname = \"file\"\npath = {file:?}\nretry = {{ min = \"50ms\", max = \"200ms\" }}\n",
        relay(input, output)
    ));
    let messages = thick(10_000);
    connect_and_send(v4(input), &lines(&messages));
    // The other output does not wait for it.
    assert_same(&sink.wait_for(messages.len()), &messages);
    wait_until("the error is shown", || {
        daemon.node()["outputs"]["file"]["last_error"].to_string().contains("No space left on device")
    });
    assert!(daemon.number("/outputs/file/backlog_messages") > 0);

    disk.free();
    daemon.wait_for("/outputs/file/backlog_messages", 0);
    let written: Vec<Vec<u8>> = std::fs::read(&file)
        .unwrap()
        .split_inclusive(|b| *b == b'\n')
        .map(|line| line[..line.len() - 1].to_vec())
        .collect();
    assert_same(&written, &messages);
    daemon.stop();
}

#[test]
fn a_journal_removed_under_the_daemon_is_told_and_what_was_taken_is_delivered() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    sink.stall();
    let config = relay(input, output);
    let mut messages = thick(20_000);
    let daemon = lab.start(&config);
    connect_and_send(v4(input), &lines(&messages));
    wait_until("all are durable", || are_durable(&daemon, messages.len()));
    let id = daemon.node()["journals"][0]["id"].clone();

    std::fs::remove_dir_all(lab.path("data")).unwrap();
    // The open segment takes what it has room for; the next one cannot be made.
    let (_, sender) = send_in_background(v4(input), lines(&thick(100_000)));
    assert!(sender.join().unwrap().is_err(), "the sender was left to believe that all was taken");
    wait_until("the journal says so", || state(&daemon) == "poisoned");
    let shown = faults(&daemon);
    assert!(shown.contains("cannot create a segment") && shown.contains("No such file"), "{shown}");
    sink.resume();
    let got = sink.wait_for(messages.len());
    assert_same(&got[..messages.len()], &messages);
    daemon.stop();

    // Another life of the disk: no position means two messages.
    let daemon = lab.start(&config);
    assert_ne!(daemon.node()["journals"][0]["id"], id);
    let before = sink.count();
    messages = numbered("after", 100);
    connect_and_send(v4(input), &lines(&messages));
    assert_same(&sink.wait_for(before + messages.len())[before..], &messages);
    daemon.stop();
}

#[test]
fn a_stopped_daemon_goes_on_where_it_was() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&relay(input, output));
    let messages = thick(60_000);
    let (taken, sender) = send_in_background(v4(input), lines(&messages));
    for part in 1..=2 {
        wait_until("some are taken", || taken.load(Ordering::Relaxed) > part * 10_000_000);
        daemon.signal(Signal::SIGSTOP);
        // The time that it stands still is what is tested.
        std::thread::sleep(Duration::from_secs(3));
        daemon.signal(Signal::SIGCONT);
    }
    sender.join().unwrap().unwrap();
    assert_same(&sink.wait_for(messages.len()), &messages);
    wait_until("no fault is left", || faults(&daemon) == "[]");
    daemon.stop();
}

/// The daemon must refuse to start: with `status` and one line about it on stderr.
#[track_caller]
fn assert_refused(output: &Output, status: i32, line: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    let said: Vec<&str> = stderr.lines().filter(|said| said.contains(line)).collect();
    assert_eq!(
        (said.len(), stderr.lines().last()),
        (1, said.last().copied()),
        "{line:?} is not the last line of:\n{stderr}"
    );
    assert!(!stderr.contains("panicked") && output.stdout.is_empty(), "{stderr}");
}

/// Starts the daemon where it must refuse to.
#[track_caller]
fn refused(lab: &Lab, node: &str) -> Output {
    let config = lab.configure(&relay(free_port(), free_port()));
    let mut command = lab.command(["run", "--config", config.to_str().unwrap()]);
    command.env("TWINLOG_NODE", node).output().unwrap()
}

#[test]
fn a_directory_of_somebody_else_is_refused_in_one_line() {
    if !nix::unistd::Uid::effective().is_root() {
        return eprintln!("SKIPPED, NOT TESTED: becoming another user needs root");
    }
    let lab = Lab::new();
    let config = lab.configure(&relay(free_port(), free_port()));
    std::fs::set_permissions(lab.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = |lab: &Lab| {
        let own = lab.command(["run", "--config", config.to_str().unwrap()]);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(own.get_program()).args(own.get_args()).current_dir(lab.path("."));
        command.env("TWINLOG_NODE", "node-a").env("NO_COLOR", "1").output().unwrap()
    };
    // It cannot be made …
    assert_refused(&as_nobody(&lab), 1, "cannot open the journal in ");
    // … it is root's …
    std::fs::create_dir(lab.path("data")).unwrap();
    assert_refused(&as_nobody(&lab), 1, "Permission denied");
    // … the user may write to it, but what is in it was made by root.
    lab.start(&relay(free_port(), free_port())).stop();
    std::fs::set_permissions(lab.path("data"), PermissionsExt::from_mode(0o777)).unwrap();
    assert_refused(&as_nobody(&lab), 1, "Permission denied");
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let (lab, input, output) = (Lab::new(), free_port(), free_port());
    let sink = Sink::tcp(v4(output), Framing::Lf);
    let daemon = lab.start(&relay(input, output));
    assert_refused(&refused(&lab, "node-a"), 1, "another twinlog process holds the journal in ");
    // The first one does not mind.
    let messages = numbered("m", 100);
    connect_and_send(v4(input), &lines(&messages));
    assert_same(&sink.wait_for(messages.len()), &messages);
    daemon.stop();
}

#[test]
fn a_journal_of_another_node_is_refused() {
    let lab = Lab::new();
    fill_one_segment(&lab);
    assert_refused(&refused(&lab, "node-b"), 78, "belongs to node node-a, but this node is node-b");
}

#[test]
fn a_journal_of_a_newer_version_is_refused_and_not_touched() {
    let lab = Lab::new();
    fill_one_segment(&lab);
    let segment = segments(&lab).pop().unwrap();
    let mut file = File::options().read(true).write(true).open(&segment).unwrap();
    let mut header = [0; 128];
    file.read_exact(&mut header).unwrap();
    header[8] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&header).unwrap();
    let before = std::fs::read(&segment).unwrap();
    assert_refused(&refused(&lab, "node-a"), 78, "was written by a newer version of twinlog");
    assert!(std::fs::read(&segment).unwrap() == before, "it was changed");
}

/// Leaves a journal with messages in it behind.
fn fill_one_segment(lab: &Lab) {
    let input = free_port();
    let daemon = lab.start(&relay(input, free_port()));
    connect_and_send(v4(input), &lines(&numbered("m", 10)));
    wait_until("they are durable", || are_durable(&daemon, 10));
    daemon.stop();
}

fn segments(lab: &Lab) -> Vec<PathBuf> {
    let directories =
        lab.path("data").read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = directories.flat_map(|directory| directory.read_dir().unwrap().map(|entry| entry.unwrap().path()));
    files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect()
}
