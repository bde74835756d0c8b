//! `twinlog drain`, `twinlog undrain`.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::sleep;

use super::configuration;
use super::restart::Restart;
use super::{Exit, Failure, Shared, block_on, duration};
use crate::control::DrainReport;
use crate::control::client::Client;
use crate::proto::drain::Stage;

/// Between two looks at the drain.
const LOOK: Duration = Duration::from_millis(100);

/// When a drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Until {
    /// Everything is on the peer, which delivers the rest
    Handover,
    /// Everything is delivered
    Empty,
}

/// Flags of `drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// When it is over
    #[arg(long, value_enum, default_value = "empty")]
    until: Until,
    /// How long it may take, such as 90s or 5min; what is on this node only then stays here. With --restart, the way back
    /// may take as long again [default: 10min]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<Duration>,
    /// Then restart the service, which applies an upgrade, and wait until this node serves again, in sync with its peer
    #[arg(long, conflicts_with = "detach")]
    restart: bool,
    /// Begin it and return
    #[arg(long)]
    detach: bool,
    /// Also if the peer cannot take over; with --restart, also after a receipt that is not clean
    #[arg(long)]
    force: bool,
}

impl Drain {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let client = Client::new(&configuration::socket(shared));
        let until = if self.until == Until::Handover { "handover" } else { "empty" };
        let mut query = format!("until={until}&force={}", u8::from(self.force));
        if let Some(deadline) = self.deadline {
            query.push_str(&format!("&deadline={}", deadline.as_secs_f64()));
        }
        block_on(async {
            // What would keep it from being restarted is found before anything is handed over.
            let restart = match self.restart {
                true => Some(Restart::prepare(shared, &client, self.deadline).await?),
                false => None,
            };
            let report = match client.drain(&query).await? {
                Ok(report) => report,
                Err(refused) => return Err(Failure::new(Exit::Unsafe, refused.reason).into()),
            };
            if self.detach {
                return Ok(Exit::Done);
            }
            let report = self.follow(shared, &client, report).await?;
            let exit = finish(shared, report)?;
            let Some(restart) = restart else { return Ok(exit) };
            if exit != Exit::Done && !self.force {
                let message = "not restarted, because the receipt is not clean: this node stays drained; \
                    `twinlog undrain` has it serve again, --force restarts it all the same";
                return Err(Failure::new(exit, message).into());
            }
            restart.carry_out(shared, &client).await?;
            Ok(exit)
        })
    }

    /// Shows each stage as it begins, until it is over.
    async fn follow(&self, shared: &Shared, client: &Client, mut report: DrainReport) -> anyhow::Result<DrainReport> {
        let mut shown = None;
        while !report.is_over {
            if report.stage != shown && !shared.quiet && !shared.json {
                shown = report.stage;
                if let Some(stage) = report.stage {
                    writeln!(io::stderr(), "{:8.3} s  {}", report.seconds, words(stage))?;
                }
            }
            sleep(LOOK).await;
            report = client.drain_report().await?;
        }
        Ok(report)
    }
}

fn words(stage: Stage) -> &'static str {
    match stage {
        Stage::HandingOver => "handing over: the peer takes the addresses and the deliveries",
        Stage::Quiescing => "quiescing: inputs finish what is on its way to them",
        Stage::Flushing => "flushing: what the journal holds reaches the peer and the destinations",
        Stage::Drained => "drained",
    }
}

fn finish(shared: &Shared, report: DrainReport) -> anyhow::Result<Exit> {
    let Some(receipt) = report.receipt else {
        let why = report.failure.unwrap_or_else(|| "it was called off".to_owned());
        return Err(Failure::new(Exit::Failed, format!("not drained: {why}")).into());
    };
    let mut out = io::stdout();
    if shared.json {
        writeln!(out, "{}", serde_json::to_string(&receipt)?)?;
    } else {
        write!(out, "{}", receipt.text())?;
    }
    Ok(match receipt.is_clean() {
        true => Exit::Done,
        false if receipt.lost == 0 => Exit::Deadline,
        false => Exit::Loss,
    })
}

/// Ends the drained state.
pub(super) fn undrain(shared: &Shared) -> anyhow::Result<Exit> {
    let client = Client::new(&configuration::socket(shared));
    match block_on(async { Ok(client.undrain().await?) })? {
        Ok(()) => {
            if !shared.quiet && !shared.json {
                writeln!(io::stdout(), "this node serves again, as a standby")?;
            }
            Ok(Exit::Done)
        }
        Err(refused) => Err(Failure::new(Exit::Failed, refused.reason).into()),
    }
}
