//! The program: parses its arguments, starts the daemon or executes a verb, and ends with the contract's exit status.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use twinlog::cli::{self, Cli, Exit, Verb};
use twinlog::config::{Pair, read_password};
use twinlog::daemon::RunError;
use twinlog::guardian::Half;
use twinlog::sys::notify::Inherited;
use twinlog::{daemon, guardian, log};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.verb {
        Verb::Run => run(&cli),
        _ => cli::execute(cli),
    };
    let exit = ended.unwrap_or_else(|error| {
        let exit = cli::exit_of(&error);
        let message = format!("{error:#}");
        if exit != Exit::Done && !message.is_empty() {
            // Diagnostics of a configuration begin with their place, so that an editor can jump there.
            let prefix = if exit == Exit::Config { "" } else { "twinlog: " };
            eprintln!("{prefix}{message}");
        }
        exit
    });
    ExitCode::from(exit as u8)
}

/// Before any thread is there: see the guardian.
fn split_off(pair: &Pair, inherited: Inherited) -> anyhow::Result<Half> {
    let password = pair.auth_pass_file.as_deref().map(read_password).transpose();
    let password = password.map_err(|error| RunError::Secrets(vec![error]))?;
    guardian::split_off(pair, password, inherited).context("cannot start the guardian")
}

fn run(cli: &Cli) -> anyhow::Result<Exit> {
    let inherited = Inherited::take();
    let loaded = cli::for_run(&cli.shared)?;
    log::init(&loaded.config.log)?;
    for warning in &loaded.warnings {
        tracing::warn!("{}", warning.to_string().trim_end());
    }
    if loaded.file.is_none() {
        tracing::info!("no configuration file: syslog on 127.0.0.1:5514, messages to stdout, data in ./twinlog-data");
        tracing::info!("try: logger --server 127.0.0.1 --port 5514 --udp hello");
    }
    let (page, inherited) = match &loaded.config.pair {
        None => (None, inherited),
        Some(pair) => match split_off(pair, inherited)? {
            Half::Daemon(page, inherited) => (Some(page), inherited),
            Half::Guardian(status) => std::process::exit(status.into()),
        },
    };
    let reread = || cli::reread(&cli.shared);
    daemon::run(loaded.config, &reread, page, inherited)?;
    Ok(Exit::Done)
}
