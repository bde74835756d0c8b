//! TLS 1.2 and 1.3 for inputs and outputs, over rustls.
//!
//! [`Server`] accepts, [`Client`] connects, both give a [`Stream`], which is also what a connection without TLS is, so
//! that the code above it is written once. Both follow their files: a renewed certificate is in use from the next
//! connection, those that are open keep their session, and files that cannot be used leave the old ones in force. There
//! is no task and no inotify behind that: whoever makes a connection looks at the files first.
//!
//! Names are checked against the subject alternative names only (RFC 9525, 6.3). There are no revocation lists, and no
//! choice of ciphers: rustls has only good ones.

mod check;
mod client;
mod error;
mod explain;
mod facts;
mod files;
mod follow;
mod pair_key;
mod server;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;

pub use self::check::check;
pub use self::client::Client;
pub use self::error::{Problem, TlsError};
pub use self::explain::explain;
pub use self::pair_key::PairKey;
pub use self::server::Server;
pub use self::stream::{Stream, Wire};

/// Longest time from the TCP connection to the end of the handshake.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Named and not left to the process: what another crate installs must not change what we speak.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}
