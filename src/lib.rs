//! twinlog.

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod exposition;
pub mod journal;
pub mod log;
pub mod metrics;
pub mod proto;
pub mod status;
pub mod zones;
