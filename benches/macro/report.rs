//! The tables, in Markdown, to be pasted into `BENCHMARKS.md`: one for each load, and one of ratios to twinlog.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::fs;

/// The row of the receive loop that does nothing with what it receives.
pub const BARE: &str = "bare receive loop";
/// Of that, and of the relay that does the least: what others are compared with.
const BARE_PREFIX: &str = "bare";

/// What a column tells, in the order of the columns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Messages a second at the sink, from the first one sent to the last one received.
    Rate,
    /// Messages a second taken in while the sink refuses.
    IntakeRate,
    /// From the start of the process, with a backlog, to its first accepted connection.
    StartupMs,
    /// Messages a second at the sink, from the first one received to the last.
    DrainRate,
    /// The same in bytes.
    DrainMbRate,
    Lost,
    Repeated,
    Foreign,
    /// Of the relay's process, user and system. The same number is microseconds a message.
    CpuPerMillion,
    /// The same of the other node of a pair.
    StandbyCpuPerMillion,
    /// `CpuPerMillion` over that of the bare receive loop or relay.
    CpuOverBare,
    P50Ms,
    P99Ms,
    P999Ms,
    MaxMs,
    /// Of the live load before the second sink comes.
    AloneP50Ms,
    AloneP99Ms,
    AloneMaxMs,
    /// The same while the backlog goes to it.
    DrainingP50Ms,
    DrainingP99Ms,
    DrainingMaxMs,
    /// From handing a chunk to the kernel to its acknowledgement.
    AckP50Ms,
    AckP99Ms,
    IdleCpuPercent,
    RssMb,
    RssPerConnectionKib,
    RssPeakMb,
    WrittenMb,
    /// Of the time in which somebody wanted a core: what the hypervisor gave to others.
    StolenPercent,
}

impl Metric {
    fn title(self) -> &'static str {
        match self {
            Metric::Rate => "msg/s",
            Metric::IntakeRate => "intake msg/s",
            Metric::StartupMs => "start-up ms",
            Metric::DrainRate => "drain msg/s",
            Metric::DrainMbRate => "drain MB/s",
            Metric::Lost => "lost",
            Metric::Repeated => "repeated",
            Metric::Foreign => "foreign lines",
            Metric::CpuPerMillion => "CPU s per million",
            Metric::StandbyCpuPerMillion => "standby's",
            Metric::CpuOverBare => "CPU × bare",
            Metric::P50Ms => "p50 ms",
            Metric::P99Ms => "p99 ms",
            Metric::P999Ms => "p99.9 ms",
            Metric::MaxMs => "max ms",
            Metric::AloneP50Ms => "before: p50 ms",
            Metric::AloneP99Ms => "before: p99 ms",
            Metric::AloneMaxMs => "before: max ms",
            Metric::DrainingP50Ms => "draining: p50 ms",
            Metric::DrainingP99Ms => "draining: p99 ms",
            Metric::DrainingMaxMs => "draining: max ms",
            Metric::AckP50Ms => "ack p50 ms",
            Metric::AckP99Ms => "ack p99 ms",
            Metric::IdleCpuPercent => "idle CPU %",
            Metric::RssMb => "RSS MB",
            Metric::RssPerConnectionKib => "RSS KiB per connection",
            Metric::RssPeakMb => "peak RSS MB",
            Metric::WrittenMb => "written MB",
            Metric::StolenPercent => "stolen %",
        }
    }

    fn is_count_of_faults(self) -> bool {
        matches!(self, Metric::Lost | Metric::Repeated | Metric::Foreign)
    }

    fn format(self, value: f64) -> String {
        if self.is_count_of_faults() || value >= 100.0 { grouped(value.round() as u64) } else { format!("{value:.2}") }
    }

    /// The median of the rounds; of faults the worst, which a median would hide.
    fn summary(self, values: &[f64]) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        if self.is_count_of_faults() { sorted[last] } else { (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0 }
    }
}

/// One run of a relay under a load.
pub type Row = BTreeMap<Metric, f64>;

/// All runs, in the order in which their loads and relays first came.
#[derive(Default)]
pub struct Report {
    tables: Vec<Table>,
}

