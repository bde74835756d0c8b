//! twinlog.

pub mod proto;
