//! What is asked of the process around a machine, beyond the machine itself.

use std::fmt;

/// Something that is off unless it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Faults of devices are kept and can be asked for.
    ErrorHandling,
    /// The journal hears this process's `tracing` events and keeps them.
    Logging,
    /// Counters are sampled, for rates, trends and bottlenecks.
    Metrics,
    /// Disks and networks may come and go while the guest runs.
    PciHotplug,
    /// The journal keeps spans.
    PerformanceTracing,
    /// `nyx ps`, `nyx console` and their like find the machine.
    ControlSocket,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::ErrorHandling,
        Self::Logging,
        Self::Metrics,
        Self::PciHotplug,
        Self::PerformanceTracing,
        Self::ControlSocket,
    ];

    /// The builder's method that asks for it.
    pub fn method(self) -> &'static str {
        match self {
            Self::ErrorHandling => "with_error_handling",
            Self::Logging => "with_logging",
            Self::Metrics => "with_metrics",
            Self::PciHotplug => "with_pci_hotplug",
            Self::PerformanceTracing => "with_performance_tracing",
            Self::ControlSocket => "with_control_socket",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ErrorHandling => "error handling",
            Self::Logging => "logging",
            Self::Metrics => "metrics",
            Self::PciHotplug => "PCI hot-plug",
            Self::PerformanceTracing => "performance tracing",
            Self::ControlSocket => "control socket",
        })
    }
}
