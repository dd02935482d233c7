//! The PCI host bridge: CF8/CFC and ECAM access to configuration space.
