//! twinlog.

pub mod config;
pub mod input;
pub mod journal;
pub mod metrics;
pub mod output;
pub mod proto;
pub mod supervise;
pub mod sys;
