//! twinlog.

pub mod journal;
pub mod metrics;
pub mod proto;
