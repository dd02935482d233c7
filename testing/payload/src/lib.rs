//! The payload: a bare-metal x86-64 test guest, and the host's side of its protocol.
#![forbid(unsafe_code)]
