//! A page shared by two processes, through which the one learns of the other's death at once, and of its standing still.
//!
//! A dying process is slow: its pipes, sockets and pidfd tell of its death only after its memory is torn down, 80 ms for
//! a gigabyte (measured). A *robust* mutex that it holds is given up before that, within a tenth of a millisecond
//! (pthread_mutexattr_setrobust(3)). So the child's main thread takes the mutex for life, and the parent waits for it.
//!
//! The page is a file in memory without a name. It reaches the child by fork, or by its descriptor over an exec.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{getpid, gettid};

/// What both processes see.
#[repr(C)]
struct Content {
    mutex: libc::pthread_mutex_t,
    /// 1 when the mutex has been taken for life.
    is_held: AtomicU32,
    heartbeats: AtomicU64,
}

const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
const _: () = assert!(size_of::<Content>() <= PAGE_BYTES.get());

/// A page shared by a parent and a child.
#[derive(Debug)]
pub struct SharedPage {
    content: NonNull<Content>,
    file: OwnedFd,
}

// SAFETY: the mapping belongs to the process, not to a thread; what is in it is changed only atomically or by the C
// library's mutex functions, which are made for many threads.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

/// Why waiting for a death ended without one.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Nobody has taken the page for life yet. Wait until [`SharedPage::is_held`], or for the process by other means.
    #[error("nobody holds the page yet")]
    NotHeld,
    /// The mutex does not work; the page was overwritten.
    #[error("the shared mutex is broken: {0}")]
    Broken(#[from] io::Error),
}

impl SharedPage {
    /// The count of a process that beats no more and is none the worse for it.
    pub const NO_MORE: u64 = u64::MAX;

