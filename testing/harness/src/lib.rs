//! Boots virtual machines for tests and for the demo; the lab.
