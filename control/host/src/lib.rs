//! What this host can do: KVM, CPU, network, memory and I/O capabilities, measured.
