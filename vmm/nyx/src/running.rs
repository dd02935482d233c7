//! A machine that runs: steering it, watching it, being at its consoles.

use crate::console::{Bell, ConsoleSession};
use crate::ending::Ending;
use crate::events::Events;
use crate::faults::Faults;
use crate::features::Feature;
use crate::lifecycle::{Lifecycle, State};
use crate::parts::{Disk, Net};
use crate::report::PerformanceReport;
use nyx_api::{Code, DeviceDescription, Operation, OperationState, Phase, Problem};
use nyx_diagnose::{Bundle, Outcome};
use nyx_inspect::{Inspect, Visitor};
use nyx_metrics::{Metrics, Setup};
use nyx_spec::{Role, VmSpec};
use nyx_vmm::{Control, Request};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an operation is waited for. Those that wait for the guest give up before.
const PATIENCE: Duration = Duration::from_secs(120);
/// Sampling goes on for as long as the machine runs.
const LINGER: Duration = Duration::from_secs(u32::MAX as u64);
/// How often to look whether a machine that does not start has ended.
const START_LOOK: Duration = Duration::from_millis(100);
/// How long a guest has to switch itself off in [`RunningVm::shutdown`].
const SHUTDOWN: Duration = Duration::from_secs(30);

/// The tree of whatever the machine consists of at the moment.
struct Live(Control);

impl Inspect for Live {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.0.view().inspect(v);
    }
}

/// What is left of a run when it has ended.
#[derive(Default)]
struct Left {
    ending: Option<Ending>,
    report: Option<PerformanceReport>,
    page: Option<String>,
    inspect: Option<serde_json::Value>,
}

/// One run of a machine.
pub(crate) struct Run {
    control: Control,
    features: BTreeSet<Feature>,
    lifecycle: Lifecycle,
    metrics: Option<Metrics>,
    faults: Option<Faults>,
    bell: Arc<Bell>,
    first_serial: Option<String>,
    socket: Option<PathBuf>,
    /// Of [`RunningVm::read_serial_output`].
    reader: Mutex<Option<ConsoleSession>>,
    left: Mutex<Left>,
    over: Condvar,
}

impl Run {
    pub(crate) fn new(
        control: Control,
        features: BTreeSet<Feature>,
        lifecycle: Lifecycle,
        spec: &VmSpec,
        socket: Option<PathBuf>,
    ) -> Self {
        let first_serial = spec.devices.iter().find_map(|device| {
            let is_first = matches!(device.role, Role::Serial { number: 0, .. });
            is_first.then(|| device.name.clone())
        });
        let metrics = features.contains(&Feature::Metrics).then(|| {
            let setup = Setup {
                linger: LINGER,
                ..Setup::new(&control.identity().name, spec.cpus.count, spec.memory.size)
            };
            Metrics::new(setup, Arc::new(Live(control.clone())))
        });
        let faults = features
            .contains(&Feature::ErrorHandling)
            .then(Faults::default);
        Self {
            control,
            features,
            lifecycle,
            metrics,
            faults,
            bell: Arc::default(),
            first_serial,
            socket,
            reader: Mutex::default(),
            left: Mutex::default(),
            over: Condvar::new(),
        }
    }

    /// The machine is put together and about to run.
    pub(crate) fn begin(&self) {
        if let Some(Err(e)) = self.metrics.as_ref().map(Metrics::watch) {
            tracing::warn!(target: "metrics", "cannot sample: {e}");
        }
    }

    /// Waits until the guest runs, so that whoever started it can steer it.
    pub(crate) fn await_start(&self) {
        let mut events = Events::new(&self.control, 0);
        while self.control.phase() == Phase::Built && self.ending().is_none() {
            // Woken by the event; the time is for an owner that panics before it.
            events.next_within(START_LOOK);
        }
    }

