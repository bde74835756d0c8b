//! twinlog's own messages: where they go, in which form, and from which level on.
//!
//! Under systemd they go to journald with their fields (`journalctl TWINLOG_OUTPUT=siem`), else as text or JSON lines to
//! stderr. The level can change with a reload; form and target stay for the life of the process. Of the libraries in use
//! only warnings are shown.

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{Registry, reload};

use crate::config::{Log, LogFormat, LogLevel, LogTarget};

/// What [`apply`] changes.
static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Sets everything up, once in the life of a process.
///
/// # Errors
/// If journald was asked for and does not answer, or if this is the second call.
pub fn init(log: &Log) -> io::Result<()> {
    let (level, handle) = reload::Layer::new(targets(log.level));
    let target = match log.target {
        LogTarget::Journald => Some(journald()?),
        // Whoever says "auto" gets messages in any case.
        LogTarget::Auto if stderr_is_journald() => journald().ok(),
        LogTarget::Auto | LogTarget::Stderr => None,
    };
    let output = target.unwrap_or_else(|| to_stderr(log.format));
    let subscriber = tracing_subscriber::registry().with(output.with_filter(level));
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    LEVEL.set(handle).map_err(|_| io::Error::other("logging is set up already"))
}

/// Puts the level of a new configuration in force. Without [`init`] it does nothing.
pub fn apply(log: &Log) {
    if let Some(handle) = LEVEL.get()
        && let Err(error) = handle.reload(targets(log.level))
    {
        tracing::warn!(%error, "cannot change the log level");
    }
}

type Output = Box<dyn Layer<Registry> + Send + Sync>;

fn journald() -> io::Result<Output> {
    let layer = tracing_journald::layer()?;
    Ok(layer.with_field_prefix(Some("TWINLOG".to_owned())).with_syslog_identifier("twinlog".to_owned()).boxed())
}

fn to_stderr(format: LogFormat) -> Output {
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    match format {
        LogFormat::Text => {
            layer.with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).boxed()
        }
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_target("twinlog", level).with_default(level.min(LevelFilter::WARN))
}

/// Whether systemd connected stderr to journald: it says which file that is (systemd.exec(5), `$JOURNAL_STREAM`). A
/// stderr that was redirected since is another file.
fn stderr_is_journald() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_are_quiet_at_debug_and_no_louder_than_ourselves_at_error() {
        let debug = targets(LogLevel::Debug);
        assert!(debug.would_enable("twinlog::journal", &Level::DEBUG));
        assert!(!debug.would_enable("hyper", &Level::INFO));
        assert!(debug.would_enable("hyper", &Level::WARN));
        assert!(!targets(LogLevel::Error).would_enable("hyper", &Level::WARN));
    }
}
