//! Routes that look into the machine: figures, health, vCPUs, guest memory, the debugger, the boot's diagnosis.

#![expect(
    unused_qualifications,
    reason = "utoipa's macro qualifies the names of parameters"
)]

use super::answer::Refusal;
use super::extract::{MaybeBody, Query};
use super::{Services, routes::Answer};
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Json, Response};
use nyx_api::{Code, GdbAddress, GdbRequest, Problem, VcpuState, paths};
use nyx_debug::{MemoryError, VcpuSample};
use nyx_machine::{DebugError, DebugPort};
use nyx_metrics::{Check, Metrics, Status};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use utoipa::IntoParams;

surface! {
    paths::METRICS: get(metrics),
    paths::REPORT: get(report),
    paths::SAMPLES: get(samples),
    paths::HEALTH: get(health),
    paths::VCPUS: get(vcpus),
    paths::REGISTERS: get(registers),
    paths::MEMORY: get(memory),
    paths::GDB: put(listen_for_gdb).delete(close_gdb),
    paths::WHY: get(why),
}

fn not_yet() -> Refusal {
    Problem::new(
        Code::Conflict,
        "the machine is not put together yet, or is gone",
    )
    .mend("ask again")
    .into()
}

fn figures(services: &Services) -> Answer<Arc<Metrics>> {
    services.control.metrics().ok_or_else(not_yet)
}

fn json(value: impl serde::Serialize) -> Json<Value> {
    // Figures and strings always become JSON.
    Json(serde_json::to_value(value).unwrap_or_default())
}

/// Which figures.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Names {
    /// Only those of this name, in which `*` stands for anything.
    #[param(max_length = 256)]
    name: Option<String>,
}

/// Figures for Prometheus
#[utoipa::path(get, path = paths::METRICS, tag = "watching", params(Names), responses(
    (status = 200, body = String, content_type = "text/plain; version=0.0.4"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
))]
async fn metrics(
    State(services): State<Services>,
    Query(Names { name }): Query<Names>,
) -> Answer<Response> {
    const MOST: usize = 256;
    if let Some(name) = name.as_deref().filter(|name| name.chars().count() > MOST) {
        let shown: String = name.chars().take(40).collect();
        return Err(
            Problem::new(Code::Malformed, "name: no figure has so long a name")
                .field("name")
                .value(shown)
                .mend(format!("give at most {MOST} characters"))
                .into(),
        );
    }
    let page = figures(&services)?.page(name.as_deref());
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, page).into_response())
}

/// The performance report, with bottlenecks
#[utoipa::path(get, path = paths::REPORT, tag = "watching", responses(
    (status = 200, body = Object),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
))]
async fn report(State(services): State<Services>) -> Answer<Json<Value>> {
    let figures = figures(&services)?;
    watch(&figures);
    Ok(json(figures.report()))
}

/// Somebody looks again and again: samples are taken in between.
fn watch(figures: &Metrics) {
    if let Err(e) = figures.watch() {
        tracing::warn!(target: "metrics", "cannot sample: {e}");
    }
}

/// How many samples.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Last {
    /// The last so many, 1000 at most.
    #[serde(default = "ten")]
    #[param(minimum = 0, maximum = 1000)]
    last: u32,
}

fn ten() -> u32 {
    10
}

/// The last samples, oldest first
#[utoipa::path(get, path = paths::SAMPLES, tag = "watching", params(Last), responses(
    (status = 200, body = Vec<Object>),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
))]
async fn samples(
    State(services): State<Services>,
    Query(Last { last }): Query<Last>,
) -> Answer<Json<Value>> {
    if last > 1000 {
        return Err(Problem::new(
            Code::Malformed,
            format!("last: {last} samples are not kept"),
        )
        .field("last")
        .value(last.to_string())
        .mend("ask for 1000 at most")
        .into());
    }
    let figures = figures(&services)?;
    watch(&figures);
    figures.now();
    let last = usize::try_from(last).unwrap_or(usize::MAX);
    let samples: Vec<Value> = figures.history(|history| {
        let samples = history.samples();
        let skip = samples.len().saturating_sub(last);
        let shown = samples.skip(skip);
        shown
            .map(|sample| serde_json::to_value(sample).unwrap_or_default())
            .collect()
    });
    Ok(Json(samples.into()))
}

