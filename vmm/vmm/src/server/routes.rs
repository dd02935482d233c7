//! The routes, and the document that describes them.

#![expect(
    unused_qualifications,
    reason = "utoipa's macro qualifies the names of parameters"
)]

use super::answer::Refusal;
use super::extract::{Body, MaybeBody, Query};
use super::{Services, closed, console, follow, journal, look};
use crate::control::Request;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use nyx_api::{
    Code, ConsoleDescription, DeviceDescription, Machine, Operation, Problem, Removal, StopRequest,
    paths,
};
use nyx_spec::{DiskConfig, NetConfig, VmConfig};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use utoipa::openapi::OpenApi;
use utoipa::{IntoParams, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;

pub(super) type Answer<T> = Result<T, Refusal>;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Nyx machine",
        description = "Steers and watches one virtual machine, over the Unix socket of its process.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "machine", description = "What it is and what it does"),
        (name = "devices", description = "Disks and network devices, while it runs"),
        (name = "consoles", description = "Its consoles"),
        (name = "watching", description = "State, events, figures"),
        (name = "journal", description = "What its process wrote down"),
        (name = "operations", description = "What was asked of it"),
    )
)]
struct Document;

surface! {
    paths::MACHINE: get(describe),
    paths::CONFIG: get(config),
    paths::PLAN: get(plan),
    paths::PAUSE: post(pause),
    paths::RESUME: post(resume),
    paths::POWER_BUTTON: post(power_button),
    paths::RESET: post(reset),
    paths::STOP: post(stop),
    paths::KILL: post(kill),
    paths::NMI: post(nmi),
    paths::DISKS: get(disks).post(add_disk),
    paths::DISK: delete(remove_disk),
    paths::NETS: get(nets).post(add_net),
    paths::NET: delete(remove_net),
    paths::CONSOLES: get(consoles),
    paths::CONSOLE: get(join_console),
    paths::INSPECT: get(inspect),
    paths::INSPECT_PART: get(inspect_part),
    paths::EVENTS: get(events),
    paths::OPERATIONS: get(operations),
    paths::OPERATION: get(operation).delete(cancel),
    paths::OPENAPI: get(openapi),
}

/// The OpenAPI document of the control socket.
pub fn document() -> OpenApi {
    let described = describe_to(OpenApiRouter::with_openapi(Document::openapi()));
    let mut described = look::describe_to(journal::describe_to(described));
    let mut document = described.to_openapi();
    // A path of several parts is `{*path}` for the router and `{path}` for OpenAPI.
    let paths = std::mem::take(&mut document.paths.paths);
    let plain = |(path, item): (String, _)| (path.replace("{*", "{"), item);
    document.paths.paths = paths.into_iter().map(plain).collect();
    document
}

/// [`document`] as JSON.
pub fn document_text() -> String {
    // A document made of literals always becomes JSON.
    document().to_pretty_json().unwrap_or_default()
}

pub(super) fn router(services: Services) -> Router {
    look::route(journal::route(route(Router::new())))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(services)
}

async fn no_such_path(uri: axum::http::Uri) -> Refusal {
    let why = format!("there is nothing at {}", uri.path());
    Problem::new(Code::NotFound, why)
        .field("path")
        .value(uri.path())
        .mend("GET /v1/openapi.json lists every path")
        .into()
}

async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    let why = format!("{} does not take {method}", uri.path());
    Problem::new(Code::Method, why)
        .field("method")
        .value(method.as_str())
        .mend("the Allow header lists what it takes")
        .into()
}

/// How long to wait for the operation.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wait {
    /// Answer only when the operation has ended, or after this many seconds, 600 at most.
    #[serde(default)]
    #[param(minimum = 0, maximum = 600)]
    wait: u32,
}

/// Longest wait in one request, seconds.
const LONGEST_WAIT: u32 = 600;

/// Asks for an operation, and waits for its end if that is wanted.
async fn submit(services: &Services, request: Request, wait: u32) -> Answer<Response> {
    check_wait(wait)?;
    let operation = services.control.submit(request)?;
    let operation = ended(services, operation, wait).await;
    let status = if operation.state.is_final() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let location = [(header::LOCATION, format!("/v1/operations/{}", operation.id))];
    Ok((status, location, Json(operation)).into_response())
}

fn check_wait(wait: u32) -> Answer<()> {
    if wait > LONGEST_WAIT {
        let why = format!("wait: {wait} seconds are too long");
        let mend = format!("wait up to {LONGEST_WAIT} and ask again");
        return Err(Problem::new(Code::Malformed, why)
            .field("wait")
            .value(wait.to_string())
            .mend(mend)
            .into());
    }
    Ok(())
}

