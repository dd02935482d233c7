//! The device author's world: registers, lifecycle, units, slots, wires, clock, workers and ports.