/// Whether all is well
#[utoipa::path(get, path = paths::HEALTH, tag = "watching", responses(
    (status = 200, body = Object),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
))]
async fn health(State(services): State<Services>) -> Answer<Json<Value>> {
    let figures = figures(&services)?;
    watch(&figures);
    figures.now();
    let phase = Check::new("phase", Status::Healthy, services.control.phase().name());
    Ok(json(figures.health().with(phase)))
}

/// How much of the stack.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Stack {
    /// Bytes from the stack pointer on, 65536 at most.
    #[serde(default)]
    #[param(minimum = 0, maximum = 65536)]
    stack: u32,
}

const MOST_STACK: u32 = 64 << 10;

async fn sampled(services: &Services, stack: u32) -> Answer<Vec<VcpuState>> {
    if stack > MOST_STACK {
        let why = format!("stack: {stack} bytes are too many");
        return Err(Problem::new(Code::Malformed, why)
            .field("stack")
            .value(stack.to_string())
            .mend(format!("ask for {MOST_STACK} at most"))
            .into());
    }
    let stack = usize::try_from(stack).unwrap_or_default();
    let samples = blocking(services, move |port| Ok(nyx_debug::sample(port, stack)?)).await?;
    Ok(samples.iter().map(state).collect())
}

fn state(sample: &VcpuSample) -> VcpuState {
    VcpuState {
        index: sample.index,
        registers: serde_json::to_value(sample).unwrap_or_default(),
        stack: sample
            .stack
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}

/// Looks into the machine off the socket's thread: a vCPU may take its time.
async fn blocking<T: Send + 'static>(
    services: &Services,
    look: impl FnOnce(&DebugPort) -> Result<T, MemoryError> + Send + 'static,
) -> Answer<T> {
    let port = services.control.debug_port().ok_or_else(not_yet)?;
    let failed = |why: String| Refusal(Problem::new(Code::Failed, why).mend("ask again"));
    let looked = tokio::task::spawn_blocking(move || look(&port)).await;
    looked.map_err(|e| failed(e.to_string()))?.map_err(|e| {
        let why = e.to_string();
        let missing = |mend: &str| Refusal(Problem::new(Code::NotFound, why.as_str()).mend(mend));
        match e {
            MemoryError::Absent(_) => missing("GET /v1/machine/plan says where memory is"),
            MemoryError::Vcpu(DebugError::NoVcpu(_)) => missing("GET /v1/machine/vcpus lists them"),
            MemoryError::Vcpu(DebugError::Unsupported) => {
                Refusal(Problem::new(Code::Unsupported, why).mend("ask where KVM can debug"))
            }
            MemoryError::TooLong(_) | MemoryError::Vcpu(_) => failed(why),
        }
    })
}

/// Every vCPU at one moment
#[utoipa::path(get, path = paths::VCPUS, tag = "watching", params(Stack), responses(
    (status = 200, body = Vec<VcpuState>),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
    (status = 500, body = Problem, content_type = "application/problem+json", description = "a vCPU does not stop"),
    (status = 501, body = Problem, content_type = "application/problem+json", description = "this KVM cannot debug guests"),
))]
async fn vcpus(
    State(services): State<Services>,
    Query(Stack { stack }): Query<Stack>,
) -> Answer<Json<Vec<VcpuState>>> {
    Ok(Json(sampled(&services, stack).await?))
}

/// A vCPU's registers
#[utoipa::path(get, path = paths::REGISTERS, tag = "watching", params(("index" = u32, Path), Stack), responses(
    (status = 200, body = VcpuState),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "there is no such vCPU"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
    (status = 500, body = Problem, content_type = "application/problem+json", description = "a vCPU does not stop"),
    (status = 501, body = Problem, content_type = "application/problem+json", description = "this KVM cannot debug guests"),
))]
async fn registers(
    State(services): State<Services>,
    Path(index): Path<String>,
    Query(Stack { stack }): Query<Stack>,
) -> Answer<Json<VcpuState>> {
    let states = sampled(&services, stack).await?;
    let count = states.len();
    let wanted = index.parse::<u32>().ok();
    let mut states = states.into_iter();
    let found = states.find(|state| Some(state.index) == wanted);
    let state = found.ok_or_else(|| {
        Problem::new(Code::NotFound, format!("there is no vCPU {index:?}"))
            .field("index")
            .value(index)
            .mend(format!("there are 0 to {}", count.saturating_sub(1)))
    })?;
    Ok(Json(state))
}