/// The operation once it has ended, or as it stands after `wait` seconds.
async fn ended(services: &Services, operation: Operation, wait: u32) -> Operation {
    let id = operation.id;
    let mut news = services.control.follow();
    let mut closing = services.closing.clone();
    let found = async {
        loop {
            news.mark_unchanged();
            let operation = services.control.operation(id)?;
            if operation.state.is_final() {
                return Some(operation);
            }
            tokio::select! {
                changed = news.changed() => changed.ok()?,
                () = closed(&mut closing) => return None,
            }
        }
    };
    let limit = Duration::from_secs(wait.into());
    let found = match wait {
        0 => None,
        _ => tokio::time::timeout(limit, found).await.ok().flatten(),
    };
    found
        .or_else(|| services.control.operation(id))
        .unwrap_or(operation)
}

/// What the machine is and does
#[utoipa::path(get, path = paths::MACHINE, tag = "machine", responses((status = 200, body = Machine)))]
async fn describe(State(services): State<Services>) -> Json<Machine> {
    Json(services.control.describe())
}

/// What the machine was described as
#[utoipa::path(get, path = paths::CONFIG, tag = "machine", responses(
    (status = 200, body = VmConfig), (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
))]
async fn config(State(services): State<Services>) -> Answer<Json<VmConfig>> {
    let config = services.control.config().cloned();
    config.map(Json).ok_or_else(not_yet)
}

/// Where everything is
#[utoipa::path(get, path = paths::PLAN, tag = "machine", responses(
    (status = 200, body = Object), (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
))]
async fn plan(State(services): State<Services>) -> Answer<Json<Value>> {
    let plan = services.control.plan().ok_or_else(not_yet)?;
    // A plan of strings and numbers always becomes JSON.
    Ok(Json(serde_json::to_value(&*plan).unwrap_or_default()))
}

fn not_yet() -> Refusal {
    Problem::new(Code::Conflict, "the machine is not put together yet")
        .mend("ask again")
        .into()
}

macro_rules! operation {
    ($name:ident, $path:path, $request:expr, $doc:literal) => {
        #[doc = $doc]
        #[utoipa::path(post, path = $path, tag = "machine", params(Wait), responses(
            (status = 200, body = Operation, description = "it has ended"),
            (status = 202, body = Operation, description = "it goes on"),
            (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
            (status = 409, body = Problem, content_type = "application/problem+json", description = "not in this phase, or not beside what goes on"),
            (status = 410, body = Problem, content_type = "application/problem+json", description = "the machine has ended"),
            (status = 429, body = Problem, content_type = "application/problem+json", description = "too much waits already"),
        ))]
        async fn $name(
            State(services): State<Services>,
            Query(Wait { wait }): Query<Wait>,
        ) -> Answer<Response> {
            submit(&services, $request, wait).await
        }
    };
}
operation!(pause, paths::PAUSE, Request::Pause, "Stop the guest's time");
operation!(
    resume,
    paths::RESUME,
    Request::Resume,
    "Let the guest go on"
);
operation!(
    power_button,
    paths::POWER_BUTTON,
    Request::PowerButton,
    "Press the power button"
);
operation!(reset, paths::RESET, Request::Reset, "Reset the platform");
operation!(
    nmi,
    paths::NMI,
    Request::Nmi,
    "Inject a non-maskable interrupt"
);

/// Stop the machine: power button first, then the plug
#[utoipa::path(post, path = paths::STOP, tag = "machine", params(Wait), request_body = Option<StopRequest>, responses(
    (status = 200, body = Operation, description = "it has ended"),
    (status = 202, body = Operation, description = "it goes on"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query or the body does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not beside what goes on"),
    (status = 410, body = Problem, content_type = "application/problem+json", description = "the machine has ended"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "the body is too long"),
    (status = 415, body = Problem, content_type = "application/problem+json", description = "the body is not JSON"),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "a value is wrong"),
    (status = 429, body = Problem, content_type = "application/problem+json", description = "too much waits already"),
))]
async fn stop(
    State(services): State<Services>,
    Query(Wait { wait }): Query<Wait>,
    MaybeBody(stop): MaybeBody<StopRequest>,
) -> Answer<Response> {
    const MOST: u32 = 86_400;
    if stop.timeout > MOST {
        let why = format!("timeout: {} seconds are too long", stop.timeout);
        return Err(Problem::new(Code::Invalid, why)
            .field("timeout")
            .value(stop.timeout.to_string())
            .mend(format!("give 0 to {MOST}"))
            .into());
    }
    let timeout = Duration::from_secs(stop.timeout.into());
    submit(&services, Request::Stop { timeout }, wait).await
}

