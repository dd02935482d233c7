//! Talks to a machine over its control socket.
