//! `twinlog receipts`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueHint};

use super::configuration;
use super::{Exit, Failure, Shared};
use crate::receipt::{self, Receipt};

/// Flags of `receipts`.
#[derive(Debug, Args)]
pub struct Receipts {
    #[command(subcommand)]
    verb: Verb,
    /// Data directory [default: what the configuration says]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, global = true)]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// A line for each, the oldest first
    Ls,
    /// One receipt, whole
    Show {
        /// Its name, as `ls` shows it [default: the newest]
        #[arg(value_name = "ID")]
        id: Option<String>,
    },
}

impl Receipts {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let configured = || configuration::for_looking(shared).map(|config| config.data_dir);
        let Some(directory) = self.data_dir.clone().or_else(configured) else {
            let message = "no data directory is known: name one with --data-dir, or repair the configuration";
            return Err(Failure::new(Exit::Failed, message).into());
        };
        let receipts = receipt::read(&directory);
        let receipts = receipts.with_context(|| format!("cannot read the receipts in {}", directory.display()))?;
        match &self.verb {
            Verb::Ls => list(shared, &receipts),
            Verb::Show { id } => {
                let wanted = |receipt: &&Receipt| id.as_ref().is_none_or(|id| receipt.id == *id);
                match receipts.iter().rfind(wanted) {
                    Some(receipt) => show(shared, receipt),
                    None => {
                        Err(Failure::new(Exit::Failed, "there is no such receipt; see `twinlog receipts ls`").into())
                    }
                }
            }
        }
    }
}

fn list(shared: &Shared, receipts: &[Receipt]) -> anyhow::Result<Exit> {
    let mut out = io::stdout().lock();
    for receipt in receipts {
        if shared.json {
            writeln!(out, "{}", serde_json::to_string(receipt)?)?;
        } else {
            writeln!(out, "{}  {} messages  {}", receipt.id, receipt.messages.received, receipt.verdict)?;
        }
    }
    Ok(Exit::Done)
}

fn show(shared: &Shared, receipt: &Receipt) -> anyhow::Result<Exit> {
    let mut out = io::stdout().lock();
    if shared.json {
        writeln!(out, "{}", serde_json::to_string(receipt)?)?;
    } else {
        write!(out, "{}", receipt.text())?;
    }
    Ok(if receipt.is_clean() { Exit::Done } else { Exit::Loss })
}
