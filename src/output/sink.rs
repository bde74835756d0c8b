//! Outputs that take a batch at once or refuse it: datagrams, files, the standard output. One loop for all.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::Life;
use super::encode::{Delimiter, Encoder, Format};
use super::endpoint::{Backoff, resolve};
use super::feed::Feed;
use super::file::File;
use super::filter::Filter;
use crate::config::{OutputKind, Target};
use crate::proto::batch::Batch;

/// Largest payload of a UDP datagram over IPv4; a longer message is cut there (RFC 5426, 3.2 allows it).
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// What was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Messages that left.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl AddAssign for Delivered {
    fn add_assign(&mut self, more: Delivered) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

/// Where a batch goes; its deliveries take turns.
pub type Shared = tokio::sync::Mutex<Sink>;

/// Where a batch goes.
#[derive(Debug)]
pub enum Sink {
    /// Syslog over UDP.
    Datagram(Datagram),
    /// A file, maybe one for every hour.
    File(File),
    /// The daemon's standard output.
    Stdout(Stdout),
}

impl Sink {
    /// Delivers batches whole, so that they are safe there, or says why not; then they are given again.
    async fn deliver(&mut self, batches: &[Batch], encoder: &mut Encoder, filter: &Filter) -> io::Result<Delivered> {
        let mut delivered = Delivered::default();
        match self {
            Sink::File(file) => return file.deliver(batches, encoder, filter).await,
            Sink::Datagram(datagram) => {
                for batch in batches {
                    delivered += datagram.deliver(batch, encoder, filter).await?;
                }
            }
            Sink::Stdout(stdout) => {
                for batch in batches {
                    delivered += stdout.deliver(batch, encoder, filter).await?;
                }
            }
        }
        Ok(delivered)
    }

    fn target(&self) -> String {
        match self {
            Sink::Datagram(datagram) => datagram.targets[datagram.current].to_string(),
            Sink::File(file) => file.path().display().to_string(),
            Sink::Stdout(_) => "stdout".to_owned(),
        }
    }
}

/// How messages look in a sink of this kind.
pub(super) fn looks(kind: &OutputKind) -> (Format, Delimiter) {
    match kind {
        OutputKind::Syslog(syslog) => (syslog.format.into(), Delimiter::Datagram),
        OutputKind::File(file) => (file.format.into(), Delimiter::Line),
        OutputKind::Stdout(stdout) => (stdout.format.into(), Delimiter::Line),
        OutputKind::Forward(_) => (Format::Raw, Delimiter::Line),
    }
}

/// Delivers until the delivery's life ends.
pub async fn run(
    sink: Arc<Shared>,
    mut encoder: Encoder,
    filter: Filter,
    mut backoff: Backoff,
    mut feed: Feed,
    mut life: Life,
) {
    feed.metrics().set_connected(Some(sink.lock().await.target()));
    loop {
        if life.is_stopping() && feed.is_at_end() {
            return;
        }
        let batches = tokio::select! {
            batches = feed.next() => batches,
            over = life.turn() => if over { return } else { continue },
        };
        // Until it is safe: what another delivery wrote beside it would be cut back with it.
        let mut sink = sink.lock().await;
        match deliver(&mut sink, &mut encoder, &filter, &batches, &mut feed).await {
            Ok(()) => {
                backoff.reset();
                feed.metrics().set_connected(Some(sink.target()));
            }
            Err(error) => {
                let target = sink.target();
                drop(sink);
                if feed.metrics().connected() {
                    tracing::warn!(output = life.name(), target, %error, "cannot deliver; trying again");
                }
                feed.metrics().set_connected(None);
                feed.metrics().errors.inc("write");
                feed.metrics().retries.inc();
                feed.metrics().set_last_error(format!("{target}: {error}"));
                feed.rewind();
                tokio::select! {
                    () = sleep(backoff.pause()) => {}
                    () = life.stopping() => return,
                }
            }
        }
    }
}

async fn deliver(
    sink: &mut Sink,
    encoder: &mut Encoder,
    filter: &Filter,
    batches: &[Batch],
    feed: &mut Feed,
) -> io::Result<()> {
    let delivered = sink.deliver(batches, encoder, filter).await?;
    feed.metrics().sent.inc_by(delivered.messages);
    feed.metrics().sent_bytes.inc_by(delivered.bytes);
    feed.metrics().acknowledged.inc_by(delivered.messages);
    if let Some(last) = batches.last() {
        feed.arrived(last.end());
    }
    Ok(())
}

/// Syslog over UDP (RFC 5426). What the kernel took counts as delivered: nobody will ever say more. A destination that
/// answers "port unreachable" is an error, and the next one has its turn.
#[derive(Debug)]
pub struct Datagram {
    targets: Vec<Target>,
    socket: Option<UdpSocket>,
    current: usize,
    text: Vec<u8>,
    /// Where in `text` each message ends.
    ends: Vec<usize>,
}

impl Datagram {
    /// Sends to the first of `targets` that does not refuse.
    #[must_use]
    pub fn new(targets: Vec<Target>) -> Datagram {
        Datagram { targets, socket: None, current: 0, text: Vec::new(), ends: Vec::new() }
    }

    async fn deliver(&mut self, batch: &Batch, encoder: &mut Encoder, filter: &Filter) -> io::Result<Delivered> {
        let result = self.send(batch, encoder, filter).await;
        if result.is_err() {
            self.socket = None;
            self.current = (self.current + 1) % self.targets.len();
        }
        result
    }

    async fn send(&mut self, batch: &Batch, encoder: &mut Encoder, filter: &Filter) -> io::Result<Delivered> {
        if self.socket.is_none() {
            let address = resolve(&self.targets[self.current]).await?[0];
            let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(address).await?;
            self.socket = Some(socket);
        }
        let socket = self.socket.as_ref().expect("just opened");
        let mut delivered = Delivered::default();
        for envelope in batch.envelopes().filter(|envelope| filter.takes(envelope)) {
            let mut left = encoder.begin(envelope);
            let mut more = true;
            while more {
                self.text.clear();
                self.ends.clear();
                more = encoder.encode_some(&mut left, &mut self.text, |end| self.ends.push(end));
                let mut begin = 0;
                for end in &self.ends {
                    let text = &self.text[begin..*end.min(&(begin + DATAGRAM_BYTES_MAX))];
                    begin = *end;
                    socket.send(text).await?;
                    delivered.messages += 1;
                    delivered.bytes += text.len() as u64;
                }
            }
        }
        Ok(delivered)
    }
}

/// Lines on the daemon's standard output.
#[derive(Debug)]
pub struct Stdout;

impl Stdout {
    async fn deliver(&mut self, batch: &Batch, encoder: &mut Encoder, filter: &Filter) -> io::Result<Delivered> {
        let (mut lines, mut delivered) = (Vec::new(), Delivered::default());
        for envelope in batch.envelopes().filter(|envelope| filter.takes(envelope)) {
            let mut left = encoder.begin(envelope);
            while encoder.encode_some(&mut left, &mut lines, |_| delivered.messages += 1) {
                delivered.bytes += write(std::mem::take(&mut lines)).await?;
            }
        }
        delivered.bytes += write(lines).await?;
        Ok(delivered)
    }
}

/// Writes to the standard output; gives the number of bytes.
async fn write(lines: Vec<u8>) -> io::Result<u64> {
    // On a thread of its own: a reader that does not read must stop this output alone.
    let written = tokio::task::spawn_blocking(move || {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&lines)?;
        stdout.flush()?;
        Ok(lines.len() as u64)
    });
    written.await.map_err(io::Error::other)?
}