    /// The machine has come to rest for good and is still whole.
    pub(crate) fn keep_last_look(&self) {
        let (report, page) = (self.report(), self.page());
        let inspect = self.control.inspect();
        if let Some(metrics) = &self.metrics {
            metrics.export();
            metrics.stop();
        }
        let mut left = self.left.lock();
        left.report = Some(report);
        left.page = Some(page);
        left.inspect = Some(inspect);
    }

    /// It is over.
    pub(crate) fn end(&self, ending: Ending) {
        let before = State::of(Phase::Running, None);
        self.left.lock().ending = Some(ending);
        self.lifecycle.tell(before, self.state());
        self.over.notify_all();
    }

    pub(crate) fn ending(&self) -> Option<Ending> {
        self.left.lock().ending.clone()
    }

    pub(crate) fn state(&self) -> State {
        State::of(self.control.phase(), self.ending().as_ref())
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(crate) fn faults(&self) -> Option<&Faults> {
        self.faults.as_ref()
    }

    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_ref()
    }

    pub(crate) fn report(&self) -> PerformanceReport {
        if let Some(report) = &self.left.lock().report {
            return report.clone();
        }
        match &self.metrics {
            Some(metrics) => PerformanceReport::of(metrics.report()),
            None => PerformanceReport::absent("they were not asked for; see with_metrics"),
        }
    }

    pub(crate) fn page(&self) -> String {
        if let Some(page) = &self.left.lock().page {
            return page.clone();
        }
        let page = self.metrics.as_ref().map(|metrics| metrics.page(None));
        page.unwrap_or_default()
    }

    pub(crate) fn inspect(&self) -> serde_json::Value {
        if let Some(inspect) = &self.left.lock().inspect {
            return inspect.clone();
        }
        self.control.inspect()
    }

    fn session(&self, console: &str) -> Option<ConsoleSession> {
        let console = self.control.consoles().get(console)?;
        Some(ConsoleSession::new(&console, self.bell.clone()))
    }

    /// At the first serial port.
    pub(crate) fn serial_session(&self) -> Option<ConsoleSession> {
        self.session(self.first_serial.as_deref()?)
    }
}

/// A machine that was started. Cloning gives another handle of the same; dropping the last one leaves the
/// machine running for as long as the process lives.
///
/// Whoever asks for something waits until it is done; [`control`](Self::control) does not wait.
#[derive(Clone)]
pub struct RunningVm(Arc<Run>);

impl std::fmt::Debug for RunningVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningVm")
            .field("name", &self.name())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Steering. Each gives a [`Problem`] when it is refused or fails: what, why, and how to mend it.
impl RunningVm {
    pub(crate) fn new(run: Arc<Run>) -> Self {
        Self(run)
    }

    /// Asks for `request` and waits for its end.
    ///
    /// # Errors
    ///
    /// It is refused or fails.
    pub fn operate(&self, request: Request) -> Result<Operation, Problem> {
        let kind = request.kind();
        let asked = self.0.control.submit(request)?;
        let ended = self.0.control.wait(asked.id, Instant::now() + PATIENCE);
        let operation = ended.unwrap_or(asked);
        match operation.state {
            OperationState::Done => Ok(operation),
            OperationState::Failed => Err(operation
                .problem
                .unwrap_or_else(|| Problem::new(Code::Failed, format!("{kind}: it failed")))),
            OperationState::Cancelled => {
                let why = format!("{kind}: somebody cancelled it");
                Err(Problem::new(Code::Conflict, why))
            }
            OperationState::Waiting | OperationState::Running => {
                let why = format!("{kind}: it has not ended within {PATIENCE:?}");
                let mend = format!("it goes on as operation {}", operation.id);
                Err(Problem::new(Code::Failed, why).mend(mend))
            }
        }
    }

    /// Asks those who have a say whether the machine may move to `to`.
    fn may_become(&self, to: State) -> Result<(), Problem> {
        let from = self.state();
        // A machine that is there already, or that has ended, answers for itself.
        if from == to || self.0.ending().is_some() {
            return Ok(());
        }
        self.0.lifecycle.ask(from, to)
    }

