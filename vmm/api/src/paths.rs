//! Where things are on the control socket.

/// The machine: `GET` describes it ([`Machine`](crate::Machine)).
pub const MACHINE: &str = "/v1/machine";
/// Its description as configured: `GET` gives a `VmConfig`.
pub const CONFIG: &str = "/v1/machine/config";
/// Its plan, as data: `GET`.
pub const PLAN: &str = "/v1/machine/plan";
/// `POST`: stop the guest's time. An [`Operation`](crate::Operation) comes back, as from all of these.
pub const PAUSE: &str = "/v1/machine/pause";
/// `POST`: let it go on.
pub const RESUME: &str = "/v1/machine/resume";
/// `POST`: press the power button.
pub const POWER_BUTTON: &str = "/v1/machine/power-button";
/// `POST`: reset the platform.
pub const RESET: &str = "/v1/machine/reset";
/// `POST` a [`StopRequest`](crate::StopRequest): power button, then the plug.
pub const STOP: &str = "/v1/machine/stop";
/// `POST`: end the process at once, with nothing written back.
pub const KILL: &str = "/v1/machine/kill";
/// `POST`: a non-maskable interrupt into vCPU 0.
pub const NMI: &str = "/v1/machine/nmi";
/// `POST` a `DiskConfig` to add a disk; `GET` lists them.
pub const DISKS: &str = "/v1/machine/disks";
/// `DELETE` removes a disk ([`Removal`](crate::Removal) in the query).
pub const DISK: &str = "/v1/machine/disks/{name}";
/// `POST` a `NetConfig` to add a network device; `GET` lists them.
pub const NETS: &str = "/v1/machine/nets";
/// `DELETE` removes a network device.
pub const NET: &str = "/v1/machine/nets/{name}";
/// `GET` lists consoles ([`ConsoleDescription`](crate::ConsoleDescription)).
pub const CONSOLES: &str = "/v1/machine/consoles";
/// `GET` with `Connection: Upgrade` and `Upgrade: nyx-console`: raw bytes both ways, after what was
/// said last. `GET` without: what was said last, as text.
pub const CONSOLE: &str = "/v1/machine/consoles/{name}";
/// The protocol that [`CONSOLE`] upgrades to.
pub const CONSOLE_PROTOCOL: &str = "nyx-console";
/// `GET`: the whole state tree (`?depth=N` cuts it).
pub const INSPECT: &str = "/v1/machine/inspect";
/// `GET`: a part of the state tree.
pub const INSPECT_PART: &str = "/v1/machine/inspect/{*path}";
/// `GET`: events as server-sent events; `?since=N` replays what is kept after number N, `?follow=false`
/// ends there.
pub const EVENTS: &str = "/v1/machine/events";
/// `GET`: journal entries as a list (`?last=N`, `?level=warn`, `?component=device`), or as server-sent
/// events with `?follow=true`.
pub const LOGS: &str = "/v1/machine/logs";
/// `GET` and `PUT` a [`LogFilter`](crate::LogFilter).
pub const LOG_FILTER: &str = "/v1/machine/logs/filter";
/// `GET`: spans as Chrome trace JSON, for Perfetto; `PUT` a [`Tracing`](crate::Tracing): keep them from now on, or no longer.
pub const TRACE: &str = "/v1/machine/trace";
/// `GET`: the performance report, with bottlenecks.
pub const REPORT: &str = "/v1/machine/metrics/report";
/// `GET`: the last samples (`?last=N`).
pub const SAMPLES: &str = "/v1/machine/metrics/samples";
/// `GET`: health.
pub const HEALTH: &str = "/v1/machine/health";
/// `GET`: operations, newest last. `GET …/{id}` one, `DELETE …/{id}` cancels it.
pub const OPERATIONS: &str = "/v1/operations";
/// One operation.
pub const OPERATION: &str = "/v1/operations/{id}";
/// `GET`: every vCPU at one moment: registers, and `stack=N` bytes from the stack pointer on as hexadecimal
/// digits ([`VcpuState`](crate::VcpuState)).
pub const VCPUS: &str = "/v1/machine/vcpus";
/// `GET`: registers of a vCPU as JSON ([`VcpuState`](crate::VcpuState)).
pub const REGISTERS: &str = "/v1/machine/vcpus/{index}/registers";
/// `GET`: guest memory, raw (`?address=0x…&length=N`, `&vcpu=N` makes the address virtual there).
pub const MEMORY: &str = "/v1/machine/memory";
/// `PUT` a [`GdbRequest`](crate::GdbRequest): listen for a debugger; `DELETE`: no longer.
pub const GDB: &str = "/v1/machine/gdb";
/// `GET`: why the boot failed, or how far it is: what `nyx why` shows.
pub const WHY: &str = "/v1/machine/why";
/// `GET`: the OpenAPI document.
pub const OPENAPI: &str = "/v1/openapi.json";
/// `GET`: Prometheus text.
pub const METRICS: &str = "/metrics";