    /// A new page, held by nobody. Its descriptor is closed by an exec.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<SharedPage> {
        let file = File::from(memfd_create(c"twinlog-guardian", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(PAGE_BYTES.get() as u64)?;
        let page = SharedPage::map(file.into())?;
        page.make_mutex()?;
        Ok(page)
    }

    /// The page behind a descriptor that another process got from [`SharedPage::new`].
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidData`] if the file is no such page.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<SharedPage> {
        let file = File::from(descriptor);
        // A shorter file would be a SIGBUS at the first look.
        if file.metadata()?.len() != PAGE_BYTES.get() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the page shared with the guardian"));
        }
        SharedPage::map(file.into())
    }

    fn map(file: OwnedFd) -> io::Result<SharedPage> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let content = unsafe { mmap(None, PAGE_BYTES, protection, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(SharedPage { content: content.cast(), file })
    }

    fn make_mutex(&self) -> io::Result<()> {
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: the attributes are initialised first and destroyed last; nobody else has the page yet, and it is
        // aligned, large enough and lives as long as `self`.
        unsafe {
            succeed(libc::pthread_mutexattr_init(attributes))?;
            succeed(libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED))?;
            succeed(libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST))?;
            succeed(libc::pthread_mutex_init(self.mutex(), attributes))?;
            succeed(libc::pthread_mutexattr_destroy(attributes))
        }
    }

    /// Takes the page for the rest of this process's life.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] from any other than the main thread: the end of that thread alone would look like
    /// the death of the process. [`io::ErrorKind::ResourceBusy`] if another process holds it.
    pub fn hold_for_life(&self) -> io::Result<()> {
        if gettid() != getpid() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "only the main thread can hold the shared page"));
        }
        // SAFETY: the mutex was initialised by `new`, here or in the process that made the page.
        match unsafe { libc::pthread_mutex_trylock(self.mutex()) } {
            0 => {
                self.content().is_held.store(1, Ordering::Release);
                Ok(())
            }
            libc::EBUSY => Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process holds the shared page")),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Whether a process has taken the page; stays true after its death.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.content().is_held.load(Ordering::Acquire) == 1
    }

    /// Blocks until the process that holds the page is dead, or dying: its memory and its sockets may still be there.
    /// Every later call returns at once.
    ///
    /// # Errors
    /// [`WaitError`]: nothing is known about the process.
    pub fn wait_for_death(&self) -> Result<(), WaitError> {
        if !self.is_held() {
            return Err(WaitError::NotHeld);
        }
        // SAFETY: as in `hold_for_life`.
        match unsafe { libc::pthread_mutex_lock(self.mutex()) } {
            libc::EOWNERDEAD => {
                // Given back without being made consistent, it answers ENOTRECOVERABLE from now on.
                // SAFETY: this thread has just got it.
                unsafe { libc::pthread_mutex_unlock(self.mutex()) };
                Ok(())
            }
            libc::ENOTRECOVERABLE => Ok(()),
            0 => Err(io::Error::other("it was free, although its holder lives").into()),
            error => Err(io::Error::from_raw_os_error(error).into()),
        }
    }

    /// Says that this process is well.
    pub fn beat(&self) {
        self.content().heartbeats.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that this process will not say so again, and is well all the same.
    pub fn beat_no_more(&self) {
        self.content().heartbeats.store(SharedPage::NO_MORE, Ordering::Relaxed);
    }

    /// How often the other process said that it is well; one that hangs stops counting.
    #[must_use]
    pub fn heartbeats(&self) -> u64 {
        self.content().heartbeats.load(Ordering::Relaxed)
    }

    fn content(&self) -> &Content {
        // SAFETY: the mapping is page-aligned, large enough, zeroed when it was made, and lives as long as `self`; zero
        // is a valid value of every field.
        unsafe { self.content.as_ref() }
    }

    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        // SAFETY: only the place of a field of a mapping that lives is computed.
        unsafe { &raw mut (*self.content.as_ptr()).mutex }
    }
}

impl AsFd for SharedPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // A mutex that is held for life must stay mapped: the kernel looks at it when the process dies.
        if self.is_held() {
            return;
        }
        // SAFETY: the mapping was made by `map` with this size, and nothing that borrows from `self` is left.
        let _ = unsafe { munmap(self.content.cast(), PAGE_BYTES.get()) };
    }
}

fn succeed(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(Errno::from_raw(result).into()) }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};

    use super::*;

    /// A forked process; killed and waited for with the value.
    struct Child(Pid);

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = kill(self.0, Signal::SIGKILL);
            let _ = waitpid(self.0, None);
        }
    }

    /// Runs `life` in a child, which then sleeps until it is killed.
    fn child(life: impl FnOnce()) -> Child {
        // SAFETY: the child uses memory, which the C library keeps usable over a fork, and the page; no other lock.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Child(child),
            ForkResult::Child => {
                life();
                loop {
                    nix::unistd::pause();
                }
            }
        }
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !condition() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_death_is_told_before_its_memory_is_torn_down() {
        let page = SharedPage::new().unwrap();
        let child = child(|| {
            let heap = vec![1u8; 256 << 20];
            std::hint::black_box(&heap);
            if page.hold_for_life().is_ok() {
                page.beat();
            }
            std::mem::forget(heap);
        });
        wait_until(|| page.heartbeats() == 1);
        kill(child.0, Signal::SIGKILL).unwrap();
        page.wait_for_death().unwrap();
        // The process itself is not gone yet: nobody could have learned of its death in the usual ways. Not asserted,
        // because a busy machine may be late here.
        let usual_way = waitpid(child.0, Some(WaitPidFlag::WNOHANG)).unwrap();
        println!("when the mutex told, waitpid said {usual_way:?}");
        page.wait_for_death().unwrap();
        if usual_way != WaitStatus::StillAlive {
            std::mem::forget(child);
        }
    }

    #[test]
    fn a_page_is_held_by_one_main_thread_and_reached_through_its_descriptor() {
        let page = SharedPage::new().unwrap();
        let same = SharedPage::from_descriptor(page.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert!(matches!(page.wait_for_death(), Err(WaitError::NotHeld)));
        // Tests run in threads.
        assert_eq!(page.hold_for_life().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let _child = child(|| {
            page.beat();
            page.hold_for_life().unwrap();
        });
        wait_until(|| page.is_held());
        assert_eq!(same.heartbeats(), 1);
        // SAFETY: as above; it only tells what it got.
        let second = unsafe { fork() }.unwrap();
        let ForkResult::Parent { child: second } = second else {
            let busy = page.hold_for_life().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(if busy { 7 } else { 1 }) }
        };
        assert_eq!(waitpid(second, None).unwrap(), WaitStatus::Exited(second, 7));
    }

    #[test]
    fn a_file_of_another_size_is_no_page() {
        let file = tempfile::tempfile().unwrap();
        let error = SharedPage::from_descriptor(file.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