    /// Stops the guest's time.
    ///
    /// # Errors
    ///
    /// The machine is paused already or has ended, a callback forbids it, or a device does not come to
    /// rest.
    pub fn pause(&self) -> Result<(), Problem> {
        self.may_become(State::Paused)?;
        self.operate(Request::Pause).map(drop)
    }

    /// Lets the guest go on, or start.
    ///
    /// # Errors
    ///
    /// The machine is not paused, or a callback forbids it.
    pub fn resume(&self) -> Result<(), Problem> {
        self.may_become(State::Running)?;
        self.operate(Request::Resume).map(drop)
    }

    /// Resets the platform: the guest boots again.
    ///
    /// # Errors
    ///
    /// The machine has ended, or a device does not come to rest, which ends the machine.
    pub fn reset(&self) -> Result<(), Problem> {
        self.operate(Request::Reset).map(drop)
    }

    /// Presses the power button; what the guest makes of it is its own business.
    ///
    /// # Errors
    ///
    /// The machine does not run.
    pub fn power_button(&self) -> Result<(), Problem> {
        self.operate(Request::PowerButton).map(drop)
    }

    /// Injects a non-maskable interrupt into vCPU 0.
    ///
    /// # Errors
    ///
    /// The machine does not run.
    pub fn nmi(&self) -> Result<(), Problem> {
        self.operate(Request::Nmi).map(drop)
    }

    /// Presses the power button, gives the guest `timeout` to switch itself off, and pulls the plug then:
    /// what the guest has written is written. Zero pulls it at once.
    ///
    /// # Errors
    ///
    /// A callback forbids it, or the machine is being killed. A machine that has ended is no error.
    pub fn stop(&self, timeout: Duration) -> Result<Ending, Problem> {
        self.end_by(Request::Stop { timeout })
    }

    /// [`stop`](Self::stop), with half a minute for the guest.
    ///
    /// # Errors
    ///
    /// As for [`stop`](Self::stop).
    pub fn shutdown(&self) -> Result<Ending, Problem> {
        self.stop(SHUTDOWN)
    }

    /// Ends the machine at once, with nothing written back.
    ///
    /// # Errors
    ///
    /// A callback forbids it. A machine that has ended is no error.
    pub fn kill(&self) -> Result<Ending, Problem> {
        self.end_by(Request::Kill)
    }

    fn end_by(&self, request: Request) -> Result<Ending, Problem> {
        self.may_become(State::Stopped)?;
        match self.0.control.submit(request) {
            // It ended between the two.
            Err(problem) if problem.code != Code::Ended => Err(problem),
            _ => Ok(self.wait()),
        }
    }

    /// Waits for the machine's end.
    pub fn wait(&self) -> Ending {
        let mut left = self.0.left.lock();
        loop {
            if let Some(ending) = &left.ending {
                return ending.clone();
            }
            self.0.over.wait(&mut left);
        }
    }

    /// Waits for the machine's end, but not longer than `timeout`.
    pub fn wait_for(&self, timeout: Duration) -> Option<Ending> {
        let deadline = Instant::now() + timeout;
        let mut left = self.0.left.lock();
        loop {
            let late = self.0.over.wait_until(&mut left, deadline).timed_out();
            if late || left.ending.is_some() {
                return left.ending.clone();
            }
        }
    }

    fn can_change(&self) -> Result<(), Problem> {
        if self.0.features.contains(&Feature::PciHotplug) {
            return Ok(());
        }
        let why = "this machine was built without PCI hot-plug";
        Err(Problem::new(Code::Unsupported, why).mend("call with_pci_hotplug() when building it"))
    }

    /// Adds a disk.
    ///
    /// # Errors
    ///
    /// The machine was built without [`with_pci_hotplug`](crate::VmBuilder::with_pci_hotplug), the
    /// description is wrong, or the image cannot be opened.
    pub fn add_disk(&self, disk: impl Into<Disk>) -> Result<Operation, Problem> {
        self.can_change()?;
        self.operate(Request::AddDisk(Box::new(disk.into().config)))
    }

