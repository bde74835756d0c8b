//! twinlog.

pub mod config;
pub mod journal;
pub mod metrics;
pub mod proto;
