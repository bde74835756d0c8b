//! syslog-ng, as `tests/peers/install.sh` unpacks it: where it is, how it is started and configured.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::ports::Ports;

/// The program; whether it is there, the caller asks.
pub fn program() -> PathBuf {
    root().join("usr/sbin/syslog-ng")
}

/// Starts it in the foreground with its libraries and modules, and with its files in `dir`.
pub fn command(dir: &Path) -> Result<Command> {
    let root = root();
    let triple = format!("{}-linux-gnu", env::consts::ARCH);
    let libraries = [format!("lib/{triple}"), format!("usr/lib/{triple}"), "usr/lib/syslog-ng".to_owned()];
    let libraries = libraries.map(|directory| root.join(directory).display().to_string()).join(":");
    let mut command = Command::new(program());
    command.env("LD_LIBRARY_PATH", libraries).env("SYSLOGNG_PREFIX", root.join("usr"));
    command.args(["--foreground", "--stderr", "--no-caps", "--module-path"]).arg(modules()?);
    command.arg("--cfgfile").arg(dir.join("config")).arg("--persist-file").arg(dir.join("persist"));
    command.arg("--pidfile").arg(dir.join("pid")).arg("--control").arg(dir.join("control"));
    Ok(command)
}

/// Tuned by short and noisy runs of tcp1 and tcp1000 on a shared machine. `no-parse` spares it what rsyslog has to do.
///
/// The window of a source is divided among all connections that it may have, at least 100 messages for each: the rest is
/// dynamic, so that one connection is not held up. A window without that, divided among as many connections as the load
/// has, was no better beyond the noise, nor were fetches of 100, 1000 and 10 000 messages, a dynamic window of a million
/// and `flush-lines(1000)`. The queue is longer than all windows together, else flow control could not keep it from
/// dropping. On disk neither memory for the queue (16 MiB) nor how often its file is truncated made a difference; without
/// `reliable` it takes half as much again, but a crash then loses what is in memory.
pub fn config(dir: &Path, Ports { input, sink, .. }: Ports, is_on_disk: bool) -> Result<String> {
    let modules = modules()?;
    let version = modules.file_name().context("modules without a version")?.display();
    // All messages go through the file, which is never synced.
    let buffer = match is_on_disk {
        true => format!(
            r#"disk-buffer(reliable(yes) disk-buf-size(34359738368) mem-buf-size(134217728) dir("{}"))"#,
            dir.display()
        ),
        false => "log-fifo-size(2000000)".to_owned(),
    };
    Ok(format!(
        r#"@version: {version}
options {{ keep-hostname(yes); use-dns(no); dns-cache(no); time-reopen(1); stats-freq(0); log-msg-size(65536); }};
source s {{
  network(ip("127.0.0.1") port({input}) transport("tcp") flags(no-parse) max-connections(15000) listen-backlog(1024)
          log-iw-size(1500000) dynamic-window-size(100000) log-fetch-limit(100));
  network(ip("127.0.0.1") port({input}) transport("udp") flags(no-parse) so-rcvbuf(67108864)
          log-iw-size(100000) log-fetch-limit(100));
}};
destination d {{
  network("127.0.0.1" port({sink}) transport("tcp") template("$MSG\n") {buffer});
}};
log {{ source(s); destination(d); flags(flow-control); }};
"#
    ))
}

/// A directory named after the version.
fn modules() -> Result<PathBuf> {
    let directory = root().join("usr/lib/syslog-ng");
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut directories = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    directories.next().context("syslog-ng has no modules")
}

fn root() -> PathBuf {
    env::var_os("TWINLOG_PEERS").map_or("/var/cache/twinlog-peers".into(), PathBuf::from).join("root")
}
