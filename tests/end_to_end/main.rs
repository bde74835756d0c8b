//! The real binary between plain sockets: what goes in comes out, whatever happens meanwhile.
//!
//! By what is tested: `transit` (the bytes), `forward` (chunks and their acknowledgement), `forward_out` (through
//! fluent-forward), `forward_tls` (either inside TLS, and from twinlog to twinlog), `relp` (messages and their answers),
//! `inputs` (who may send and how much), `outputs` (where it goes and which messages), `pressure` (no room, no destination,
//! no time), `life` (start, stop, restart), `reload`, `tls`.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod forward;
mod forward_out;
mod forward_tls;
mod inputs;
mod life;
mod outputs;
mod pressure;
mod reload;
mod relp;
mod tls;
mod transit;
