//! capabilities(7): which rights of root a thread has, and not passing them on.

use std::io;

use nix::errno::Errno;

/// A right of root, by the kernel's number and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    number: u32,
    /// As systemd's `AmbientCapabilities=` has it.
    pub name: &'static str,
}

impl Capability {
    /// Ports below 1024.
    pub const NET_BIND_SERVICE: Capability = Capability { number: 10, name: "CAP_NET_BIND_SERVICE" };
    /// Addresses and socket filters.
    pub const NET_ADMIN: Capability = Capability { number: 12, name: "CAP_NET_ADMIN" };
    /// Raw sockets: advertisements, announcements.
    pub const NET_RAW: Capability = Capability { number: 13, name: "CAP_NET_RAW" };
}

/// Whether the calling thread may do it now: its effective set.
///
/// # Errors
/// If `/proc` is not there.
pub fn has(capability: Capability) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let effective = effective.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in proc(5)"))?;
    Ok(effective >> capability.number & 1 == 1)
}

/// Has programs that the calling thread starts from now on begin without its capabilities: a service gets them as
/// *ambient* ones, which every program that it starts would inherit. The thread keeps its own.
///
/// # Errors
/// What the system says; never since Linux 4.3.
pub fn stop_passing_on() -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: this prctl(2) takes numbers only, and changes nothing but the calling thread's ambient set.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, none, none, none) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_what_it_no_longer_passes_on() {
        let before = has(Capability::NET_RAW).unwrap();
        stop_passing_on().unwrap();
        assert_eq!(has(Capability::NET_RAW).unwrap(), before);
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.lines().any(|line| line == "CapAmb:\t0000000000000000"), "{status}");
    }
}
