//! This host: rights, room on the disk, the clock.

use std::path::Path;
use std::time::Duration;

use super::Look;
use crate::config::{Config, Listen};
use crate::journal::OWN_DIRECTORY;
use crate::status::format;
use crate::sys::capabilities::{self, Capability};
use crate::sys::clock;

/// A clock that may be more wrong than this orders two nodes' messages wrongly.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(1);
/// Below this a journal cannot even begin a few segments.
const SEGMENTS_MIN: u64 = 4;

/// The rights of this process: the daemon's are those of its unit.
pub(super) fn privileges(config: &Config) -> Vec<Look> {
    let mut wanted = Vec::new();
    if config.pair.is_some() {
        wanted.extend([(Capability::NET_ADMIN, "moving the virtual addresses"), (Capability::NET_RAW, "the election")]);
    }
    let first = unprivileged_port();
    let low = config.inputs.iter().flat_map(|input| input.listen()).map(Listen::port).find(|port| *port < first);
    let low = low.map(|port| format!("port {port}"));
    wanted.extend(low.as_deref().map(|why| (Capability::NET_BIND_SERVICE, why)));
    let looks = wanted.into_iter().map(|(capability, why)| match capabilities::has(capability) {
        Ok(true) => Look::ok("privileges", format!("{} for {why}", capability.name)),
        Ok(false) => {
            let fix = format!("run this as root; the unit has AmbientCapabilities={}", capability.name);
            Look::error("privileges", format!("no {} for {why}", capability.name), fix)
        }
        Err(error) => Look::warning("privileges", format!("cannot tell {}: {error}", capability.name), "mount /proc"),
    });
    looks.collect()
}

/// The first port that needs no right: 1024, unless the administrator has said otherwise.
fn unprivileged_port() -> u16 {
    let set = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    set.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// Whether the journal may become as large as it may.
pub(super) fn disk(config: &Config) -> Option<Look> {
    let directory = &config.data_dir;
    let there = directory.ancestors().find(|path| path.is_dir())?;
    let disk = match nix::sys::statvfs::statvfs(there) {
        Ok(disk) => disk,
        Err(error) => {
            let message = format!("cannot look at {}: {error}", there.display());
            return Some(Look::error("disk", message, "let this user reach it"));
        }
    };
    let free = disk.blocks_available() * disk.fragment_size();
    let used = bytes_below(&directory.join(OWN_DIRECTORY));
    let (room, wanted) = (free.saturating_add(used), config.journal.max_size);
    let shown = format!("{} for the journal on the disk of {}", format::bytes(room), directory.display());
    Some(if room < SEGMENTS_MIN * config.journal.segment_size {
        Look::error("disk", format!("only {shown}"), "free space, or name another data_dir")
    } else if room < wanted {
        let message = format!("{shown}, and max_size is {}", format::bytes(wanted));
        Look::warning("disk", message, "free space, or lower journal.max_size")
    } else {
        Look::ok("disk", format!("{shown}, max_size {}", format::bytes(wanted)))
    })
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file).map(|file| file.len()).sum()
}

/// What the kernel knows of the clock. How far the peer's is away cannot be asked without its daemon.
pub(super) fn clock() -> Option<Look> {
    let discipline = clock::discipline().ok()?;
    let milliseconds = discipline.error_max.as_millis();
    Some(if !discipline.is_synchronised {
        let fix = "install chrony, or: timedatectl set-ntp true";
        Look::warning("clock", "nobody sets the clock after another one", fix)
    } else if discipline.error_max > CLOCK_ERROR_MAX {
        Look::warning(
            "clock",
            format!("synchronised, and may be wrong by {milliseconds} ms"),
            "look at: chronyc tracking",
        )
    } else {
        Look::ok("clock", format!("synchronised, wrong by {milliseconds} ms at most"))
    })
}
