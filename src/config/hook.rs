//! `[[hook]]`: which command runs when, and whether it is safe to run it.

use std::fmt::Display;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::choice::{Choice, HookEvent, HookStyle};
use super::reader::{Findings, Table, Value};
use super::sections::{HOUR, SECOND, Spots, require};
use super::units::Invalid;

/// `[[hook]]`: a command that is run when something happened. Never waited for by anything but the next hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it is run for, at least one. Required.
    pub on: Vec<HookEvent>,
    /// Program, as an absolute path, and its arguments. No shell sees it. Required.
    pub command: Vec<String>,
    /// It and all it has started are killed after that long, 100 ms to 1 h. Default 10 s.
    pub timeout: Duration,
    /// How it is told what happened. Default [`HookStyle::Json`].
    pub style: HookStyle,
    /// The name that a command of [`HookStyle::Keepalived`] hears, as that of a `vrrp_instance`. Default `twinlog`.
    pub instance: String,
}

impl Hook {
    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        Path::new(self.command.first().map_or("", String::as_str))
    }
}

/// Why a command is not run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{what}: {fix}")]
pub struct UnsafeCommand {
    /// What is wrong; names the file.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// Reads one table; `number` is its place among the hooks.
pub(super) fn hook(findings: &Findings<'_>, table: Table<'_>, number: usize, spots: &mut Spots) -> Hook {
    let mut hook = Hook {
        on: Vec::new(),
        command: Vec::new(),
        timeout: 10 * SECOND,
        style: HookStyle::Json,
        instance: "twinlog".to_owned(),
    };
    table.set("style", &mut hook.style, Value::choice);
    table.set("on", &mut hook.on, |value| value.list(|item| event(item, hook.style)));
    require(findings, &table, "on", "on = [\"active\", \"standby\", \"fault\"]");
    table.set("command", &mut hook.command, |value| {
        let command = value.list(Value::text)?;
        if let Some(program) = value.items().first() {
            program.parse(absolute);
        }
        Some(command)
    });
    require(findings, &table, "command", "command = [\"/etc/twinlog/hooks/notify.sh\"]");
    spots.keep(format!("hook.{number}.command"), &table, "command");
    table.set("timeout", &mut hook.timeout, |value| value.duration(Duration::from_millis(100)..=HOUR));
    table.set("instance", &mut hook.instance, |value| {
        if hook.style != HookStyle::Keepalived {
            value.warning("has no effect without style = \"keepalived\"", "remove it");
        }
        value.parse(instance_name)
    });
    table.finish();
    hook
}

fn event(item: &Value<'_>, style: HookStyle) -> Option<HookEvent> {
    let event: HookEvent = item.choice()?;
    if style == HookStyle::Keepalived && event.keepalived_state().is_none() {
        let what = format!("has \"{}\", for which keepalived has no word", event.word());
        item.error(what, "remove it, or give it a [[hook]] with style = \"json\"");
        return None;
    }
    Some(event)
}

fn absolute(text: &str) -> Result<(), Invalid> {
    if Path::new(text).is_absolute() && !text.contains('\0') {
        return Ok(());
    }
    let fix = if text.contains(char::is_whitespace) {
        "write the program and each argument as a text of its own: [\"/path/program\", \"argument\"]"
    } else {
        "write its whole path: no shell looks for it"
    };
    Err(Invalid::new("must begin with the program's absolute path", fix))
}

fn instance_name(text: &str) -> Result<String, Invalid> {
    if text.is_empty() || text.len() > 255 || text.contains('\0') {
        return Err(Invalid::new("has 1 to 255 bytes", "write the name of the vrrp_instance, such as \"VI_1\""));
    }
    Ok(text.to_owned())
}

/// Looks at a hook's program on the disk: a file that can be executed, and that nobody but its owner's group can
/// exchange, neither itself nor a directory above it.
///
/// # Errors
/// What is wrong, and what to do.
pub fn check_command(program: &Path) -> Result<(), UnsafeCommand> {
    let shown = program.display();
    let refuse = |what: String, fix: String| Err(UnsafeCommand { what, fix });
    let metadata = match program.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse(format!("the command {shown} is not there"), "install it, or remove the hook".to_owned());
        }
        Err(error) => {
            return refuse(format!("cannot look at {shown}: {error}"), format!("let this user reach {shown}"));
        }
    };
    if !metadata.is_file() {
        return refuse(format!("the command {shown} is no file"), "name a program".to_owned());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return refuse(format!("the command {shown} is not executable"), format!("chmod 0755 {shown}"));
    }
    if metadata.mode() & 0o002 != 0 {
        return refuse(others_may_write(&shown, &metadata), format!("chmod o-w {shown}"));
    }
    // Of the file that a link stands for, too: whoever can exchange either decides what runs.
    let real = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    for directory in program.ancestors().skip(1).chain(real.ancestors().skip(1)) {
        // In a sticky directory only the owner exchanges a file.
        let open = directory.metadata().ok().filter(|metadata| metadata.mode() & 0o1002 == 0o002);
        if let Some(metadata) = open {
            let shown = directory.display();
            return refuse(others_may_write(&shown, &metadata), format!("chmod o-w {shown}"));
        }
    }
    Ok(())
}

fn others_may_write(shown: impl Display, metadata: &Metadata) -> String {
    format!("others may write to {shown} (mode {:04o})", metadata.mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_command_that_others_can_exchange_is_refused() {
        let directory = tempfile::TempDir::new().unwrap();
        let program = directory.path().join("notify.sh");
        let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        assert!(check_command(&program).unwrap_err().what.ends_with("is not there"));
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        set(&program, 0o644);
        assert!(check_command(&program).unwrap_err().what.ends_with("is not executable"));
        set(&program, 0o757);
        assert!(check_command(&program).unwrap_err().what.ends_with("(mode 0757)"));
        set(&program, 0o755);
        assert_eq!(check_command(&program), Ok(()));
        set(directory.path(), 0o777);
        assert!(check_command(&program).unwrap_err().fix.starts_with("chmod o-w"));
        set(directory.path(), 0o1777);
        assert_eq!(check_command(&program), Ok(()), "only its owner takes a file out of a sticky directory");
        assert!(check_command(directory.path()).unwrap_err().what.ends_with("is no file"));
    }
}
