//! Programs in hosts.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait_until;

/// A running program with all processes that it starts; they are killed with the value, and by the kernel if the test's
/// thread ends in any other way.
///
/// For that it is the first process of a process namespace, with which the others die. To such a process signals do
/// nothing that it does not handle, but SIGKILL and SIGSTOP.
pub struct Program {
    /// The one that made the namespace, and waits.
    outer: Child,
    main: Pid,
    output: File,
}

impl Program {
    /// Starts it in the calling thread's network namespace.
    #[track_caller]
    pub(super) fn start<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Program {
        let output = tempfile::tempfile().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", program]).args(arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
        let mut outer = command.spawn().expect("setpriv of util-linux; netns-tests/install.sh?");
        let outer_pid = Pid::from_raw(outer.id().cast_signed());
        let mut main = None;
        wait_until("the program starts", || {
            main = children(outer_pid).first().copied();
            main.is_some() || outer.try_wait().unwrap().is_some()
        });
        // One that is over already has no number; nobody sends it a signal.
        Program { outer, main: main.unwrap_or(outer_pid), output }
    }

    /// The number of its first process.
    pub fn pid(&self) -> Pid {
        self.main
    }

    /// All its processes, each after its parent.
    pub fn processes(&self) -> Vec<Pid> {
        let (mut processes, mut at) = (vec![self.main], 0);
        while let Some(process) = processes.get(at) {
            processes.extend(children(*process));
            at += 1;
        }
        processes
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        let mut text = String::new();
        // Opened anew: reading through the descriptor that it writes to would move where it writes.
        let path = format!("/proc/self/fd/{}", self.output.as_raw_fd());
        File::open(path).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Stops all its processes, as a paused machine would.
    pub fn pause(&self) {
        self.processes().into_iter().for_each(|process| signal(process, Signal::SIGSTOP));
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.processes().into_iter().for_each(|process| signal(process, Signal::SIGCONT));
    }

    /// Sends its first process a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.main, which);
    }

    /// SIGKILL to all its processes, and waits for their end.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // First, so that its end is waited for too: the kernel lets a namespace's first process go last.
        let _ = kill(self.main, Signal::SIGKILL);
        let _ = self.outer.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what process {} wrote ---\n{}---", self.main, self.output());
        }
        self.end();
    }
}

fn signal(process: Pid, signal: Signal) {
    kill(process, signal).expect("our process lives");
}

/// The processes that a process has started, as long as they live.
fn children(of: Pid) -> Vec<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_whitespace().flat_map(str::parse).map(Pid::from_raw).collect()
}
