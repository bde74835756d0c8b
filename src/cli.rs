//! The command line: the verbs, their flags and their help.
//!
//! Help texts, completions and manual pages all come from the definitions here. What a verb does is in the file of its
//! name below `cli/`; `run` alone is started by `main.rs`, because only that may know the daemon.
//!
//! Answers go to stdout and everything else to stderr. A reader of stdout that has seen enough ends us quietly.

mod adverts;
mod check;
mod configuration;
mod demo;
mod drain;
mod events;
mod failover;
mod generate;
mod init;
mod journal;
mod live;
mod receipts;
mod reload;
mod restart;
mod status;
mod tail;
mod until;
mod vip;

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use thiserror::Error;

pub use configuration::{Loaded, for_run, reread};

use crate::control::client::ClientError;
use crate::daemon::RunError;
use crate::journal::OpenError;

const EXIT_CODES: &str = "Exit status:
  0   done, or healthy
  1   failed; the reason is on stderr
  2   wrong usage
  3   the daemon is not running or cannot be reached
  4   degraded (status --check)
  5   refused because it is not safe; the message names what overrides it
  6   a deadline passed; the work goes on
  7   messages are lost or damaged (journal verify, journal cat)
  78  the configuration is wrong";

const ABOUT: &str = "Takes in syslog and fluent-forward, keeps it in a journal on disk, of a pair on both, and forwards it. \
Nothing that was taken in is lost: a message leaves the journal when every output has delivered it.";

const EXAMPLES: &str = "Examples:
  twinlog run                        try it: syslog on 127.0.0.1:5514, messages to stdout
  twinlog demo                       see a pair at work (root)
  twinlog init                       set up a pair
  twinlog check && systemctl reload twinlog
  twinlog status                     what comes in, what goes out, what waits
  twinlog tail                       watch messages
  twinlog journal cat --from 2026-03-10T11:00:00Z --to 2026-03-10T11:05:00Z

";

