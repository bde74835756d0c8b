//! `twinlog tail`.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use serde_json::Value;

use super::configuration;
use super::{Exit, Shared, block_on};
use crate::control::client::Client;
use crate::status::format;

/// Flags of `tail`.
#[derive(Debug, Args)]
pub struct Tail {
    /// Only messages of this input
    #[arg(long, value_name = "NAME")]
    input: Option<String>,
    /// Most messages shown in a second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// The bytes as received, each message on a line; with --json a field `raw_b64`
    #[arg(long)]
    raw: bool,
}

impl Tail {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let client = Client::new(&configuration::socket(shared));
        let mut query = format!("limit={}&raw={}", self.limit, u8::from(self.raw));
        if let Some(input) = &self.input {
            query.push_str("&input=");
            // Anything else is no name of an input, and finds nothing.
            query.extend(input.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)));
        }
        block_on(async {
            let mut lines = client.tail(&query).await?;
            while let Some(line) = lines.next().await? {
                self.show(shared, &line)?;
            }
            Ok(Exit::Done)
        })
    }

    fn show(&self, shared: &Shared, line: &[u8]) -> anyhow::Result<()> {
        let message: Value = serde_json::from_slice(line)?;
        if let Some(skipped) = message["skipped"].as_u64() {
            if !shared.quiet {
                eprintln!("({} not shown)", format::messages(skipped));
            }
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if shared.json {
            out.write_all(line)?;
        } else if self.raw {
            let raw = BASE64.decode(message["raw_b64"].as_str().unwrap_or_default());
            out.write_all(&raw.map_err(|error| anyhow::anyhow!("the daemon sent no base64: {error}"))?)?;
        } else {
            out.write_all(for_people(&message).as_bytes())?;
        }
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }
}

/// `2026-03-10T11:59:58Z fw-1 sshd[42] err: text`. What a message contains must not steer a terminal.
fn for_people(message: &Value) -> String {
    const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
    let text = |key: &str| message[key].as_str();
    let app = match (text("app"), text("pid")) {
        (Some(app), Some(pid)) => format!(" {app}[{pid}]"),
        (Some(app), None) => format!(" {app}"),
        (None, _) => String::new(),
    };
    let severity = message["severity"].as_u64().and_then(|severity| SEVERITIES.get(severity as usize));
    let msg = match text("msg") {
        Some(msg) => msg.to_owned(),
        None => {
            let bytes = BASE64.decode(text("msg_b64").unwrap_or_default()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        }
    };
    let line = format!(
        "{} {}{app} {}: {msg}",
        text("timestamp").unwrap_or("-"),
        text("host").unwrap_or("-"),
        severity.unwrap_or(&"-"),
    );
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        if c.is_control() && c != '\t' { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_steer_the_terminal() {
        let message = serde_json::json!({
            "timestamp": "2026-03-10T11:59:58Z", "host": "fw-1", "app": "sshd", "pid": "42", "severity": 3,
            "msg": "a\u{1b}[2Jb\nc\u{9b}d",
        });
        assert_eq!(for_people(&message), "2026-03-10T11:59:58Z fw-1 sshd[42] err: a\\u{1b}[2Jb\\nc\\u{9b}d");
    }
}
