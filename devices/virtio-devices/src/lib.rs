//! virtio device models: blk, net, rng, console and vsock.