/// How long a killed machine may take to end by itself.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// End the process at once, with nothing written back
#[utoipa::path(post, path = paths::KILL, tag = "machine", responses(
    (status = 202, body = Operation, description = "it ends"),
    (status = 410, body = Problem, content_type = "application/problem+json", description = "the machine has ended"),
))]
async fn kill(State(services): State<Services>) -> Answer<Response> {
    let operation = services.control.submit(Request::Kill)?;
    // The owner may be held up by what the machine is killed for.
    let kill = services.kill.clone();
    tokio::spawn(async move {
        tokio::time::sleep(KILL_GRACE).await;
        kill();
    });
    Ok((StatusCode::ACCEPTED, Json(operation)).into_response())
}

fn devices(services: &Services, kind: &str) -> Json<Vec<DeviceDescription>> {
    let mut devices = services.control.describe().devices;
    devices.retain(|device| device.kind == kind);
    Json(devices)
}

/// Disks
#[utoipa::path(get, path = paths::DISKS, tag = "devices", responses((status = 200, body = Vec<DeviceDescription>)))]
async fn disks(State(services): State<Services>) -> Json<Vec<DeviceDescription>> {
    devices(&services, "disk")
}

/// Network devices
#[utoipa::path(get, path = paths::NETS, tag = "devices", responses((status = 200, body = Vec<DeviceDescription>)))]
async fn nets(State(services): State<Services>) -> Json<Vec<DeviceDescription>> {
    devices(&services, "net")
}

macro_rules! device {
    ($add:ident, $remove:ident, $paths:path, $path:path, $config:ty, $kind:literal, $new:ident, $gone:ident, $add_doc:literal, $remove_doc:literal) => {
        #[doc = $add_doc]
        #[utoipa::path(post, path = $paths, tag = "devices", params(Wait), request_body = $config, responses(
            (status = 200, body = Operation, description = "it has ended"),
            (status = 202, body = Operation, description = "it goes on"),
            (status = 400, body = Problem, content_type = "application/problem+json", description = "the query or the body does not fit"),
            (status = 409, body = Problem, content_type = "application/problem+json", description = "not beside what goes on"),
            (status = 410, body = Problem, content_type = "application/problem+json", description = "the machine has ended"),
            (status = 413, body = Problem, content_type = "application/problem+json", description = "the body is too long"),
            (status = 415, body = Problem, content_type = "application/problem+json", description = "the body is not JSON"),
            (status = 422, body = Problem, content_type = "application/problem+json", description = "a value is wrong"),
            (status = 429, body = Problem, content_type = "application/problem+json", description = "too much waits already"),
            (status = 501, body = Problem, content_type = "application/problem+json", description = "this machine cannot do that"),
        ))]
        async fn $add(
            State(services): State<Services>,
            Query(Wait { wait }): Query<Wait>,
            Body(config): Body<$config>,
        ) -> Answer<Response> {
            submit(&services, Request::$new(Box::new(config)), wait).await
        }

        #[doc = $remove_doc]
        #[utoipa::path(delete, path = $path, tag = "devices", params(("name" = String, Path), Removal, Wait), responses(
            (status = 200, body = Operation, description = "it has ended"),
            (status = 202, body = Operation, description = "it goes on"),
            (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
            (status = 404, body = Problem, content_type = "application/problem+json", description = "there is none of that name"),
            (status = 409, body = Problem, content_type = "application/problem+json", description = "not beside what goes on"),
            (status = 410, body = Problem, content_type = "application/problem+json", description = "the machine has ended"),
            (status = 429, body = Problem, content_type = "application/problem+json", description = "too much waits already"),
            (status = 501, body = Problem, content_type = "application/problem+json", description = "this machine cannot do that"),
        ))]
        async fn $remove(
            State(services): State<Services>,
            Path(name): Path<String>,
            Query(RemovalAndWait { force, wait }): Query<RemovalAndWait>,
        ) -> Answer<Response> {
            services.control.device($kind, &name)?;
            submit(&services, Request::$gone { name, force }, wait).await
        }
    };
}