/// Which memory.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Place {
    /// From here on: decimal, or hexadecimal with 0x.
    #[param(pattern = "^(0x[0-9a-fA-F]{1,16}|[0-9]{1,19})$", example = "0x100000")]
    address: String,
    /// Bytes, 1 MiB at most.
    #[param(minimum = 1, maximum = 1048576)]
    length: u32,
    /// The address is virtual, as this vCPU sees it; physical without.
    #[param(minimum = 0)]
    vcpu: Option<u32>,
}

const MOST_MEMORY: u32 = 1 << 20;

/// Guest memory
#[utoipa::path(get, path = paths::MEMORY, tag = "watching", params(Place), responses(
    (status = 200, description = "the bytes", content_type = "application/octet-stream"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the query does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "there is no memory there, or no such vCPU"),
    (status = 500, body = Problem, content_type = "application/problem+json", description = "a vCPU does not stop"),
    (status = 501, body = Problem, content_type = "application/problem+json", description = "this KVM cannot debug guests"),
))]
async fn memory(State(services): State<Services>, Query(place): Query<Place>) -> Answer<Response> {
    let wrong = |field: &str, value: &str, mend: &str| {
        let why = format!("{field}: {value:?} cannot be read");
        Refusal(
            Problem::new(Code::Malformed, why)
                .field(field)
                .value(value)
                .mend(mend),
        )
    };
    let text = place.address.as_str();
    let address = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let address = address.map_err(|_| wrong("address", text, "write it like 0x100000"))?;
    if place.length == 0 || place.length > MOST_MEMORY {
        let mend = format!("ask for 1 to {MOST_MEMORY} bytes");
        return Err(wrong("length", &place.length.to_string(), &mend));
    }
    let length = usize::try_from(place.length).unwrap_or_default();
    let vcpu = place.vcpu;
    let bytes = blocking(&services, move |port| match vcpu {
        Some(vcpu) => nyx_debug::read_virtual(port, vcpu as _, address, length),
        None => nyx_debug::read_physical(port, address, length),
    })
    .await?;
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, bytes).into_response())
}

/// Listen for a debugger
#[utoipa::path(put, path = paths::GDB, tag = "watching", request_body = Option<GdbRequest>, responses(
    (status = 200, body = GdbAddress),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "the body does not fit"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "not assembled yet"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "the body is too long"),
    (status = 415, body = Problem, content_type = "application/problem+json", description = "the body is not JSON"),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "the address cannot be used"),
    (status = 500, body = Problem, content_type = "application/problem+json", description = "it did not work"),
))]
async fn listen_for_gdb(
    State(services): State<Services>,
    MaybeBody(request): MaybeBody<GdbRequest>,
) -> Answer<Json<GdbAddress>> {
    const MOST: usize = 256;
    let given = request.listen.as_deref().unwrap_or_default();
    if given.chars().count() > MOST {
        let shown: String = given.chars().take(40).collect();
        return Err(Problem::new(Code::Invalid, "listen: no address is so long")
            .field("listen")
            .value(shown)
            .mend("write it like 127.0.0.1:1234 or unix:PATH")
            .into());
    }
    let listen = request.listen.unwrap_or_else(|| services.gdb.clone());
    let control = services.control.clone();
    let listening =
        tokio::task::spawn_blocking(move || control.listen_for_gdb(&listen, false)).await;
    let address =
        listening.map_err(|e| Problem::new(Code::Failed, e.to_string()).mend("ask again"))??;
    Ok(Json(GdbAddress { address }))
}

/// Listen for no debugger any more
#[utoipa::path(delete, path = paths::GDB, tag = "watching", responses(
    (status = 204, description = "nobody can connect now"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "nobody could"),
))]
async fn close_gdb(State(services): State<Services>) -> Answer<Response> {
    let control = services.control.clone();
    let closed = tokio::task::spawn_blocking(move || control.close_gdb()).await;
    match closed {
        Ok(true) => Ok(axum::http::StatusCode::NO_CONTENT.into_response()),
        _ => Err(Problem::new(Code::NotFound, "there is no debugger's door")
            .mend("nothing needs to be done")
            .into()),
    }
}

/// Why the boot failed, or how far it is
#[utoipa::path(get, path = paths::WHY, tag = "watching", responses(
    (status = 200, body = Object),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "nothing is recorded"),
))]
async fn why(State(services): State<Services>) -> Answer<Json<Value>> {
    let bundle = services.control.why(None).ok_or_else(not_yet)?;
    Ok(json(bundle))
}
