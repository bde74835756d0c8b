//! One row: a relay is started, a load sent, the sink waited for, and what it took told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Options;
use crate::chunks::{Compressed, Senders};
use crate::datagrams::{send_datagrams, send_datagrams_of_many};
use crate::generator::{Connections, Plan};
use crate::load::Load;
use crate::measure::{Cores, Deadline, Histogram, Usage, now_ns};
use crate::pair::Cable;
use crate::relay::{Flow, Kind, Ports, Relay};
use crate::report::{Metric, Row};
use crate::sink::{Dialect, Sink, bind_bare, receive_bare};
use crate::tally::Tally;

/// Nothing new at the sink for this long, and what is missing counts as lost. Above every relay's retry interval.
pub const QUIET: Duration = Duration::from_secs(4);

/// How long idle connections are watched.
pub const IDLE: Duration = Duration::from_secs(5);

/// The columns of a load whose messages are timed.
pub const LATENCIES: [(Metric, f64); 4] =
    [(Metric::P50Ms, 0.5), (Metric::P99Ms, 0.99), (Metric::P999Ms, 0.999), (Metric::MaxMs, 1.0)];

/// Measures a row on a new host of its own if it is a pair's.
pub fn measure_row(kind: Kind, load: Load, options: &Options) -> Result<Row> {
    let before = Cores::now()?;
    let mut row = if kind == Kind::TwinlogMirrored {
        let cable = Cable::make()?;
        cable.visit(0, || measure_on(Some(&cable), kind, load, options))?
    } else {
        measure_on(None, kind, load, options)?
    };
    row.insert(Metric::StolenPercent, Cores::now()?.stolen_percent_since(before));
    Ok(row)
}

/// Measures a row on the host that the thread is on.
fn measure_on(cable: Option<&Cable>, kind: Kind, load: Load, options: &Options) -> Result<Row> {
    let run = Run {
        plan: load.plan(options),
        ports: Ports::choose(),
        deadline: Deadline::after(Duration::from_secs(options.timeout)),
        kind,
        load,
        options,
        cable,
    };
    match load {
        Load::Udp | Load::Udp10k => run.stream(|relay| {
            let start_ns = now_ns();
            datagrams(load)(relay, &run.plan, run.deadline)?;
            Ok((start_ns, None))
        }),
        _ if load.setup().flow == Flow::File => run.file(),
        Load::Backlog => run.backlog(),
        Load::BacklogLive => run.backlog_live(),
        Load::FullJournal => run.full_journal(),
        Load::Idle10k => run.idle(),
        Load::Forward | Load::ForwardPaced => run.forward(None),
        Load::ForwardGzip => run.forward(Some(Arc::new(Compressed::make(&run.plan)))),
        _ => run.stream(|relay| {
            let mut connections = Connections::open(relay, &run.plan, run.deadline)?;
            let start_ns = now_ns();
            connections.send(&run.plan, run.deadline)?;
            Ok((start_ns, Some(connections)))
        }),
    }
}

/// One row being measured.
pub struct Run<'a> {
    kind: Kind,
    load: Load,
    pub plan: Plan,
    pub ports: Ports,
    pub deadline: Deadline,
    pub options: &'a Options,
    cable: Option<&'a Cable>,
}

