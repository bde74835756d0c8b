//! A network namespace without a name.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; it ends with its last clone and the last process and socket in it.
#[derive(Clone, Debug)]
pub struct Namespace {
    // Not to be sent to another thread: visits change the thread's own namespace.
    file: Rc<File>,
}

impl Namespace {
    /// Makes one. The calling thread stays where it is.
    #[track_caller]
    pub fn new() -> Namespace {
        let before = current();
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root: it makes network namespaces");
        let made = Namespace { file: Rc::new(current()) };
        setns(&before, CloneFlags::CLONE_NEWNET).expect("back to where we were");
        made
    }

    /// Runs `visit` in it. What `visit` opens stays in it.
    pub fn visit<T>(&self, visit: impl FnOnce() -> T) -> T {
        /// Brings the thread back, also after a panic.
        struct Back(File);
        impl Drop for Back {
            fn drop(&mut self) {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("back to where we were");
            }
        }
        let _back = Back(current());
        setns(&*self.file, CloneFlags::CLONE_NEWNET).expect("our own namespace");
        visit()
    }

    /// A path by which other programs find it while this value lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

fn current() -> File {
    File::open("/proc/thread-self/ns/net").expect("proc(5)")
}
