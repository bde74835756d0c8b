//! `tls = { … }`: whose certificate is shown, and whose is believed. The same on every input and output that has TLS.
//!
//! Only paths and words are read here; what is in the files is looked at by [`crate::tls`].

use std::path::PathBuf;

use rustls_pki_types::ServerName;

use super::choice::ClientAuth;
use super::diagnostic::Severity;
use super::reader::{Findings, Table, Value};
use super::sections::{Spots, path, require};
use super::units::Invalid;
use super::{Listen, Protocol, SyslogOutput};

/// A certificate and its key, PEM. Relative paths start in the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsIdentity {
    /// The certificate, then those between it and the root.
    pub cert_file: PathBuf,
    /// Its private key, which nobody else may read.
    pub key_file: PathBuf,
}

/// `tls` of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsServer {
    /// `cert_file`, `key_file`: who we are. Required.
    pub identity: TlsIdentity,
    /// Whose signature makes a client's certificate good. Required if clients are asked for one. Default `None`.
    pub ca_file: Option<PathBuf>,
    /// Whether clients show a certificate. Default: [`ClientAuth::Required`] with a `ca_file`, else [`ClientAuth::Off`].
    pub client_auth: ClientAuth,
}

/// `tls` of an output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsClient {
    /// Whose signature makes the destination's certificate good. Default `None`: the roots that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// `cert_file`, `key_file`: what is shown if the destination asks. Default `None`: nothing.
    pub identity: Option<TlsIdentity>,
    /// The name that the destination's certificate must be for, and that is asked for. Default `None`: the host in
    /// the target.
    pub server_name: Option<String>,
}

/// The `tls` of an input, if it has one; `owner` is `input.NAME`.
pub(super) fn server(findings: &Findings<'_>, owner: &Table<'_>, name: &str, spots: &mut Spots) -> Option<TlsServer> {
    if !owner.has("tls") {
        return None;
    }
    let table = owner.table("tls");
    keep(spots, &table, name);
    require(findings, &table, "cert_file", "cert_file = \"/etc/twinlog/tls/server.crt\"");
    require(findings, &table, "key_file", "key_file = \"/etc/twinlog/tls/server.key\"");
    let ca_file = table.get("ca_file").and_then(|value| path(&value));
    let mut client_auth = if ca_file.is_some() { ClientAuth::Required } else { ClientAuth::Off };
    table.set("client_auth", &mut client_auth, |value| {
        let asked: ClientAuth = value.choice()?;
        match (asked, table.has("ca_file")) {
            (ClientAuth::Off, true) => value.warning("is \"off\", so `ca_file` has no effect", "remove one of them"),
            (ClientAuth::Optional | ClientAuth::Required, false) => {
                value.error("needs to know whose certificates are good", "add ca_file = \"/etc/twinlog/tls/ca.crt\"");
            }
            _ => {}
        }
        Some(asked)
    });
    let identity = identity(&table);
    table.finish();
    Some(TlsServer { identity: identity?, ca_file, client_auth })
}

/// The `tls` of an output, or its default; `owner` is `output.NAME`.
pub(super) fn client(findings: &Findings<'_>, owner: &Table<'_>, name: &str, spots: &mut Spots) -> TlsClient {
    let table = owner.table("tls");
    keep(spots, &table, name);
    let mut client = TlsClient { ca_file: table.get("ca_file").and_then(|value| path(&value)), ..TlsClient::default() };
    client.identity = identity(&table);
    for (there, missing) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if let Some(spot) = table.spot_of(there).filter(|_| !table.has(missing)) {
            let message = format!("`{there}` is of no use without `{missing}`");
            findings.note(Severity::Error, &spot, message, format!("add {missing}, or remove {there}"));
        }
    }
    table.set("server_name", &mut client.server_name, |value| value.parse(server_name).map(Some));
    table.finish();
    client
}

/// Both files or nothing.
fn identity(table: &Table<'_>) -> Option<TlsIdentity> {
    let [cert_file, key_file] = ["cert_file", "key_file"].map(|key| table.get(key).and_then(|value| path(&value)));
    Some(TlsIdentity { cert_file: cert_file?, key_file: key_file? })
}

fn keep(spots: &mut Spots, table: &Table<'_>, owner: &str) {
    for key in ["cert_file", "key_file", "ca_file", "server_name"] {
        spots.keep(format!("{owner}.tls.{key}"), table, key);
    }
}

fn server_name(text: &str) -> Result<String, Invalid> {
    ServerName::try_from(text)
        .map(|_| text.to_owned())
        .map_err(|_| Invalid::new("must be a host name or an address", "write it as \"siem.example.net\""))
}

/// `tls://` needs `tls`, and `tls` is for `tls://`.
pub(super) fn check_listens(findings: &Findings<'_>, table: &Table<'_>, listens: &[Listen], example: &str) {
    let wants = listens.iter().any(|listen| listen.protocol == Protocol::Tls);
    match (table.get("tls"), table.get("listen")) {
        (None, Some(listen)) if wants => {
            let fix =
                "add tls = { cert_file = \"/etc/twinlog/tls/server.crt\", key_file = \"/etc/twinlog/tls/server.key\" }";
            findings.note_missing(Some(&listen.spot), "`listen` with tls:// needs `tls`", fix);
        }
        (Some(tls), Some(_)) if !wants => without_effect(&tls, example),
        _ => {}
    }
}

/// `tls` is for `tls://`, and datagrams are another kind of output than connections.
pub(super) fn check_targets(table: &Table<'_>, output: &SyslogOutput) {
    let streams = output.to.iter().filter(|target| target.protocol.is_stream()).count();
    if let Some(to) = table.get("to").filter(|_| streams > 0 && streams < output.to.len()) {
        to.error("mixes udp:// with connections", "make an [[output.syslog]] of its own for udp://");
    }
    let encrypted = output.to.iter().any(|target| target.protocol == Protocol::Tls);
    if let Some(tls) = table.get("tls")
        && !encrypted
        && !output.to.is_empty()
    {
        without_effect(&tls, "to = [\"tls://siem.example.net\"]");
    }
}

fn without_effect(tls: &Value<'_>, instead: &str) {
    tls.warning("has no effect without tls://", format!("write {instead}, or remove it"));
}
