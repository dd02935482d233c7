//! Functions, seen from the guest.
