//! What clients send, checked: bodies and queries that do not fit become one sentence with the field.

use super::answer::Refusal;
use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use nyx_api::{Code, Problem};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Bytes of a body, at most.
const MOST_BODY: usize = 64 << 10;
/// How long a client may take to send one.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// A JSON body that may be absent.
pub(crate) struct MaybeBody<T>(pub(crate) T);

/// A query.
pub(crate) struct Query<T>(pub(crate) T);

fn malformed(detail: String) -> Refusal {
    Problem::new(Code::Malformed, detail)
        .mend("GET /v1/openapi.json describes every request")
        .into()
}

async fn bytes(request: Request) -> Result<Vec<u8>, Refusal> {
    let read = to_bytes(request.into_body(), MOST_BODY);
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(e)) => {
            let too_long = std::error::Error::source(&e)
                .is_some_and(|source| source.to_string().contains("length limit"));
            if too_long {
                let why = format!("the body is longer than {MOST_BODY} bytes");
                return Err(Problem::new(Code::TooLarge, why)
                    .mend("send one request at a time")
                    .into());
            }
            Err(malformed(format!("the body cannot be read: {e}")))
        }
        Err(_) => Err(malformed("the body did not come in time".into())),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let field = e.path().to_string();
        let inner = e.into_inner();
        if !inner.is_data() {
            return malformed(format!("the body is not JSON: {inner}"));
        }
        let problem = Problem::new(Code::Invalid, format!("the body does not fit: {inner}"))
            .mend("GET /v1/openapi.json describes every request");
        let given = match field.as_str() {
            "." => None,
            path => value_at(bytes, path),
        };
        let problem = match field.as_str() {
            "." => problem,
            path => problem.field(path),
        };
        Refusal(match given {
            Some(value) => problem.value(value),
            None => problem,
        })
    })?;
    deserializer
        .end()
        .map_err(|e| malformed(format!("something follows the JSON of the body: {e}")))?;
    Ok(value)
}

/// What a body says at `path` (`a.b[0]`), shortened.
fn value_at(bytes: &[u8], path: &str) -> Option<String> {
    let mut value: &serde_json::Value = &serde_json::from_slice(bytes).ok()?;
    for key in path.split(['.', '[', ']']).filter(|key| !key.is_empty()) {
        value = match key.parse::<usize>() {
            Ok(index) if value.is_array() => value.get(index)?,
            _ => value.get(key)?,
        };
    }
    let text: String = value.to_string();
    Some(text.chars().take(120).collect())
}

fn check_type(request: &Request) -> Result<(), Refusal> {
    let kind = request.headers().get(CONTENT_TYPE);
    let is_json = kind.is_none_or(|kind| {
        let text = kind.to_str().unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/json")
    });
    if is_json {
        return Ok(());
    }
    let given = kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned());
    let problem = Problem::new(Code::MediaType, "the body is not declared as JSON")
        .field("content-type")
        .value(given.unwrap_or_default())
        .mend("send content-type: application/json");
    Err(problem.into())
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;
    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        check_type(&request)?;
        parse(&bytes(request).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for MaybeBody<T> {
    type Rejection = Refusal;
    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        check_type(&request)?;
        let bytes = bytes(request).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        let fits = serde_urlencoded::from_str(query);
        fits.map(Self).map_err(|e| {
            let problem = Problem::new(Code::Malformed, format!("the query does not fit: {e}"));
            let shown: String = query.chars().take(120).collect();
            Refusal(
                problem
                    .field("query")
                    .value(shown)
                    .mend("GET /v1/openapi.json describes every request"),
            )
        })
    }
}
