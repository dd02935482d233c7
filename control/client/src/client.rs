//! What can be asked of a machine, one function for each path.

use crate::call::{Call, CallError, Trouble, head, whole};
use crate::path::{fill, query};
use crate::stream::Messages;
use hyper::Method;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use nyx_api::{
    Code, ConsoleDescription, DeviceDescription, Event, Health, LogEntry, LogFilter, Machine,
    Operation, OperationKind, OperationState, StopRequest, VcpuState, paths,
};
use nyx_spec::{DiskConfig, NetConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a machine may take to answer unless [`Client::within`] says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// First and longest pause between two looks at an operation.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Calls one machine. Each call is a connection of its own, so that a client may be shared freely.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    limit: Duration,
}

/// Which journal entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only so many, the newest.
    pub last: Option<u64>,
    /// Only of this level and worse.
    pub level: Option<String>,
    /// Only of this component.
    pub component: Option<String>,
}

/// Which guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryQuery {
    /// Where.
    pub address: u64,
    /// How many bytes.
    pub length: u64,
    /// The address is virtual, as on this vCPU; otherwise it is guest-physical.
    pub vcpu: Option<u32>,
}

/// A console joined.
#[derive(Debug)]
pub struct Attached {
    /// What had come already.
    pub said: Vec<u8>,
    /// The rest, both ways. Blocking.
    pub stream: std::os::unix::net::UnixStream,
}

/// What to do about an operation that is still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait on.
    Wait,
    /// Cancel it, then wait for its end.
    Cancel,
    /// Leave it be.
    Leave,
}

