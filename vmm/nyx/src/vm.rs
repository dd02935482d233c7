//! A machine that was built: runs, again if need be, and can be asked about its last run.

use crate::builder::SerialSink;
use crate::console::{Bell, ConsoleSession};
use crate::door::Door;
use crate::ending::Ending;
use crate::features::Feature;
use crate::lifecycle::{Lifecycle, State};
use crate::logger::Logger;
use crate::refusal::{BuildError, BuildErrorKind, BuildErrors};
use crate::report::PerformanceReport;
use crate::running::{Run, RunningVm};
use nyx_api::Problem;
use nyx_catalog::{Backends, ConsoleTail, Consoles, Escape};
use nyx_diagnose::Recorder;
use nyx_kvm::Kvm;
use nyx_spec::VmConfig;
use nyx_vmm::{
    Desk, HostSource, Identity, Notice, PrepareError, Prepared, Request, RunError, Start, Vmm,
};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It runs.
    #[error("the machine runs already; stop it first")]
    Running,
    /// It may not.
    #[error("{0}")]
    Forbidden(Problem),
    /// It cannot be laid out any more: a file has changed since it was built.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// It cannot be put together: a disk is in use, an interface is missing.
    #[error(transparent)]
    Assemble(#[from] RunError),
    /// Its name is taken, or its control socket cannot be opened.
    #[error("{0}")]
    Door(String),
    /// A thread.
    #[error("cannot start the machine's thread: {0}")]
    Thread(std::io::Error),
}

