//! Several hosts on one switch, each in a network namespace of its own, with the real kernel between them.
//!
//! `lab` builds hosts, runs programs in them and breaks things; it is there for every test that needs more than one
//! host. By what is tested here: `address` (adding, removing, leases, who answers), `announcement` (neighbours learn, and
//! strangers are heard), `advertisement` (raw sockets, keepalived), `handover` (an address moves, no datagram is lost),
//! `connections` (TCP connections move with it),
//! `pair` (the whole program), `live` (`check --live`), `switch` (the lab itself).
//!
//! Needs root, network namespaces and the programs that `install.sh` beside this file brings; what is missing is a
//! failure, not a test passed over.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod address;
mod advertisement;
mod announcement;
mod connections;
mod handover;
mod lab;
mod live;
mod pair;
mod switch;
