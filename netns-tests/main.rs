//! Several hosts on one switch, each in a network namespace of its own, with the real kernel between them.
//!
//! `lab` builds hosts, runs programs in them and breaks things; it is there for every test that needs more than one
//! host. By what is tested here: `address` (adding, removing, leases, who answers), `announcement` (neighbours learn, and
//! strangers are heard), `advertisement` (raw sockets, keepalived), `handover` (an address moves, no datagram is lost),
//! `connections` (TCP connections move with it),
//! `pair` (the whole program), `mirror`, `adrift` and `drain` (with senders and a destination, built in `aggregators`),
//! `attacks` (on the pair's port, by strangers and by whoever has the key),
//! `oddities` (hostile packets, vanished interfaces, pairs that are not the usual one),
//! `dissection` (what tshark thinks of us), `live` (`check --live`), `demo` (`twinlog demo`), `switch` (the lab itself).
//! `compare` and `timing` are programs that measure, and are run by `compare.sh`.
//!
//! Needs root, network namespaces and the programs that `install.sh` beside this file brings; what is missing is a
//! failure, not a test passed over.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod address;
mod adrift;
mod advertisement;
mod aggregators;
mod announcement;
mod attacks;
mod compare;
mod connections;
mod demo;
mod dissection;
mod drain;
mod handover;
mod hard_cases;
mod lab;
mod ledger;
mod lines;
mod live;
mod mirror;
mod oddities;
mod pair;
mod rounds;
mod rsyslog;
mod switch;
mod timing;
mod tls;
