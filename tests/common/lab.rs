//! A directory, and the real daemon in it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{SOON, wait_until};

/// A temporary directory: configuration, journal, control socket, what the daemon wrote. It is removed with the value.
pub struct Lab {
    directory: TempDir,
}

impl Default for Lab {
    fn default() -> Lab {
        Lab::new()
    }
}

impl Lab {
    /// Makes an empty directory. Its path is short: that of a Unix socket may have 107 bytes.
    pub fn new() -> Lab {
        Lab { directory: TempDir::with_prefix("twinlog-").expect("the directory for temporary files") }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a file in the directory holds; nothing if it is not there.
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_default()
    }

    /// The lines of a file in the directory.
    pub fn lines_of(&self, name: &str) -> Vec<Vec<u8>> {
        let bytes = self.read(name);
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\n").unwrap_or(line).to_vec())
            .collect()
    }

    /// Writes a configuration with the directory's data directory and control socket before `config`.
    pub fn configure(&self, config: &str) -> PathBuf {
        let path = self.path("twinlog.toml");
        let text = format!("data_dir = {:?}\ncontrol_socket = {:?}\n{config}", self.path("data"), self.socket());
        std::fs::write(&path, text).expect("a file in the lab");
        path
    }

    /// Starts the daemon with this configuration and waits until it answers.
    #[track_caller]
    pub fn start(&self, config: &str) -> Daemon {
        let path = self.configure(config);
        let command = self.command(["run", "--config", path.to_str().expect("a path of ours")]);
        self.start_with(command, self.socket())
    }

    /// Starts the daemon with this command and waits until it answers on `socket`.
    #[track_caller]
    pub fn start_with(&self, mut command: Command, socket: PathBuf) -> Daemon {
        let append = |name| File::options().create(true).append(true).open(self.path(name)).expect("a file in the lab");
        command.stdin(Stdio::null()).stdout(append("stdout")).stderr(append("stderr"));
        let child = command.spawn().expect("the binary starts");
        let mut daemon = Daemon { child: Some(child), log: self.path("stderr"), socket };
        wait_until("the daemon answers", || {
            if let Some(status) = daemon.exit_status() {
                panic!("the daemon ended before it was ready: {status}");
            }
            daemon.try_status().is_some()
        });
        daemon
    }

    /// The binary with these arguments, not yet started.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.args(arguments).current_dir(&self.directory).env("TWINLOG_NODE", "node-a").env("NO_COLOR", "1");
        command
    }

    /// Runs a verb to its end, with `--socket`.
    pub fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        let socket = self.socket();
        let mut command = self.command(arguments);
        command.arg("--socket").arg(socket);
        command.output().expect("the binary starts")
    }

    fn socket(&self) -> PathBuf {
        self.path("control.sock")
    }
}

/// `twinlog run`; killed with the value.
pub struct Daemon {
    child: Option<Child>,
    log: PathBuf,
    socket: PathBuf,
}

impl Daemon {
    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("not stopped").id()
    }

    /// `status --json`, over the control socket.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().expect("the daemon answers")
    }

    /// This node's part of the status.
    #[track_caller]
    pub fn node(&self) -> Value {
        self.status()["nodes"][0].clone()
    }

    /// A number in this node's part of the status, by JSON pointer: `/inputs/net/messages`. Nothing there counts as 0.
    #[track_caller]
    pub fn number(&self, pointer: &str) -> u64 {
        self.node().pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
    }

    /// Waits until [`Daemon::number`] is `expected`.
    #[track_caller]
    pub fn wait_for(&self, pointer: &str, expected: u64) {
        let mut last = 0;
        let deadline = std::time::Instant::now() + SOON;
        while std::time::Instant::now() < deadline {
            last = self.number(pointer);
            if last == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{pointer} is {last}, not {expected}; the node says {:#}", self.node());
    }

    /// Waits until at least `messages` were taken in and all are on the disk, none in the queue before it.
    #[track_caller]
    pub fn wait_until_durable(&self, messages: usize) {
        wait_until("what was taken in is durable", || {
            let journal = &self.node()["journals"][0];
            journal["messages_total"].as_u64() >= Some(messages as u64) && journal["durable"] == journal["appended"]
        });
    }

    fn try_status(&self) -> Option<Value> {
        serde_json::from_slice(&get(&self.socket, "/status.json")?).ok()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process number"));
        kill(pid, signal).expect("our child lives");
    }

    /// SIGTERM; the daemon must end by itself, well.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended();
        assert!(status.success(), "after SIGTERM: {status}");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_until("the daemon ends", || {
            ended = self.exit_status();
            ended.is_some()
        });
        ended.expect("just checked")
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().expect("not stopped").try_wait().expect("our child")
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    /// Peak of its resident memory in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Its resident memory in bytes.
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("our child lives");
        let line = status.lines().find(|line| line.starts_with(field)).expect("proc(5)");
        let kilobytes: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        kilobytes * 1024
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- what the daemon wrote on stderr ---\n{log}---");
        }
        self.end();
    }
}

/// The body of a page of the control socket, if it answers 200.
fn get(socket: &Path, page: &str) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {page} HTTP/1.1\r\nHost: twinlog\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    answer.starts_with(b"HTTP/1.1 200").then(|| answer[head + 4..].to_vec())
}
