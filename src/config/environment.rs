//! What only the machine can tell: the directories, their owner, files of secrets, and the host's name.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Uid, faccessat, gethostname};

use super::diagnostic::{Diagnostic, Severity};
use super::{
    Input, Loaded, OutputKind, SecretError, UnsafeCommand, check_command, read_key, read_pair_key, read_password,
    read_users,
};
use crate::proto::position::NodeName;

/// The name of this node: what was given (`--node`, `TWINLOG_NODE`), else the host name.
///
/// # Errors
/// If that is no node name; the fix says how to give one.
pub fn node_name(given: Option<&str>) -> Result<NodeName, Vec<Diagnostic>> {
    let host = || gethostname().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let (name, fix) = match given {
        Some(name) => (name.to_owned(), "give --node or TWINLOG_NODE a name such as agg-a"),
        None => (host(), "the host name is none: give --node or TWINLOG_NODE"),
    };
    name.parse().map_err(|error| vec![Diagnostic::of_file(Severity::Error, "", format!("{error}"), fix)])
}

/// Looks at the disk with the rights of this process: whether `data_dir` can be used, whether the directories of output
/// files are there, whether secrets can be read, by nobody else, and whether hooks are safe to run. Changes nothing.
#[must_use]
pub fn check_environment(loaded: &Loaded) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> = loaded.unrecognised.iter().cloned().collect();
    let data_dir = &loaded.config.data_dir;
    let mut note =
        |key: &str, (severity, message, fix): Finding| found.push(loaded.diagnostic(severity, key, message, fix));
    if let Some(finding) = data_directory(data_dir) {
        note("data_dir", finding);
    }
    if let Some(pair) = &loaded.config.pair {
        if let Some(SecretError { what, fix }) = pair.auth_pass_file.as_deref().and_then(|f| read_password(f).err()) {
            note("pair.auth_pass_file", (Severity::Error, what, fix));
        }
        if let Err(SecretError { what, fix }) = read_pair_key(&pair.key_file) {
            note("pair.key_file", (Severity::Error, what, fix));
        }
    }
    for input in &loaded.config.inputs {
        let Input::Forward(forward) = input else { continue };
        for (key, error) in [
            ("shared_key_file", forward.shared_key_file.as_deref().and_then(|file| read_key(file).err())),
            ("users_file", forward.users_file.as_deref().and_then(|file| read_users(file).err())),
        ] {
            if let Some(SecretError { what, fix }) = error {
                note(&format!("input.{}.{key}", forward.name), (Severity::Error, what, fix));
            }
        }
    }
    for output in &loaded.config.outputs {
        if let OutputKind::File(file) = &output.kind
            && let Some(finding) = output_directory(file.path.fixed_directory())
        {
            note(&format!("output.{}.path", output.name), finding);
        }
        if let OutputKind::Forward(forward) = &output.kind
            && let Some(login) = &forward.login
        {
            let password_file = login.user.as_ref().map(|(_, file)| file);
            for (key, file) in [("shared_key_file", Some(&login.shared_key_file)), ("password_file", password_file)] {
                if let Some(SecretError { what, fix }) = file.and_then(|file| read_key(file).err()) {
                    note(&format!("output.{}.{key}", output.name), (Severity::Error, what, fix));
                }
            }
        }
    }
    for (number, hook) in loaded.config.hooks.iter().enumerate() {
        if let Err(UnsafeCommand { what, fix }) = check_command(hook.program()) {
            note(&format!("hook.{number}.command"), (Severity::Error, what, fix));
        }
    }
    found
}

type Finding = (Severity, String, String);

fn data_directory(path: &Path) -> Option<Finding> {
    let shown = path.display();
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.ancestors().skip(1).find(|parent| or_here(parent).exists())?;
            let message = format!("{shown} is not there and this user cannot make it in {}", or_here(parent).display());
            let fix = format!("install -d -o twinlog -g twinlog -m 0750 {shown}");
            return (!may_write(or_here(parent))).then_some((Severity::Error, message, fix));
        }
        Err(error) => {
            let message = format!("cannot look at {shown}: {error}");
            return Some((Severity::Error, message, format!("let this user reach {shown}")));
        }
    };
    if !metadata.is_dir() {
        return Some((Severity::Error, format!("{shown} is no directory"), "name a directory".to_owned()));
    }
    let (owner, user) = (Uid::from_raw(metadata.uid()), Uid::effective());
    if !may_write(path) {
        let message = format!("user {user} cannot write to {shown}, which belongs to user {owner}");
        return Some((Severity::Error, message, format!("run as its owner, or: chown -R {user} {shown}")));
    }
    if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0 {
        let message = format!("others may write to {shown} (mode {:04o})", metadata.mode() & 0o7777);
        return Some((Severity::Warning, message, format!("chmod 0750 {shown}")));
    }
    // Root may write anywhere, and is who runs `check`; files made by another user are what goes wrong later.
    if owner != user && !user.is_root() {
        let message = format!("{shown} belongs to user {owner}, this is user {user}");
        return Some((Severity::Warning, message, format!("run as its owner, or: chown -R {user} {shown}")));
    }
    None
}

fn output_directory(path: &Path) -> Option<Finding> {
    let path = or_here(path);
    let shown = path.display();
    if !path.is_dir() {
        let fix = format!("install -d -o twinlog -g twinlog -m 0750 {shown}");
        return Some((Severity::Error, format!("the directory {shown} is not there"), fix));
    }
    let fix = format!("let this user write to {shown}");
    (!may_write(path)).then(|| (Severity::Error, format!("this user cannot write to {shown}"), fix))
}

/// The empty path is the working directory.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn may_write(path: &Path) -> bool {
    faccessat(AT_FDCWD, path, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}
