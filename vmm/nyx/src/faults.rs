//! The faults that a machine's devices reported.

use nyx_device::{Fault, FaultKind};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

/// Faults kept, the last ones.
const KEPT: usize = 256;

/// A fault that was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// When.
    pub time: SystemTime,
    /// Who: the name of a device, or of another part of the machine.
    pub unit: String,
    /// What, as a word.
    pub kind: &'static str,
    /// What, as a sentence.
    pub what: String,
    /// The part is out of service: it panicked and was isolated, or does not come to rest.
    pub is_out_of_service: bool,
}

#[derive(Default)]
struct Log {
    last: VecDeque<FaultRecord>,
    count: u64,
    out_of_service: Vec<String>,
}

/// The faults of a machine that was built
/// [`with_error_handling`](crate::VmBuilder::with_error_handling). A machine that misbehaves endlessly is
/// muted after some dozens of faults; devices count on, see [`RunningVm::inspect`](crate::RunningVm::inspect).
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Log>>);

impl Faults {
    pub(crate) fn note(&self, fault: &Fault) {
        let (kind, is_out_of_service) = match fault.kind {
            FaultKind::VcpuFailed => ("vcpu-failed", true),
            FaultKind::Protocol => ("protocol", false),
            FaultKind::Dma => ("dma", false),
            FaultKind::Backend => ("backend", false),
            FaultKind::NoSpace => ("no-space", false),
            FaultKind::Panicked => ("panicked", true),
            FaultKind::Stuck => ("stuck", true),
        };
        let mut log = self.0.lock();
        log.count = log.count.saturating_add(1);
        if log.last.len() >= KEPT {
            log.last.pop_front();
        }
        let unit = fault.unit.to_string();
        if is_out_of_service && !log.out_of_service.contains(&unit) {
            log.out_of_service.push(unit.clone());
        }
        log.last.push_back(FaultRecord {
            time: SystemTime::now(),
            unit,
            kind,
            what: fault.what.clone(),
            is_out_of_service,
        });
    }

    /// The last `count` faults, oldest first.
    pub fn get_recent_faults(&self, count: usize) -> Vec<FaultRecord> {
        let log = self.0.lock();
        let skip = log.last.len().saturating_sub(count);
        log.last.iter().skip(skip).cloned().collect()
    }

    /// How many there were.
    pub fn get_fault_count(&self) -> u64 {
        self.0.lock().count
    }

    /// When the last one was.
    pub fn last_fault_time(&self) -> Option<SystemTime> {
        self.0.lock().last.back().map(|fault| fault.time)
    }

    /// Whether the part called `unit` has not been taken out of service by a fault.
    pub fn is_device_operational(&self, unit: &str) -> bool {
        !self.0.lock().out_of_service.iter().any(|name| name == unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(unit: &str, kind: FaultKind, what: &str) -> Fault {
        Fault {
            unit: unit.into(),
            kind,
            what: what.into(),
        }
    }

    #[test]
    fn the_last_faults_are_kept_and_all_are_counted() {
        let faults = Faults::default();
        assert_eq!(faults.last_fault_time(), None);
        for n in 0..1000 {
            faults.note(&fault("disk0", FaultKind::Protocol, &n.to_string()));
        }
        assert_eq!(faults.get_fault_count(), 1000);
        assert_eq!(faults.get_recent_faults(usize::MAX).len(), KEPT);
        let last = faults.get_recent_faults(2);
        assert_eq!(
            (last[0].what.as_str(), last[1].what.as_str()),
            ("998", "999")
        );
        assert!(faults.last_fault_time().is_some());
        assert!(faults.is_device_operational("disk0"));
    }

    #[test]
    fn a_device_that_panicked_is_out_of_service_for_good() {
        let faults = Faults::default();
        faults.note(&fault("net0", FaultKind::Panicked, "at x"));
        for _ in 0..2 * KEPT {
            faults.note(&fault("disk0", FaultKind::Backend, "EIO"));
        }
        assert!(!faults.is_device_operational("net0"));
        assert!(faults.is_device_operational("disk0"));
        assert_eq!(faults.get_recent_faults(1)[0].kind, "backend");
    }
}
