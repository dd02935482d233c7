//! The handle by which a machine is steered and watched from any thread, without waiting for its owner.

use crate::board::{Board, now};
use crate::mailbox::{Message, Waiting};
use crate::watch::Watchers;
use arc_swap::{ArcSwap, ArcSwapOption};
use nyx_api::{
    Code, ConsoleDescription, DeviceDescription, Event, Happening, Operation, OperationKind, Phase,
    Problem, Started,
};
use nyx_catalog::{Consoles, KINDS};
use nyx_device::{Attach, ConfigError, Placement, VmClock};
use nyx_inspect::Json;
use nyx_machine::View;
use nyx_plan::{MachinePlan, PlaceError};
use nyx_spec::{DeviceSpec, DiskConfig, NetConfig, VmConfig};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What can be asked of a machine.
#[derive(Clone, Debug)]
pub enum Request {
    /// Stop the guest's time.
    Pause,
    /// Let it go on, or start a machine that waits for its start.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Reset the platform.
    Reset,
    /// Power button; when the guest has not switched itself off by then, the plug.
    Stop {
        /// How long it has.
        timeout: Duration,
    },
    /// End at once, with nothing written back.
    Kill,
    /// Inject a non-maskable interrupt into vCPU 0.
    Nmi,
    /// Add a disk.
    AddDisk(Box<DiskConfig>),
    /// Add a network device.
    AddNet(Box<NetConfig>),
    /// Remove a disk.
    RemoveDisk {
        /// Its name.
        name: String,
        /// Even if the guest does not let go of it.
        force: bool,
    },
    /// Remove a network device.
    RemoveNet {
        /// Its name.
        name: String,
        /// Even if the guest does not let go of it.
        force: bool,
    },
}

impl Request {
    /// What kind of operation it makes.
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Pause => OperationKind::Pause,
            Self::Resume => OperationKind::Resume,
            Self::PowerButton => OperationKind::PowerButton,
            Self::Reset => OperationKind::Reset,
            Self::Stop { .. } => OperationKind::Stop,
            Self::Kill => OperationKind::Kill,
            Self::Nmi => OperationKind::Nmi,
            Self::AddDisk(_) => OperationKind::AddDisk,
            Self::AddNet(_) => OperationKind::AddNet,
            Self::RemoveDisk { .. } => OperationKind::RemoveDisk,
            Self::RemoveNet { .. } => OperationKind::RemoveNet,
        }
    }

    fn target(&self) -> Option<String> {
        match self {
            Self::AddDisk(disk) => disk.name.clone(),
            Self::AddNet(net) => net.name.clone(),
            Self::RemoveDisk { name, .. } | Self::RemoveNet { name, .. } => Some(name.clone()),
            _ => None,
        }
    }
}

/// Who a machine is in this run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Twelve hexadecimal digits, unique to this run.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was started, RFC 3339.
    pub started: String,
}

impl Identity {
    /// A new run of the machine called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        let mut bytes = [0_u8; 6];
        // The kernel's generator is up long before a VMM; zeros would only be a poor id.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        Self {
            id: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            name: name.into(),
            started: now(),
        }
    }
}

pub(crate) struct Office {
    mail: Sender<Message>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) board: Board,
    identity: Identity,
    born: Instant,
    view: ArcSwap<View>,
    plan: ArcSwapOption<MachinePlan>,
    config: OnceLock<VmConfig>,
    clock: OnceLock<VmClock>,
    consoles: Consoles,
    pub(crate) watchers: Watchers,
}

/// Steers and watches a machine, from any thread. Cloning gives another handle of the same.
#[derive(Clone)]
pub struct Control(pub(crate) Arc<Office>);

/// The owner's end of a [`Control`].
pub struct Desk {
    pub(crate) mail: Receiver<Message>,
    pub(crate) control: Control,
}

impl Desk {
    /// The desk of a machine that is to be, with its consoles. Its control takes requests from now on.
    pub fn new(identity: Identity, consoles: Consoles) -> Self {
        let (tell, mail) = channel();
        let control = Control(Arc::new(Office {
            mail: tell,
            waiting: Arc::default(),
            board: Board::new(),
            identity,
            born: Instant::now(),
            view: ArcSwap::default(),
            plan: ArcSwapOption::empty(),
            config: OnceLock::new(),
            clock: OnceLock::new(),
            consoles,
            watchers: Watchers::default(),
        }));
        Self { mail, control }
    }

    /// A handle to steer the machine with.
    pub fn control(&self) -> Control {
        self.control.clone()
    }
}

impl Control {
    /// Asks for an operation.
    ///
    /// # Errors
    ///
    /// It is refused at once when it cannot start in the machine's phase or beside what goes on.
    pub fn submit(&self, request: Request) -> Result<Operation, Problem> {
        self.check(&request)?;
        let operation = self.0.board.ask(request.kind(), request.target())?;
        self.send(Message::Operation(operation.id, request));
        Ok(operation)
    }

