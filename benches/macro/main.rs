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

mod backlog;
mod bare;
mod chunks;
mod datagrams;
mod generator;
mod load;
mod measure;
mod message;
mod pair;
mod relay;
mod report;
mod run;
mod sink;
mod tally;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use load::Load;
use measure::{interrupted, watch_signals};
use relay::Kind;
use report::{BARE, Report, Row};
use run::{measure_bare, measure_row};

/// Measures relays on loopback.
#[derive(Parser)]
#[command(name = "macro", bin_name = "cargo bench --bench macro --")]
struct Options {
    /// Loads to run
    #[arg(long, value_delimiter = ',', value_name = "LOAD")]
    only: Vec<Load>,
    /// Relays to run, by the begin of their names: twinlog, twinlog-mirrored (as root), rsyslog-memory, rsyslog-disk,
    /// syslog-ng-memory, syslog-ng-disk, bare-relay (reads, writes, syncs and sends)
    #[arg(long, value_delimiter = ',', value_name = "RELAY")]
    relay: Vec<String>,
    /// Messages of the loads that are as fast as they are taken
    #[arg(long, default_value_t = 5_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    messages: u32,
    /// Datagrams a second of udp and udp10k
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    udp_rate: u32,
    /// Duration of the paced loads, and of backlog-live before the second sink comes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Bytes of messages that wait for the second output of backlog-live and full-journal; needs as much disk
    #[arg(long, default_value_t = 2_000_000_000, value_parser = clap::value_parser!(u64).range(1_000_000..=24_000_000_000))]
    backlog_bytes: u64,
    /// Messages a second of backlog-live
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    live_rate: u32,
    /// Longest time for the second sink of backlog-live to catch up; the load ends then
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=900))]
    live_seconds: u32,
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

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(bare::ARGUMENT) {
        return ended(bare::run(Path::new(&arguments.next().unwrap_or_default())).map(|()| true));
    }
    let asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    if !asked("--bench") || asked("--list") {
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    if options.filter.as_deref().is_some_and(|filter| !"macro".contains(filter)) {
        return ExitCode::SUCCESS;
    }
    ended(run(&options))
}

fn ended(outcome: Result<bool>) -> ExitCode {
    match outcome {
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
            if matches!(load, Load::Udp | Load::Udp10k) {
                eprintln!("macro: round {round}, {} {BARE}", load.name());
                record(BARE, measure_bare(*load, options));
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
        eprintln!(
            "macro: skipping {}: its program is not there; TWINLOG_BIN names twinlog's, tests/peers/install.sh brings syslog-ng",
            kind.name()
        );
    }
    Ok(found)
}

/// As many files as the host lets us open, for us and, by inheritance, for the relays: ten thousand connections have an
/// end in each.
fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}