struct Table {
    load: String,
    about: String,
    relays: Vec<(&'static str, BTreeMap<Metric, Vec<f64>>)>,
}

impl Report {
    pub fn add(&mut self, load: &str, about: &str, relay: &'static str, row: Row) {
        let table = find_or_push(
            &mut self.tables,
            |table| table.load == load,
            || Table { load: load.to_owned(), about: about.to_owned(), relays: Vec::new() },
        );
        let (_, values) = find_or_push(&mut table.relays, |(name, _)| *name == relay, || (relay, BTreeMap::new()));
        for (metric, value) in row {
            values.entry(metric).or_default().push(value);
        }
    }
}

fn find_or_push<T>(list: &mut Vec<T>, is_it: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> &mut T {
    let at = list.iter().position(is_it).unwrap_or_else(|| {
        list.push(make());
        list.len() - 1
    });
    &mut list[at]
}

impl Table {
    /// The summaries of each relay, with what only a comparison of rows can tell.
    fn rows(&self) -> Vec<(&'static str, Row)> {
        let summarize = |values: &BTreeMap<Metric, Vec<f64>>| -> Row {
            values.iter().map(|(metric, values)| (*metric, metric.summary(values))).collect()
        };
        let mut rows: Vec<_> = self.relays.iter().map(|(relay, values)| (*relay, summarize(values))).collect();
        let bare = rows.iter().find(|(relay, _)| relay.starts_with(BARE_PREFIX));
        let bare = bare.and_then(|(_, row)| row.get(&Metric::CpuPerMillion));
        if let Some(bare) = bare.copied() {
            for (_, row) in &mut rows {
                let ratio = row.get(&Metric::CpuPerMillion).map(|cpu| cpu / bare);
                row.extend(ratio.map(|ratio| (Metric::CpuOverBare, ratio)));
            }
        }
        rows
    }

    /// Each relay's figures divided by twinlog's; empty if twinlog was not measured.
    fn ratios(&self) -> Vec<(&'static str, Row)> {
        let rows = self.rows();
        let Some((_, twinlog)) = rows.iter().find(|(relay, _)| *relay == "twinlog").cloned() else { return Vec::new() };
        let ratio = |(metric, value): (Metric, f64)| {
            let base = twinlog.get(&metric).filter(|base| **base > 0.0)?;
            if metric.is_count_of_faults() || matches!(metric, Metric::CpuOverBare | Metric::StolenPercent) {
                return None;
            }
            Some((metric, value / base))
        };
        let others = rows.into_iter().filter(|(relay, _)| *relay != "twinlog");
        others.map(|(relay, row)| (relay, row.into_iter().filter_map(ratio).collect())).collect()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(f, "### {}: {}\n", table.load, table.about)?;
            write_table(f, &table.rows(), Metric::format)?;
        }
        for table in &self.tables {
            let ratios = table.ratios();
            if !ratios.is_empty() {
                writeln!(f, "### {}: ratios to twinlog (2 = twice twinlog's figure)\n", table.load)?;
                write_table(f, &ratios, |_, value| format!("{value:.2}"))?;
            }
        }
        Ok(())
    }
}

fn write_table(
    f: &mut fmt::Formatter<'_>,
    rows: &[(&'static str, Row)],
    format: impl Fn(Metric, f64) -> String,
) -> fmt::Result {
    let mut columns: Vec<Metric> = rows.iter().flat_map(|(_, row)| row.keys().copied()).collect();
    columns.sort();
    columns.dedup();

    let (mut titles, mut rule) = (String::from("| relay |"), String::from("|---|"));
    for column in &columns {
        write!(titles, " {} |", column.title())?;
        rule.push_str("--:|");
    }
    writeln!(f, "{titles}\n{rule}")?;
    for (relay, row) in rows {
        write!(f, "| {relay} |")?;
        for column in &columns {
            let cell = row.get(column).map_or("–".to_owned(), |value| format(*column, *value));
            write!(f, " {cell} |")?;
        }
        writeln!(f)?;
    }
    writeln!(f)
}

/// `1234567` as `1 234 567`.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// The host in one line: what a reader must know before comparing figures.
pub fn host() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let models: Vec<_> = cpuinfo.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
    let model = models.first().unwrap_or(&"unknown processor");
    format!("{} × {model}, Linux {}", models.len(), read("/proc/sys/kernel/osrelease").trim())
}
