//! Which configuration a verb means: `--config`, else the default file if it is there, else none.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Exit, Failure, Shared};
use crate::config::{self, Config, DEFAULT_FILE, Diagnostic, Identity, Report, Severity};
use crate::control::ReloadRefused;
use crate::tls;

/// What `run` runs with.
#[derive(Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// The main file, to read again; `None` for the receiver that needs none.
    pub file: Option<PathBuf>,
    /// What should be said about it.
    pub warnings: Vec<Diagnostic>,
}

/// The configuration that `run` runs with, its certificates and keys looked at.
///
/// # Errors
/// A [`Failure`] with all diagnostics as its message.
pub fn for_run(shared: &Shared) -> Result<Loaded, Failure> {
    let identity = identity(shared)?;
    let file = file(shared);
    match load(shared, file.as_deref(), identity).and_then(config::Loaded::recognised).and_then(with_tls) {
        Ok(config::Loaded { config, warnings, .. }) => Ok(Loaded { config, file, warnings }),
        Err(diagnostics) => Err(refused(shared, &diagnostics)),
    }
}

/// The configuration anew, for a reload: as [`for_run`], with what a client can show.
///
/// # Errors
/// How many errors, and each of them as `check` shows it.
pub fn reread(shared: &Shared) -> Result<(Config, Vec<String>), ReloadRefused> {
    let shown = |diagnostics: &[Diagnostic]| diagnostics.iter().map(ToString::to_string).collect();
    let loaded = Identity::of_this_machine(shared.node.as_deref())
        .and_then(|identity| load(shared, file(shared).as_deref(), identity))
        .and_then(config::Loaded::recognised);
    match loaded.and_then(with_tls) {
        Ok(loaded) => Ok((loaded.config, shown(&loaded.warnings))),
        Err(diagnostics) => {
            let reason = match diagnostics.iter().filter(|one| one.severity == Severity::Error).count() {
                1 => "1 error in the configuration".to_owned(),
                errors => format!("{errors} errors in the configuration"),
            };
            Err(ReloadRefused { reason, diagnostics: shown(&diagnostics) })
        }
    }
}

/// The file and its drop-ins, or what needs no file; `--socket` is stronger than either.
fn load(shared: &Shared, file: Option<&Path>, identity: Identity) -> Result<config::Loaded, Vec<Diagnostic>> {
    let mut loaded = match file {
        Some(file) => config::load(&config::files_of(file)?, identity)?,
        None => Config::standalone_default(identity.name().clone()).into(),
    };
    if let Some(socket) = &shared.socket {
        loaded.config.control_socket.clone_from(socket);
    }
    Ok(loaded)
}

/// Refuses what TLS cannot use. All of it, with the warnings.
fn with_tls(mut loaded: config::Loaded) -> Result<config::Loaded, Vec<Diagnostic>> {
    let found = tls::check(&loaded, SystemTime::now(), Severity::Warning);
    loaded.warnings.extend(found);
    if loaded.warnings.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Err(loaded.warnings);
    }
    Ok(loaded)
}

/// The configuration as far as it can be read, for verbs that only look: a broken file on the disk must not keep
/// anyone from a daemon that runs, nor a key that this user may not read.
pub(super) fn for_looking(shared: &Shared) -> Option<Config> {
    let loaded = load(shared, file(shared).as_deref(), identity(shared).ok()?);
    loaded.ok().map(|loaded| loaded.config)
}

/// The control socket to talk to. From files with errors too: whoever has just broken one wants to hear it from the
/// daemon that runs.
pub(super) fn socket(shared: &Shared) -> PathBuf {
    let configured = || for_looking(shared).map(|config| config.control_socket);
    let guessed = || {
        let files = config::files_of(&file(shared)?).ok()?;
        files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).find_map(|text| guess_socket(&text))
    };
    let socket = shared.socket.clone().or_else(configured).or_else(guessed);
    socket.unwrap_or_else(|| PathBuf::from("/run/twinlog/control.sock"))
}

/// What stands behind `control_socket =` before the first table.
fn guess_socket(text: &str) -> Option<PathBuf> {
    let mut lines = text.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    lines.find_map(|line| {
        let value = line.strip_prefix("control_socket")?.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|c| "\"'".contains(*c))?;
        value[1..].split(quote).next().map(PathBuf::from)
    })
}

/// The main file; `None` if none was named and the default is not there.
pub(super) fn file(shared: &Shared) -> Option<PathBuf> {
    let is_there = |path: &Path| !path.metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    shared.config.clone().or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| is_there(path)))
}

/// What this machine says of itself.
pub(super) fn identity(shared: &Shared) -> Result<Identity, Failure> {
    Identity::of_this_machine(shared.node.as_deref()).map_err(|diagnostics| refused(shared, &diagnostics))
}

/// A refusal that shows all diagnostics.
pub(super) fn refused(shared: &Shared, diagnostics: &[Diagnostic]) -> Failure {
    let colour = shared.color.on(&io::stderr());
    Failure::new(Exit::Config, Report { diagnostics, colour }.to_string().trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_in_a_broken_file() {
        let text = "nonsense = [\n control_socket = \"/run/a b.sock\" # here\n[admin]\ncontrol_socket = \"/no\"\n";
        assert_eq!(guess_socket(text), Some("/run/a b.sock".into()));
        assert_eq!(guess_socket("[admin]\ncontrol_socket = \"/no\"\n"), None);
        assert_eq!(guess_socket("control_socket = 7\ncontrol_sockets = \"/no\"\n"), None);
    }
}
