//! A reload: the configuration is read again and applied, or nothing of it.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::JoinHandle;

use super::{Daemon, Reread, RunError, configured_inputs, open_admin, serve_admin};
use crate::config::{self, Config};
use crate::control::{ReloadRefused, ReloadReport};
use crate::log;
use crate::output::Output;
use crate::status::LastReload;
use crate::zones::Zones;

impl Daemon<'_> {
    /// All or nothing: everything that can fail is done before anything changes.
    pub(super) async fn reload(&mut self, reread: &Reread<'_>) -> Result<ReloadReport, ReloadRefused> {
        self.systemd.reloading();
        let outcome = self.try_reload(reread).await;
        self.systemd.ready();
        // A refused configuration may have made counters of inputs that never came to be.
        let config = self.current();
        let named = |name: &str| config.inputs.iter().any(|input| input.name() == name);
        self.observed.metrics.retain(named, |name| config.outputs.iter().any(|output| output.name == name));
        self.last_reload.send_replace(LastReload { successful: outcome.is_ok(), at: SystemTime::now() });
        let (event, cause) = match &outcome {
            Ok(report) if report.changes.is_empty() => ("reloaded", "nothing changed".to_owned()),
            Ok(report) => ("reloaded", report.changes.join(", ")),
            Err(refused) => ("reload_refused", refused.reason.clone()),
        };
        self.record(event, &cause);
        match &outcome {
            Ok(report) if report.changes.is_empty() => tracing::info!("configuration read again: nothing changed"),
            Ok(report) => tracing::info!(changes = report.changes.join(", "), "configuration applied"),
            Err(refused) => {
                tracing::error!("configuration refused, the old one stays: {}", refused.reason);
                for diagnostic in &refused.diagnostics {
                    tracing::error!("{}", diagnostic.trim_end());
                }
            }
        }
        outcome
    }

    async fn try_reload(&mut self, reread: &Reread<'_>) -> Result<ReloadReport, ReloadRefused> {
        let refused = |reason: String| ReloadRefused { reason, diagnostics: Vec::new() };
        let old = self.current();
        let (new, warnings) = reread()?;
        let new = Arc::new(new);
        if let Some(key) = needs_restart(&old, &new) {
            return Err(refused(format!("{key} changes only with a restart: systemctl restart twinlog")));
        }
        let inputs = configured_inputs(&new, &self.observed.metrics);
        let inputs = inputs.map_err(|errors| ReloadRefused {
            reason: "files of secrets cannot be used".to_owned(),
            diagnostics: errors.iter().map(ToString::to_string).collect(),
        })?;
        let opened = self.inputs.bind(&inputs).map_err(|e| refused(RunError::Bind(e).to_string()))?;
        let same_admin = new.admin == old.admin;
        let admin = if same_admin { None } else { Some(open_admin(&new).map_err(|e| refused(e.to_string()))?) };

        let changes = changes(&old, &new);
        self.config.send_replace(new.clone());
        self.apply_inputs(&inputs, opened);
        self.replace_outputs(&old, &new).await;
        if let Some(listeners) = admin {
            self.admin.iter().for_each(JoinHandle::abort);
            self.admin = serve_admin(listeners, &self.observed);
        }
        if new.log != old.log {
            log::apply(&new.log);
        }
        Ok(ReloadReport { changes, warnings })
    }

    async fn replace_outputs(&mut self, old: &Config, new: &Config) {
        // What a timestamp without a zone means is part of every output's format.
        let same_zones = Zones::of(old) == Zones::of(new);
        let stays = |output: &Output| same_zones && new.outputs.contains(output.settings());
        let leaving: Vec<String> =
            self.outputs.iter().filter(|(_, output)| !stays(output)).map(|(name, _)| name.clone()).collect();
        let leaving: Vec<(String, Output)> =
            leaving.into_iter().filter_map(|name| self.outputs.remove_entry(&name)).collect();
        for (_, output) in &leaving {
            output.stop();
        }
        for (name, mut output) in leaving {
            output.join(&[]).await;
            if !new.outputs.iter().any(|output| output.name == name) {
                self.observed.journal.retire_cursor(&name);
            }
        }
        self.start_outputs();
    }
}

/// A changed setting that the running process cannot follow.
fn needs_restart(old: &Config, new: &Config) -> Option<&'static str> {
    let keys = [
        ("the node's name", old.node != new.node),
        ("[pair]", old.pair != new.pair),
        ("data_dir", old.data_dir != new.data_dir),
        ("control_socket", old.control_socket != new.control_socket),
        ("[journal]", old.journal != new.journal),
        ("[drain]", old.drain != new.drain),
        ("log.format or log.target", (old.log.format, old.log.target) != (new.log.format, new.log.target)),
    ];
    keys.into_iter().find(|(_, changed)| *changed).map(|(key, _)| key)
}

/// What a reload changes, a line each: `+` new, `-` gone, `~` different.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    diff(&mut changes, "input", &old.inputs, &new.inputs, config::Input::name);
    diff(&mut changes, "output", &old.outputs, &new.outputs, |output| &output.name);
    if old.admin != new.admin {
        changes.push("~ admin".into());
    }
    if old.log != new.log {
        changes.push("~ log".into());
    }
    changes
}

fn diff<T: PartialEq>(changes: &mut Vec<String>, kind: &str, old: &[T], new: &[T], name: impl Fn(&T) -> &str) {
    for one in new {
        match old.iter().find(|other| name(other) == name(one)) {
            None => changes.push(format!("+ {kind} {}", name(one))),
            Some(other) if other != one => changes.push(format!("~ {kind} {}", name(one))),
            Some(_) => {}
        }
    }
    for one in old.iter().filter(|one| !new.iter().any(|other| name(other) == name(one))) {
        changes.push(format!("- {kind} {}", name(one)));
    }
}
