//! `twinlog vip`.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use clap::Subcommand;

use super::configuration;
use super::{Exit, Failure, Shared};
use crate::sys::netlink::Netlink;
use crate::vip;

/// The verbs of `vip`.
#[derive(Debug, Subcommand)]
pub enum Vip {
    /// Remove the shared addresses that a dead daemon left on this machine
    ///
    /// For `ExecStopPost=` of the unit. Nothing is done while a daemon answers on the control socket.
    Release {
        /// Needed: it says that the daemon is dead
        #[arg(long, required = true)]
        stale: bool,
    },
}

impl Vip {
    pub(super) fn execute(&self, shared: &Shared) -> anyhow::Result<Exit> {
        let Vip::Release { .. } = self;
        let Some(pair) = configuration::for_looking(shared).and_then(|config| config.pair) else {
            // The unit asks on every node, and one without a pair has nothing to remove.
            return Ok(Exit::Done);
        };
        let socket = configuration::socket(shared);
        if UnixStream::connect(&socket).is_ok() {
            let message = format!("a daemon answers on {}: stop it, and it releases them itself", socket.display());
            return Err(Failure::new(Exit::Unsafe, message).into());
        }
        let mut netlink = Netlink::open().context("cannot talk to the kernel")?;
        let removed = vip::release_stale(&mut netlink, pair.addresses()).context("cannot remove the addresses")?;
        for address in removed.iter().filter(|_| !shared.quiet) {
            writeln!(io::stdout(), "{address} removed")?;
        }
        Ok(Exit::Done)
    }
}