/// A machine, as [`VmBuilder::build`](crate::VmBuilder::build) made it: at rest until
/// [`run`](Self::run) or [`start`](Self::start).
pub struct Vm {
    config: VmConfig,
    features: BTreeSet<Feature>,
    serial: Option<SerialSink>,
    kvm: Kvm,
    /// For the first run; later ones lay it out again.
    prepared: Option<Prepared>,
    lifecycle: Lifecycle,
    logger: Option<Logger>,
    last: Option<Arc<Run>>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("name", &self.name())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Vm {
    pub(crate) fn prepare(
        config: VmConfig,
        features: BTreeSet<Feature>,
        serial: Option<SerialSink>,
    ) -> Result<Self, BuildErrors> {
        let host = |method: &str, why: String| {
            BuildErrors::one(BuildError::new(BuildErrorKind::Host, method, why))
        };
        let kvm = Kvm::open().map_err(|e| host("build", e.to_string()))?;
        let prepared = Prepared::new(&config, &HostSource::Hypervisor(&kvm));
        let prepared = prepared.map_err(|e| match e {
            PrepareError::Plan(errors) => {
                let errors = errors
                    .iter()
                    .map(|e| BuildError::about_field(BuildErrorKind::Host, &e.path, &e.reason));
                BuildErrors::from_list(errors.collect())
                    .unwrap_or_else(|| host("build", "the machine does not fit this host".into()))
            }
            other => host("build", other.to_string()),
        })?;
        let name = config.name.as_deref().unwrap_or("nyx");
        let logger = config.journal.as_ref();
        let logger = logger.map(|journal| Logger::install(journal, name));
        Ok(Self {
            logger: logger.transpose().map_err(BuildErrors::one)?,
            config,
            features,
            serial,
            kvm,
            prepared: Some(prepared),
            lifecycle: Lifecycle::default(),
            last: None,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config.name.as_deref().unwrap_or("nyx")
    }

    /// Its description, as a file or the API has it.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// How many vCPUs it has.
    pub fn active_vcpu_count(&self) -> u32 {
        let count = match &self.config.cpus {
            nyx_spec::Cpus::Count(count) => *count,
            nyx_spec::Cpus::Table(table) => table.count,
        };
        u32::try_from(count).unwrap_or(0)
    }

    /// Whether `feature` was asked for; what was not asked for is off.
    pub fn is_enabled(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// Each feature and whether it is on.
    pub fn features(&self) -> impl Iterator<Item = (Feature, bool)> {
        Feature::ALL
            .into_iter()
            .map(|feature| (feature, self.is_enabled(feature)))
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.last.as_ref().map_or(State::Stopped, |run| run.state())
    }

    /// Whether its last run ended badly.
    pub fn crashed(&self) -> bool {
        self.state() == State::Faulted
    }

    /// Has `callback` called before every move from one state to another that somebody asks for; `false`
    /// forbids it. Moves of the guest's own (it switches itself off, it crashes) are told too, and the
    /// answer changes nothing. It is called on the thread that asks, or on the machine's own, and must
    /// not steer the machine itself.
    pub fn on_transition(&self, callback: impl Fn(State, State) -> bool + Send + Sync + 'static) {
        self.lifecycle.on_transition(Arc::new(callback));
    }

    /// Runs the machine to its end on this thread's time.
    ///
    /// # Errors
    ///
    /// It could not be started; nothing is left behind.
    pub fn run(&mut self) -> Result<Ending, StartError> {
        Ok(self.start()?.wait())
    }

    /// Starts the machine and returns at once.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub fn start(&mut self) -> Result<RunningVm, StartError> {
        self.launch(Start { paused: false })
    }

    /// Puts the machine together and holds it before its first instruction, until
    /// [`RunningVm::resume`].
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub fn start_paused(&mut self) -> Result<RunningVm, StartError> {
        self.launch(Start { paused: true })
    }

    /// Who it is in its next run. Among the machines of a user a name is taken once.
    fn identity(&self) -> Identity {
        let mut identity = Identity::new(self.name());
        if self.config.name.is_none() && self.is_enabled(Feature::ControlSocket) {
            identity.name = format!("vm-{}", identity.id.get(..6).unwrap_or(&identity.id));
        }
        identity
    }

    fn launch(&mut self, start: Start) -> Result<RunningVm, StartError> {
        if self.last.as_ref().is_some_and(|run| run.ending().is_none()) {
            return Err(StartError::Running);
        }
        let to = match start.paused {
            true => State::Paused,
            false => State::Running,
        };
        // A machine that has crashed is switched off first.
        if self.state() != State::Stopped {
            let off = self.lifecycle.ask(self.state(), State::Stopped);
            off.map_err(StartError::Forbidden)?;
        }
        let asked = self.lifecycle.ask(State::Stopped, to);
        asked.map_err(StartError::Forbidden)?;
        let prepared = match self.prepared.take() {
            Some(prepared) => prepared,
            None => Prepared::new(&self.config, &HostSource::Hypervisor(&self.kvm))?,
        };
        // The run before lets go of what it shows.
        self.last = None;
        let consoles = Consoles::default();
        let desk = Desk::new(self.identity(), consoles.clone());
        let control = desk.control();
        if let Some(logger) = &self.logger {
            control.write_to(logger.journal().clone());
        }
        let door = match self.is_enabled(Feature::ControlSocket) {
            true => Some(Door::open(&control).map_err(StartError::Door)?),
            false => None,
        };
        // A plan is made of what JSON has.
        let plan = serde_json::to_value(&prepared.plan).unwrap_or_default();
        let recorder = Recorder::new(Instant::now(), &plan);
        control.record_with(recorder.clone());
        let escapes = control.clone();
        let backends = Backends {
            tail: ConsoleTail::default().hear_with(move |console| recorder.listener(console)),
            on_escape: Some(Arc::new(move |escape| match escape {
                Escape::Quit => {
                    // A machine that is ending already does not need to be told.
                    let _ = escapes.submit(Request::Stop {
                        timeout: Duration::ZERO,
                    });
                }
                Escape::Help | Escape::Break | Escape::Prompt => {}
            })),
            consoles,
        };
        let run = Run::new(
            control,
            self.features.clone(),
            self.lifecycle.clone(),
            &prepared.spec,
            door.as_ref().map(Door::socket),
        );
        let faults = run.faults().cloned();
        let notice = move |notice: Notice| {
            if let (Notice::Fault(fault), Some(faults)) = (notice, &faults) {
                faults.note(&fault);
            }
        };
        let vmm = Vmm::new(prepared, &self.kvm, &backends, desk, Box::new(notice))?;
        let run = Arc::new(run);
        let ears = match (&self.serial, run.serial_session()) {
            (Some(sink), Some(session)) => Some(listen(session, sink.clone())?),
            _ => None,
        };
        run.begin();
        let own = run.clone();
        let thread = std::thread::Builder::new().name("vmm".into());
        let spawned = thread.spawn(move || serve(vmm, start, &own, ears, door));
        if let Err(e) = spawned {
            run.bell().silence();
            return Err(StartError::Thread(e));
        }
        self.last = Some(run.clone());
        if !start.paused {
            run.await_start();
        }
        Ok(RunningVm::new(run))
    }

    /// The journal, if it was asked for ([`with_logging`](crate::VmBuilder::with_logging)).
    pub fn logger(&self) -> Option<&Logger> {
        self.logger.as_ref()
    }

    /// The machine's last run, if there was one: live, or as it ended.
    pub fn last_run(&self) -> Option<RunningVm> {
        self.last.clone().map(RunningVm::new)
    }

    /// What the machine did in its last run, in figures: of now, or of its end. Without
    /// [`with_metrics`](crate::VmBuilder::with_metrics) it says that there are none.
    pub fn get_performance_report(&self) -> PerformanceReport {
        match &self.last {
            Some(run) => run.report(),
            None => PerformanceReport::absent("the machine has not run"),
        }
    }

    /// The metrics of the last run, if they were asked for. In the documents of Nyx this is a field.
    pub fn metrics(&self) -> Option<RunMetrics<'_>> {
        let run = self.last.as_ref()?;
        run.metrics().is_some().then_some(RunMetrics(run))
    }

    /// The state tree of the last run, of now or of its end.
    pub fn inspect(&self) -> serde_json::Value {
        let run = self.last.as_ref();
        run.map(|run| run.inspect()).unwrap_or_default()
    }
}

/// The metrics of a machine that was built [`with_metrics`](crate::VmBuilder::with_metrics).
pub struct RunMetrics<'v>(&'v Run);

impl RunMetrics<'_> {
    /// See [`Vm::get_performance_report`].
    pub fn get_performance_report(&self) -> PerformanceReport {
        self.0.report()
    }

