//! The relays under test: how each is configured, started, asked what it has used, and stopped.
//!
//! All take syslog in over UDP and TCP on one port and pass the bytes on unchanged over TCP to the sink; twinlog does the
//! same with forward, acknowledged at both ends. A relay has its own directory, its own ports and no privileges it was not
//! started with; it is stopped and reaped, and its directory removed, when the value goes out of scope.

mod ports;
mod rsyslog;
mod scratch;
mod setup;
mod syslog_ng;
mod twinlog;

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

use crate::bare;
use crate::measure::{Deadline, Usage, now_ns};
use crate::pair::{self, Cable, NODES};
pub use ports::Ports;
use scratch::Scratch;
pub use setup::{Flow, Setup};

/// Longer than any relay needs to write its queue out on SIGTERM; then it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// What a relay with [`Flow::File`] writes, in its directory.
const OUTPUT_FILE: &str = "out.log";

const RSYSLOGD: &str = "/usr/sbin/rsyslogd";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Twinlog,
    /// The active node of a pair, which promises what is on both disks.
    TwinlogMirrored,
    RsyslogMemory,
    RsyslogDisk,
    SyslogNgMemory,
    SyslogNgDisk,
    /// This program, as `bare.rs`.
    Bare,
}

impl Kind {
    pub const ALL: [Kind; 7] = [
        Kind::Twinlog,
        Kind::TwinlogMirrored,
        Kind::RsyslogMemory,
        Kind::RsyslogDisk,
        Kind::SyslogNgMemory,
        Kind::SyslogNgDisk,
        Kind::Bare,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Twinlog => "twinlog",
            Kind::TwinlogMirrored => "twinlog-mirrored",
            Kind::RsyslogMemory => "rsyslog-memory",
            Kind::RsyslogDisk => "rsyslog-disk",
            Kind::SyslogNgMemory => "syslog-ng-memory",
            Kind::SyslogNgDisk => "syslog-ng-disk",
            Kind::Bare => "bare-relay",
        }
    }

    /// Whether it keeps what it has taken in over a planned restart.
    pub fn is_persistent(self) -> bool {
        !matches!(self, Kind::RsyslogMemory | Kind::SyslogNgMemory | Kind::Bare)
    }

    /// Where the program is: `TWINLOG_BIN`, else what cargo built beside this benchmark; none if it is not there.
    pub fn program(self) -> Option<PathBuf> {
        let path = match self {
            Kind::TwinlogMirrored if !geteuid().is_root() => return None,
            Kind::Twinlog | Kind::TwinlogMirrored => {
                env::var_os("TWINLOG_BIN").or(option_env!("CARGO_BIN_EXE_twinlog").map(Into::into))?.into()
            }
            Kind::RsyslogMemory | Kind::RsyslogDisk => PathBuf::from(RSYSLOGD),
            Kind::SyslogNgMemory | Kind::SyslogNgDisk => syslog_ng::program(),
            Kind::Bare => env::current_exe().ok()?,
        };
        path.is_file().then_some(path)
    }

    fn config(self, dir: &Path, ports: Ports, setup: Setup) -> Result<String> {
        Ok(match self {
            Kind::Twinlog => twinlog::config(dir, ports, setup),
            Kind::TwinlogMirrored => twinlog::config(dir, ports, setup) + &pair::configuration(dir)?,
            // Room for half a million messages; a linked list of a million was no faster.
            Kind::RsyslogMemory => rsyslog::config(dir, ports, r#"queue.type="FixedArray" queue.size="500000""#),
            Kind::RsyslogDisk => rsyslog::config(
                dir,
                ports,
                r#"queue.type="Disk" queue.filename="main" queue.maxFileSize="64m" queue.size="100000000""#,
            ),
            Kind::SyslogNgMemory => syslog_ng::config(dir, ports, false)?,
            Kind::SyslogNgDisk => syslog_ng::config(dir, ports, true)?,
            Kind::Bare => bare::config(ports, setup.flow)?,
        })
    }

    fn command(self, dir: &Path) -> Result<Command> {
        let program = self.program().with_context(|| format!("{} is not installed", self.name()))?;
        let config = dir.join("config");
        let mut command = Command::new(program);
        match self {
            Kind::Twinlog | Kind::TwinlogMirrored => command.arg("run").arg("--config").arg(config),
            Kind::RsyslogMemory | Kind::RsyslogDisk => {
                command.arg("-n").arg("-f").arg(config).arg("-i").arg(dir.join("pid"))
            }
            Kind::SyslogNgMemory | Kind::SyslogNgDisk => return syslog_ng::command(dir),
            Kind::Bare => command.arg(bare::ARGUMENT).arg(config),
        };
        Ok(command)
    }
}

/// A running relay.
pub struct Relay {
    kind: Kind,
    ports: Ports,
    child: Child,
    /// What the processes before a restart used.
    earlier: Usage,
    standby: Option<Standby>,
    // Last, because it is dropped last: the child must be gone before its directory is.
    dir: Scratch,
}

/// The other node of a pair.
struct Standby {
    child: Option<Child>,
    // Last, as a relay's own.
    dir: Scratch,
}