impl Run<'_> {
    pub fn start_relay(&self) -> Result<Relay> {
        Relay::start(self.kind, self.ports, self.load.setup(), &self.options.dir, self.cable)
    }

    /// Messages in, messages out. `send` returns when it began, and connections that stay open until all has arrived.
    fn stream(&self, send: impl FnOnce(SocketAddr) -> Result<(u64, Option<Connections>)>) -> Result<Row> {
        let (mut row, tally, _open) = self.through(Dialect::Syslog, send)?;
        row.extend(percentiles(&tally.latency, &LATENCIES));
        Ok(row)
    }

    /// Everything is up, `send` sends, the sink counts. `send` returns when it began, and what lives until all has arrived.
    fn through<T>(
        &self,
        dialect: Dialect,
        send: impl FnOnce(SocketAddr) -> Result<(u64, T)>,
    ) -> Result<(Row, Tally, T)> {
        let sink = Sink::open(self.ports.sink, self.plan, dialect)?;
        let relay = self.start_relay()?;
        let (before, standby) = (relay.usage()?, relay.standby_usage()?);
        let (start_ns, open) = send(relay.address())?;
        sink.wait(QUIET, self.deadline)?;
        let mirrored_ns = relay.wait_until_mirrored(self.deadline)?;
        let after = relay.usage()?;

        let tally = sink.close();
        let mut row = common(self.plan.total(), &tally, before, after);
        row.extend(standby_cpu(&self.plan, standby, relay.standby_usage()?));
        row.insert(Metric::Rate, per_second(tally.unique, start_ns, tally.last_ns.max(mirrored_ns)));
        Ok((row, tally, open))
    }

    /// Syslog in, a file out.
    fn file(&self) -> Result<Row> {
        let relay = self.start_relay()?;
        let before = relay.usage()?;
        let mut connections = Connections::open(relay.address(), &self.plan, self.deadline)?;
        let start_ns = now_ns();
        connections.send(&self.plan, self.deadline)?;
        let delivered_ns = relay.wait_until_delivered(self.plan.total(), QUIET, self.deadline)?;
        let after = relay.usage()?;

        let tally = Tally::of_file(self.plan, &relay.output_file())?;
        let mut row = common(self.plan.total(), &tally, before, after);
        row.insert(Metric::Rate, per_second(tally.unique, start_ns, delivered_ns));
        Ok(row)
    }

    /// Chunks in, chunks out, both acknowledged.
    fn forward(&self, compressed: Option<Arc<Compressed>>) -> Result<Row> {
        let (mut row, _, senders) = self.through(Dialect::Forward(compressed.clone()), |relay| {
            let mut senders = Senders::open(relay, &self.plan, compressed.as_deref())?;
            let start_ns = now_ns();
            senders.send(&self.plan, self.deadline)?;
            Ok((start_ns, senders))
        })?;
        row.extend(percentiles(&senders.acknowledged, &[(Metric::AckP50Ms, 0.5), (Metric::AckP99Ms, 0.99)]));
        Ok(row)
    }

    /// Each connection sends a message, so that it is known to have been accepted and read; then silence.
    fn idle(&self) -> Result<Row> {
        let sink = Sink::open(self.ports.sink, self.plan, Dialect::Syslog)?;
        let relay = self.start_relay()?;
        let before = relay.usage()?;
        let mut connections = Connections::open(relay.address(), &self.plan, self.deadline)?;
        connections.send(&self.plan, self.deadline)?;
        sink.wait(QUIET, self.deadline)?;

        let settled = relay.usage()?;
        let from = Instant::now();
        while from.elapsed() < IDLE {
            self.deadline.pause(Duration::from_millis(50), "watching idle connections")?;
        }
        let after = relay.usage()?;
        let tally = sink.close();
        let grown_bytes = after.rss_bytes.saturating_sub(before.rss_bytes);
        Ok(Row::from([
            (Metric::Lost, tally.lost() as f64),
            (Metric::IdleCpuPercent, (after.cpu - settled.cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0),
            (Metric::RssMb, after.rss_bytes as f64 / 1e6),
            (Metric::RssPerConnectionKib, grown_bytes as f64 / 1024.0 / self.plan.total() as f64),
            (Metric::RssPeakMb, after.rss_peak_bytes as f64 / 1e6),
        ]))
    }
}

/// The same load on a loop that throws away.
pub fn measure_bare(load: Load, options: &Options) -> Result<Row> {
    let plan = &load.plan(options);
    let deadline = Deadline::after(Duration::from_secs(options.timeout));
    let socket = bind_bare()?;
    let address = socket.local_addr()?;
    let expected = plan.total();
    let receiver = thread::spawn(move || receive_bare(&socket, expected, QUIET));
    let sent = datagrams(load)(address, plan, deadline);
    let received = receiver.join().expect("the bare receiver does not panic")?;
    sent?;
    Ok(Row::from([
        (Metric::Lost, (expected - received.datagrams) as f64),
        (Metric::CpuPerMillion, received.cpu.as_secs_f64() * 1e6 / received.datagrams.max(1) as f64),
    ]))
}

/// How a load of datagrams is sent.
fn datagrams(load: Load) -> fn(SocketAddr, &Plan, Deadline) -> Result<()> {
    if load == Load::Udp10k { send_datagrams_of_many } else { send_datagrams }
}

/// What every load that sends a lot has to tell; `messages` is what the CPU time is spread over.
pub fn common(messages: u64, tally: &Tally, before: Usage, after: Usage) -> Row {
    let cpu_seconds = (after.cpu - before.cpu).as_secs_f64();
    let mut row = Row::from([
        (Metric::Lost, tally.lost() as f64),
        (Metric::Repeated, tally.repeated as f64),
        (Metric::CpuPerMillion, cpu_seconds * 1e6 / messages as f64),
        (Metric::RssPeakMb, after.rss_peak_bytes as f64 / 1e6),
        (Metric::WrittenMb, (after.written_bytes - before.written_bytes) as f64 / 1e6),
    ]);
    if tally.foreign > 0 {
        row.insert(Metric::Foreign, tally.foreign as f64);
    }
    row
}

/// What the mirror costs on the other node.
fn standby_cpu(plan: &Plan, before: Option<Usage>, after: Option<Usage>) -> Option<(Metric, f64)> {
    let cpu = after?.cpu - before?.cpu;
    Some((Metric::StandbyCpuPerMillion, cpu.as_secs_f64() * 1e6 / plan.total() as f64))
}

pub fn per_second(messages: u64, from_ns: u64, to_ns: u64) -> f64 {
    messages as f64 * 1e9 / to_ns.saturating_sub(from_ns).max(1) as f64
}

/// Some columns of a histogram; none if nothing was recorded.
pub fn percentiles(latency: &Histogram, columns: &[(Metric, f64)]) -> Row {
    let cell = |(metric, share): &(Metric, f64)| Some((*metric, latency.percentile_ns(*share)? as f64 / 1e6));
    columns.iter().filter_map(cell).collect()
}