/// `twinlog`.
#[derive(Debug, Parser)]
#[command(
    name = "twinlog",
    version,
    about = "Takes syslog in, keeps it in a journal, forwards it",
    long_about = ABOUT,
    after_help = "`twinlog help VERB` says more about a verb.",
    after_long_help = format!("{EXAMPLES}{EXIT_CODES}"),
    propagate_version = false,
    disable_help_subcommand = false,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs"
)]
pub struct Cli {
    /// Flags that most verbs know.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags that most verbs know.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Shared options")]
pub struct Shared {
    /// Configuration, with drop-ins in conf.d beside it [default: /etc/twinlog/twinlog.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Control socket of the daemon to talk to [default: what the configuration says]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Answer as JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colours; NO_COLOR and CLICOLOR_FORCE are honoured
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub color: Color,
    /// Say only what was asked for
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Name of this node, a part of every message's id [default: in a pair the node whose address this machine has,
    /// else the host name]
    #[arg(long, global = true, value_name = "NAME", env = "TWINLOG_NODE", hide_env_values = true)]
    pub node: Option<String>,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether to colour what goes to `stream`.
    fn on(self, stream: &impl IsTerminal) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => set("CLICOLOR_FORCE") || (stream.is_terminal() && !set("NO_COLOR")),
        }
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the daemon in the foreground
    ///
    /// Without --config and without a configuration file it is a standalone receiver to try things with: syslog over
    /// UDP and TCP on 127.0.0.1:5514, journal and control socket in ./twinlog-data, messages to stdout. That needs no
    /// file and no root.
    ///
    /// With a pair it is two processes: the daemon, and its parent, a guardian that takes the shared addresses off the
    /// link when the daemon dies or stands still.
    ///
    /// SIGTERM and SIGINT stop it in order: the shared addresses are handed over, what was taken in is made safe, the
    /// outputs deliver what they can within drain.stop_deadline, and what is left stays in the journal for the next start.
    /// A second one stops it at once. SIGHUP reads the configuration again, like `twinlog reload`.
    #[command(after_long_help = "Examples:
  twinlog run
  logger --server 127.0.0.1 --port 5514 --udp hello
  twinlog run --config /etc/twinlog/twinlog.toml

Exit status: 0 stopped in order, 1 failed, 78 the configuration or the journal is of no use to this program.")]
    Run,
    /// Watch a pair at work: two nodes and a device in networks of their own on this machine
    ///
    /// Real messages go to the shared address while it is handed over, and while a node crashes; at the end stands how many
    /// were sent, delivered, lost and repeated. Takes some fifteen seconds, needs root, and leaves nothing behind.
    #[command(after_long_help = "Exit status: 0 nothing was lost before the crash, 1 it could not be played, \
7 the planned move lost messages.")]
    Demo(demo::Demo),
    /// Set up a pair: write its configuration and key
    ///
    /// Asks on a terminal what the flags do not say, and proposes what the machine knows: the interface of the default
    /// route, its address, an election that nobody uses. What it writes is what `check` accepts. A configuration that is
    /// there is not touched without --force; a pair's key that is there is always kept.
    #[command(after_long_help = "Examples:
  twinlog init
  twinlog init --yes --vip 192.0.2.10/24 --interface eth0 --node agg-a=192.0.2.11 --node agg-b=192.0.2.12 \\
      --output tcp://siem.example.net:514
  twinlog init --from-keepalived /etc/keepalived/keepalived.conf --node agg-a=192.0.2.11 --node agg-b=192.0.2.12 \\
      --output tcp://siem.example.net:514

Exit status: 0 written, or as it should be; 1 failed; 2 something is missing; 5 another configuration is there; 78 what \
was said makes no configuration. Nothing is written then.")]
    Init(init::Init),
    /// Check a configuration, without a daemon
    ///
    /// Shows all errors and warnings, each with its place and one fix. Without FILE, what `run` would use is checked,
    /// and whether this machine has the directories for it, with the rights of the user who asks. With --live also what
    /// is around it: the interface and the own address, ports, rights, the disk, the clock, destinations, the peer, and
    /// for 3.5 seconds who else advertises on the network.
    #[command(after_long_help = "Examples:
  twinlog check
  twinlog check new.toml && install -m 0640 new.toml /etc/twinlog/twinlog.toml
  twinlog check --live                   before the first start, as root
  twinlog check --show-effective         every value in force, defaults included
  ssh agg-a cat /etc/twinlog/twinlog.toml | twinlog check -

Exit status: 0 no errors, 78 errors in the configuration, 1 errors around it (with --strict also for warnings).")]
    Check(check::Check),
    /// Show how the node is: what comes in, what goes out, what waits
    ///
    /// The last line says whether everything received was delivered. Rows that need someone to look begin with `!`.
    #[command(after_long_help = "Examples:
  twinlog status
  twinlog status --watch                 again every 2 seconds
  twinlog status --json | jq '.nodes[0].outputs'
  twinlog status --check                 for monitoring: one line, exit status 0 or 4

Degraded means: a fault, an output that is not connected and has messages to send, a journal that takes nothing, or \
datagrams that the kernel drops right now.

Exit status: 0 shown, or healthy; 3 the daemon cannot be reached; 4 degraded (only with --check).")]
    Status(status::Status),
    /// Watch messages as they come in
    ///
    /// A sample: at most --limit messages a second are shown, and the number of the others is told on stderr. It never
    /// slows the receiving or the forwarding. Runs until interrupted.
    #[command(after_long_help = "Examples:
  twinlog tail
  twinlog tail --input net --limit 10
  twinlog tail --json | jq -r 'select(.severity <= 3) | .msg'

Every message, not a sample: twinlog journal cat --follow

Exit status: 0 interrupted or its reader has gone, 3 the daemon cannot be reached.")]
    Tail(tail::Tail),
    /// Look into the journal on disk, with or without a daemon
    ///
    /// Reads only. The journal of the configuration is used, or that of --data-dir. Positions are bytes in the
    /// journal's endless stream; a message's id is NODE/INCARNATION/POSITION.
    Journal(journal::Journal),
    /// Have the daemon read its configuration again
    ///
    /// All or nothing: if anything is wrong, the daemon goes on as before and says what. The same as SIGHUP and
    /// `systemctl reload twinlog`, but it waits and tells the outcome.
    #[command(after_long_help = "Exit status: 0 applied, 1 refused because a change needs a restart, \
3 the daemon cannot be reached, 78 the configuration is wrong.")]
    Reload,
    /// Hand the shared addresses over to the peer
    ///
    /// This node stays in service as standby. The addresses are released only when the peer has taken them.
    #[command(
        after_long_help = "Exit status: 0 the peer has taken over, 1 this node is not active or nobody took over, \
3 the daemon cannot be reached, 5 the peer does not answer or lacks messages (--force asks it all the same)."
    )]
    Failover(failover::Failover),
    /// Hand this node over and empty it, with a receipt
    ///
    /// The peer takes the live TCP connections, the addresses and the deliveries; what is on its way to this node is
    /// received, and what its journal holds reaches the peer and the destinations. Interrupting this command does not
    /// cancel the drain.
    ///
    /// With --restart the service is restarted when the receipt is clean, by systemctl, and the command waits until the
    /// node is back: a standby, in sync with its peer. That applies an upgrade, of the standby first and then of the
    /// active node. It needs root and a daemon that systemd's twinlog.service runs; both are looked at before anything is
    /// handed over, and so is the configuration, as the installed program reads it. A node that is drained already is
    /// restarted at once. Interrupted before that, the command restarts nothing.
    #[command(after_long_help = "Examples:
  twinlog drain --restart                after an upgrade, on the standby and then on the active node
  twinlog drain --until handover
  twinlog drain && reboot

