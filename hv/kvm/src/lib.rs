//! KVM behind the hypervisor seam, with its own decoding of kvm_run.
