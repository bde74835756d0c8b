//! Finding a destination: addresses in order of preference, tried in turn, with growing pauses between rounds.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::{Protocol, Retry, Target};
use crate::sys;
use crate::tls::{self, Stream};

/// Time for one address to answer a connection request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Growing pauses between tries: doubling from `min` to `max`, each shortened by up to a half at random, so that many
/// clients of a returning destination do not come at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    retry: Retry,
    next: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// Starts at `retry.min`; `seed` decides the jitter.
    #[must_use]
    pub fn new(retry: Retry, seed: u64) -> Backoff {
        Backoff { next: retry.min, retry, random: fastrand::Rng::with_seed(seed) }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(1.0 - self.random.f64() / 2.0);
        self.next = (self.next * 2).min(self.retry.max);
        pause
    }

    /// It worked: the next failure starts from the beginning.
    pub fn reset(&mut self) {
        self.next = self.retry.min;
    }
}

/// Resolves a target to addresses, in the resolver's order.
///
/// # Errors
/// What the resolver says, or that there is no address.
pub async fn resolve(target: &Target) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<_> = tokio::net::lookup_host((target.host.as_str(), target.port)).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Connects to the first address of `target` that answers.
///
/// # Errors
/// The last address's error.
pub async fn connect(target: &Target) -> io::Result<TcpStream> {
    let mut last = None;
    for address in resolve(target).await? {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                sys::tcp::keep_alive(&stream)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// A connection over which nothing was written yet.
#[derive(Debug)]
pub struct Opened {
    /// The connection, inside TLS if the target says so.
    pub stream: Stream,
    /// Bytes that the peer's TCP had acknowledged before the first of ours: the SYN.
    pub base: u64,
}

/// Connects to `target` and shakes hands if it is a `tls://` one.
///
/// # Errors
/// The last address's error, or why the handshake failed.
pub async fn open(target: &Target, tls: &tls::Client) -> io::Result<Opened> {
    let tcp = connect(target).await?;
    let base = sys::tcp::delivery(&tcp)?.acknowledged;
    let stream = match target.protocol {
        // Boxed: a handshake is larger than everything else an output keeps.
        Protocol::Tls => Box::pin(tls.connect(&target.host, tcp)).await?,
        Protocol::Tcp | Protocol::Udp => Stream::Plain(tcp),
    };
    Ok(Opened { stream, base })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_maximum_and_jitter_only_shortens() {
        let retry = Retry { min: Duration::from_millis(200), max: Duration::from_secs(1) };
        let mut backoff = Backoff::new(retry, 7);
        for expected in [200, 400, 800, 1000, 1000] {
            let pause = backoff.pause().as_millis();
            assert!(pause <= expected && pause >= expected / 2, "{pause} of {expected}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(200));
    }
}
