//! The other end of the control socket, for the command line and for tests.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::{DrainRefused, DrainReport, FailOverRefused, ReloadRefused, ReloadReport};
use crate::status::Status;

/// Longest time for an answer, except of a reload and of a tail.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A little more than the daemon gives itself for a reload.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(65);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody there, or no right to ask; exit status 3.
    #[error("{0}")]
    Unreachable(String),
    /// It answered, but not as expected.
    #[error("the daemon answered {status}: {message}")]
    Answer {
        /// The HTTP status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// The connection broke, or the answer is none.
    #[error("cannot {action} the daemon's answer: {cause}")]
    Broken {
        /// What was attempted.
        action: &'static str,
        /// What went wrong.
        cause: String,
    },
}

impl ClientError {
    fn broken(action: &'static str) -> impl FnOnce(hyper::Error) -> ClientError {
        move |error| ClientError::Broken { action, cause: error.to_string() }
    }
}

/// Asks the daemon behind one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the socket at `socket`; connects with every request.
    #[must_use]
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    /// How the node is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.json("/status.json").await
    }

    /// The body at `path`, whatever its HTTP status.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
        self.ask(Method::GET, path, TIMEOUT).await
    }

    /// Has the configuration read again; the inner error says why nothing changed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn reload(&self) -> Result<Result<ReloadReport, ReloadRefused>, ClientError> {
        let (status, body) = self.ask(Method::POST, "/reload", RELOAD_TIMEOUT).await?;
        if status == StatusCode::OK { decode(&body).map(Ok) } else { decode(&body).map(Err) }
    }

    /// Has the addresses handed over; the inner error says why they did not move.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn fail_over(&self, force: bool) -> Result<Result<(), FailOverRefused>, ClientError> {
        let path = if force { "/failover?force=1" } else { "/failover" };
        let (status, body) = self.ask(Method::POST, path, TIMEOUT).await?;
        if status == StatusCode::OK { Ok(Ok(())) } else { decode(&body).map(Err) }
    }

    /// Begins a drain, with the parameters of `POST /drain`; the inner error says why there is none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drain(&self, query: &str) -> Result<Result<DrainReport, DrainRefused>, ClientError> {
        let (status, body) = self.ask(Method::POST, &format!("/drain?{query}"), TIMEOUT).await?;
        if status == StatusCode::ACCEPTED { decode(&body).map(Ok) } else { decode(&body).map(Err) }
    }

    /// How the drain stands.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drain_report(&self) -> Result<DrainReport, ClientError> {
        self.json("/drain").await
    }

    /// Ends the drained state; the inner error says why not.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn undrain(&self) -> Result<Result<(), DrainRefused>, ClientError> {
        let (status, body) = self.ask(Method::POST, "/undrain", TIMEOUT).await?;
        if status == StatusCode::OK { Ok(Ok(())) } else { decode(&body).map(Err) }
    }

    /// Starts looking at messages: lines of JSON, see `/tail`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tail(&self, query: &str) -> Result<Lines, ClientError> {
        let (answer, connection) = self.send(Method::GET, &format!("/tail?{query}")).await?;
        let status = answer.status();
        let mut lines = Lines { body: answer.into_body(), rest: Vec::new(), _connection: connection };
        if status != StatusCode::OK {
            let message = lines.next().await?.unwrap_or_default();
            return Err(ClientError::Answer { status, message: String::from_utf8_lossy(&message).into_owned() });
        }
        Ok(lines)
    }

    async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        match self.get(path).await? {
            (StatusCode::OK, body) => decode(&body),
            (status, body) => {
                let message = String::from_utf8_lossy(&body).trim_end().to_owned();
                Err(ClientError::Answer { status, message })
            }
        }
    }

    async fn ask(&self, method: Method, path: &str, timeout: Duration) -> Result<(StatusCode, Bytes), ClientError> {
        let asked = async {
            let (answer, _connection) = self.send(method, path).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(ClientError::broken("read"))?;
            Ok((status, body.to_bytes()))
        };
        let silent = format!("the daemon behind {} does not answer", self.socket.display());
        tokio::time::timeout(timeout, asked).await.unwrap_or(Err(ClientError::Unreachable(silent)))
    }

    async fn send(&self, method: Method, path: &str) -> Result<(Response<Incoming>, Connection), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::broken("ask for"))?;
        let connection = Connection(tokio::spawn(async move {
            // What goes wrong here the sender and the body hear of.
            let _ = connection.await;
        }));
        let request = HttpRequest::builder().method(method).uri(path).header("host", "twinlog");
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| ClientError::Broken { action: "ask for", cause: error.to_string() })?;
        let answer = sender.send_request(request).await.map_err(ClientError::broken("get"))?;
        Ok((answer, connection))
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        let socket = self.socket.display();
        ClientError::Unreachable(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "the daemon is not running: there is no control socket at {socket} (--socket or --config name another)"
            ),
            io::ErrorKind::ConnectionRefused => {
                format!("the daemon is not running: nobody answers on the control socket {socket}")
            }
            io::ErrorKind::PermissionDenied => {
                format!("the control socket needs root or membership in group twinlog ({socket})")
            }
            _ => format!("cannot reach the control socket {socket}: {error}"),
        })
    }
}

/// The task that drives a connection; ends with its value.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The lines of a `/tail`.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
    _connection: Connection,
}

impl Lines {
    /// The next line without its end; `None` when the daemon ended it.
    ///
    /// # Errors
    /// [`ClientError::Broken`] if the connection broke.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.rest) {
                let after = self.rest.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.rest, after);
                line.pop();
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.rest))),
                Some(frame) => {
                    let frame = frame.map_err(ClientError::broken("read"))?;
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Broken { action: "understand", cause: error.to_string() })
}
