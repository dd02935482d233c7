//! Character backends: stdio, pseudo-terminals, files and Unix sockets.