Exit status: 0 nothing is lost and, with --restart, the node is back; 1 the peer did not take over, or the service cannot \
be restarted; 3 the daemon cannot be reached; 5 refused because the peer cannot take over (--force drains all the same); \
6 the deadline passed, and messages are on this node only or the node is not in sync again; 7 the receipt shows a loss; 78 the \
installed program refuses the configuration.")]
    Drain(drain::Drain),
    /// End or cancel the drained state: this node serves again, as a standby
    #[command(after_long_help = "Exit status: 0 done, 1 this node is not drained, 3 the daemon cannot be reached.")]
    Undrain,
    /// Wait until this node is in sync, drained, standby or active
    #[command(
        after_long_help = "Exit status: 0 it is, 3 the daemon cannot be reached, 6 it was not in the given time."
    )]
    Await(until::Await),
    /// Show what drains came to
    Receipts(receipts::Receipts),
    /// Show what changed about this node, and why
    ///
    /// Role changes, faults and hand-overs, the oldest first; with --json one object a line. Needs no daemon.
    Events(events::Events),
    /// Look after the shared addresses on this machine
    #[command(subcommand)]
    Vip(vip::Vip),
    /// Print completions for a shell
    #[command(after_long_help = "Examples:
  twinlog completions bash > /usr/share/bash-completion/completions/twinlog
  twinlog completions zsh > /usr/share/zsh/vendor-completions/_twinlog
  source <(twinlog completions bash)")]
    Completions {
        /// bash, elvish, fish, powershell or zsh
        #[arg(value_name = "SHELL", hide_possible_values = true)]
        shell: clap_complete::Shell,
    },
    /// Print a manual page
    #[command(after_long_help = "Examples:
  twinlog man | man -l -
  twinlog man journal cat | man -l -
  twinlog man --dir /usr/share/man/man8")]
    Man {
        /// The verb; without it the page of twinlog itself
        #[arg(value_name = "VERB", num_args = 0..)]
        verb: Vec<String>,
        /// Write all pages to this directory instead
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "verb")]
        dir: Option<PathBuf>,
    },
    /// Print the version
    Version,
}

/// How a verb ended: the process's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or healthy.
    Done = 0,
    /// Failed for a stated reason.
    Failed = 1,
    /// Wrong usage; clap's own.
    Usage = 2,
    /// The daemon is not running or cannot be reached.
    Unreachable = 3,
    /// `status --check` found something.
    Degraded = 4,
    /// Refused because it is not safe; the message names what overrides it.
    Unsafe = 5,
    /// A deadline passed; the work goes on, or rests where it is.
    Deadline = 6,
    /// Messages are lost or damaged.
    Loss = 7,
    /// The configuration is wrong; systemd stops trying (`RestartPreventExitStatus=`).
    Config = 78,
}

/// A failure with an exit status of its own. The message may be empty when everything was said already.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// What went wrong.
    pub message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }
}

/// Executes a verb other than `run`.
///
/// # Errors
/// With what [`exit_of`] tells apart.
///
/// # Panics
/// For `run`, which is `main.rs`'s.
pub fn execute(cli: Cli) -> anyhow::Result<Exit> {
    let shared = &cli.shared;
    match cli.verb {
        Verb::Run => unreachable!("main.rs starts the daemon"),
        Verb::Demo(demo) => demo.execute(shared),
        Verb::Init(init) => init.execute(shared),
        Verb::Check(check) => check.execute(shared),
        Verb::Status(status) => status.execute(shared),
        Verb::Tail(tail) => tail.execute(shared),
        Verb::Journal(journal) => journal.execute(shared),
        Verb::Reload => reload::execute(shared),
        Verb::Failover(failover) => failover.execute(shared),
        Verb::Drain(drain) => drain.execute(shared),
        Verb::Undrain => drain::undrain(shared),
        Verb::Await(until) => until.execute(shared),
        Verb::Receipts(receipts) => receipts.execute(shared),
        Verb::Events(events) => events.execute(shared),
        Verb::Vip(vip) => vip.execute(shared),
        Verb::Completions { shell } => generate::completions(shell),
        Verb::Man { verb, dir } => generate::man(&verb, dir.as_deref()),
        Verb::Version => generate::version(shared.json),
    }
}

/// The exit status of a failure.
#[must_use]
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let pipe = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(pipe)) {
        return Exit::Done;
    }
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.exit;
    }
    if let Some(ClientError::Unreachable(_)) = error.downcast_ref() {
        return Exit::Unreachable;
    }
    if let Some(RunError::Secrets(_)) = error.downcast_ref() {
        return Exit::Config;
    }
    let opened = match error.downcast_ref() {
        Some(RunError::Journal(opened)) => Some(opened),
        Some(RunError::Mirror(mirror)) => Some(&mirror.cause),
        _ => error.downcast_ref(),
    };
    match opened {
        Some(OpenError::Newer { .. } | OpenError::Foreign { .. } | OpenError::Mixed { .. }) => Exit::Config,
        _ => Exit::Failed,
    }
}

/// A duration on the command line, as configuration files write it.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::read_duration(text).map_err(|invalid| format!("it {}; {}", invalid.what, invalid.fix))
}

/// A small runtime for verbs that talk to the daemon.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot write");
        assert_eq!(exit_of(&error), Exit::Done);
        assert_eq!(exit_of(&Failure::new(Exit::Loss, "gone").into()), Exit::Loss);
        assert_eq!(exit_of(&ClientError::Unreachable("no".into()).into()), Exit::Unreachable);
    }
}
