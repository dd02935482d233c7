//! One request and its answer over a Unix socket (HTTP/1.1, RFC 9112), within bounds of time and size.

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use nyx_api::Problem;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Longest answer that is read, in bytes.
pub const MOST_BYTES: usize = 256 << 20;

/// A machine and what is wrong with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Its control socket.
    pub socket: PathBuf,
    /// What is wrong.
    pub why: String,
}

impl Trouble {
    pub(crate) fn new(socket: &Path, why: impl fmt::Display) -> Self {
        Self {
            socket: socket.into(),
            why: why.to_string(),
        }
    }
}

/// A call was not answered, or answered with a refusal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The socket takes no connection.
    #[error("the control socket {} takes no connection: {}", .0.socket.display(), .0.why)]
    Unreachable(Trouble),
    /// No answer came in time.
    #[error(
        "the machine does not answer: nothing came from its control socket {} within {:.0?}; its process may hang",
        .socket.display(), .within
    )]
    TimedOut {
        /// Its control socket.
        socket: PathBuf,
        /// How long was waited.
        within: Duration,
    },
    /// It hung up before the answer was complete.
    #[error("the machine hung up before it had answered ({}); has it ended?", .0.why)]
    Closed(Trouble),
    /// What came is no answer.
    #[error("what answers at {} does not speak as a Nyx machine does: {}", .0.socket.display(), .0.why)]
    Garbage(Trouble),
    /// It refused, or tried and failed.
    #[error(transparent)]
    Refused(Box<Problem>),
}

impl CallError {
    /// What `error` says of the server at `socket`.
    pub(crate) fn from_hyper(socket: &Path, error: &hyper::Error) -> Self {
        if error.is_parse() || error.is_parse_status() {
            return Self::Garbage(Trouble::new(socket, error));
        }
        Self::Closed(Trouble::new(socket, error))
    }

    /// The refusal, if it is one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// Whether the server is not there or went away, as that of a machine does that has ended.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Closed(_))
    }
}

/// What is asked.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) accept: &'static str,
    /// The protocol to go on with.
    pub(crate) upgrade: Option<&'static str>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            body: None,
            accept: "application/json",
            upgrade: None,
        }
    }
}

/// The head of the answer to `call`, which came within `limit`. A refusal is an error already.
pub(crate) async fn head(
    socket: &Path,
    limit: Duration,
    call: Call<'_>,
) -> Result<Response<Incoming>, CallError> {
    let request = request(socket, call)?;
    let sent = tokio::time::timeout(limit, send(socket, request)).await;
    let response = sent.map_err(|_| late(socket, limit))??;
    let status = response.status();
    if status.is_success() || status == hyper::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let body = whole(socket, limit, response).await?;
    Err(match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => CallError::Refused(Box::new(problem)),
        Err(_) => CallError::Garbage(Trouble::new(
            socket,
            format_args!("its answer is {status}, and does not say why"),
        )),
    })
}

/// The body of `response`, within `limit` and [`MOST_BYTES`].
pub(crate) async fn whole(
    socket: &Path,
    limit: Duration,
    response: Response<Incoming>,
) -> Result<Bytes, CallError> {
    let body = Limited::new(response.into_body(), MOST_BYTES).collect();
    let read = tokio::time::timeout(limit, body).await;
    match read.map_err(|_| late(socket, limit))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(CallError::Garbage(Trouble::new(
            socket,
            format_args!("its answer is longer than {} MiB", MOST_BYTES >> 20),
        ))),
        Err(e) => Err(match e.downcast_ref::<hyper::Error>() {
            Some(e) => CallError::from_hyper(socket, e),
            None => CallError::Closed(Trouble::new(socket, e)),
        }),
    }
}

fn late(socket: &Path, within: Duration) -> CallError {
    CallError::TimedOut {
        socket: socket.into(),
        within,
    }
}

fn request(socket: &Path, call: Call<'_>) -> Result<Request<Full<Bytes>>, CallError> {
    use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
    let mut request = Request::builder()
        .method(call.method)
        .uri(call.path)
        .header(HOST, "nyx")
        .header(ACCEPT, call.accept);
    if call.body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    request = match call.upgrade {
        Some(protocol) => request
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, protocol),
        // One connection, one call: a machine serves few clients and keeps none waiting.
        None => request.header(CONNECTION, "close"),
    };
    let body = Full::new(Bytes::from(call.body.unwrap_or_default()));
    // The paths are ours, and names in them are encoded.
    request
        .body(body)
        .map_err(|e| CallError::Garbage(Trouble::new(socket, e)))
}

async fn send(
    socket: &Path,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, CallError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|e| CallError::Unreachable(Trouble::new(socket, e)))?;
    let fail = |e: hyper::Error| CallError::from_hyper(socket, &e);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(fail)?;
    // It ends with the response's body, or with the stream that it is upgraded to.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(fail)
}
