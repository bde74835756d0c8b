//! `twinlog check`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::configuration;
use super::live::{self, Verdict};
use super::{Exit, Failure, Shared};
use crate::config::{self, DEFAULT_FILE, Diagnostic, Loaded, Report, Severity, Source};
use crate::tls;

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Main file; `-` reads it from stdin. Default: what `run` would use
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print every value in force, defaults included, as a configuration
    #[arg(long)]
    show_effective: bool,
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
    /// Also look at what is around it, on this host and its network; takes some seconds
    #[arg(long)]
    live: bool,
}

impl Check {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let (file, outcome) = self.read(shared)?;
        let (loaded, diagnostics) = match outcome {
            Ok(loaded) => {
                let mut diagnostics = loaded.warnings.clone();
                if self.file.is_none() {
                    diagnostics.extend(config::check_environment(&loaded));
                    diagnostics.extend(tls::check(&loaded, SystemTime::now(), Severity::Error));
                }
                (Some(loaded), diagnostics)
            }
            Err(diagnostics) => (None, diagnostics),
        };
        let bad = |diagnostic: &Diagnostic| self.strict || diagnostic.severity == Severity::Error;
        let wrong = diagnostics.iter().any(bad);
        // Around a configuration that is wrong there is nothing to look at.
        let looks = match &loaded {
            Some(loaded) if self.live && !wrong => Some(live::look(&loaded.config)?),
            _ => None,
        };
        let unfit = looks.iter().flatten().any(|look| match look.verdict {
            Verdict::Ok => false,
            Verdict::Warning => self.strict,
            Verdict::Error => true,
        });
        let mut out = io::stdout().lock();
        if shared.json {
            let effective = loaded.as_ref().filter(|_| self.show_effective);
            let effective = effective.map(|loaded| config::show_effective(&loaded.config));
            let mut answer =
                json!({ "v": 1, "ok": !wrong && !unfit, "diagnostics": diagnostics, "effective": effective });
            if let Some(looks) = &looks {
                answer["live"] = serde_json::to_value(looks)?;
            }
            writeln!(out, "{answer}")?;
        } else {
            let colour = shared.color.on(&io::stderr());
            eprint!("{}", Report { diagnostics: &diagnostics, colour });
            match &loaded {
                Some(loaded) if self.show_effective => write!(out, "{}", config::show_effective(&loaded.config))?,
                Some(_) if !wrong && !shared.quiet => writeln!(out, "{file}: fine")?,
                _ => {}
            }
            for look in looks.iter().flatten().filter(|look| !shared.quiet || look.verdict != Verdict::Ok) {
                write!(out, "{look}")?;
            }
        }
        if unfit {
            return Ok(Exit::Failed);
        }
        Ok(if wrong { Exit::Config } else { Exit::Done })
    }

    fn read(&self, shared: &Shared) -> anyhow::Result<(String, Result<Loaded, Vec<Diagnostic>>)> {
        let identity = configuration::identity(shared)?;
        if self.file.as_deref() == Some(Path::new("-")) {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
            let text = String::from_utf8(bytes)
                .map_err(|_| Failure::new(Exit::Config, "<stdin>: error: the file is not UTF-8"))?;
            let source = Source { name: "<stdin>".to_owned(), text };
            return Ok((source.name.clone(), config::read(&[source], identity)));
        }
        let Some(file) = self.file.clone().or_else(|| configuration::file(shared)) else {
            let message = format!("there is no configuration at {DEFAULT_FILE}; name a file: twinlog check FILE");
            return Err(Failure::new(Exit::Config, message).into());
        };
        let loaded = config::files_of(&file).and_then(|files| config::load(&files, identity));
        Ok((file.display().to_string(), loaded))
    }
}
