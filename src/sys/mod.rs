//! The operating system: everything that needs a raw call, a privilege or `unsafe` is here and nowhere else.
//!
//! Only bytes, `std` types and values of `proto` cross its border, so that each file could be replaced in an afternoon.

#![allow(unsafe_code)]

pub mod capabilities;
pub mod clock;
pub mod link_layer;
pub mod namespace;
pub mod netlink;
pub mod notify;
pub mod process;
pub mod random;
pub mod robust_mutex;
pub mod scheduling;
pub mod socket_filter;
pub mod tcp;
pub mod tcp_repair;
pub mod udp;
pub mod vrrp_socket;