    /// See [`RunningVm::register_export_callback`].
    pub fn register_export_callback(
        &self,
        callback: impl Fn(&str, f64, &[(String, String)]) + Send + Sync + 'static,
    ) {
        if let Some(metrics) = self.0.metrics() {
            metrics.register_export_callback(callback);
        }
    }

    /// The metrics page, in the text format of Prometheus.
    pub fn page(&self) -> String {
        self.0.page()
    }
}

/// Starts `vm` and lets it run on its own: [`Vm::start`], for programs with many machines.
///
/// # Errors
///
/// As for [`Vm::start`].
pub fn spawn_vm(vm: Vm) -> Result<RunningVm, StartError> {
    let mut vm = vm;
    vm.start()
}

type Ears = std::thread::JoinHandle<()>;

/// Hands what the guest prints to `sink`.
fn listen(mut session: ConsoleSession, sink: SerialSink) -> Result<Ears, StartError> {
    let hear = move || {
        loop {
            let bytes = session.read_blocking();
            if bytes.is_empty() {
                return;
            }
            (sink.lock())(&bytes);
        }
    };
    let thread = std::thread::Builder::new().name("serial".into());
    thread.spawn(hear).map_err(StartError::Thread)
}

/// The machine's own thread.
fn serve(mut vmm: Vmm, start: Start, run: &Run, ears: Option<Ears>, door: Option<Door>) {
    let ran = catch_unwind(AssertUnwindSafe(|| vmm.run(start)));
    let ending = ran.map_or_else(
        |_| Ending::Broken("its owner panicked".into()),
        Ending::from,
    );
    run.keep_last_look();
    // Backends let go before anybody hears of the end, so that the machine can be started again.
    drop(door);
    drop(vmm);
    finish_listening(run.bell(), ears);
    run.end(ending);
}

fn finish_listening(bell: &Bell, ears: Option<Ears>) {
    bell.silence();
    // A callback that panicked has had its say.
    let _ = ears.map(Ears::join);
}
