//! A control socket that answers what a test tells it to, wrong answers included.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a client asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Headers, as `name: value` in lower case.
    pub headers: Vec<String>,
    /// The body.
    pub body: String,
}

/// Answers one request: whatever it writes to the stream, which closes afterwards.
pub trait Answer: Fn(&Asked, &mut UnixStream) + Send + Sync + 'static {}
impl<F: Fn(&Asked, &mut UnixStream) + Send + Sync + 'static> Answer for F {}

/// The server, which serves until the process ends.
#[derive(Debug)]
pub struct Fake {
    socket: PathBuf,
}

impl Fake {
    /// Serves `answer` at `socket`.
    ///
    /// # Errors
    ///
    /// The socket cannot be made.
    pub fn at(socket: impl Into<PathBuf>, answer: impl Answer) -> std::io::Result<Self> {
        let socket = socket.into();
        let listener = UnixListener::bind(&socket)?;
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let answer = answer.clone();
                std::thread::spawn(move || serve(stream, &*answer));
            }
        });
        Ok(Self { socket })
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

fn serve(mut stream: UnixStream, answer: &impl Answer) {
    // A client that hangs up, as `nyx ps` does to see whether somebody is there, asks nothing.
    if let Some(asked) = read(&stream) {
        answer(&asked, &mut stream);
    }
}

fn read(stream: &UnixStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream);
    let mut line = || {
        let mut text = String::new();
        lines.read_line(&mut text).ok()?;
        Some(text.trim_end().to_string())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let mut asked = Asked {
        method: words.next()?.into(),
        path: words.next()?.into(),
        ..Asked::default()
    };
    loop {
        let header = line()?;
        if header.is_empty() {
            break;
        }
        asked.headers.push(header.to_lowercase());
    }
    let length = asked.headers.iter().find_map(|header| {
        header
            .strip_prefix("content-length: ")
            .and_then(|length| length.parse().ok())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    lines.read_exact(&mut body).ok()?;
    asked.body = String::from_utf8(body).ok()?;
    Some(asked)
}

/// Writes a whole answer.
pub fn reply(stream: &mut impl Write, status: u16, kind: &str, body: &str) {
    // A client may have gone: that is its affair.
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

/// Writes a JSON answer.
pub fn json(stream: &mut impl Write, status: u16, body: &impl serde::Serialize) {
    let body = serde_json::to_string(body).unwrap_or_default();
    reply(stream, status, "application/json", &body);
}

/// Writes the head of an answer whose body lasts until the connection closes.
pub fn open(stream: &mut impl Write, kind: &str) {
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
    );
}

/// Writes the head of an answer that goes on as `protocol`.
pub fn upgrade(stream: &mut impl Write, protocol: &str) {
    let _ = write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
    );
}
