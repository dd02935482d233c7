//! The debugger's side of a machine: a GDB server over its vCPUs and memory.
