//! The instruments: one clock, a latency histogram, what the kernel says of a process, and a limit to every wait.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Nanoseconds of the monotonic clock, the same in all threads of all processes of this host.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    Duration::from(now).as_nanos() as u64
}

/// Counts of latencies in buckets 1/32 of a power of two wide: any percentile to 3 %, in 16 KiB.
#[derive(Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max_ns: u64,
}

impl Histogram {
    /// Buckets for each power of two.
    const STEPS: u64 = 32;

    pub fn new() -> Histogram {
        Histogram { buckets: vec![0; (Self::STEPS * 64) as usize], count: 0, max_ns: 0 }
    }

    pub fn record(&mut self, ns: u64) {
        self.buckets[Self::bucket(ns)] += 1;
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// The latency that `share` (0 to 1) of all recorded ones do not exceed; none if nothing was recorded.
    pub fn percentile_ns(&self, share: f64) -> Option<u64> {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(Self::upper_bound_ns(bucket).min(self.max_ns))
    }

    /// Below 64 ns each bucket is one nanosecond wide; above, the 5 bits after the leading one choose the step.
    fn bucket(ns: u64) -> usize {
        let shift = (u64::BITS - (ns | Self::STEPS).leading_zeros()).saturating_sub(6);
        (u64::from(shift) * Self::STEPS + (ns >> shift)) as usize
    }

    fn upper_bound_ns(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        let shift = (bucket / Self::STEPS).saturating_sub(1);
        let steps = bucket - shift * Self::STEPS;
        (((u128::from(steps) + 1) << shift) - 1).min(u64::MAX.into()) as u64
    }
}

/// What the host's cores were asked for since it started, in ticks of all of them.
#[derive(Clone, Copy)]
pub struct Cores {
    /// Somebody wanted to run.
    wanted: u64,
    /// Of that: the hypervisor ran something else.
    stolen: u64,
}

impl Cores {
    /// Reads `/proc/stat`; see proc(5).
    pub fn now() -> Result<Cores> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let ticks = text.lines().next().and_then(|line| {
            let ticks: Result<Vec<u64>, _> = line.strip_prefix("cpu ")?.split_whitespace().map(str::parse).collect();
            ticks.ok()
        });
        match ticks.as_deref() {
            Some(&[user, nice, system, _idle, _iowait, irq, softirq, stolen, ..]) => {
                Ok(Cores { wanted: user + nice + system + irq + softirq + stolen, stolen })
            }
            _ => bail!("/proc/stat does not begin with the ticks of all cores"),
        }
    }

    /// How much of what was wanted since `before` the hypervisor took, in percent.
    pub fn stolen_percent_since(self, before: Cores) -> f64 {
        (self.stolen - before.stolen) as f64 * 100.0 / (self.wanted - before.wanted).max(1) as f64
    }
}

/// What a process has used since it started.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// User and system time of all its threads, to 10 ms.
    pub cpu: Duration,
    /// Resident now.
    pub rss_bytes: u64,
    /// Most ever resident.
    pub rss_peak_bytes: u64,
    /// Bytes it caused to be written to storage.
    pub written_bytes: u64,
}

impl Usage {
    /// Reads `/proc/PID/{stat,status,io}`; see proc(5).
    pub fn of_process(pid: u32) -> Result<Usage> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let (stat, status, io) = (read("stat")?, read("status")?, read("io")?);

        // The second field is the program's name in brackets and may contain anything; utime and stime are 14 and 15.
        // USER_HZ, the unit, is 100 on every architecture we run on.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Usage {
            cpu: Duration::from_millis(ticks * 10),
            rss_bytes: labelled(&status, "VmRSS:") * 1024,
            rss_peak_bytes: labelled(&status, "VmHWM:") * 1024,
            written_bytes: labelled(&io, "write_bytes:"),
        })
    }

    /// The sum over two processes that ran one after the other.
    #[must_use]
    pub fn then(self, next: Usage) -> Usage {
        Usage {
            cpu: self.cpu + next.cpu,
            rss_bytes: next.rss_bytes,
            rss_peak_bytes: self.rss_peak_bytes.max(next.rss_peak_bytes),
            written_bytes: self.written_bytes + next.written_bytes,
        }
    }
}

/// The number after `label` at the begin of a line; 0 if there is none.
fn labelled(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The end of somebody's patience. Every loop that waits asks it, and ends with an error when it is over.
#[derive(Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(patience: Duration) -> Deadline {
        Deadline(Instant::now() + patience)
    }

    /// Fails when the time is over or the user has interrupted the program. `what` completes "gave up …".
    pub fn check(self, what: &str) -> Result<()> {
        if interrupted() {
            bail!("interrupted while {what}");
        }
        if Instant::now() >= self.0 {
            bail!("gave up {what}");
        }
        Ok(())
    }

    /// Checks, then sleeps for `pause`.
    pub fn pause(self, pause: Duration, what: &str) -> Result<()> {
        self.check(what)?;
        thread::sleep(pause);
        Ok(())
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether a signal asked the program to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Turns the first SIGINT or SIGTERM into [`interrupted`], so that relays are stopped and directories removed on the way
/// out. By handlers, not by a blocked mask, which relays would inherit and then never hear SIGTERM.
pub fn watch_signals() -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build().context("starting the signal watch")?;
    let _context = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).context("watching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching SIGINT")?;
    drop(_context);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}
