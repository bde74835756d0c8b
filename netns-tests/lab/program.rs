//! Programs in hosts.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running program; killed with the value, and by the kernel if the test's thread ends in any other way.
pub struct Program {
    child: Child,
    output: File,
}

impl Program {
    /// Starts it in the calling thread's namespace.
    #[track_caller]
    pub(super) fn start<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Program {
        let output = tempfile::tempfile().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program]).args(arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; netns-tests/install.sh?"));
        Program { child, output }
    }

    /// The number of its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        let mut text = String::new();
        // The same open file as the program's: reading must not move where it writes, so it is opened anew.
        let mut file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.output))).unwrap();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    /// Stops it as a debugger or a paused machine would.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our child lives");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what process {} wrote ---\n{}---", self.pid(), self.output());
        }
        self.end();
    }
}
