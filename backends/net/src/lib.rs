//! Network backends: TAP interfaces and unprivileged user-mode networking.