    /// Removes a disk, which its guest must agree to.
    ///
    /// # Errors
    ///
    /// There is none of that name, or the guest does not let go of it.
    pub fn remove_disk(&self, name: &str) -> Result<(), Problem> {
        self.can_change()?;
        let (name, force) = (name.into(), false);
        self.operate(Request::RemoveDisk { name, force }).map(drop)
    }

    /// Adds a network device.
    ///
    /// # Errors
    ///
    /// As for [`add_disk`](Self::add_disk).
    pub fn add_net(&self, net: impl Into<Net>) -> Result<Operation, Problem> {
        self.can_change()?;
        let Net { config, problems } = net.into();
        match problems.into_iter().next() {
            Some(why) => Err(Problem::new(Code::Invalid, why).field("mac")),
            None => self.operate(Request::AddNet(Box::new(config))),
        }
    }

    /// Removes a network device, which its guest must agree to.
    ///
    /// # Errors
    ///
    /// As for [`remove_disk`](Self::remove_disk).
    pub fn remove_net(&self, name: &str) -> Result<(), Problem> {
        self.can_change()?;
        let (name, force) = (name.into(), false);
        self.operate(Request::RemoveNet { name, force }).map(drop)
    }
}

/// Watching. None of it waits for the machine.
impl RunningVm {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.control.identity().name
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.0.state()
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<Ending> {
        self.0.ending()
    }

    /// See [`Vm::on_transition`](crate::Vm::on_transition).
    pub fn on_transition(&self, callback: impl Fn(State, State) -> bool + Send + Sync + 'static) {
        self.0.lifecycle.on_transition(Arc::new(callback));
    }

    /// The handle that the control socket works with: operations without waiting, their progress,
    /// cancelling them.
    pub fn control(&self) -> &Control {
        &self.0.control
    }

    /// Its control socket, if one was asked for
    /// ([`with_control_socket`](crate::VmBuilder::with_control_socket)).
    pub fn control_socket(&self) -> Option<&Path> {
        self.0.socket.as_deref()
    }

    /// Listens for a debugger at `address` (`PORT`, `HOST:PORT`, `unix:PATH`) and gives what gdb's
    /// `target remote` takes. Breakpoints, watchpoints, steps and registers are gdb's from then on.
    ///
    /// # Errors
    ///
    /// The machine has ended, the address makes no sense, or the system refuses it.
    pub fn listen_for_gdb(&self, address: &str) -> Result<String, Problem> {
        self.0.control.listen_for_gdb(address, false)
    }

    /// What is known of why the guest does not get on: how far its boot came, what its consoles said of
    /// errors, and what they mean.
    pub fn why(&self) -> Option<Bundle> {
        let outcome = self.ending().map(|ending| match ending {
            Ending::PoweredOff => Outcome::PoweredOff,
            Ending::Stopped | Ending::Killed => Outcome::Stopped,
            Ending::GuestPanic => Outcome::GuestPanicked,
            Ending::TripleFault { vcpu } => Outcome::TripleFault { vcpu },
            Ending::Broken(why) => Outcome::Broken { why },
        });
        self.0.control.why(outcome)
    }

    /// Describes it as the control socket does.
    pub fn describe(&self) -> nyx_api::Machine {
        self.0.control.describe()
    }

    /// Its disks, networks, consoles and other devices.
    pub fn list_devices(&self) -> Vec<DeviceDescription> {
        self.describe().devices
    }

    /// The state tree; of the end, once the machine has ended.
    pub fn inspect(&self) -> serde_json::Value {
        self.0.inspect()
    }

    /// The part of the state tree at `path`, such as `units/disk0`.
    pub fn inspect_at(&self, path: &str) -> Option<serde_json::Value> {
        let tree = self.inspect();
        let mut steps = path.split('/').filter(|step| !step.is_empty());
        let part = steps.try_fold(&tree, |tree, step| tree.get(step));
        part.cloned()
    }

