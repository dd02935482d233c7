//! virtio: the device trait, frozen queues and one transport state machine over PCI and MMIO.
