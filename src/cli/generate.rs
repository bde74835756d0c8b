//! What is generated from the definitions: completions, manual pages, the version.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use serde_json::json;

use super::{Cli, Exit, Failure};

pub(super) fn completions(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "twinlog", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}

pub(super) fn man(verb: &[String], dir: Option<&Path>) -> anyhow::Result<Exit> {
    let mut command = Cli::command();
    command.build();
    if let Some(dir) = dir {
        clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        return Ok(Exit::Done);
    }
    let mut page = &command;
    for word in verb {
        page = page.get_subcommands().find(|verb| verb.get_name() == word).ok_or_else(|| {
            let verbs: Vec<&str> = page.get_subcommands().map(clap::Command::get_name).collect();
            Failure::new(Exit::Usage, format!("there is no page for {word:?}; there are: {}", verbs.join(", ")))
        })?;
    }
    let name = std::iter::once("twinlog").chain(verb.iter().map(String::as_str)).collect::<Vec<_>>().join("-");
    let page = page.clone().name(name.clone()).bin_name(name.replace('-', " "));
    let mut text = Vec::new();
    Man::new(page).title(name.to_uppercase()).render(&mut text)?;
    io::stdout().write_all(&text)?;
    Ok(Exit::Done)
}

pub(super) fn version(as_json: bool) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("TWINLOG_COMMIT");
    let mut out = io::stdout();
    match (as_json, commit) {
        (true, commit) => writeln!(out, "{}", json!({ "v": 1, "version": version, "commit": commit }))?,
        (false, Some(commit)) => writeln!(out, "twinlog {version} ({commit})")?,
        (false, None) => writeln!(out, "twinlog {version}")?,
    }
    Ok(Exit::Done)
}
