//! One HTTP connection, and the limits that make a slow or hostile client cost only itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::answer::Face;

/// Longest time until a request's head has come; also how long an idle connection stays.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Serves one connection until either side ends it, or for `lifetime`. Errors are the client's: nobody needs to know.
pub(crate) async fn connection<S>(stream: S, face: Arc<Face>, who: String, lifetime: Option<Duration>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let who = &who;
    let service = service_fn(|request| {
        let face = face.clone();
        async move { Ok::<_, Infallible>(face.answer(request, who).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let ended = match lifetime {
        None => served.await,
        Some(lifetime) => tokio::time::timeout(lifetime, served).await.unwrap_or(Ok(())),
    };
    if let Err(error) = ended {
        tracing::debug!(client = who, %error, "a connection ended badly");
    }
}