impl Relay {
    /// Starts the relay with an empty directory under `parent` and waits until it takes connections; of a pair, which is on
    /// `cable`, both nodes, and waits until what one takes is on both.
    pub fn start(kind: Kind, ports: Ports, setup: Setup, parent: &Path, cable: Option<&Cable>) -> Result<Relay> {
        let dir = Scratch::with_configuration(parent, kind, ports, setup)?;
        let child = spawn(kind, &dir.0)?;
        let mut relay = Relay { kind, ports, child, earlier: Usage::default(), standby: None, dir };
        relay.wait_until_ready()?;
        if let Some(cable) = cable {
            let dir = Scratch::with_configuration(parent, kind, ports, setup)?;
            let child = Some(cable.visit(1, || spawn(kind, &dir.0))?);
            relay.standby = Some(Standby { child, dir });
            let program = kind.program().context("twinlog is not there")?;
            for state in ["active", "synced"] {
                pair::wait_until(&program, &relay.dir.0.join("config"), NODES[0], state)?;
            }
        }
        Ok(relay)
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.input).into()
    }

    /// Since [`Relay::start`], restarts included.
    pub fn usage(&self) -> Result<Usage> {
        let now = match self.kind {
            Kind::TwinlogMirrored => pair::usage(&self.child)?,
            _ => Usage::of_process(self.child.id())?,
        };
        Ok(self.earlier.then(now))
    }

    /// The same of the other node of a pair.
    pub fn standby_usage(&self) -> Result<Option<Usage>> {
        self.standby.iter().filter_map(|standby| standby.child.as_ref()).map(pair::usage).next().transpose()
    }

    /// Waits until a pair has everything on both nodes; when that was, or 0 for any other relay.
    pub fn wait_until_mirrored(&self, deadline: Deadline) -> Result<u64> {
        if self.standby.is_none() {
            return Ok(0);
        }
        while pair::lag_bytes(&self.status()?)? > 0 {
            deadline.pause(Duration::from_millis(10), "waiting for the mirror")?;
        }
        Ok(now_ns())
    }

    /// Waits until the output of twinlog has delivered so many messages, or no more for `quiet`: then the rest is lost.
    /// When it had its last.
    pub fn wait_until_delivered(&self, messages: u64, quiet: Duration, deadline: Deadline) -> Result<u64> {
        let (mut most, mut last_ns) = (0, now_ns());
        loop {
            let delivered = self.status()?["nodes"][0]["outputs"]["sink"]["acknowledged"].as_u64();
            let delivered = delivered.context("twinlog status tells nothing of the output")?;
            if delivered > most {
                (most, last_ns) = (delivered, now_ns());
            }
            if most >= messages || now_ns() - last_ns > quiet.as_nanos() as u64 {
                return Ok(last_ns);
            }
            deadline.pause(Duration::from_millis(20), "waiting for the output")?;
        }
    }

    /// What `twinlog status` says.
    fn status(&self) -> Result<Value> {
        let mut command = Command::new(self.kind.program().context("twinlog is not there")?);
        command.args(["status", "--json", "--config"]).arg(self.dir.0.join("config"));
        if self.kind == Kind::TwinlogMirrored {
            command.args(["--node", NODES[0]]);
        }
        let output = command.output().context("starting twinlog status")?;
        serde_json::from_slice(&output.stdout).context("reading twinlog status")
    }

    /// What a relay that writes a file has written.
    pub fn output_file(&self) -> PathBuf {
        self.dir.0.join(OUTPUT_FILE)
    }

    /// Stops the relay in good order and starts it again on what it kept. Returns the time from the start of the process
    /// to its first accepted connection.
    pub fn restart(&mut self) -> Result<Duration> {
        self.earlier = self.usage()?;
        self.stop()?;
        let start = Instant::now();
        self.child = spawn(self.kind, &self.dir.0)?;
        self.wait_until_ready()?;
        Ok(start.elapsed())
    }

    /// SIGTERM, and SIGKILL if that does not help.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).context("stopping the relay")?;
        let give_up = Instant::now() + STOP_PATIENCE;
        while Instant::now() < give_up {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("{} did not stop in {STOP_PATIENCE:?} and was killed", self.kind.name())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Deadline::after(Duration::from_secs(60));
        while !udp_is_bound(self.ports.input) || TcpStream::connect(self.address()).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.dir.0.join("log")).unwrap_or_default();
                bail!("{} ended at start with {status}:\n{log}", self.kind.name());
            }
            deadline.pause(Duration::from_millis(1), &format!("waiting for {} to listen", self.kind.name()))?;
        }
        Ok(())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        let stopped = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).context("stopping the standby");
        if let Err(error) = stopped.and_then(|()| pair::reap(child, STOP_PATIENCE)) {
            eprintln!("macro: {}: {error:#}", self.dir.0.display());
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // First, so that the active one does not hand over.
        self.standby = None;
        if let Err(error) = self.stop() {
            eprintln!("macro: {error:#}");
        }
    }
}

fn spawn(kind: Kind, dir: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log")).context("opening the relay's log")?;
    kind.command(dir)?
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", kind.name()))
}

/// Asks the kernel's table: binding the port to find out would take it away from the relay.
fn udp_is_bound(port: u16) -> bool {
    fs::read_to_string("/proc/thread-self/net/udp")
        .is_ok_and(|table| table.contains(&format!(":{port:04X} 00000000:0000")))
}
