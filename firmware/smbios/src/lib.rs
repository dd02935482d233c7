//! SMBIOS 3 structures as a pure function of a machine's identity.
