//! An epoll loop on one thread: typed tokens, event file descriptors and timers.
