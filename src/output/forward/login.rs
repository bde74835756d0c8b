//! The handshake with a server, when a key is configured.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::session::Failure;
use crate::config::{Login, read_key};
use crate::proto::forward::handshake::{Client, Credentials, HANDSHAKE_BYTES_MAX, Peer, User};
use crate::proto::forward::scan::{Scanner, Step};
use crate::sys;

/// Longest time from the connection to the end of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Reads the files anew for each connection: a key that was renewed needs no reload.
async fn credentials(login: &Login) -> Result<Credentials, Failure> {
    let login = login.clone();
    let read = move || {
        let user = match &login.user {
            Some((name, file)) => Some(User { name: name.clone(), password: read_key(file)? }),
            None => None,
        };
        Ok(Credentials { shared_key: read_key(&login.shared_key_file)?, self_hostname: login.self_hostname, user })
    };
    let read = tokio::task::spawn_blocking(read).await.map_err(|error| Failure::Lost(std::io::Error::other(error)))?;
    read.map_err(Failure::Secret)
}

/// Proves who we are and lets the server prove that it knows the key. `input` holds what came behind its last message.
pub(super) async fn log_in<S>(stream: &mut S, input: &mut BytesMut, login: &Login) -> Result<Peer, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let client = Client::new(credentials(login).await?, sys::random::bytes().map_err(Failure::Lost)?);
    let shake = async {
        let helo = next_value(stream, input).await?;
        let (ping, awaiting) = client.handle_helo(&helo)?;
        stream.write_all(&ping).await.map_err(Failure::Lost)?;
        stream.flush().await.map_err(Failure::Lost)?;
        let pong = next_value(stream, input).await?;
        Ok(awaiting.handle_pong(&pong)?)
    };
    timeout(HANDSHAKE_MAX, shake).await.unwrap_or(Err(Failure::SilentInHandshake))
}

/// One whole MessagePack value.
async fn next_value<S: AsyncRead + Unpin>(stream: &mut S, input: &mut BytesMut) -> Result<Vec<u8>, Failure> {
    let mut scanner = Scanner::new(HANDSHAKE_BYTES_MAX);
    loop {
        if !input.is_empty()
            && let Step::Complete(length) = scanner.scan(input).map_err(|_| Failure::NoReply)?
        {
            let value = input[..length].to_vec();
            input.advance(length);
            return Ok(value);
        }
        if stream.read_buf(input).await.map_err(Failure::Lost)? == 0 {
            return Err(Failure::Lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
