//! Routes of the journal: entries, their filter, spans.

#![expect(
    unused_qualifications,
    reason = "utoipa's macro qualifies the names of parameters"
)]

use super::answer::Refusal;
use super::extract::{Body, Query};
use super::follow::sse;
use super::routes::Answer;
use super::{Services, closed};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Json, Response};
use futures_util::stream;
use nyx_api::{Code, LogEntry, LogFilter, Problem, Tracing, paths};
use nyx_journal::{Entry, Journal, Level, Pattern};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use utoipa::IntoParams;

surface! {
    paths::LOGS: get(logs),
    paths::LOG_FILTER: get(filter).put(set_filter),
    paths::TRACE: get(trace).put(set_tracing),
}

fn journal(services: &Services) -> Answer<Journal> {
    let journal = services.control.journal().cloned();
    journal.ok_or_else(|| {
        Problem::new(Code::Conflict, "this process keeps no journal")
            .mend("run the machine with `nyx run`")
            .into()
    })
}

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// The last so many, 10000 at most.
    #[serde(default = "hundred")]
    #[param(minimum = 0, maximum = 10000)]
    last: u32,
    /// At least as severe as this: `trace`, `debug`, `info`, `warn`, `error`, `fatal`.
    #[param(pattern = "^(trace|debug|info|warn|error|fatal|off)$")]
    level: Option<String>,
    /// Of this component, or of those that begin like this if it ends in `*`.
    #[param(pattern = "^[A-Za-z0-9_.:/-]{1,64}[*]?$")]
    component: Option<String>,
    /// Only entries after this number.
    after: Option<u64>,
    /// Go on with those to come, as server-sent events.
    #[serde(default)]
    follow: bool,
}

fn hundred() -> u32 {
    100
}

fn wrong(field: &str, value: &str, why: impl std::fmt::Display) -> Refusal {
    Problem::new(Code::Malformed, format!("{field}: {why}"))
        .field(field)
        .value(value)
        .mend("GET /v1/openapi.json describes every request")
        .into()
}

fn query(wanted: &Wanted) -> Answer<nyx_journal::Query> {
    if wanted.last > 10_000 {
        let last = wanted.last.to_string();
        return Err(wrong("last", &last, "no more than 10000 are kept"));
    }
    let level = wanted
        .level
        .as_deref()
        .map(|level| level.parse::<Level>().map_err(|e| wrong("level", level, e)));
    let component = wanted.component.as_deref().map(|component| {
        component
            .parse::<Pattern>()
            .map_err(|e| wrong("component", component, e))
    });
    Ok(nyx_journal::Query {
        last: usize::try_from(wanted.last).ok(),
        since: None,
        after: wanted.after,
        component: component.transpose()?,
        level: level.transpose()?,
    })
}

/// Entries of the journal
#[utoipa::path(get, path = paths::LOGS, tag = "journal", params(Wanted), responses(
    (status = 200, description = "as a list, or each as the `data` of a server-sent event with `follow`", content(
        (Vec<LogEntry> = "application/json"), (String = "text/event-stream"),
    )),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "there is no journal"),
))]
async fn logs(State(services): State<Services>, Query(wanted): Query<Wanted>) -> Answer<Response> {
    let query = query(&wanted)?;
    let journal = journal(&services)?;
    if wanted.follow {
        return Ok(follow(journal, query, services.closing));
    }
    let entries = journal.entries(&query);
    let entries: Vec<&Entry> = entries.iter().collect();
    Ok(Json(entries).into_response())
}

struct Follower {
    journal: Journal,
    query: nyx_journal::Query,
    news: Arc<Notify>,
    closing: watch::Receiver<bool>,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<axum::body::Bytes, Infallible>, Self)> {
        loop {
            let entries = self.journal.entries(&self.query);
            if let Some(last) = entries.last() {
                self.query.after = Some(last.sequence);
                // From here on all that come, not the last few of them.
                self.query.last = None;
                let mut text = String::new();
                for entry in &entries {
                    let data = serde_json::to_string(entry).unwrap_or_default();
                    text.push_str(&format!("id: {}\ndata: {data}\n\n", entry.sequence));
                }
                return Some((Ok(text.into()), self));
            }
            if *self.closing.borrow() {
                return None;
            }
            tokio::select! {
                () = self.news.notified() => {}
                // What was written until now still goes out.
                () = closed(&mut self.closing) => {}
            }
        }
    }
}

fn follow(journal: Journal, query: nyx_journal::Query, closing: watch::Receiver<bool>) -> Response {
    let news = Arc::new(Notify::new());
    journal.watch_for(&news, |news, _| news.notify_one());
    let follower = Follower {
        journal,
        query,
        news,
        closing,
    };
    sse(stream::unfold(follower, Follower::next))
}

/// Which entries the journal takes
#[utoipa::path(get, path = paths::LOG_FILTER, tag = "journal", responses(
    (status = 200, body = LogFilter),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "there is no journal"),
))]
async fn filter(State(services): State<Services>) -> Answer<Json<LogFilter>> {
    let filter = journal(&services)?.filter().to_string();
    Ok(Json(LogFilter { filter }))
}

/// Have the journal take other entries
#[utoipa::path(put, path = paths::LOG_FILTER, tag = "journal", request_body = LogFilter, responses(
    (status = 200, body = LogFilter),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the body does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "there is no journal"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "the body is too long"),
    (status = 415, body = Problem, content_type = "application/problem+json", description = "the body is not JSON"),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "the filter makes no sense"),
))]
async fn set_filter(
    State(services): State<Services>,
    Body(LogFilter { filter }): Body<LogFilter>,
) -> Answer<Json<LogFilter>> {
    let journal = journal(&services)?;
    let parsed = filter.parse::<nyx_journal::Filter>().map_err(|e| {
        Problem::new(Code::Invalid, format!("filter: {e}"))
            .field("filter")
            .value(filter.as_str())
            .mend("write it like *=info,device=debug")
    })?;
    journal.set_filter(parsed);
    let filter = journal.filter().to_string();
    tracing::info!(target: "api", filter, "the journal's filter was changed");
    Ok(Json(LogFilter { filter }))
}

/// Spans, as Chrome trace JSON
#[utoipa::path(get, path = paths::TRACE, tag = "journal", responses(
    (status = 200, body = Object),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "there is no journal"),
    (status = 500, body = Problem, content_type = "application/problem+json", description = "it did not work"),
))]
async fn trace(State(services): State<Services>) -> Answer<Response> {
    let mut text = Vec::new();
    let written = journal(&services)?.export_trace(&mut text);
    written.map_err(|e| Problem::new(Code::Failed, e.to_string()))?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, text).into_response())
}

/// Keep spans from now on, or no longer
#[utoipa::path(put, path = paths::TRACE, tag = "journal", request_body = Tracing, responses(
    (status = 200, body = Tracing),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the body does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "there is no journal"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "the body is too long"),
    (status = 415, body = Problem, content_type = "application/problem+json", description = "the body is not JSON"),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "a value is wrong"),
))]
async fn set_tracing(
    State(services): State<Services>,
    Body(wanted): Body<Tracing>,
) -> Answer<Json<Tracing>> {
    journal(&services)?.set_tracing(wanted.enabled);
    Ok(Json(wanted))
}
