//! Splitting the process in two before it has threads.

use std::io;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, getppid};

/// Which of the two this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The process that was there, with the number of the new one.
    Parent(Pid),
    /// The new one. It gets SIGTERM when its parent dies.
    Child,
}

/// Makes a child that goes on here, as the parent does.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidInput`] if there is more than one thread: the child would have none of the
/// others, and whatever locks they held for ever.
pub fn split() -> io::Result<Split> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a process with one thread can be split"));
    }
    let parent = nix::unistd::getpid();
    // SAFETY: the only thread of the process calls it, so no lock is held by a thread that the child would not have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Split::Parent(child)),
        ForkResult::Child => {
            set_pdeathsig(Signal::SIGTERM)?;
            // It may have died before it was asked for. In a process namespace of its own a child has no parent to see.
            if ![parent, Pid::from_raw(0)].contains(&getppid()) {
                return Err(io::Error::other("the guardian has gone"));
            }
            Ok(Split::Child)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_split() {
        // Tests run in threads.
        assert_eq!(split().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
