//! Destinations: reached, with the handshakes that a message would need, and no message.

use super::Look;
use crate::config::{Config, OutputKind, Protocol, Target};
use crate::output::{endpoint, forward};
use crate::tls;

/// Tries every destination of every output, at the same time.
pub(super) async fn look(config: &Config) -> Vec<Look> {
    let mut looks = Vec::new();
    for output in &config.outputs {
        let name = &output.name;
        match &output.kind {
            OutputKind::Syslog(syslog) => {
                let tls = tls::Client::new(&syslog.tls);
                looks.extend(syslog.to.iter().map(|target| {
                    let (name, target, tls) = (name.clone(), target.clone(), tls.clone());
                    tokio::spawn(async move { syslog_target(&name, &target, &tls).await })
                }));
            }
            OutputKind::Forward(settings) => looks.extend(settings.to.iter().map(|target| {
                let (name, target, settings) = (name.clone(), target.clone(), settings.clone());
                tokio::spawn(async move { forward_target(&name, &target, forward::probe(&target, &settings).await) })
            })),
            OutputKind::File(_) | OutputKind::Stdout(_) => {}
        }
    }
    let mut done = Vec::new();
    for look in looks {
        done.extend(look.await);
    }
    done
}

async fn syslog_target(name: &str, target: &Target, tls: &tls::Client) -> Look {
    if target.protocol == Protocol::Udp {
        return match endpoint::resolve(target).await {
            Ok(addresses) => {
                let message =
                    format!("{name}: {target} is {}; whether anybody listens, UDP does not tell", addresses[0]);
                Look::ok("output", message)
            }
            Err(error) => unreachable(name, target, &error.to_string()),
        };
    }
    match endpoint::open(target, tls).await {
        Ok(_) if target.protocol == Protocol::Tls => {
            Look::ok("output", format!("{name}: {target} answers, inside TLS"))
        }
        Ok(_) => Look::ok("output", format!("{name}: {target} answers")),
        Err(error) => unreachable(name, target, &error.to_string()),
    }
}

fn forward_target(name: &str, target: &Target, probed: Result<bool, String>) -> Look {
    match probed {
        Ok(true) => Look::ok("output", format!("{name}: {target} answers, and knows the key")),
        Ok(false) => Look::ok("output", format!("{name}: {target} answers")),
        Err(error) => unreachable(name, target, &error),
    }
}

fn unreachable(name: &str, target: &Target, error: &str) -> Look {
    let fix = format!("start what listens on {}, or let this host reach it", target);
    Look::error("output", format!("{name}: {target}: {error}"), fix)
}