impl Client {
    /// A client of the machine whose control socket is `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            limit: PATIENCE,
        }
    }

    /// The same with another limit to the time an answer may take.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn bytes(&self, call: Call<'_>) -> Result<Bytes, CallError> {
        let response = head(&self.socket, self.limit, call).await?;
        whole(&self.socket, self.limit, response).await
    }

    async fn answer<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, CallError> {
        let what = format!("{} {}", call.method, call.path);
        let body = self.bytes(call).await?;
        serde_json::from_slice(&body).map_err(|e| {
            let why = format_args!("its answer to {what} cannot be read: {e}");
            CallError::Garbage(Trouble::new(&self.socket, why))
        })
    }

    async fn text(&self, path: &str) -> Result<String, CallError> {
        let mut call = Call::new(Method::GET, path);
        call.accept = "text/plain";
        let body = self.bytes(call).await?;
        String::from_utf8(body.into()).map_err(|_| {
            let why = format_args!("its answer to GET {path} is not text");
            CallError::Garbage(Trouble::new(&self.socket, why))
        })
    }

    /// Reads any path as JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.answer(Call::new(Method::GET, path)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, CallError> {
        let mut call = Call::new(method, path);
        if let Some(body) = body {
            let body = serde_json::to_vec(body);
            call.body = Some(body.map_err(|e| CallError::Garbage(Trouble::new(&self.socket, e)))?);
        }
        self.answer(call).await
    }

    /// Puts `body` at any path and reads the answer.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, CallError> {
        self.send(Method::PUT, path, Some(body)).await
    }

    /// Deletes what is at any path; what is answered does not matter.
    pub async fn delete(&self, path: &str) -> Result<(), CallError> {
        self.bytes(Call::new(Method::DELETE, path)).await.map(drop)
    }

    async fn messages<T: DeserializeOwned>(&self, path: &str) -> Result<Messages<T>, CallError> {
        let mut call = Call::new(Method::GET, path);
        call.accept = "text/event-stream";
        let response = head(&self.socket, self.limit, call).await?;
        Ok(Messages::new(self.socket.clone(), response.into_body()))
    }

    /// What it is and does.
    pub async fn machine(&self) -> Result<Machine, CallError> {
        self.get(paths::MACHINE).await
    }

    /// Its description as configured.
    pub async fn config(&self) -> Result<Value, CallError> {
        self.get(paths::CONFIG).await
    }

    /// Its plan.
    pub async fn plan(&self) -> Result<Value, CallError> {
        self.get(paths::PLAN).await
    }

    /// Asks for what needs no more words: pause, resume, power button, reset, kill, NMI.
    ///
    /// # Errors
    ///
    /// As every call; what needs a body is refused by the machine.
    pub async fn ask(&self, kind: OperationKind) -> Result<Operation, CallError> {
        let path = match kind {
            OperationKind::Pause => paths::PAUSE,
            OperationKind::Resume => paths::RESUME,
            OperationKind::PowerButton => paths::POWER_BUTTON,
            OperationKind::Reset => paths::RESET,
            OperationKind::Stop => paths::STOP,
            OperationKind::Kill => paths::KILL,
            OperationKind::Nmi => paths::NMI,
            OperationKind::AddDisk | OperationKind::RemoveDisk => paths::DISKS,
            OperationKind::AddNet | OperationKind::RemoveNet => paths::NETS,
        };
        self.answer(Call::new(Method::POST, path)).await
    }

    /// Power button, then the plug.
    pub async fn stop(&self, request: &StopRequest) -> Result<Operation, CallError> {
        self.send(Method::POST, paths::STOP, Some(request)).await
    }

    /// Adds a disk.
    pub async fn add_disk(&self, disk: &DiskConfig) -> Result<Operation, CallError> {
        self.send(Method::POST, paths::DISKS, Some(disk)).await
    }

    /// Removes a disk, by `force` even if the guest does not let go of it.
    pub async fn remove_disk(&self, name: &str, force: bool) -> Result<Operation, CallError> {
        self.remove(paths::DISK, name, force).await
    }

    /// Its disks.
    pub async fn disks(&self) -> Result<Vec<DeviceDescription>, CallError> {
        self.get(paths::DISKS).await
    }

    /// Adds a network device.
    pub async fn add_net(&self, net: &NetConfig) -> Result<Operation, CallError> {
        self.send(Method::POST, paths::NETS, Some(net)).await
    }

    /// Removes a network device, by `force` even if the guest does not let go of it.
    pub async fn remove_net(&self, name: &str, force: bool) -> Result<Operation, CallError> {
        self.remove(paths::NET, name, force).await
    }

    /// Its network devices.
    pub async fn nets(&self) -> Result<Vec<DeviceDescription>, CallError> {
        self.get(paths::NETS).await
    }

    async fn remove(&self, path: &str, name: &str, force: bool) -> Result<Operation, CallError> {
        let force = force.then(|| "true".to_string());
        let path = query(&fill(path, name), [("force", force)]);
        self.answer(Call::new(Method::DELETE, &path)).await
    }

    /// Its consoles.
    pub async fn consoles(&self) -> Result<Vec<ConsoleDescription>, CallError> {
        self.get(paths::CONSOLES).await
    }

    /// What was said last on a console.
    pub async fn console_text(&self, console: &str) -> Result<Vec<u8>, CallError> {
        let path = fill(paths::CONSOLE, console);
        let mut call = Call::new(Method::GET, &path);
        call.accept = "text/plain";
        self.bytes(call).await.map(Into::into)
    }

    /// Joins a console: raw bytes both ways, after what was said last.
    pub async fn attach(&self, console: &str) -> Result<Attached, CallError> {
        let path = fill(paths::CONSOLE, console);
        let mut call = Call::new(Method::GET, &path);
        call.upgrade = Some(paths::CONSOLE_PROTOCOL);
        let garbage =
            |why: &dyn std::fmt::Display| CallError::Garbage(Trouble::new(&self.socket, why));
        let response = head(&self.socket, self.limit, call).await?;
        if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
            return Err(garbage(&"it does not let consoles be joined"));
        }
        let upgraded = tokio::time::timeout(self.limit, hyper::upgrade::on(response)).await;
        let upgraded = upgraded
            .map_err(|_| CallError::TimedOut {
                socket: self.socket.clone(),
                within: self.limit,
            })?
            .map_err(|e| CallError::from_hyper(&self.socket, &e))?;
        let parts = upgraded
            .downcast::<TokioIo<tokio::net::UnixStream>>()
            .map_err(|_| garbage(&"the stream is of another kind"))?;
        let stream = parts.io.into_inner().into_std().and_then(|stream| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        Ok(Attached {
            said: parts.read_buf.into(),
            stream: stream.map_err(|e| CallError::Closed(Trouble::new(&self.socket, e)))?,
        })
    }

    /// Its state tree or, with `path`, a part of it, at most `depth` levels deep.
    pub async fn inspect(&self, path: &str, depth: Option<u32>) -> Result<Value, CallError> {
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        let path = segments.fold(paths::INSPECT.to_string(), |path, segment| {
            path + "/" + &crate::path::encode(segment)
        });
        let depth = depth.map(|depth| depth.to_string());
        self.get(&query(&path, [("depth", depth)])).await
    }

    /// Events after number `since`; with `follow` the stream goes on for as long as the machine lives.
    pub async fn events(
        &self,
        since: Option<u64>,
        follow: bool,
    ) -> Result<Messages<Event>, CallError> {
        let parameters = [
            ("since", since.map(|n| n.to_string())),
            ("follow", Some(follow.to_string())),
        ];
        self.messages(&query(paths::EVENTS, parameters)).await
    }

    /// Journal entries, oldest first.
    pub async fn logs(&self, which: &LogQuery) -> Result<Vec<LogEntry>, CallError> {
        self.get(&log_path(which, false)).await
    }

    /// Journal entries, those that come too.
    pub async fn follow_logs(&self, which: &LogQuery) -> Result<Messages<LogEntry>, CallError> {
        self.messages(&log_path(which, true)).await
    }

    /// Which entries the journal takes.
    pub async fn log_filter(&self) -> Result<LogFilter, CallError> {
        self.get(paths::LOG_FILTER).await
    }

    /// Makes the journal take others.
    pub async fn set_log_filter(&self, filter: &LogFilter) -> Result<LogFilter, CallError> {
        self.send(Method::PUT, paths::LOG_FILTER, Some(filter))
            .await
    }

    /// Spans as Chrome trace JSON.
    pub async fn trace(&self) -> Result<Vec<u8>, CallError> {
        self.bytes(Call::new(Method::GET, paths::TRACE))
            .await
            .map(Into::into)
    }

    /// Metrics as Prometheus text.
    pub async fn metrics(&self) -> Result<String, CallError> {
        self.text(paths::METRICS).await
    }

    /// The performance report.
    pub async fn report(&self) -> Result<Value, CallError> {
        self.get(paths::REPORT).await
    }

    /// The last samples.
    pub async fn samples(&self, last: Option<u64>) -> Result<Value, CallError> {
        let last = last.map(|n| n.to_string());
        self.get(&query(paths::SAMPLES, [("last", last)])).await
    }

    /// Whether all is well.
    pub async fn health(&self) -> Result<Health, CallError> {
        self.get(paths::HEALTH).await
    }

    /// Operations, newest last.
    pub async fn operations(&self) -> Result<Vec<Operation>, CallError> {
        self.get(paths::OPERATIONS).await
    }

    /// One operation.
    pub async fn operation(&self, id: u64) -> Result<Operation, CallError> {
        self.get(&fill(paths::OPERATION, &id.to_string())).await
    }

    /// Cancels one.
    pub async fn cancel(&self, id: u64) -> Result<Operation, CallError> {
        let path = fill(paths::OPERATION, &id.to_string());
        self.answer(Call::new(Method::DELETE, &path)).await
    }

    /// Waits for the end of `operation`, telling `seen` now and then where it stands. A machine that goes away
    /// while it is being stopped or killed has done what it was asked.
    pub async fn wait(
        &self,
        mut operation: Operation,
        mut seen: impl FnMut(&Operation) -> Patience + Send,
    ) -> Result<Operation, CallError> {
        let ends = matches!(operation.kind, OperationKind::Stop | OperationKind::Kill);
        let mut pause = LOOK_AGAIN.0;
        while !operation.state.is_final() {
            let next = match seen(&operation) {
                Patience::Wait => self.operation(operation.id).await,
                Patience::Cancel => match self.cancel(operation.id).await {
                    // It is past the point where that could be: it goes on to its end.
                    Err(CallError::Refused(problem)) if problem.code == Code::Conflict => {
                        self.operation(operation.id).await
                    }
                    answer => answer,
                },
                Patience::Leave => return Ok(operation),
            };
            match next {
                Ok(next) => operation = next,
                Err(e) if e.is_gone() && ends => operation.state = OperationState::Done,
                Err(e) => return Err(e),
            }
            if !operation.state.is_final() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_AGAIN.1);
            }
        }
        Ok(operation)
    }

    /// Every vCPU at one moment, with `stack` bytes from each stack pointer on.
    pub async fn vcpus(&self, stack: u64) -> Result<Vec<VcpuState>, CallError> {
        let stack = Some(stack.to_string());
        self.get(&query(paths::VCPUS, [("stack", stack)])).await
    }

    /// Registers of a vCPU.
    pub async fn registers(&self, vcpu: u32) -> Result<VcpuState, CallError> {
        self.get(&fill(paths::REGISTERS, &vcpu.to_string())).await
    }

    /// Guest memory.
    pub async fn memory(&self, which: MemoryQuery) -> Result<Vec<u8>, CallError> {
        let parameters = [
            ("address", Some(format!("{:#x}", which.address))),
            ("length", Some(which.length.to_string())),
            ("vcpu", which.vcpu.map(|vcpu| vcpu.to_string())),
        ];
        let path = query(paths::MEMORY, parameters);
        let mut call = Call::new(Method::GET, &path);
        call.accept = "application/octet-stream";
        self.bytes(call).await.map(Into::into)
    }
}

fn log_path(which: &LogQuery, follow: bool) -> String {
    let parameters = [
        ("last", which.last.map(|n| n.to_string())),
        ("level", which.level.clone()),
        ("component", which.component.clone()),
        ("follow", follow.then(|| "true".to_string())),
    ];
    query(paths::LOGS, parameters)
}
