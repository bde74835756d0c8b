//! The `process_*` metrics that every exporter has, from `/proc/self`. What cannot be read is left out.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::status::timestamp;

/// What the kernel says about this process.
#[derive(Debug)]
pub(super) struct Process {
    started: SystemTime,
    cpu_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    open_files: Option<usize>,
    open_files_max: Option<u64>,
}

impl Process {
    /// Asks.
    pub(super) fn read(started: SystemTime) -> Process {
        Process {
            started,
            cpu_seconds: cpu_seconds(),
            resident_bytes: resident_bytes(),
            open_files: fs::read_dir("/proc/self/fd").ok().map(Iterator::count),
            open_files_max: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(seconds) = self.cpu_seconds {
            let mut metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                "Processor time, user and system",
                None,
                MetricType::Counter,
            )?;
            metric.encode_counter::<NoLabelSet, f64, f64>(&seconds, None)?;
        }
        let started = timestamp(self.started).0 as f64 / 1e9;
        let gauges = [
            ("process_resident_memory_bytes", "Memory in use", self.resident_bytes.map(|bytes| bytes as f64)),
            ("process_open_fds", "Open files and sockets", self.open_files.map(|files| files as f64)),
            ("process_max_fds", "Most open files and sockets", self.open_files_max.map(|files| files as f64)),
            ("process_start_time_seconds", "When the process started", Some(started)),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the program's name, may contain spaces and parentheses; utime and stime are 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    Some(ticks as f64 / per_second as f64)
}

fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}
