//! twinlog takes in an organisation's logs and never drops them.
//!
//! Four sentences carry the design:
//!
//! 1. **A log is the only hand-off.** Inputs append to a journal, outputs read from it.
//! 2. **Every promise is a position in that log**: *appended ≥ durable ≥ delivered*.
//! 3. **Decisions and protocols are pure values**: bytes and times in, values out.
//! 4. **What is wanted goes down as a published value, how far it is comes up as one.** No command queues between.
//!
//! ```text
//!  syslog/udp ─┐  batches   ┌─────────┐  durable batches  ┌─▶ output ─▶ destination
//!  syslog/tcp ─┼───────────▶│ journal │───────────────────┴─▶ output ─▶ file
//!  syslog/tls ─┘            └─────────┘
//! ```
//!
//! The library is the product; `main.rs` is an argument parser. From the bottom up:
//!
//! - [`proto`]: pure values. [`proto::position`], [`proto::envelope`], [`proto::batch`] are the words of everything
//!   else; [`proto::syslog`] frames, parses and renders; [`proto::forward`] is the codec of fluent-forward, [`proto::relp`]
//!   that of RELP.
//! - [`sys`]: raw system calls, and everything `unsafe`.
//! - [`tls`]: TLS for inputs and outputs, with files that are followed.
//! - [`journal`]: segments on disk, recovery, group commit, readers, cursors.
//! - [`config`]: the files, checked once; every default.
//! - [`input`], [`output`]: tasks between sockets and the journal.
//! - [`metrics`]: what is counted; [`status`], [`exposition`]: how it is shown; [`control`], [`admin`]: to whom.
//! - [`program`]: whether what runs is what is installed.
//! - [`hooks`]: commands that are run when something happened.
//! - [`vip`]: the thread that takes part in the election and holds the shared addresses; [`guardian`]: its parent process.
//! - [`daemon`]: builds, reloads and stops all of it; [`supervise`]: essential tasks.
//! - [`cli`]: the verbs.
//!
//! `ARCHITECTURE.md` has the path of a message, the invariants and the table of failures.

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod events;
pub mod exposition;
pub mod guardian;
pub mod hooks;
pub mod input;
pub mod journal;
pub mod log;
pub mod metrics;
pub mod output;
pub mod pair;
pub mod program;
pub mod proto;
pub mod receipt;
pub mod status;
pub mod supervise;
pub mod sys;
pub mod tls;
pub mod vip;
pub mod zones;
