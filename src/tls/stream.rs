//! A connection with or without TLS.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::facts::Facts;

/// A connection with or without TLS.
#[derive(Debug)]
pub enum Stream {
    /// The bytes as they are.
    Plain(TcpStream),
    /// Bytes inside TLS. Boxed: a session is a kilobyte, and most connections have none.
    Tls(Box<TlsStream<Wire>>),
}

impl Stream {
    /// The socket below.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(stream) => &stream.get_ref().0.tcp,
        }
    }

    /// Bytes written to the socket since TLS began, the handshake's included; `None` without TLS. After a flush they
    /// carry everything that was written to the stream.
    #[must_use]
    pub fn wire_bytes(&self) -> Option<u64> {
        match self {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => Some(stream.get_ref().0.written),
        }
    }

    /// Whom the peer's certificate names: its first alternative name, else its common name. `None` without TLS, and if
    /// the peer showed no certificate. The certificate was checked in the handshake.
    #[must_use]
    pub fn peer_name(&self) -> Option<String> {
        let Stream::Tls(stream) = self else { return None };
        let certificate = stream.get_ref().1.peer_certificates()?.first()?;
        Facts::of(certificate).ok()?.name()
    }

    /// Says by FIN alone that nothing more is written; reading goes on until the peer says its own end.
    ///
    /// For peers that only send. `close_notify`, which RFC 5425, 4.4 wants before it, is a record that they do not read, and
    /// rsyslog does not see the FIN behind it (its issue 1503): it goes on sending until it is cut off, and loses what its
    /// kernel holds. Nothing can be cut short here that the peer would have read.
    ///
    /// # Errors
    /// As the socket's.
    pub async fn half_close(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.shutdown().await,
            Stream::Tls(stream) => stream.get_mut().0.shutdown().await,
        }
    }

    /// Reads what is there, until `buffer` is full or nothing more is there: a TLS record at most would be a batch for
    /// every 16 KiB. 0 is the end of the stream; an error comes after the bytes before it.
    pub fn poll_fill(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let is_tls = matches!(self, Stream::Tls(_));
        let mut buffer = ReadBuf::new(buffer);
        loop {
            let before = buffer.filled().len();
            let read = Pin::new(&mut *self).poll_read(context, &mut buffer);
            let filled = buffer.filled().len();
            match read {
                Poll::Ready(Ok(())) if is_tls && filled > before && buffer.remaining() > 0 => {}
                // An error and an end are told again at the next read.
                _ if filled > 0 => return Poll::Ready(Ok(filled)),
                read => return read.map_ok(|()| 0),
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    /// Says the end: `close_notify` inside TLS, then FIN. Reading goes on until the peer says its own.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// The socket below TLS, counting what is written to it: only so can the TCP's count of acknowledged bytes be read as
/// one of messages.
#[derive(Debug)]
pub struct Wire {
    tcp: TcpStream,
    written: u64,
    ahead: Option<Ahead>,
}

/// What was read from a socket before TLS asked for it: that asks for 4 KiB at a time.
#[derive(Debug)]
struct Ahead {
    bytes: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Wire {
    pub(super) fn new(tcp: TcpStream) -> Wire {
        Wire { tcp, written: 0, ahead: None }
    }

    /// For a connection over which much is read: `bytes` at a time.
    pub(super) fn read_ahead(tcp: TcpStream, bytes: usize) -> Wire {
        let ahead = Ahead { bytes: vec![0; bytes].into(), at: 0, end: 0 };
        Wire { ahead: Some(ahead), ..Wire::new(tcp) }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Reads what is there and never waits. Not for one that reads ahead.
    pub(super) fn ready(&self) -> impl Read + '_ {
        struct Ready<'a>(&'a TcpStream);
        impl Read for Ready<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.try_read(buffer)
            }
        }
        Ready(&self.tcp)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Wire { tcp, ahead, .. } = self.get_mut();
        let Some(Ahead { bytes, at, end }) = ahead else { return Pin::new(tcp).poll_read(context, buffer) };
        if at == end {
            let mut read = ReadBuf::new(bytes);
            ready!(Pin::new(tcp).poll_read(context, &mut read))?;
            (*at, *end) = (0, read.filled().len());
        }
        let taken = buffer.remaining().min(*end - *at);
        buffer.put_slice(&bytes[*at..*at + taken]);
        *at += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.tcp).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &written {
            this.written += *written as u64;
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.tcp).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(written)) = &written {
            this.written += *written as u64;
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(context)
    }
}
