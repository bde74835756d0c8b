//! The service manager's side channel: saying how the service is (sd_notify(3)), and descriptors that the manager keeps
//! while no process has them (sd_listen_fds(3), `FDSTORE=1`).
//!
//! Without a service manager everything here does nothing. A message that is said again anyway never waits, and one that is
//! not, for a fifth of a second at most: the crates for this send blocking, so that a process 1 which does not read would
//! hold up whoever tells it something, here the thread that a pair's election hears from.

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::pipe2;

/// The variables by which the manager speaks to this process, and to none that it starts.
pub const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The first descriptor that a manager hands over: those before it are the standard streams.
const FIRST: RawFd = 3;
/// How long a message may wait for room in the manager's queue: in some containers ten of ours fill it.
const PATIENCE: Duration = Duration::from_millis(200);
/// Between two attempts.
const ATTEMPT_EVERY: Duration = Duration::from_millis(5);
/// Most descriptors in one message (`SCM_MAX_FD`).
const DESCRIPTORS_MAX: usize = 253;
/// Longest message that is passed on: as much as process 1 reads of one.
const MESSAGE_BYTES: usize = 4096;

/// What the service manager gave to this process.
#[derive(Debug, Default)]
pub struct Inherited {
    /// To answer it with.
    pub notifier: Notifier,
    /// How long it waits for a sign of life before it ends the service (`WatchdogSec=`); `None`: for ever.
    pub watchdog: Option<Duration>,
    /// What it has kept since the last run, each with its name.
    pub descriptors: Vec<(String, OwnedFd)>,
}

impl Inherited {
    /// Takes it over, once in the life of a process and before that is split: what is meant for a process names it by its
    /// number. Every later call gets nothing.
    #[must_use]
    pub fn take() -> Inherited {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Inherited::default();
        }
        let is_for_us = |name| number::<u32>(name).is_none_or(|pid| pid == std::process::id());
        let watchdog = number("WATCHDOG_USEC").filter(|_| is_for_us("WATCHDOG_PID")).map(Duration::from_micros);
        let count = number("LISTEN_FDS").filter(|_| env::var_os("LISTEN_PID").is_some() && is_for_us("LISTEN_PID"));
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        Inherited {
            notifier: env::var_os("NOTIFY_SOCKET").map_or_else(Notifier::default, |socket| Notifier::to(&socket)),
            watchdog,
            descriptors: descriptors(count.unwrap_or(0), &names),
        }
    }
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// `count` descriptors; a name that is missing is empty, and what is not open is passed over.
fn descriptors(count: RawFd, names: &str) -> Vec<(String, OwnedFd)> {
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    let numbers = FIRST..FIRST.saturating_add(count.clamp(0, 4096));
    numbers.zip(names).filter_map(|(number, name)| Some((name, adopt(number)?))).collect()
}

/// Takes a descriptor over. A program that we start must not have it: the variables tell it nothing of it.
fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only looked at; if nothing is open there, the call says so.
    let open = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(open, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is open, and by the protocol ours alone: `Inherited::take` is the one place that takes these numbers, once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Tells the service manager something; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Option<Arc<Channel>>);

#[derive(Debug)]
struct Channel {
    socket: UnixDatagram,
    /// `None`: to the other end.
    to: Option<UnixAddr>,
}

impl Notifier {
    /// Speaks to the socket of this name; `@` begins one that is in no file system.
    #[must_use]
    pub fn to(socket: &OsStr) -> Notifier {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => UnixAddr::new_abstract(name),
            path => UnixAddr::new(path),
        };
        // Not connected: the manager may open its socket anew while we live.
        let channel = address.ok().zip(UnixDatagram::unbound().ok());
        Notifier(channel.map(|(to, socket)| Arc::new(Channel { socket, to: Some(to) })))
    }

    /// One that speaks through another process, and what that process passes on: a manager may hear its main process only
    /// (`NotifyAccess=main`). Without a manager there is nothing to pass on.
    ///
    /// # Errors
    /// What the system says.
    pub fn through(self) -> io::Result<(Notifier, Option<Relay>)> {
        if !self.is_there() {
            return Ok((self, None));
        }
        let (near, far) = UnixDatagram::pair()?;
        near.set_nonblocking(true)?;
        let speaker = Notifier(Some(Arc::new(Channel { socket: far, to: None })));
        Ok((speaker, Some(Relay { socket: near, manager: self })))
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Says `message`, which is said again soon: assignments of sd_notify(3), a line each.
    ///
    /// # Errors
    /// What the system says: [`io::ErrorKind::WouldBlock`] if the manager does not read just now.
    pub fn tell(&self, message: &str) -> io::Result<()> {
        self.send(message, &[], Duration::ZERO)
    }

    /// Says `message`, which is not said again. Waits for the manager to read, for a fifth of a second at most.
    ///
    /// # Errors
    /// As [`tell`](Notifier::tell).
    pub fn announce(&self, message: &str) -> io::Result<()> {
        self.send(message, &[], PATIENCE)
    }

    /// Has the manager keep duplicates of `descriptors` under `name`, until it is told otherwise, the service has ended
    /// for good, or `FileDescriptorStoreMax=` others are there. A name is ASCII without a colon.
    ///
    /// # Errors
    /// As [`tell`](Notifier::tell).
    pub fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Not polled: the manager would forget a socket whose last sender could not be answered.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        descriptors.chunks(DESCRIPTORS_MAX).try_for_each(|some| self.send(&message, some, PATIENCE))
    }

    /// Has the manager close what it keeps under `name`.
    ///
    /// # Errors
    /// As [`tell`](Notifier::tell).
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.announce(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }

    /// Waits until the manager has read everything that was said before, for `limit` at most. Blocks.
    ///
    /// # Errors
    /// As [`tell`](Notifier::tell); [`io::ErrorKind::TimedOut`]; a manager before systemd 246 answers at once.
    pub fn wait_until_read(&self, limit: Duration) -> io::Result<()> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        self.send("BARRIER=1", &[theirs.as_fd()], PATIENCE)?;
        // With the message goes the last descriptor of this end, which the manager closes.
        drop(theirs);
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(ours.as_fd(), PollFlags::POLLIN)], limit)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn send(&self, message: &str, descriptors: &[BorrowedFd<'_>], patience: Duration) -> io::Result<()> {
        let Some(channel) = &self.0 else { return Ok(()) };
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let bytes = [IoSlice::new(message.as_bytes())];
        let begun = Instant::now();
        loop {
            match sendmsg(channel.socket.as_raw_fd(), &bytes, rights, flags, channel.to.as_ref()) {
                Err(Errno::EAGAIN) if begun.elapsed() < patience => std::thread::sleep(ATTEMPT_EVERY),
                sent => return Ok(sent.map(drop)?),
            }
        }
    }
}

