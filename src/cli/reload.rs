//! `twinlog reload`.

use std::io::{self, Write};

use super::configuration;
use super::{Exit, Failure, Shared, block_on};
use crate::control::client::Client;

pub(super) fn execute(shared: &Shared) -> anyhow::Result<Exit> {
    let client = Client::new(&configuration::socket(shared));
    let outcome = block_on(async { Ok(client.reload().await?) })?;
    let mut out = io::stdout();
    match outcome {
        Ok(report) if shared.json => {
            let changes =
                serde_json::json!({ "v": 1, "ok": true, "changes": report.changes, "warnings": report.warnings });
            writeln!(out, "{changes}")?;
            Ok(Exit::Done)
        }
        Ok(report) => {
            for warning in &report.warnings {
                eprintln!("{}", warning.trim_end());
            }
            for change in report.changes.iter().filter(|_| !shared.quiet) {
                writeln!(out, "{change}")?;
            }
            if report.changes.is_empty() && !shared.quiet {
                writeln!(out, "nothing changed")?;
            }
            Ok(Exit::Done)
        }
        Err(refused) => {
            let exit = if refused.diagnostics.is_empty() { Exit::Failed } else { Exit::Config };
            if shared.json {
                let answer = serde_json::json!({
                    "v": 1, "ok": false, "reason": refused.reason, "diagnostics": refused.diagnostics,
                });
                writeln!(out, "{answer}")?;
                return Ok(exit);
            }
            let mut message = String::new();
            for diagnostic in &refused.diagnostics {
                message.push_str(diagnostic.trim_end());
                message.push('\n');
            }
            message.push_str("nothing was changed: ");
            message.push_str(&refused.reason);
            Err(Failure::new(exit, message).into())
        }
    }
}
