//! The macro benchmark: drives whole relays on loopback and says what they take, lose and cost.
//!
//! ```text
//! cargo bench --bench macro                                     # all loads, all relays, three rounds
//! cargo bench --bench macro -- --only tcp1,udp --relay twinlog --messages 1000000 --rounds 1
//! ```
//!
//! A row is a relay under a load: generator (`generator.rs`) → relay (`relay.rs`) → sink (`sink.rs`), each row with a new
//! process and an empty directory. Generator and sink are threads of this process and compete with the relay for the
//! cores, as they did for the peers; what a relay costs is read from its own process, so the CPU columns do not depend on
//! that, and the rates do. Rounds are interleaved, so that a disturbance hits all relays alike.
//!
//! Progress goes to stderr, the tables to stdout. Without `--bench`, which cargo adds, nothing is measured:
//! `cargo test --all-targets` and nextest run bench targets too, and must not wait minutes for this one.

mod chunks;
mod generator;
mod measure;
mod message;
mod pair;
mod relay;
mod report;
mod sink;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use chunks::{CHUNK_EVENTS, Compressed, Senders};
use generator::{Connections, Plan, send_datagrams};
use measure::{Deadline, Usage, interrupted, now_ns, watch_signals};
use pair::Cable;
use relay::{Flow, Kind, Ports, Relay};
use report::{BARE, Metric, Report, Row};
use sink::{Dialect, Sink, Tally, bind_bare, receive_bare};

/// Nothing new at the sink for this long, and what is missing counts as lost. Above every relay's retry interval.
const QUIET: Duration = Duration::from_secs(4);

/// Connections of the forward loads.
const FORWARD_STREAMS: u32 = 4;

/// How long idle connections are watched.
const IDLE: Duration = Duration::from_secs(5);

/// Measures relays on loopback.
#[derive(Parser)]
#[command(name = "macro", bin_name = "cargo bench --bench macro --")]
struct Options {
    /// Loads to run
    #[arg(long, value_delimiter = ',', value_name = "LOAD")]
    only: Vec<Load>,
    /// Relays to run, by the begin of their names: twinlog, twinlog-mirrored (as root), rsyslog-memory, rsyslog-disk
    #[arg(long, value_delimiter = ',', value_name = "RELAY")]
    relay: Vec<String>,
    /// Messages of tcp1, tcp1000 and backlog
    #[arg(long, default_value_t = 5_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    messages: u32,
    /// Datagrams a second of udp
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    udp_rate: u32,
    /// Duration of udp and latency
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Times that each row is measured; the tables show medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Longest time for one run, in seconds
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Where relays keep their journals and queues; choose the disk that counts
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Added by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Part of a benchmark's name, as `cargo bench NAME` hands it to every bench target
    #[arg(hide = true)]
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Load {
    Tcp1,
    Tcp1000,
    Udp,
    Latency,
    Backlog,
    Idle10k,
    Forward,
    ForwardGzip,
    ForwardPaced,
}

impl Load {
    /// As on the command line.
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn plan(self, options: &Options) -> Plan {
        match self {
            Load::Tcp1 | Load::Backlog => Plan { streams: 1, per_stream: options.messages, rate: None },
            Load::Tcp1000 => Plan { streams: 1000, per_stream: options.messages / 1000, rate: None },
            Load::Udp => paced(options.udp_rate, options.seconds),
            Load::Latency => paced(10_000, options.seconds),
            Load::Idle10k => Plan { streams: 10_000, per_stream: 1, rate: None },
            Load::Forward | Load::ForwardGzip => {
                let per_stream = options.messages / FORWARD_STREAMS;
                Plan { streams: FORWARD_STREAMS, per_stream: per_stream.next_multiple_of(CHUNK_EVENTS), rate: None }
            }
            Load::ForwardPaced => {
                let per_stream = 100_000 * options.seconds / FORWARD_STREAMS;
                Plan { streams: FORWARD_STREAMS, per_stream, rate: Some(100_000) }
            }
        }
    }

    fn flow(self) -> Flow {
        match self {
            Load::Forward | Load::ForwardGzip | Load::ForwardPaced => Flow::Forward,
            _ => Flow::Syslog,
        }
    }

    /// Whether a relay can do it.
    fn suits(self, relay: Kind) -> bool {
        match self {
            Load::Tcp1000 | Load::Udp | Load::Backlog | Load::Idle10k | Load::ForwardGzip
                if relay == Kind::TwinlogMirrored =>
            {
                false
            }
            Load::Backlog => relay.is_persistent(),
            _ => self.flow() == Flow::Syslog || matches!(relay, Kind::Twinlog | Kind::TwinlogMirrored),
        }
    }

