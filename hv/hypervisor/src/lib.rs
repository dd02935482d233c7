//! The hypervisor seam: virtual machines, vCPUs and the nine exits.
