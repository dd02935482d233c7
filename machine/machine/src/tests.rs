//! A machine on a scripted hypervisor.
