//! The list of device and backend kinds.
