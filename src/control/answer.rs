//! What is answered to which request: the table of `control/mod.rs`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::health::Health;
use super::tail::{self, Wanted};
use super::{DrainRefused, DrainWish, FailOverRefused, ReloadRefused, Request, Unmoved};
use crate::exposition;
use crate::proto::drain::Until;
use crate::status::Observed;

/// The body of an answer: all at once, or piece by piece.
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Most clients of `/tail` at a time.
const TAILS_MAX: usize = 8;
/// Longest time to wait for the daemon's main loop. It waits for the journal's disk when inputs come or go.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers requests about one daemon.
pub(crate) struct Face {
    observed: Arc<Observed>,
    /// What only the control socket has.
    control: Option<Control>,
    /// Files that are served as they are: path, content type, content.
    files: &'static [(&'static str, &'static str, &'static str)],
}

struct Control {
    requests: mpsc::Sender<Request>,
    tails: Arc<Semaphore>,
}

impl Face {
    /// For the control socket: everything.
    pub(crate) fn control(observed: Arc<Observed>, requests: mpsc::Sender<Request>) -> Face {
        let control = Control { requests, tails: Arc::new(Semaphore::new(TAILS_MAX)) };
        Face { observed, control: Some(control), files: &[] }
    }

    /// For the network: looks only, and the files of the status page.
    pub(crate) fn read_only(
        observed: Arc<Observed>,
        files: &'static [(&'static str, &'static str, &'static str)],
    ) -> Face {
        Face { observed, control: None, files }
    }

    /// Answers one request; `who` is the client, for the log.
    pub(crate) async fn answer(&self, request: HttpRequest<Incoming>, who: &str) -> Answer {
        let path = request.uri().path();
        if path == "/reload" && self.control.is_some() {
            return if request.method() == Method::POST { self.reload(who).await } else { not_allowed("POST") };
        }
        if path == "/failover" && self.control.is_some() {
            let force = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "force=1"));
            return if request.method() == Method::POST {
                self.fail_over(force, who).await
            } else {
                not_allowed("POST")
            };
        }
        if matches!(path, "/drain" | "/undrain") && self.control.is_some() {
            let path = path.to_owned();
            let query = request.uri().query().unwrap_or_default().to_owned();
            return match (request.method(), path.as_str()) {
                (&Method::POST, "/drain") => self.drain(&query, who).await,
                (&Method::GET, "/drain") => self.drain_report().await,
                (&Method::POST, _) => self.undrain(who).await,
                (_, "/drain") => not_allowed("GET, POST"),
                _ => not_allowed("POST"),
            };
        }
        let is_head = request.method() == Method::HEAD;
        if request.method() != Method::GET && !is_head {
            return not_allowed("GET, HEAD");
        }
        let mut answer = match path {
            "/status.json" => json(StatusCode::OK, &self.observed.status(SystemTime::now())),
            "/metrics" => self.metrics(),
            "/livez" | "/healthz" => health(&Health::live(&self.observed)),
            "/readyz" => health(&Health::ready(&self.observed)),
            "/active" => health(&Health::active(&self.observed)),
            "/tail" if self.control.is_some() => self.tail(request.uri().query().unwrap_or_default()),
            path => self.file(path),
        };
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if is_head {
            *answer.body_mut() = Full::default().boxed_unsync();
        }
        answer
    }

    fn metrics(&self) -> Answer {
        match exposition::render(&self.observed) {
            Ok(metrics) => text(StatusCode::OK, exposition::CONTENT_TYPE, metrics),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")),
        }
    }

    fn file(&self, path: &str) -> Answer {
        // The page may do nothing but load its own parts and ask for the status: no foreign code, no frames.
        const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                              img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
        let Some((_, content_type, content)) = self.files.iter().find(|(name, ..)| *name == path) else {
            return plain(StatusCode::NOT_FOUND, "not found\n".to_owned());
        };
        let mut answer = text(StatusCode::OK, content_type, *content);
        for (name, value) in [
            ("content-security-policy", POLICY),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
        ] {
            answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        answer
    }

    async fn reload(&self, who: &str) -> Answer {
        let Some(control) = &self.control else { return plain(StatusCode::NOT_FOUND, "not found\n".to_owned()) };
        tracing::info!(by = who, "reload requested");
        let (reply, outcome) = oneshot::channel();
        if control.requests.try_send(Request::Reload { reply }).is_err() {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "the daemon is busy or stopping; try again");
        }
        match tokio::time::timeout(RELOAD_TIMEOUT, outcome).await {
            Ok(Ok(Ok(report))) => json(StatusCode::OK, &report),
            Ok(Ok(Err(refused))) => json(StatusCode::UNPROCESSABLE_ENTITY, &refused),
            Ok(Err(_)) => refused(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
            Err(_) => refused(StatusCode::GATEWAY_TIMEOUT, "the daemon is still at it after a minute; see its log"),
        }
    }

    async fn fail_over(&self, force: bool, who: &str) -> Answer {
        let Some(control) = &self.control else { return plain(StatusCode::NOT_FOUND, "not found\n".to_owned()) };
        tracing::info!(by = who, force, "hand-over requested");
        let (reply, outcome) = oneshot::channel();
        let asked = control.requests.try_send(Request::FailOver { force, reply });
        let outcome = if asked.is_ok() { outcome.await.ok() } else { None };
        match outcome {
            Some(Ok(())) => json(StatusCode::OK, &serde_json::json!({ "v": 1, "ok": true })),
            Some(Err(refused)) => json(StatusCode::CONFLICT, &refused),
            None => {
                let reason = "the daemon is busy or stopping; try again".to_owned();
                json(StatusCode::SERVICE_UNAVAILABLE, &FailOverRefused { why: Unmoved::Busy, reason })
            }
        }
    }

    /// Asks the daemon's main loop; `None` if it is busy or stops.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, outcome) = oneshot::channel();
        self.control.as_ref()?.requests.try_send(request(reply)).ok()?;
        outcome.await.ok()
    }

    async fn drain(&self, query: &str, who: &str) -> Answer {
        let wish = match drain_wish(query) {
            Ok(wish) => wish,
            Err(why) => return plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        tracing::info!(by = who, ?wish, "drain requested");
        match self.ask(|reply| Request::Drain { wish, reply }).await {
            Some(Ok(report)) => json(StatusCode::ACCEPTED, &report),
            Some(Err(refused)) => json(StatusCode::CONFLICT, &refused),
            None => busy(),
        }
    }

    async fn drain_report(&self) -> Answer {
        let report = self.ask(|reply| Request::DrainReport { reply }).await;
        report.map_or_else(busy, |report| json(StatusCode::OK, &report))
    }

    async fn undrain(&self, who: &str) -> Answer {
        tracing::info!(by = who, "undrain requested");
        match self.ask(|reply| Request::Undrain { reply }).await {
            Some(Ok(())) => json(StatusCode::OK, &serde_json::json!({ "v": 1, "ok": true })),
            Some(Err(refused)) => json(StatusCode::CONFLICT, &refused),
            None => busy(),
        }
    }

    fn tail(&self, query: &str) -> Answer {
        let Some(control) = &self.control else { return plain(StatusCode::NOT_FOUND, "not found\n".to_owned()) };
        let wanted = match wanted(query) {
            Ok(wanted) => wanted,
            Err(why) => return plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        let Ok(permit) = control.tails.clone().try_acquire_owned() else {
            let why = format!("{TAILS_MAX} clients look at messages already; end one of them\n");
            return plain(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        let body = Pieces { receiver: tail::start(&self.observed, wanted), _permit: permit };
        with_type(StatusCode::OK, "application/x-ndjson", body.boxed_unsync())
    }
}

fn busy() -> Answer {
    let reason = "the daemon is busy or stopping; try again".to_owned();
    json(StatusCode::SERVICE_UNAVAILABLE, &DrainRefused { reason })
}

fn drain_wish(query: &str) -> Result<DrainWish, String> {
    let mut wish = DrainWish::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "1")) {
            ("until", "handover") => wish.until = Some(Until::Handover),
            ("until", "empty") => wish.until = Some(Until::Empty),
            ("deadline", seconds) => {
                let seconds = seconds.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
                wish.deadline = Some(Duration::from_secs_f64(seconds.ok_or("deadline is in seconds, a day at most")?));
            }
            ("force", value) => wish.force = value == "1",
            (other, _) => return Err(format!("unknown parameter {other:?}: there are until, deadline and force")),
        }
    }
    Ok(wish)
}

