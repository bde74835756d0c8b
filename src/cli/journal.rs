//! `twinlog journal`: the journal's files, read-only, with or without a daemon.

mod cat;
mod directory;
mod ls;
mod place;
mod stat;
mod verify;
mod walk;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::{Exit, Shared};
use crate::proto::envelope::Timestamp;
use crate::proto::syslog::calendar::write_rfc3339;
use directory::Directory;

/// Flags of `journal`.
#[derive(Debug, Args)]
pub struct Journal {
    /// Directory to look into instead of the configuration's data_dir
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: JournalVerb,
}

#[derive(Debug, Subcommand)]
enum JournalVerb {
    /// List the segments
    ///
    /// Each with its positions, size, messages, and when its first and last message were received.
    Ls,
    /// Show totals, and what each output has not delivered
    Stat,
    /// Read everything and report damage
    ///
    /// Checks every checksum and that no message is missing between the oldest and the newest. Bytes at the very end
    /// that are no message yet are noted, not counted: they were never promised to anyone.
    #[command(after_long_help = "Exit status: 0 everything is sound, 1 something is damaged but no message, \
7 messages are lost or damaged.")]
    Verify,
    /// Print messages as JSON lines
    ///
    /// A place is a position (8123), a message's id (agg-a/19aa3f0/8123) or a time (2026-03-10T11:00:00Z): then it is
    /// about when messages were received.
    #[command(after_long_help = "Examples:
  twinlog journal cat --from 2026-03-10T11:00:00Z --to 2026-03-10T11:05:00Z
  twinlog journal cat --follow | jq -r .msg
  twinlog journal cat --output siem      what siem has not got yet
  twinlog journal cat --raw | jq -r .raw_b64 | while read -r m; do echo \"$m\" | base64 -d; echo; done

Exit status: 0 all printed, 7 some messages in between are damaged or missing.")]
    Cat(cat::Cat),
}

impl Journal {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let directory = Directory::open(shared, self.data_dir.as_deref())?;
        match &self.verb {
            JournalVerb::Ls => ls::execute(&directory, shared),
            JournalVerb::Stat => stat::execute(&directory, shared),
            JournalVerb::Verify => verify::execute(&directory, shared),
            JournalVerb::Cat(cat) => cat.execute(directory, shared),
        }
    }
}

fn rfc3339(time: Timestamp) -> String {
    let mut text = Vec::new();
    write_rfc3339(&mut text, time, 9);
    String::from_utf8_lossy(&text).into_owned()
}

/// To the second, for people.
fn to_the_second(time: Timestamp) -> String {
    let mut text = Vec::new();
    write_rfc3339(&mut text, time, 0);
    String::from_utf8_lossy(&text).into_owned()
}
