//! The actor that owns one machine: boot, events, power.