    fn about(self, options: &Options) -> String {
        let Options { messages, udp_rate, seconds, .. } = options;
        match self {
            Load::Tcp1 => format!("{messages} messages over one TCP connection, as fast as they are taken"),
            Load::Tcp1000 => format!("{messages} messages over 1000 TCP connections, as fast as they are taken"),
            Load::Udp => format!("{udp_rate} datagrams a second for {seconds} s"),
            Load::Latency => format!("10000 messages a second over one TCP connection for {seconds} s"),
            Load::Backlog => format!("{messages} messages taken in while the sink refuses, restart, draining"),
            Load::Idle10k => format!("10000 TCP connections that have sent one message each, idle for {IDLE:?}"),
            Load::Forward => format!("{messages} events in acknowledged chunks of {CHUNK_EVENTS}, forward in and out"),
            Load::ForwardGzip => format!("the same, {messages} events in chunks compressed with gzip"),
            Load::ForwardPaced => format!("100000 events a second in acknowledged chunks for {seconds} s"),
        }
    }
}

fn paced(rate: u32, seconds: u32) -> Plan {
    Plan { streams: 1, per_stream: rate * seconds, rate: Some(rate) }
}

fn main() -> ExitCode {
    let asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    if !asked("--bench") || asked("--list") {
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    if options.filter.as_deref().is_some_and(|filter| !"macro".contains(filter)) {
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("macro: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all rows and prints the tables; false if a row failed.
fn run(options: &Options) -> Result<bool> {
    watch_signals()?;
    raise_open_files()?;
    let relays = relays(options)?;
    let loads = if options.only.is_empty() { Load::value_variants() } else { &options.only };

    let mut report = Report::default();
    let mut complete = true;
    for round in 1..=options.rounds {
        for load in loads {
            let about = load.about(options);
            let mut record = |relay: &'static str, outcome: Result<Row>| match outcome {
                Ok(row) => report.add(&load.name(), &about, relay, row),
                Err(error) => {
                    eprintln!("macro: {} {relay}: {error:#}", load.name());
                    complete = false;
                }
            };
            for relay in relays.iter().filter(|relay| load.suits(**relay)) {
                eprintln!("macro: round {round}, {} {}", load.name(), relay.name());
                record(relay.name(), measure_row(*relay, *load, options));
                if interrupted() {
                    bail!("interrupted");
                }
            }
            if *load == Load::Udp {
                eprintln!("macro: round {round}, {} {BARE}", load.name());
                record(BARE, bare(&load.plan(options), options));
            }
        }
    }
    println!("{}; rounds: {}\n\n{report}", report::host(), options.rounds);
    Ok(complete)
}

/// The relays that were asked for and are there. One that is missing is skipped with a word, so that the others can be
/// measured; one that nobody knows is an error.
fn relays(options: &Options) -> Result<Vec<Kind>> {
    if let Some(unknown) =
        options.relay.iter().find(|word| !Kind::ALL.iter().any(|kind| kind.name().starts_with(*word)))
    {
        bail!("no relay's name begins with {unknown:?}");
    }
    let is_wanted = |kind: &Kind| {
        options.relay.is_empty() || options.relay.iter().any(|word| kind.name().starts_with(word.as_str()))
    };
    let (found, missing): (Vec<_>, Vec<_>) =
        Kind::ALL.into_iter().filter(is_wanted).partition(|kind| kind.program().is_some());
    for kind in missing {
        eprintln!("macro: skipping {}: its program is not there (TWINLOG_BIN names twinlog's)", kind.name());
    }
    Ok(found)
}

/// As many files as the host lets us open, for us and, by inheritance, for the relays: ten thousand connections have an
/// end in each.
fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}

fn measure_row(kind: Kind, load: Load, options: &Options) -> Result<Row> {
    if kind != Kind::TwinlogMirrored {
        return measure_on(None, kind, load, options);
    }
    let cable = Cable::make()?;
    cable.visit(0, || measure_on(Some(&cable), kind, load, options))
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
        Load::Tcp1 | Load::Tcp1000 | Load::Latency => run.stream(|relay| {
            let mut connections = Connections::open(relay, &run.plan, run.deadline)?;
            let start_ns = now_ns();
            connections.send(&run.plan, run.deadline)?;
            Ok((start_ns, Some(connections)))
        }),
        Load::Udp => run.stream(|relay| {
            let start_ns = now_ns();
            send_datagrams(relay, &run.plan, run.deadline)?;
            Ok((start_ns, None))
        }),
        Load::Backlog => run.backlog(),
        Load::Idle10k => run.idle(),
        Load::Forward | Load::ForwardPaced => run.forward(None),
        Load::ForwardGzip => run.forward(Some(Arc::new(Compressed::make(&run.plan)))),
    }
}

/// One row being measured.
struct Run<'a> {
    kind: Kind,
    load: Load,
    plan: Plan,
    ports: Ports,
    deadline: Deadline,
    options: &'a Options,
    cable: Option<&'a Cable>,
}

impl Run<'_> {
    fn start_relay(&self) -> Result<Relay> {
        Relay::start(self.kind, self.ports, self.load.flow(), &self.options.dir, self.cable)
    }

