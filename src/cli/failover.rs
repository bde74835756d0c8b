//! `twinlog failover`.

use std::io::{self, Write};

use clap::Args;

use super::configuration;
use super::{Exit, Failure, Shared, block_on};
use crate::control::Unmoved;
use crate::control::client::Client;

/// Flags of `failover`.
#[derive(Debug, Args)]
pub struct Failover {
    /// Also if the peer does not answer, or lacks messages
    #[arg(long)]
    force: bool,
}

impl Failover {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let client = Client::new(&configuration::socket(shared));
        let outcome = block_on(async { Ok(client.fail_over(self.force).await?) })?;
        if shared.json {
            let reason = outcome.as_ref().err().map(|refused| &refused.reason);
            writeln!(io::stdout(), "{}", serde_json::json!({ "v": 1, "ok": outcome.is_ok(), "reason": reason }))?;
        }
        match outcome {
            Ok(()) => {
                if !shared.json && !shared.quiet {
                    writeln!(io::stdout(), "the peer has taken over; this node is a standby")?;
                }
                Ok(Exit::Done)
            }
            Err(refused) => {
                let exit = if refused.why == Unmoved::Unsafe { Exit::Unsafe } else { Exit::Failed };
                if shared.json { Ok(exit) } else { Err(Failure::new(exit, refused.reason).into()) }
            }
        }
    }
}
