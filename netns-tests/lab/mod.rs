//! Hosts on a switch.
//!
//! A [`Switch`] is a learning bridge in a namespace without a name, a [`Host`] a namespace with `lo` and an `eth0` on that
//! switch. Namespaces live as long as their descriptors and the processes in them, and those are killed when the test's
//! thread ends: nothing is left over, whatever ends the test, SIGKILL included, and no name can be taken.
//!
//! A test's thread *visits* a host: what it opens, binds or starts there stays there. One host, one address of each
//! family: `203.0.113.N` and `2001:db8::N`.

pub mod frames;
mod host;
pub mod keepalived;
mod namespace;
mod program;
mod switch;
pub mod traffic;
pub mod twin;
pub mod watch;

pub use host::Host;
pub use program::Program;
pub use switch::Switch;

use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything may take that takes milliseconds on a machine of its own.
pub const SOON: Duration = Duration::from_secs(20);

/// The virtual address of the tests, IPv4.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 100);
/// The virtual address of the tests, IPv6.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);

/// Both.
pub const VIPS: [IpAddr; 2] = [IpAddr::V4(VIP_V4), IpAddr::V6(VIP_V6)];

/// A pair key.
pub const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// Writes the key of a pair beside its configuration.
pub fn write_key(directory: &Path, key: &str) {
    let path = directory.join("pair.key");
    std::fs::write(&path, key).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
}

/// Waits until `condition` holds.
///
/// # Panics
/// After [`SOON`], with `what`.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program to its end and returns what it wrote.
///
/// # Panics
/// If it does not start or fails, with what it says.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; netns-tests/install.sh?"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "these tests need root and network namespaces: {command:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}
