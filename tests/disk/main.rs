//! The real binary on disks that are full, broken, somebody else's or in use, and a daemon that stands still.
//!
//! `volume` is a small ext4 on a loop device, so these tests need root. By what is tested: `space` (none left), `broken`
//! (a disk that fails under load), `start` (a journal that cannot be opened), `pause` (SIGSTOP).

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod broken;
mod load;
mod pause;
mod space;
mod start;
mod volume;
