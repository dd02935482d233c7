//! Tests of recognising, placing and loading kernels, and of probing disks.

mod disks;
mod kernels;