    /// What happens to it, from its start on as far as it is kept.
    pub fn events(&self) -> Events {
        Events::new(&self.0.control, 0)
    }

    /// What it did so far, in figures; of the end, once the machine has ended.
    pub fn get_performance_report(&self) -> PerformanceReport {
        self.0.report()
    }

    /// The metrics, if they were asked for: samples, trends, health, bottlenecks.
    pub fn metrics(&self) -> Option<&Metrics> {
        self.0.metrics()
    }

    /// The metrics page, in the text format of Prometheus; empty unless metrics were asked for.
    pub fn metrics_page(&self) -> String {
        self.0.page()
    }

    /// From now on tells `callback` every metric once a second, and at the end: name, value, labels.
    ///
    /// # Errors
    ///
    /// Metrics were not asked for.
    pub fn register_export_callback(
        &self,
        callback: impl Fn(&str, f64, &[(String, String)]) + Send + Sync + 'static,
    ) -> Result<(), Problem> {
        let Some(metrics) = self.0.metrics() else {
            let why = "this machine was built without metrics";
            let mend = "call with_metrics() when building it";
            return Err(Problem::new(Code::Unsupported, why).mend(mend));
        };
        metrics.register_export_callback(callback);
        Ok(())
    }

    /// The faults that its devices reported, if they were asked for
    /// ([`with_error_handling`](crate::VmBuilder::with_error_handling)).
    pub fn faults(&self) -> Option<&Faults> {
        self.0.faults()
    }

    /// [`faults`](Self::faults), by another name.
    pub fn error_handler(&self) -> Option<&Faults> {
        self.0.faults()
    }

    /// Writes everything that is known of the machine to a file, as JSON: description, state tree, events,
    /// report, the last output of its consoles.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn save_diagnostic_dump(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        let consoles: serde_json::Map<_, _> = self
            .0
            .control
            .consoles()
            .list()
            .into_iter()
            .map(|(name, console)| (name, String::from_utf8_lossy(&console.kept()).into()))
            .collect();
        let dump = serde_json::json!({
            "machine": self.describe(),
            "config": self.0.control.config(),
            "ending": self.ending().map(|ending| ending.to_string()),
            "inspect": self.inspect(),
            "events": self.0.control.events(0, usize::MAX),
            "report": self.get_performance_report().to_json(),
            "consoles": consoles,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&dump)?)
    }
}

/// Being at its consoles.
impl RunningVm {
    /// Goes to the console called `name`: `com1`, or the name that its description gave it.
    ///
    /// # Errors
    ///
    /// There is none of that name; those that there are are told.
    pub fn console(&self, name: &str) -> Result<ConsoleSession, Problem> {
        self.0.session(name).ok_or_else(|| {
            let consoles = self.0.control.consoles().list();
            let names: Vec<_> = consoles.into_iter().map(|(name, _)| name).collect();
            Problem::new(
                Code::NotFound,
                format!("there is no console called {name:?}"),
            )
            .field("name")
            .value(name)
            .mend(format!("there are: {}", names.join(", ")))
        })
    }

    /// Goes to the first serial port.
    ///
    /// # Errors
    ///
    /// The machine has none.
    pub fn serial(&self) -> Result<ConsoleSession, Problem> {
        self.0.serial_session().ok_or_else(|| {
            Problem::new(Code::NotFound, "this machine has no serial port")
                .mend("give it a console(...) that is not virtio()")
        })
    }

    /// What the guest has printed on its first serial port since the last call, on whatever handle; the
    /// first call gives the last 64 KiB from before it.
    pub fn read_serial_output(&self) -> String {
        let mut reader = self.0.reader.lock();
        if reader.is_none() {
            *reader = self.0.serial_session();
        }
        let bytes = reader.as_mut().map(ConsoleSession::read_now);
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }
}
