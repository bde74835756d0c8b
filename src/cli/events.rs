//! `twinlog events`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueHint};

use super::configuration;
use super::{Exit, Failure, Shared};
use crate::events;

/// Flags of `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Data directory [default: what the configuration says]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,
}

impl Events {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let configured = || configuration::for_looking(shared).map(|config| config.data_dir);
        let Some(directory) = self.data_dir.clone().or_else(configured) else {
            let message = "no data directory is known: name one with --data-dir, or repair the configuration";
            return Err(Failure::new(Exit::Failed, message).into());
        };
        let events = events::read(&directory);
        let events = events.with_context(|| format!("cannot read the events in {}", directory.display()))?;
        let mut out = io::stdout().lock();
        for event in events {
            if shared.json {
                writeln!(out, "{}", serde_json::to_string(&event)?)?;
            } else {
                let cause = event.cause.map_or(String::new(), |cause| format!("  {cause}"));
                writeln!(out, "{}  {}  {}{cause}", event.at, event.node, event.event.replace('_', " "))?;
            }
        }
        Ok(Exit::Done)
    }
}
