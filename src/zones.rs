//! The time zone of each input, as the configuration names it: for whoever reads messages of several inputs.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::{Config, Input, Timezone};
use crate::proto::syslog::zone::{InvalidZone, Zone};

/// Where Linux says which zone of the database is the local one.
const LOCALTIME: &str = "/etc/localtime";

/// Zones by the names of inputs. An input that is not configured (any more) has UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones(BTreeMap<String, Zone>);

impl Zones {
    /// The zones of a configuration's inputs; one that the database does not know counts as UTC.
    #[must_use]
    pub fn of(config: &Config) -> Zones {
        let zone = |input: &Input| {
            let timezone = match input {
                Input::Syslog(syslog) => &syslog.timezone,
                Input::Relp(relp) => &relp.timezone,
                // The times of forward are instants.
                Input::Forward(_) => return None,
            };
            Some((input.name().to_owned(), zone(timezone).unwrap_or_default()))
        };
        Zones(config.inputs.iter().filter_map(zone).collect())
    }

    /// The zone of an input.
    #[must_use]
    pub fn get(&self, input: &str) -> Zone {
        self.0.get(input).copied().unwrap_or_default()
    }
}

/// The zone that a configuration means.
///
/// # Errors
/// If the database has no zone of that name.
pub fn zone(timezone: &Timezone) -> Result<Zone, InvalidZone> {
    match timezone {
        Timezone::Local => Ok(local()),
        Timezone::Named(name) => name.parse(),
    }
}

/// The machine's zone: `TZ`, else where `/etc/localtime` points to, else UTC, as the C library has it.
fn local() -> Zone {
    let from_variable = std::env::var("TZ").ok().and_then(|name| name.trim_start_matches(':').parse().ok());
    let from_link = || {
        let target = Path::new(LOCALTIME).canonicalize().ok()?;
        let (_, name) = target.to_str()?.split_once("/zoneinfo/")?;
        name.parse().ok()
    };
    from_variable.or_else(from_link).unwrap_or_default()
}
