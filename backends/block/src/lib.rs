//! Block backends: raw files and block devices through io_uring or worker threads.
