//! Those who watch a machine or look into it: figures, the debugger's side, the boot's recorder.

use crate::control::{Control, Request};
use nyx_api::{Code, Problem};
use nyx_debug::{GdbServer, Listen, MachineCommands, Start};
use nyx_diagnose::{Bundle, Outcome, Recorder};
use nyx_journal::{Journal, Level, Query};
use nyx_machine::DebugPort;
use nyx_metrics::Metrics;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Handles of the watchers, as far as there are any yet.
#[derive(Default)]
pub(crate) struct Watchers {
    pub(crate) metrics: OnceLock<Arc<Metrics>>,
    pub(crate) recorder: OnceLock<Recorder>,
    pub(crate) journal: OnceLock<Journal>,
    /// It keeps guest memory; taken away when the machine goes.
    pub(crate) debug: Mutex<Option<DebugPort>>,
    gdb: Mutex<Option<GdbServer>>,
}

/// Entries of the journal in a bundle, at most.
const BUNDLED_ENTRIES: usize = 1000;

/// What a debugger may ask of the machine.
struct Asks(Control);

impl MachineCommands for Asks {
    // What is refused is refused because the machine goes or does it already.
    fn reset(&self) {
        let _ = self.0.submit(Request::Reset);
    }
    fn nmi(&self) {
        let _ = self.0.submit(Request::Nmi);
    }
    fn stop(&self) {
        let _ = self.0.submit(Request::Stop {
            timeout: Duration::ZERO,
        });
    }
    fn describe(&self) -> String {
        let machine = self.0.describe();
        format!(
            "{}, {} vCPUs, {} MiB",
            machine.name,
            machine.cpus,
            machine.memory >> 20
        )
    }
}

impl Control {
    /// The figures, once the machine is assembled.
    pub fn metrics(&self) -> Option<Arc<Metrics>> {
        self.0.watchers.metrics.get().cloned()
    }

    /// The debugger's side of the machine, while it is there.
    pub fn debug_port(&self) -> Option<DebugPort> {
        self.0.watchers.debug.lock().clone()
    }

    /// What is known of the boot.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.0.watchers.recorder.get()
    }

    /// Has `recorder` told of stages, and asked why.
    pub fn record_with(&self, recorder: Recorder) {
        // The first one stays.
        let _ = self.0.watchers.recorder.set(recorder);
    }

    /// The journal of the machine's process, if it keeps one.
    pub fn journal(&self) -> Option<&Journal> {
        self.0.watchers.journal.get()
    }

    /// Tells clients of what is in `journal`.
    pub fn write_to(&self, journal: Journal) {
        // The first one stays.
        let _ = self.0.watchers.journal.set(journal);
    }

    /// Listens for a debugger, instead of where it listened before; gives what `target remote` takes.
    ///
    /// # Errors
    ///
    /// There is no machine, the address makes no sense, or the system refuses it.
    pub fn listen_for_gdb(&self, address: &str, held: bool) -> Result<String, Problem> {
        let wrong = |why: String| {
            Problem::new(Code::Invalid, why)
                .field("listen")
                .value(address)
        };
        let listen = Listen::parse(address, false).map_err(|e| wrong(e.to_string()))?;
        let port = self.debug_port().ok_or_else(|| {
            Problem::new(Code::Conflict, "there is no machine to look into").mend("ask again")
        })?;
        let start = if held { Start::Held } else { Start::Running };
        let mut gdb = self.0.watchers.gdb.lock();
        // The one before goes first: there is one debugger at a time.
        drop(gdb.take());
        let server = GdbServer::start(port, &listen, start, Arc::new(Asks(self.clone())))
            .map_err(|e| wrong(e.to_string()))?;
        let address = server.address().to_owned();
        *gdb = Some(server);
        Ok(address)
    }

    /// Listens for no debugger any more; whether it did.
    pub fn close_gdb(&self) -> bool {
        // Dropped outside of the lock: it waits for its thread.
        let gdb = self.0.watchers.gdb.lock().take();
        gdb.is_some()
    }

    /// Where a debugger may connect.
    pub(crate) fn gdb_address(&self) -> Option<String> {
        let gdb = self.0.watchers.gdb.lock();
        gdb.as_ref().map(|gdb| gdb.address().to_owned())
    }

    /// What is known of why the boot fails, or how far it is; `None` without a recorder. `outcome` is how the
    /// machine ended, if it has.
    pub fn why(&self, outcome: Option<Outcome>) -> Option<Bundle> {
        let recorder = self.recorder()?;
        let outcome = outcome.unwrap_or_else(|| recorder.running());
        let plan = self
            .plan()
            .and_then(|plan| serde_json::to_value(&*plan).ok())
            .unwrap_or_default();
        let inspect = self.inspect();
        let scene = recorder.scene(&plan, &inspect, outcome, self.errors());
        let identity = self.identity();
        let mut bundle = Bundle::new(env!("CARGO_PKG_VERSION"), &identity.name, scene);
        bundle.id.clone_from(&identity.id);
        bundle.config = serde_json::to_value(self.config()).unwrap_or_default();
        bundle.plan = plan;
        bundle.inspect = inspect;
        bundle.journal = self.last_entries();
        Some(bundle)
    }

    /// The last entries of the journal, as data.
    fn last_entries(&self) -> Vec<serde_json::Value> {
        let Some(journal) = self.journal() else {
            return Vec::new();
        };
        let entries = journal.entries(&Query {
            last: Some(BUNDLED_ENTRIES),
            level: Some(Level::Debug),
            ..Query::default()
        });
        let data = entries.iter().map(serde_json::to_value);
        data.filter_map(Result::ok).collect()
    }

    /// Faults that units reported, oldest first.
    fn errors(&self) -> Vec<String> {
        let events = self.events(0, usize::MAX);
        let fault = |event: nyx_api::Event| match event.what {
            nyx_api::Happening::Fault { unit, what } => Some(format!("{unit}: {what}")),
            _ => None,
        };
        events.into_iter().filter_map(fault).collect()
    }
}