    /// Everything is up, `send` sends, the sink counts. `send` returns when it began, and connections that stay open
    /// until all has arrived.
    fn stream(&self, send: impl FnOnce(SocketAddr) -> Result<(u64, Option<Connections>)>) -> Result<Row> {
        let sink = Sink::open(self.ports.sink, self.plan, Dialect::Syslog)?;
        let relay = self.start_relay()?;
        let (before, standby) = (relay.usage()?, relay.standby_usage()?);
        let (start_ns, _open) = send(relay.address())?;
        sink.wait(QUIET, self.deadline)?;
        let mirrored_ns = relay.wait_until_mirrored(self.deadline)?;
        let after = relay.usage()?;

        let tally = sink.close();
        let mut row = common(&self.plan, &tally, before, after);
        row.extend(standby_cpu(&self.plan, standby, relay.standby_usage()?));
        row.insert(Metric::Rate, per_second(tally.unique, start_ns, tally.last_ns.max(mirrored_ns)));
        let quantiles = [(Metric::P50Ms, 0.5), (Metric::P99Ms, 0.99), (Metric::P999Ms, 0.999), (Metric::MaxMs, 1.0)];
        for (metric, share) in quantiles {
            row.extend(tally.latency.percentile_ns(share).map(|ns| (metric, ns as f64 / 1e6)));
        }
        Ok(row)
    }

    /// Chunks in, chunks out, both acknowledged.
    fn forward(&self, compressed: Option<Arc<Compressed>>) -> Result<Row> {
        let sink = Sink::open(self.ports.sink, self.plan, Dialect::Forward(compressed.clone()))?;
        let relay = self.start_relay()?;
        let mut senders = Senders::open(relay.address(), &self.plan, compressed.as_deref())?;
        let (before, standby) = (relay.usage()?, relay.standby_usage()?);
        let start_ns = now_ns();
        senders.send(&self.plan, self.deadline)?;
        sink.wait(QUIET, self.deadline)?;
        let mirrored_ns = relay.wait_until_mirrored(self.deadline)?;
        let after = relay.usage()?;

        let tally = sink.close();
        let mut row = common(&self.plan, &tally, before, after);
        row.extend(standby_cpu(&self.plan, standby, relay.standby_usage()?));
        row.insert(Metric::Rate, per_second(tally.unique, start_ns, tally.last_ns.max(mirrored_ns)));
        let quantiles = [(Metric::AckP50Ms, 0.5), (Metric::AckP99Ms, 0.99)];
        for (metric, share) in quantiles {
            row.extend(senders.acknowledged.percentile_ns(share).map(|ns| (metric, ns as f64 / 1e6)));
        }
        Ok(row)
    }

    /// The sink is not there until all is taken in and the relay was restarted with it.
    fn backlog(&self) -> Result<Row> {
        let mut relay = self.start_relay()?;
        let before = relay.usage()?;
        let mut connections = Connections::open(relay.address(), &self.plan, self.deadline)?;
        let start_ns = now_ns();
        connections.send(&self.plan, self.deadline)?;
        connections.finish(self.deadline)?;
        let taken_ns = now_ns();
        let startup = relay.restart()?;

        let sink = Sink::open(self.ports.sink, self.plan, Dialect::Syslog)?;
        sink.wait(QUIET, self.deadline)?;
        let after = relay.usage()?;
        let tally = sink.close();
        let mut row = common(&self.plan, &tally, before, after);
        row.insert(Metric::IntakeRate, per_second(self.plan.total(), start_ns, taken_ns));
        row.insert(Metric::StartupMs, startup.as_secs_f64() * 1e3);
        row.insert(Metric::DrainRate, per_second(tally.unique, tally.first_ns, tally.last_ns));
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
fn bare(plan: &Plan, options: &Options) -> Result<Row> {
    let deadline = Deadline::after(Duration::from_secs(options.timeout));
    let socket = bind_bare()?;
    let address = socket.local_addr()?;
    let expected = plan.total();
    let receiver = thread::spawn(move || receive_bare(&socket, expected, QUIET));
    let sent = send_datagrams(address, plan, deadline);
    let received = receiver.join().expect("the bare receiver does not panic")?;
    sent?;
    Ok(Row::from([
        (Metric::Lost, (expected - received.datagrams) as f64),
        (Metric::CpuPerMillion, received.cpu.as_secs_f64() * 1e6 / received.datagrams.max(1) as f64),
    ]))
}

/// What every load that sends a lot has to tell.
fn common(plan: &Plan, tally: &Tally, before: Usage, after: Usage) -> Row {
    let cpu_seconds = (after.cpu - before.cpu).as_secs_f64();
    let mut row = Row::from([
        (Metric::Lost, tally.lost() as f64),
        (Metric::Repeated, tally.repeated as f64),
        (Metric::CpuPerMillion, cpu_seconds * 1e6 / plan.total() as f64),
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

fn per_second(messages: u64, from_ns: u64, to_ns: u64) -> f64 {
    messages as f64 * 1e9 / to_ns.saturating_sub(from_ns).max(1) as f64
}
