//! Functions, seen from the guest and from the device.

mod bars;
mod hostile;
mod interrupts;
mod probe;
mod state;