    /// Refuses what cannot work on the machine as it is planned now; its owner looks again.
    fn check(&self, request: &Request) -> Result<(), Problem> {
        let Some(plan) = self.plan() else {
            return Ok(());
        };
        match request {
            Request::AddDisk(_) | Request::AddNet(_) => {
                let spec = added(request, &plan)?;
                plan.place(&spec, KINDS).map_err(|e| no_place(&e))?;
            }
            Request::RemoveDisk { name, .. } => self.removable("disk", name, &plan)?,
            Request::RemoveNet { name, .. } => self.removable("net", name, &plan)?,
            _ => {}
        }
        Ok(())
    }

    fn removable(&self, kind: &str, name: &str, plan: &MachinePlan) -> Result<(), Problem> {
        self.device(kind, name)?;
        let refused = |e: nyx_plan::RemoveError| {
            Problem::new(Code::Unsupported, e.to_string())
                .field("name")
                .value(name)
        };
        plan.removable(name).map(drop).map_err(refused)
    }

    /// Cancels an operation.
    ///
    /// # Errors
    ///
    /// There is none of that number, or it cannot be cancelled any more.
    pub fn cancel(&self, id: u64) -> Result<Operation, Problem> {
        let operation = self.0.board.cancel(id)?;
        self.send(Message::Look);
        Ok(operation)
    }

    pub(crate) fn send(&self, message: Message) {
        // An actor that has ended hears nothing; the board says so.
        let _ = self.0.mail.send(message);
    }

    pub(crate) fn mail(&self) -> Sender<Message> {
        self.0.mail.clone()
    }

    /// Waits until operation `id` has ended, or until `deadline`; gives where it stands then.
    pub fn wait(&self, id: u64, deadline: Instant) -> Option<Operation> {
        loop {
            let operation = self.0.board.operation(id)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if operation.state.is_final() || left.is_zero() {
                return Some(operation);
            }
            // A blocking wait beside asynchronous ones: a short nap, for libraries and tests only.
            std::thread::sleep(left.min(Duration::from_millis(2)));
        }
    }

    /// What the machine is doing.
    pub fn phase(&self) -> Phase {
        self.0.board.phase()
    }

    /// Operations, oldest first: all that have not ended and the last that have.
    pub fn operations(&self) -> Vec<Operation> {
        self.0.board.operations()
    }

    /// Operation `id`.
    pub fn operation(&self, id: u64) -> Option<Operation> {
        self.0.board.operation(id)
    }

    /// At most `most` events after number `since`, as far as they are kept.
    pub fn events(&self, since: u64, most: usize) -> Vec<Event> {
        self.0.board.events(since, most)
    }

    /// Changes to the number of the last event whenever there is another one.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.0.board.follow()
    }

    /// Adds an event.
    pub(crate) fn happened(&self, what: Happening) {
        self.0.board.happened(what);
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Its consoles.
    pub fn consoles(&self) -> &Consoles {
        &self.0.consoles
    }

    /// What can be seen of it now; nothing before it is assembled.
    pub fn view(&self) -> Arc<View> {
        self.0.view.load_full()
    }

    /// Its plan, once it has one.
    pub fn plan(&self) -> Option<Arc<MachinePlan>> {
        self.0.plan.load_full()
    }

    /// What it was described as.
    pub fn config(&self) -> Option<&VmConfig> {
        self.0.config.get()
    }

    /// The state tree, with the owner's part.
    pub fn inspect(&self) -> serde_json::Value {
        let mut tree = Json::of(&*self.view());
        if let Some(root) = tree.as_object_mut() {
            let owner = serde_json::json!({
                "phase": self.phase().name(),
                "resets": self.0.board.resets(),
                "operations": self.operations().len(),
            });
            root.insert("machine".into(), owner);
        }
        tree
    }

    pub(crate) fn show(&self, view: View, plan: MachinePlan) {
        self.0.view.store(Arc::new(view));
        self.0.plan.store(Some(Arc::new(plan)));
    }

    pub(crate) fn introduce(&self, config: VmConfig, clock: VmClock) {
        // Once, by the one owner.
        let _ = self.0.config.set(config);
        let _ = self.0.clock.set(clock);
    }

    /// Describes the machine.
    pub fn describe(&self) -> nyx_api::Machine {
        let Identity { id, name, started } = self.identity().clone();
        let plan = self.plan();
        let plan = plan.as_deref();
        let config = self.config();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let open = |o: &Operation| !o.state.is_final();
        nyx_api::Machine {
            id,
            name,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            phase: self.phase(),
            started: Started {
                at: started,
                uptime_ms: millis(self.0.born.elapsed()),
                guest_ms: self.0.clock.get().map_or(0, |clock| millis(clock.now())),
            },
            cpus: plan.map_or(0, |plan| plan.topology.count),
            memory: plan.map_or(0, |plan| plan.layout.ram.iter().map(|r| r.len).sum()),
            kernel: config
                .and_then(|c| c.boot.kernel.as_ref())
                .map(|path| path.display().to_string()),
            cmdline: plan.map(|plan| plan.boot.cmdline.clone()),
            resets: self.0.board.resets(),
            devices: plan.map(devices).unwrap_or_default(),
            consoles: self
                .consoles()
                .list()
                .into_iter()
                .map(|(name, console)| ConsoleDescription {
                    name,
                    kind: console.kind().into(),
                    attached: console.attached(),
                })
                .collect(),
            gdb: self.gdb_address(),
            operations: self.operations().into_iter().filter(open).collect(),
        }
    }

    /// The device called `name`, if it is of `kind`.
    ///
    /// # Errors
    ///
    /// There is none; the names that there are are told.
    pub(crate) fn device(&self, kind: &str, name: &str) -> Result<DeviceDescription, Problem> {
        let devices = self.plan().map(|plan| devices(&plan)).unwrap_or_default();
        let mut of_kind = devices.into_iter().filter(|d| d.kind == kind);
        let names: Vec<_> = of_kind.clone().map(|d| d.name).collect();
        of_kind.find(|d| d.name == name).ok_or_else(|| {
            let mend = if names.is_empty() {
                format!("the machine has no {kind}")
            } else {
                format!("there are: {}", names.join(", "))
            };
            Problem::new(
                Code::NotFound,
                format!("there is no {kind} called {name:?}"),
            )
            .field("name")
            .value(name)
            .mend(mend)
        })
    }
}

