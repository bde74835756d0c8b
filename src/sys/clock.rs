//! Whether somebody keeps the system's clock right: adjtimex(2).

use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// What the kernel knows of its clock, from whoever disciplines it (chrony, ntpd, systemd-timesyncd).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discipline {
    /// Somebody sets it after another clock.
    pub is_synchronised: bool,
    /// How wrong it may be at most; means nothing if nobody sets it.
    pub error_max: Duration,
}

/// Asks the kernel. Changes nothing, and needs no right.
///
/// # Errors
/// What the system says; never on a kernel that has booted.
pub fn discipline() -> io::Result<Discipline> {
    // SAFETY: timex is a plain C structure whose every bit pattern is valid; all zero asks without changing anything.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one timex where one is.
    Errno::result(unsafe { libc::adjtimex(&raw mut clock) })?;
    Ok(Discipline {
        is_synchronised: clock.status & libc::STA_UNSYNC == 0,
        error_max: Duration::from_micros(u64::try_from(clock.maxerror).unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        // The kernel lets the error grow to 16 s and no further.
        assert!(discipline().unwrap().error_max <= Duration::from_secs(16));
    }
}
