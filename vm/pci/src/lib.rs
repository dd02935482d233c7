//! PCI functions: configuration space, capabilities, BARs, MSI-X and the root complex's topology.