/// Passes on what another process says.
#[derive(Debug)]
pub struct Relay {
    socket: UnixDatagram,
    manager: Notifier,
}

impl Relay {
    /// Passes on all that was said, descriptors included. Does not wait.
    ///
    /// # Errors
    /// What the system says of the last message that the manager did not take; the others were passed on.
    pub fn pass_on(&self) -> io::Result<()> {
        let mut passed = Ok(());
        while let Some((message, descriptors)) = self.receive()? {
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            // Whoever says it again every second says how it is with it.
            let patience = if message.contains("STATUS=") { Duration::ZERO } else { PATIENCE };
            passed = self.manager.send(&message, &borrowed, patience).or(passed);
        }
        passed
    }

    /// The next message, cut at [`MESSAGE_BYTES`]; `None` if there is none.
    fn receive(&self) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
        let (mut bytes, mut space) = ([0; MESSAGE_BYTES], nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]));
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = match recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            got => got?,
        };
        let rights = got.cmsgs()?.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => Some(numbers),
            _ => None,
        });
        // SAFETY: the kernel has just made them for this process, and nobody else knows their numbers.
        let descriptors = rights.flatten().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
        let length = got.bytes;
        Ok(Some((String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptors)))
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// A service manager: its directory, the path of its socket, the socket.
    fn manager() -> (TempDir, PathBuf, UnixDatagram) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        (directory, path, socket)
    }

    #[test]
    fn what_is_stored_arrives_with_its_name_and_works_through_another_process_too() {
        let (_directory, path, socket) = manager();
        // It is the other end of every relay.
        let manager = Relay { socket, manager: Notifier::default() };
        let direct = Notifier::to(path.as_os_str());
        let (speaker, relay) = direct.clone().through().unwrap();
        let relay = relay.unwrap();
        for notifier in [direct, speaker] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            notifier.store("net/udp/[;;];514", &[theirs.as_fd()]).unwrap();
            drop(theirs);
            relay.pass_on().unwrap();
            let (message, mut descriptors) = manager.receive().unwrap().unwrap();
            assert_eq!(message, "FDSTORE=1\nFDNAME=net/udp/[;;];514\nFDPOLL=0");
            ours.write_all(b"x").unwrap();
            UnixStream::from(descriptors.remove(0)).read_exact(&mut [0]).unwrap();
        }
        assert!(manager.receive().unwrap().is_none());
    }

    #[test]
    fn a_message_to_a_manager_that_does_not_read_is_refused_and_does_not_wait() {
        let (_directory, path, _manager) = manager();
        let notifier = Notifier::to(path.as_os_str());
        let refused = (0..100_000).find_map(|_| notifier.tell("WATCHDOG=1").err()).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(
            notifier.announce("READY=1").unwrap_err().kind(),
            io::ErrorKind::WouldBlock,
            "nor does one wait for ever"
        );
    }

    #[test]
    fn without_a_manager_there_is_nothing_to_do() {
        let notifier = Notifier::default();
        assert!(!notifier.is_there());
        assert!(notifier.clone().through().unwrap().1.is_none());
        notifier.tell("READY=1").unwrap();
        notifier.remove("net/udp/[;;];514").unwrap();
        assert_eq!(
            Notifier::to("/nowhere/notify".as_ref()).tell("READY=1").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_barrier_ends_when_the_manager_has_closed_it() {
        let (_directory, path, manager) = manager();
        let notifier = Notifier::to(path.as_os_str());
        let reader = std::thread::spawn(move || {
            // Received without room for it, the descriptor is closed by the kernel: as good as read.
            let mut bytes = [0; 100];
            let length = manager.recv(&mut bytes).unwrap();
            bytes[..length].to_vec()
        });
        notifier.wait_until_read(Duration::from_secs(20)).unwrap();
        assert_eq!(reader.join().unwrap(), b"BARRIER=1");
    }
}