/// Both queries of a removal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemovalAndWait {
    #[serde(default)]
    force: bool,
    #[serde(default)]
    wait: u32,
}

device!(
    add_disk,
    remove_disk,
    paths::DISKS,
    paths::DISK,
    DiskConfig,
    "disk",
    AddDisk,
    RemoveDisk,
    "Add a disk",
    "Remove a disk"
);
device!(
    add_net,
    remove_net,
    paths::NETS,
    paths::NET,
    NetConfig,
    "net",
    AddNet,
    RemoveNet,
    "Add a network device",
    "Remove a network device"
);

/// Consoles
#[utoipa::path(get, path = paths::CONSOLES, tag = "consoles", responses((status = 200, body = Vec<ConsoleDescription>)))]
async fn consoles(State(services): State<Services>) -> Json<Vec<ConsoleDescription>> {
    Json(services.control.describe().consoles)
}

/// Join a console, or read what it said last
#[utoipa::path(get, path = paths::CONSOLE, tag = "consoles", params(("name" = String, Path)), responses(
    (status = 101, description = "with `Upgrade: nyx-console`: plain bytes both ways from here on"),
    (status = 200, body = String, content_type = "text/plain; charset=utf-8", description = "without: what was said last"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "another protocol was asked for"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "there is none of that name"),
))]
async fn join_console(
    State(services): State<Services>,
    Path(name): Path<String>,
    request: axum::extract::Request,
) -> Answer<Response> {
    let consoles = services.control.consoles();
    let console = consoles.get(&name).ok_or_else(|| {
        let names: Vec<_> = consoles.list().into_iter().map(|(name, _)| name).collect();
        let mend = match names.is_empty() {
            true => "the machine has no console".into(),
            false => format!("there are: {}", names.join(", ")),
        };
        Problem::new(
            Code::NotFound,
            format!("there is no console called {name:?}"),
        )
        .field("name")
        .value(name)
        .mend(mend)
    })?;
    Ok(console::answer(&console, request, services.closing.clone()))
}

/// How much of the tree.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Depth {
    /// Levels below the root of the answer; what lies deeper is left out.
    #[param(minimum = 0, maximum = 64)]
    depth: Option<u32>,
}

/// The state tree
#[utoipa::path(get, path = paths::INSPECT, tag = "watching", params(Depth), responses(
    (status = 200, body = Object),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
))]
async fn inspect(
    State(services): State<Services>,
    Query(Depth { depth }): Query<Depth>,
) -> Answer<Json<Value>> {
    check_depth(depth)?;
    let mut tree = services.control.inspect();
    cut(&mut tree, depth);
    Ok(Json(tree))
}

/// A part of the state tree
#[utoipa::path(get, path = paths::INSPECT_PART, tag = "watching", params(("path" = String, Path, description = "names joined by slashes"), Depth), responses(
    (status = 200, description = "the part: an object, a string, a number or a truth value", content_type = "application/json"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "there is no such part"),
))]
async fn inspect_part(
    State(services): State<Services>,
    Path(path): Path<String>,
    Query(Depth { depth }): Query<Depth>,
) -> Answer<Json<Value>> {
    check_depth(depth)?;
    let tree = services.control.inspect();
    let mut part = nyx_inspect::part(&tree, &path)
        .map_err(|e| {
            Problem::new(
                Code::NotFound,
                format!("there is no {path:?} in the state tree"),
            )
            .field("path")
            .value(path.as_str())
            .mend(e)
        })?
        .clone();
    cut(&mut part, depth);
    Ok(Json(part))
}

/// Refuses a depth that no tree has.
fn check_depth(depth: Option<u32>) -> Answer<()> {
    const MOST: u32 = 64;
    match depth {
        Some(depth) if depth > MOST => Err(Problem::new(
            Code::Malformed,
            format!("depth: {depth} is too much"),
        )
        .field("depth")
        .value(depth.to_string())
        .mend(format!("give 0 to {MOST}, or leave it out"))
        .into()),
        _ => Ok(()),
    }
}

/// Leaves out what lies deeper than `depth`.
fn cut(tree: &mut Value, depth: Option<u32>) {
    let Some(depth) = depth else { return };
    if let Value::Object(children) = tree {
        if depth == 0 {
            children.clear();
        }
        for child in children.values_mut() {
            cut(child, Some(depth.saturating_sub(1)));
        }
    }
}

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Since {
    /// Only events after this number.
    #[serde(default)]
    since: u64,
    /// Go on with those to come; on by default.
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// Events, as server-sent events
#[utoipa::path(get, path = paths::EVENTS, tag = "watching", params(Since), responses(
    (status = 200, body = String, content_type = "text/event-stream", description = "each `data` is an Event"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
))]
async fn events(
    State(services): State<Services>,
    Query(Since { since, follow }): Query<Since>,
) -> Response {
    follow::events(services.control, since, follow, services.closing)
}

