//! The library: build a machine, run it, steer it.
