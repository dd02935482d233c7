//! Joining a console: the connection becomes a plain pair of byte streams.

use super::answer::Refusal;
use super::closed;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use nyx_api::{Code, Problem, paths::CONSOLE_PROTOCOL};
use nyx_catalog::{Attachment, Console};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};

/// Bytes moved at a time.
const CHUNK: usize = 16 << 10;

/// Whether a client asks for another protocol than HTTP, and for ours.
fn asks(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(upgrade) = headers.get(header::UPGRADE) else {
        return Ok(false);
    };
    if upgrade
        .as_bytes()
        .eq_ignore_ascii_case(CONSOLE_PROTOCOL.as_bytes())
    {
        return Ok(true);
    }
    let given = String::from_utf8_lossy(upgrade.as_bytes());
    Err(
        Problem::new(Code::Malformed, "there is no such protocol here")
            .field("upgrade")
            .value(given)
            .mend(format!("ask for `{CONSOLE_PROTOCOL}`")),
    )
}

/// Joins `console` if the client asks for that, or else tells what it said last.
pub(super) fn answer(
    console: &Console,
    mut request: Request,
    closing: watch::Receiver<bool>,
) -> Response {
    match asks(request.headers()) {
        Ok(true) => {}
        Ok(false) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            let said = String::from_utf8_lossy(&console.kept()).into_owned();
            return (kind, said).into_response();
        }
        Err(problem) => return Refusal(problem).into_response(),
    }
    let news = Arc::new(Notify::new());
    let bell = news.clone();
    let attachment = console.attach(Arc::new(move || bell.notify_one()));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // A client that goes away before has joined nothing.
        if let Ok(stream) = upgrade.await {
            join(TokioIo::new(stream), attachment, &news, closing).await;
        }
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, CONSOLE_PROTOCOL),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn join<S: AsyncRead + AsyncWrite>(
    stream: S,
    mut attachment: Attachment,
    news: &Notify,
    mut closing: watch::Receiver<bool>,
) {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut typed = vec![0; 1024];
    // What was typed and found no room yet.
    let mut waiting: Vec<u8> = Vec::new();
    loop {
        let said = attachment.read(CHUNK);
        if !said.is_empty() {
            let written = tokio::select! {
                written = to.write_all(&said) => written,
                () = closed(&mut closing) => return,
            };
            if written.is_err() {
                return;
            }
            continue;
        }
        if !waiting.is_empty() {
            let taken = attachment.write(&waiting);
            waiting.drain(..taken);
        }
        tokio::select! {
            () = news.notified() => {}
            read = from.read(&mut typed), if waiting.is_empty() => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => waiting.extend(typed.get(..count).unwrap_or_default()),
            },
            () = closed(&mut closing) => {
                // What the guest said last still goes out.
                let said = attachment.read(usize::MAX);
                let _ = to.write_all(&said).await;
                return;
            }
        }
    }
}
