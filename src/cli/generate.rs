//! What is generated from the definitions: completions, manual pages, the version.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use serde_json::json;

use super::{Cli, Exit, Failure};

/// Section of the manual: system administration.
const SECTION: &str = "8";

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
        write_pages(&command, "twinlog", dir)?;
        return Ok(Exit::Done);
    }
    let (mut page, mut name) = (&command, "twinlog".to_owned());
    for word in verb {
        page = page.get_subcommands().find(|verb| verb.get_name() == word).ok_or_else(|| {
            let verbs: Vec<&str> = page.get_subcommands().map(clap::Command::get_name).collect();
            Failure::new(Exit::Usage, format!("there is no page for {word:?}; there are: {}", verbs.join(", ")))
        })?;
        name = format!("{name}-{word}");
    }
    io::stdout().write_all(&page_of(page, &name)?)?;
    Ok(Exit::Done)
}

/// The page of a verb and those of the verbs below it.
fn write_pages(command: &Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(format!("{name}.{SECTION}"));
    std::fs::write(&path, page_of(command, name)?).with_context(|| format!("cannot write {}", path.display()))?;
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        write_pages(verb, &format!("{name}-{}", verb.get_name()), dir)?;
    }
    Ok(())
}

fn page_of(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    // The name heads the page and names its file; the synopsis shows it as one types it.
    let command = command.clone().name(name.to_owned()).bin_name(name.replace('-', " "));
    let man = Man::new(command).title(name.to_uppercase()).section(SECTION);
    let mut text = Vec::new();
    man.source(concat!("twinlog ", env!("CARGO_PKG_VERSION"))).manual("twinlog").render(&mut text)?;
    Ok(text)
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
