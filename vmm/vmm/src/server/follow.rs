//! Events as server-sent events (WHATWG HTML, section 9.2).

use super::closed;
use crate::control::Control;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use nyx_api::{Event, Phase};
use std::convert::Infallible;
use tokio::sync::watch;

/// Events handed over at a time.
const BATCH: usize = 64;

struct Follower {
    control: Control,
    since: u64,
    follow: bool,
    news: watch::Receiver<u64>,
    closing: watch::Receiver<bool>,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            // The phase first: what happened before the end is among the events then.
            let ended = self.control.phase() == Phase::Ended;
            self.news.mark_unchanged();
            let events = self.control.events(self.since, BATCH);
            if let Some(last) = events.last() {
                self.since = last.sequence;
                return Some((Ok(text(&events)), self));
            }
            if ended || !self.follow {
                return None;
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                () = closed(&mut self.closing) => return None,
            }
        }
    }
}

fn text(events: &[Event]) -> Bytes {
    let mut text = String::new();
    for event in events {
        // A struct of strings and numbers always becomes JSON.
        let data = serde_json::to_string(event).unwrap_or_default();
        text.push_str(&format!("id: {}\ndata: {data}\n\n", event.sequence));
    }
    text.into()
}

/// The events of a machine after number `since`, and those to come if `follow`.
pub(super) fn events(
    control: Control,
    since: u64,
    follow: bool,
    closing: watch::Receiver<bool>,
) -> Response {
    let news = control.follow();
    let follower = Follower {
        control,
        since,
        follow,
        news,
        closing,
    };
    sse(stream::unfold(follower, Follower::next))
}

/// An answer that goes on for as long as `stream`.
pub(super) fn sse(
    stream: impl stream::Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
) -> Response {
    let kind = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (kind, Body::from_stream(stream)).into_response()
}