/// Operations: all that have not ended and the last that have
#[utoipa::path(get, path = paths::OPERATIONS, tag = "operations", responses((status = 200, body = Vec<Operation>)))]
async fn operations(State(services): State<Services>) -> Json<Vec<Operation>> {
    Json(services.control.operations())
}

/// The number of an operation in a path.
fn number(text: &str) -> Answer<u64> {
    text.parse().map_err(|_| {
        Problem::new(Code::NotFound, format!("there is no operation {text:?}"))
            .field("id")
            .value(text)
            .mend("list them with GET /v1/operations")
            .into()
    })
}

/// An operation
#[utoipa::path(get, path = paths::OPERATION, tag = "operations", params(("id" = u64, Path), Wait), responses(
    (status = 200, body = Operation),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "there is none of that number"),
))]
async fn operation(
    State(services): State<Services>,
    Path(id): Path<String>,
    Query(Wait { wait }): Query<Wait>,
) -> Answer<Json<Operation>> {
    check_wait(wait)?;
    let id = number(&id)?;
    let operation = services.control.operation(id).ok_or_else(|| {
        Problem::new(Code::NotFound, format!("there is no operation {id}"))
            .field("id")
            .value(id.to_string())
            .mend("list them with GET /v1/operations")
    })?;
    Ok(Json(ended(&services, operation, wait).await))
}

/// Cancel an operation
#[utoipa::path(delete, path = paths::OPERATION, tag = "operations", params(("id" = u64, Path)), responses(
    (status = 200, body = Operation, description = "it is cancelled"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "there is none of that number"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "it cannot be cancelled any more"),
))]
async fn cancel(
    State(services): State<Services>,
    Path(id): Path<String>,
) -> Answer<Json<Operation>> {
    Ok(Json(services.control.cancel(number(&id)?)?))
}

/// This document
#[utoipa::path(get, path = paths::OPENAPI, tag = "watching", responses((status = 200, body = Object)))]
async fn openapi() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, document_text()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Desk, Identity};
    use axum::body::Body;
    use nyx_catalog::Consoles;
    use std::sync::Arc;
    use tokio::sync::watch;
    use tower::ServiceExt as _;

    fn app() -> (Desk, Router, watch::Sender<bool>) {
        let desk = Desk::new(Identity::new("doc"), Consoles::default());
        let (close, closing) = watch::channel(false);
        let services = Services {
            control: desk.control(),
            gdb: "unix:/nowhere/gdb.sock".into(),
            kill: Arc::new(|| {}),
            closing,
        };
        (desk, router(services), close)
    }

    /// Every method of every path in the document reaches something that answers it, and what is not in the document
    /// does not exist.
    #[tokio::test]
    async fn router_and_document_say_the_same() {
        let (_desk, app, _close) = app();
        let document = serde_json::to_value(document()).unwrap();
        let mut seen = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            let concrete = path
                .replace("{path}", "machine/phase")
                .replace("{name}", "nobody")
                .replace("{id}", "7")
                .replace("{index}", "0");
            for method in ["get", "put", "post", "delete", "patch"] {
                // A stream ends when the machine does; here nothing has begun.
                let query = if path.ends_with("/events") {
                    "?follow=false"
                } else {
                    ""
                };
                let request = axum::http::Request::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(format!("{concrete}{query}"))
                    .body(Body::empty())
                    .unwrap();
                let answer = app.clone().oneshot(request).await.unwrap();
                let status = answer.status().as_u16();
                let described = item.get(method).is_some();
                assert_eq!(status != 405, described, "{method} {path}: {status}");
                if described {
                    seen += 1;
                    let told = &item[method]["responses"][status.to_string()];
                    assert!(
                        told.is_object(),
                        "{method} {path}: {status} is not described"
                    );
                }
            }
        }
        assert!(seen >= 38, "{seen}");
        let request = axum::http::Request::get("/v1/nothing").body(Body::empty());
        let answer = app.oneshot(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), 404);
        let kind = answer.headers()[header::CONTENT_TYPE].to_str().unwrap();
        assert_eq!(kind, "application/problem+json");
    }
}
