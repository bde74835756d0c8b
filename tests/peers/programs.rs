//! Finding, starting and ending the peers. They run in the foreground, with their files in the lab.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Lab, wait_until};

/// A running peer; killed with the value, and what it said is shown if the test fails.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a command with its output in `LOG` in the lab.
    pub fn start(lab: &Lab, log: &str, mut command: Command) -> Program {
        let log = lab.path(log);
        let file = File::options().create(true).append(true).open(&log).expect("a file in the lab");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
        Program { child: command.spawn().expect("an installed program starts"), log }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process number"));
        kill(pid, Signal::SIGTERM).expect("our child lives");
        wait_until("the peer ends", || self.child.try_wait().expect("our child").is_some());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- {} ---\n{log}---", self.log.display());
        }
    }
}

/// A program of the system.
///
/// # Panics
/// If it is not installed.
pub fn installed(name: &str) -> Command {
    let directories = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = directories.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| panic!("{name} is not installed: run tests/peers/install.sh")))
}

/// A program of the unpacked syslog-ng, with its libraries.
///
/// # Panics
/// If it is not there.
pub fn unpacked(path: &str) -> Command {
    let root = root();
    let program = root.join(path);
    assert!(program.exists(), "{} is not there: run tests/peers/install.sh", program.display());
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = [format!("lib/{triple}"), format!("usr/lib/{triple}"), "usr/lib/syslog-ng".to_owned()];
    let libraries = libraries.map(|directory| root.join(directory).display().to_string()).join(":");
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries).env("SYSLOGNG_PREFIX", root.join("usr"));
    command
}

/// Where the modules of the unpacked syslog-ng are.
pub fn syslog_ng_modules() -> PathBuf {
    let versions = std::fs::read_dir(root().join("usr/lib/syslog-ng"));
    let versions = versions.unwrap_or_else(|_| panic!("syslog-ng is not there: run tests/peers/install.sh"));
    let mut directories = versions.map(|entry| entry.expect("readable").path()).filter(|path| path.is_dir());
    directories.next().expect("one version is unpacked")
}

fn root() -> PathBuf {
    peers().join("root")
}

/// Where `install.sh` put what is no package of the system.
pub fn peers() -> PathBuf {
    std::env::var_os("TWINLOG_PEERS").map_or("/var/cache/twinlog-peers".into(), PathBuf::from)
}
