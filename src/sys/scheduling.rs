//! When a thread runs and whether its memory may be paged out: what keeps advertisements on time while everything else
//! is busy.
//!
//! Measured: with four busy loops on two cores an interval of 10 ms was missed thrice in a row 48 times in twelve
//! seconds at normal priority, never with real-time priority.

use std::io;

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};

/// What a thread got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    /// `SCHED_FIFO`: runs as soon as it is ready, before everything without real-time priority. Needs `CAP_SYS_NICE` or
    /// `RLIMIT_RTPRIO`. The kernel keeps 5 % of the processor from such threads, so one that spins does not take the
    /// machine with it (`kernel.sched_rt_runtime_us`).
    RealTime,
    /// A larger share than others, by this nice value (negative): better than nothing. Needs `CAP_SYS_NICE` or
    /// `RLIMIT_NICE`.
    Nice(i32),
    /// What every thread has.
    Normal,
}

/// Lowest real-time priority: before everything that has none, behind every other that has.
const LOWEST_PRIORITY: i32 = 1;
/// The most urgent nice value.
const MOST_URGENT: i32 = -20;

/// Gives the calling thread the best scheduling that is allowed. Threads and processes that it starts later begin
/// anew with the normal one.
#[must_use]
pub fn make_urgent() -> Scheduling {
    if set_real_time().is_ok() {
        return Scheduling::RealTime;
    }
    match set_nice(MOST_URGENT) {
        Ok(()) => Scheduling::Nice(MOST_URGENT),
        Err(_) => Scheduling::Normal,
    }
}

fn set_real_time() -> nix::Result<()> {
    let parameters = libc::sched_param { sched_priority: LOWEST_PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the kernel reads one `sched_param`; 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }).map(drop)
}

fn set_nice(nice: i32) -> nix::Result<()> {
    let thread = nix::unistd::gettid().as_raw().cast_unsigned();
    // SAFETY: takes three numbers. On Linux a nice value belongs to a thread, and this is ours.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) }).map(drop)
}

/// Keeps all memory of this process, present and future, in RAM. For a small process: every stack and every heap is
/// made whole at once. A child does not inherit it.
///
/// # Errors
/// What the system says: `EPERM` or `ENOMEM` without `CAP_IPC_LOCK` or room in `RLIMIT_MEMLOCK`.
pub fn lock_memory() -> io::Result<()> {
    Ok(mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_got_is_what_the_kernel_has() {
        // A thread of its own: what it gets ends with it.
        let thread = std::thread::spawn(|| {
            let got = make_urgent();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // proc(5), counted from 1: the second field is a name in parentheses, nice is the 19th, policy the 41st.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            let field = |number: usize| fields[number - 3].parse::<i32>().unwrap();
            let (nice, policy) = (field(19), field(41));
            match got {
                Scheduling::RealTime => assert_eq!(policy, libc::SCHED_FIFO),
                Scheduling::Nice(value) => assert_eq!((nice, policy), (value, 0)),
                Scheduling::Normal => assert_eq!(policy, 0),
            }
        });
        thread.join().unwrap();
    }
}
