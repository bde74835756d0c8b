//! `twinlog status`.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;

use super::configuration;
use super::{Exit, Shared, block_on};
use crate::control::client::{Client, ClientError};
use crate::status;
use crate::status::text::{self, Earlier, Style};

/// Between the two looks that a rate needs.
const RATE_OVER: Duration = Duration::from_millis(300);
/// Between the two looks of `--check`: long enough that one lost datagram in a burst is not taken for a trend.
const CHECK_OVER: Duration = Duration::from_secs(1);

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it again every so many seconds (2), until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,
    /// For monitoring: one line, and exit status 4 if something needs someone to look
    #[arg(long, conflicts_with = "watch")]
    check: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.1..=86400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "a number of seconds from 0.1 to 86400".to_owned())
}

/// A look and when it was taken.
struct Look {
    status: status::Status,
    at: Instant,
}

impl Look {
    async fn take(client: &Client) -> Result<Look, ClientError> {
        Ok(Look { status: client.status().await?, at: Instant::now() })
    }

    fn since<'a>(&self, earlier: &'a Look) -> Earlier<'a> {
        Earlier { status: &earlier.status, seconds: self.at.duration_since(earlier.at).as_secs_f64() }
    }
}

impl Status {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let client = Client::new(&configuration::socket(shared));
        block_on(async {
            match self.watch {
                _ if self.check => check(&client, shared).await,
                None if shared.json => {
                    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&client.status().await?)?)?;
                    Ok(Exit::Done)
                }
                None => once(&client, shared).await,
                Some(interval) => watch(&client, shared, interval).await,
            }
        })
    }
}

async fn once(client: &Client, shared: &Shared) -> anyhow::Result<Exit> {
    let first = Look::take(client).await?;
    tokio::time::sleep(RATE_OVER).await;
    let second = Look::take(client).await?;
    let shown = text::render(&second.status, Some(second.since(&first)), style(shared));
    io::stdout().write_all(shown.as_bytes())?;
    Ok(Exit::Done)
}

async fn check(client: &Client, shared: &Shared) -> anyhow::Result<Exit> {
    let first = Look::take(client).await?;
    tokio::time::sleep(CHECK_OVER).await;
    let second = Look::take(client).await?;
    let problems = text::problems(&second.status, Some(second.since(&first)));
    let mut out = io::stdout();
    match (shared.json, problems.is_empty()) {
        (true, ok) => writeln!(out, "{}", serde_json::json!({ "v": 1, "ok": ok, "problems": problems }))?,
        (false, true) if shared.quiet => {}
        (false, true) => writeln!(out, "ok: nothing needs anyone to look")?,
        (false, false) => writeln!(out, "degraded: {}", problems.join("; "))?,
    }
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Degraded })
}

async fn watch(client: &Client, shared: &Shared, interval: Duration) -> anyhow::Result<Exit> {
    let mut out = io::stdout();
    let clear = out.is_terminal() && !shared.json;
    let mut before = Some(Look::take(client).await?);
    tokio::time::sleep(RATE_OVER.min(interval)).await;
    loop {
        // A daemon that restarts is what one may be watching for: stay.
        let look = Look::take(client).await;
        let shown = match &look {
            Ok(look) if shared.json => format!("{}\n", serde_json::to_string(&look.status)?),
            Ok(look) => text::render(&look.status, before.as_ref().map(|before| look.since(before)), style(shared)),
            Err(error) if shared.json => format!("{}\n", serde_json::json!({ "v": 1, "error": error.to_string() })),
            Err(error) => format!("! {error}\n"),
        };
        if clear {
            // Home, and clear from there on: without a flicker of emptiness.
            write!(out, "\x1b[H\x1b[J")?;
        }
        out.write_all(shown.as_bytes())?;
        if !clear && !shared.json {
            writeln!(out)?;
        }
        out.flush()?;
        before = look.ok();
        tokio::time::sleep(interval).await;
    }
}

/// As the terminal is; everything without a cut for a file or a program.
fn style(shared: &Shared) -> Style {
    let out = io::stdout();
    let columns = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let width = if out.is_terminal() { terminal() } else { columns() };
    Style { width: width.unwrap_or(usize::MAX), colour: shared.color.on(&out) }
}
