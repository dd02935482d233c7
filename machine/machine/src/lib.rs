//! Composes a machine from a plan: fabric, unit graph, vCPU threads, quiesce.