fn wanted(query: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted { limit: tail::LIMIT_DEFAULT, input: None, raw: false };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "1"));
        match key {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=tail::LIMIT_MAX).contains(limit));
                wanted.limit = limit.ok_or(format!("limit is a number from 1 to {}", tail::LIMIT_MAX))?;
            }
            // The names of inputs have no character that would need %XX.
            "input" if !value.is_empty() => wanted.input = Some(value.to_owned()),
            "raw" => wanted.raw = value == "1",
            // JSON lines are the only form; asking for them is no mistake.
            "json" | "input" => {}
            other => return Err(format!("unknown parameter {other:?}: there are limit, input and raw")),
        }
    }
    Ok(wanted)
}

/// The pieces of a `/tail` as a body.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.receiver.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

fn with_type(status: StatusCode, content_type: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn text(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    with_type(status, content_type, Full::new(text.into()).boxed_unsync())
}

fn plain(status: StatusCode, message: String) -> Answer {
    text(status, "text/plain; charset=utf-8", message)
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            text(status, "application/json", bytes)
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write JSON: {error}\n")),
    }
}

fn refused(status: StatusCode, reason: &str) -> Answer {
    json(status, &ReloadRefused { reason: reason.to_owned(), diagnostics: Vec::new() })
}

fn health(health: &Health) -> Answer {
    let status = if health.ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    plain(status, health.text())
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("use {methods}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_asked_for_in_a_query() {
        let wanted_ = wanted("limit=5&input=net&raw=1&json=1").unwrap();
        assert_eq!((wanted_.limit, wanted_.input.as_deref(), wanted_.raw), (5, Some("net"), true));
        assert_eq!(wanted("").unwrap().limit, tail::LIMIT_DEFAULT);
        for bad in ["limit=0", "limit=x", "limit=99999999", "match=a"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }
}
