//! Judges the files of a configuration before anyone needs them: for `check`, for the start and for a reload.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::ServerName;

use super::error::TlsError;
use super::facts::{Facts, date};
use super::files;
use super::{Client, Server};
use crate::config::{Config, Diagnostic, Loaded, OutputKind, Protocol, Severity, Target, TlsClient, TlsIdentity};

/// Seconds before its end in which a certificate should be renewed: 14 days.
const RENEWAL: i64 = 14 * 24 * 3600;

/// What is wrong with the certificates, keys and authorities that a configuration names, each at its place.
///
/// A certificate out of its time is as bad as `out_of_time` says: an error for whoever asks in advance, a warning where
/// the daemon has to go on, because a wrong clock after power loss must not keep UDP closed.
#[must_use]
pub fn check(loaded: &Loaded, now: SystemTime, out_of_time: Severity) -> Vec<Diagnostic> {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let mut checker = Checker { loaded, now, out_of_time, found: Vec::new() };
    let Config { inputs, outputs, .. } = &loaded.config;
    for input in inputs {
        if let Some(tls) = input.tls() {
            checker.server(&format!("input.{}.tls", input.name()), tls);
        }
    }
    for output in outputs {
        let owner = format!("output.{}.tls", output.name);
        match &output.kind {
            OutputKind::Syslog(syslog) => checker.output(&owner, &syslog.to, &syslog.tls),
            OutputKind::Forward(forward) => checker.output(&owner, &forward.to, &forward.tls),
            OutputKind::File(_) | OutputKind::Stdout(_) => {}
        }
    }
    checker.found
}

struct Checker<'a> {
    loaded: &'a Loaded,
    now: i64,
    out_of_time: Severity,
    found: Vec<Diagnostic>,
}

impl Checker<'_> {
    fn note(&mut self, severity: Severity, owner: &str, key: &str, message: String, fix: impl Into<String>) {
        self.found.push(self.loaded.diagnostic(severity, &format!("{owner}.{key}"), message, fix.into()));
    }

    fn refuse(&mut self, owner: &str, error: &TlsError) {
        self.note(Severity::Error, owner, error.key, error.to_string(), error.fix());
    }

    fn server(&mut self, owner: &str, settings: &crate::config::TlsServer) {
        if !self.readable(owner, Some(&settings.identity), settings.ca_file.as_deref()) {
            return;
        }
        match Server::load(settings) {
            Err(error) => self.refuse(owner, &error),
            Ok(_) => {
                self.identity(owner, &settings.identity, true);
                self.authorities(owner, settings.ca_file.as_deref());
            }
        }
    }

    /// Each file by itself, so that one run finds everything.
    fn readable(&mut self, owner: &str, identity: Option<&TlsIdentity>, ca_file: Option<&Path>) -> bool {
        let certificate = identity.and_then(|files| files::certificates("cert_file", &files.cert_file).err());
        let key = identity.and_then(|files| files::private_key(&files.key_file).err());
        let authority = ca_file.and_then(|path| files::roots(path).err());
        let errors: Vec<TlsError> = [certificate, key, authority].into_iter().flatten().collect();
        errors.iter().for_each(|error| self.refuse(owner, error));
        errors.is_empty()
    }

    fn output(&mut self, owner: &str, to: &[Target], tls: &TlsClient) {
        let mut hosts = to.iter().filter(|target| target.protocol == Protocol::Tls).peekable();
        if hosts.peek().is_none() {
            return;
        }
        self.client(owner, tls, hosts.map(|target| target.host.as_str()));
    }

    fn client<'t>(&mut self, owner: &str, settings: &TlsClient, hosts: impl Iterator<Item = &'t str>) {
        if !self.readable(owner, settings.identity.as_ref(), settings.ca_file.as_deref()) {
            return;
        }
        if let Err(error) = Client::load(settings) {
            return self.refuse(owner, &error);
        }
        if let Some(identity) = &settings.identity {
            self.identity(owner, identity, false);
        }
        self.authorities(owner, settings.ca_file.as_deref());
        if let Some(ca_file) = &settings.ca_file {
            match &settings.server_name {
                Some(name) => self.pinned(owner, "server_name", ca_file, name),
                None => hosts.for_each(|host| self.pinned(owner, "ca_file", ca_file, host)),
            }
        }
    }

    /// Our own certificate.
    fn identity(&mut self, owner: &str, identity: &TlsIdentity, is_server: bool) {
        let shown = identity.cert_file.display();
        let Ok(chain) = files::certificates("cert_file", &identity.cert_file) else { return };
        let facts: Result<Vec<Facts>, String> = chain.iter().map(Facts::of).collect();
        let facts = match facts {
            Ok(facts) => facts,
            Err(error) => {
                let message = format!("{shown}: cannot be read as a certificate: {error}");
                return self.note(Severity::Error, owner, "cert_file", message, "write the file anew");
            }
        };
        for facts in &facts {
            self.time(owner, "cert_file", &identity.cert_file, facts);
        }
        if is_server && facts.first().is_some_and(|facts| facts.names.is_empty()) {
            let message = format!("{shown}: names no host, so clients that check names refuse it");
            let fix = "make one with a subjectAltName: the common name does not count (RFC 9525)";
            self.note(Severity::Warning, owner, "cert_file", message, fix);
        }
    }

    /// Whom we trust.
    fn authorities(&mut self, owner: &str, ca_file: Option<&Path>) {
        let Some(path) = ca_file else { return };
        for certificate in files::certificates("ca_file", path).into_iter().flatten() {
            if let Ok(facts) = Facts::of(&certificate) {
                self.time(owner, "ca_file", path, &facts);
            }
        }
    }

    fn time(&mut self, owner: &str, key: &str, path: &Path, facts: &Facts) {
        let who = facts.name().map_or(String::new(), |name| format!(" for {name}"));
        let shown = path.display();
        let (not_before, not_after) = (date(facts.not_before), date(facts.not_after));
        if facts.not_after < self.now {
            let message = format!("{shown}: the certificate{who} expired on {not_after}");
            self.note(self.out_of_time, owner, key, message, "renew it; the file is followed, no reload is needed");
        } else if facts.not_before > self.now {
            let message = format!("{shown}: the certificate{who} counts only from {not_before}");
            self.note(self.out_of_time, owner, key, message, "set the clock, or wait");
        } else if facts.not_after - self.now < RENEWAL {
            let message = format!("{shown}: the certificate{who} expires on {not_after}");
            self.note(Severity::Warning, owner, key, message, "renew it; the file is followed, no reload is needed");
        }
    }

    /// A `ca_file` without an authority is the destination's own certificate: then its names are known here.
    fn pinned(&mut self, owner: &str, key: &str, ca_file: &Path, host: &str) {
        let Ok(certificates) = files::certificates("ca_file", ca_file) else { return };
        let Ok(name) = ServerName::try_from(host) else { return };
        let covers = certificates.iter().any(|certificate| {
            let is_authority = Facts::of(certificate).is_ok_and(|facts| facts.is_authority);
            let parsed = ParsedCertificate::try_from(certificate);
            is_authority || parsed.is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
        });
        if !covers {
            let message =
                format!("{}: no certificate in it is for {host}, and none is an authority", ca_file.display());
            let fix = "set server_name to a name of the destination's certificate";
            self.note(Severity::Error, owner, key, message, fix);
        }
    }
}