/// The devices of a plan that have a name of the user's.
fn devices(plan: &MachinePlan) -> Vec<DeviceDescription> {
    let of_user = |placement: &Placement| {
        let kind = match placement.kind.as_str() {
            "virtio-blk" => "disk",
            "virtio-net" => "net",
            "virtio-rng" => "rng",
            "virtio-vsock" => "vsock",
            "virtio-console" | "serial" => "console",
            _ => return None,
        };
        let location = match (&placement.bdf, placement.windows.values().next()) {
            (Some(bdf), _) => bdf.to_string(),
            (None, Some(base)) => format!("{base:#x}"),
            (None, None) => String::new(),
        };
        let backend = placement.config.get("backend");
        let settings = backend.and_then(|b| b.get("config"));
        let path = ["path", "tap", "name", "interface"]
            .iter()
            .find_map(|key| settings?.get(key)?.as_str());
        let kind_of_backend = backend.and_then(|b| b.get("kind")?.as_str());
        let removable = matches!(kind, "disk" | "net") && placement.attach == Attach::Pci;
        Some(DeviceDescription {
            name: placement.name.clone(),
            kind: kind.into(),
            location,
            backend: path.or(kind_of_backend).map(Into::into),
            removable,
        })
    };
    plan.placements.iter().filter_map(of_user).collect()
}

/// The device that `request` adds to the machine of `plan`.
///
/// # Errors
///
/// What is wrong with its description.
pub(crate) fn added(request: &Request, plan: &MachinePlan) -> Result<DeviceSpec, Problem> {
    let taken = |name: &str| plan.placements.iter().any(|p| p.name == name);
    let spec = match request {
        Request::AddDisk(disk) => nyx_spec::added_disk(disk, plan.topology, &taken),
        Request::AddNet(net) => nyx_spec::added_net(net, &plan.name, &taken),
        _ => return Err(Problem::new(Code::Failed, "it adds no device")),
    };
    spec.map_err(|problems| {
        let said = problems
            .iter()
            .map(|p| format!("{}: {}", in_body(&p.field), p.reason));
        let problem = Problem::new(Code::Invalid, said.collect::<Vec<_>>().join("; "));
        match problems.first() {
            Some(first) => problem.field(in_body(&first.field)),
            None => problem,
        }
    })
}

/// A field of a device's description, as the body that describes only that device has it.
fn in_body(field: &str) -> &str {
    field.split_once('.').map_or(field, |(_, field)| field)
}

/// There is no place for a device that is to be added.
pub(crate) fn no_place(error: &PlaceError) -> Problem {
    match error {
        PlaceError::Config(ConfigError { path, reason }) => {
            let field = in_body(path);
            Problem::new(Code::Invalid, format!("{field}: {reason}")).field(field)
        }
        PlaceError::Full(_) => Problem::new(Code::Conflict, error.to_string()),
        PlaceError::NoHotplug => Problem::new(Code::Unsupported, error.to_string()),
    }
}
