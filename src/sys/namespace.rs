//! Network namespaces without names, and a process whose world ends with it.
//!
//! What is here leaves nothing behind, whatever ends it: a namespace lives as long as its descriptors and the processes
//! and sockets in it, and the first process of a process namespace takes all others with it when it dies.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::process::{Split, split};

/// A network namespace; it ends with its last descriptor and the last process in it.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes one. The calling thread stays where it is.
    ///
    /// # Errors
    /// What the system says: `EPERM` without `CAP_SYS_ADMIN`.
    pub fn new() -> io::Result<Namespace> {
        let before = current()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let made = current();
        setns(&before, CloneFlags::CLONE_NEWNET)?;
        Ok(Namespace { file: made? })
    }

    /// Runs `visit` in it, on the calling thread. What `visit` opens or starts stays in it.
    ///
    /// # Errors
    /// What the system says; on the way back the thread is in neither of the two for good, and should end.
    pub fn visit<T>(&self, visit: impl FnOnce() -> T) -> io::Result<T> {
        let before = current()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let seen = visit();
        setns(&before, CloneFlags::CLONE_NEWNET)?;
        Ok(seen)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Splits off a process that is alone in the world: no interface but `lo`, an empty `scratch` in memory that nobody else
/// sees, and all processes that it starts die with it, as it does with the parent. Signals that it does not handle do
/// nothing to it, but SIGKILL.
///
/// # Errors
/// As [`split`]; `EPERM` without `CAP_SYS_ADMIN`. After an error in the child, which returns it too, that should end.
pub fn split_off_world(scratch: &Path) -> io::Result<Split> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let split = split()?;
    if split == Split::Child {
        set_pdeathsig(Signal::SIGKILL)?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        // Or what is mounted here would be mounted outside as well.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("twinlog"), scratch, Some("tmpfs"), flags, Some("mode=0700"))?;
    }
    Ok(split)
}
