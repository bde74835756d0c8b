//! `check --live`: what is around the configuration on this host and its network, looked at now.
//!
//! Every look is one line: fine, a warning or an error, the latter two with one fix. Nothing is changed: a port that is
//! tried is closed again, a destination hears a handshake and no message. The looks that wait (for destinations, for the
//! peer, for advertisements) wait together.

mod host;
mod link;
mod outputs;
mod ports;

use std::fmt;

use serde::Serialize;

use super::block_on;
use crate::config::Config;
use crate::control::client::Client;

/// How it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Look {
    /// `interface`, `address`, `vip`, `ports`, `privileges`, `disk`, `clock`, `output`, `peer`, `adverts`.
    pub check: &'static str,
    pub verdict: Verdict,
    /// What was seen, in one line.
    pub message: String,
    /// What to do about it; empty if all is fine.
    pub fix: String,
}

impl Look {
    fn ok(check: &'static str, message: impl Into<String>) -> Look {
        Look { check, verdict: Verdict::Ok, message: message.into(), fix: String::new() }
    }

    fn warning(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Look {
        Look { check, verdict: Verdict::Warning, message: message.into(), fix: fix.into() }
    }

    fn error(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Look {
        Look { check, verdict: Verdict::Error, message: message.into(), fix: fix.into() }
    }
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Error => "error",
        };
        // Banners and names from the network may hold anything.
        let plain = |text: &str| text.replace(|c: char| c.is_control(), " ");
        writeln!(f, "{verdict:<8} {:<10} {}", self.check, plain(&self.message))?;
        if self.fix.is_empty() { Ok(()) } else { writeln!(f, "{:19} = fix: {}", "", plain(&self.fix)) }
    }
}

/// Looks at everything that the configuration needs, in the order in which one would repair it.
pub(super) fn look(config: &Config) -> anyhow::Result<Vec<Look>> {
    // Its ports are taken by right, and it may hold the VIP.
    let daemon = block_on(async { Ok(Client::new(&config.control_socket).status().await.ok()) })?;
    let daemon = daemon.and_then(|status| status.nodes.first().map(|node| node.pid));
    let mut looks = Vec::new();
    let interface = config.pair.as_ref().and_then(|pair| link::interface(pair, &mut looks));
    looks.extend(host::privileges(config));
    looks.extend(ports::look(config, daemon));
    looks.extend(host::disk(config));
    looks.extend(host::clock());
    let (on_the_link, of_outputs) = std::thread::scope(|scope| {
        let pair = config.pair.as_ref().zip(interface.as_ref());
        let on_the_link = scope.spawn(move || pair.map(|(pair, interface)| link::neighbours(pair, interface, daemon)));
        let of_outputs = block_on(async { Ok(outputs::look(config).await) });
        // A look that panicked is our mistake, and the others are worth showing.
        (on_the_link.join().ok().flatten().unwrap_or_default(), of_outputs)
    });
    looks.extend(of_outputs?);
    looks.extend(on_the_link);
    Ok(looks)
}
