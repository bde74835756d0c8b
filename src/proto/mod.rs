//! Pure values: formats, protocols and decisions.
//!
//! Nothing here reads a clock, opens a file, names a socket or knows tokio: bytes and an `Instant` go in, values come
//! out. `tests/architecture.rs` holds that.

pub mod batch;
pub mod drain;
pub mod envelope;
pub mod forward;
mod json_string;
pub mod node;
pub mod pair;
pub mod position;
pub mod relp;
pub mod render;
pub mod stage;
pub mod syslog;
pub mod tcp_image;
pub mod vrrp;
