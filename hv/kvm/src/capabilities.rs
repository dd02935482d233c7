//! What this host's KVM can do, asked once.

use kvm_bindings::*;

macro_rules! capabilities {
    ($($(#[$doc:meta])* $field:ident: $cap:ident,)*) => {
        /// The answers to `KVM_CHECK_EXTENSION`: 0 is absent, otherwise the meaning is the
        /// capability's own (Linux, Documentation/virt/kvm/api.rst).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Capabilities { $($(#[$doc])* pub $field: u32,)* }

        impl Capabilities {
            /// Asks for each.
            pub(crate) fn read(kvm: &kvm_ioctls::Kvm) -> Self {
                let ask = |cap: u32| {
                    u32::try_from(kvm.check_extension_raw(cap.into())).unwrap_or(0)
                };
                Self { $($field: ask($cap),)* }
            }

            /// All of them with the kernel's names, in the order of this type.
            pub fn all(&self) -> Vec<(&'static str, u32)> {
                vec![$((stringify!($cap), self.$field),)*]
            }
        }
    };
}

capabilities! {
    /// Memory slots.
    user_memory: KVM_CAP_USER_MEMORY,
    /// Most memory slots.
    nr_memslots: KVM_CAP_NR_MEMSLOTS,
    /// Recommended most vCPUs.
    nr_vcpus: KVM_CAP_NR_VCPUS,
    /// Most vCPUs.
    max_vcpus: KVM_CAP_MAX_VCPUS,
    /// Most vCPU ids, which are APIC ids on x86.
    max_vcpu_id: KVM_CAP_MAX_VCPU_ID,
    /// CPUID with subleaves.
    ext_cpuid: KVM_CAP_EXT_CPUID,
    /// Local APICs in the kernel, the rest in user space.
    split_irqchip: KVM_CAP_SPLIT_IRQCHIP,
    /// 32-bit APIC ids.
    x2apic_api: KVM_CAP_X2APIC_API,
    /// Interrupt routes.
    irq_routing: KVM_CAP_IRQ_ROUTING,
    /// Messages by ioctl.
    signal_msi: KVM_CAP_SIGNAL_MSI,
    /// Interrupts by eventfd.
    irqfd: KVM_CAP_IRQFD,
    /// Doorbells by eventfd.
    ioeventfd: KVM_CAP_IOEVENTFD,
    /// Doorbells of any width, on ports and memory.
    ioeventfd_any_length: KVM_CAP_IOEVENTFD_ANY_LENGTH,
    /// `kvm_run::immediate_exit`.
    immediate_exit: KVM_CAP_IMMEDIATE_EXIT,
    /// Whether a vCPU runs, halts, or waits for INIT or SIPI.
    mp_state: KVM_CAP_MP_STATE,
    /// Pending exceptions, interrupts and NMIs.
    vcpu_events: KVM_CAP_VCPU_EVENTS,
    /// Debug registers.
    debugregs: KVM_CAP_DEBUGREGS,
    /// Extended FPU state.
    xsave: KVM_CAP_XSAVE,
    /// Bytes of extended FPU state, also beyond 4096 (AMX).
    xsave2: KVM_CAP_XSAVE2,
    /// Extended control registers.
    xcrs: KVM_CAP_XCRS,
    /// System registers with the PAE pointers.
    sregs2: KVM_CAP_SREGS2,
    /// NMI injection.
    user_nmi: KVM_CAP_USER_NMI,
    /// A kvmclock that can be set; the flags it may be set with.
    adjust_clock: KVM_CAP_ADJUST_CLOCK,
    /// Telling a guest that it was stopped.
    kvmclock_ctrl: KVM_CAP_KVMCLOCK_CTRL,
    /// Reading the guest's TSC frequency.
    get_tsc_khz: KVM_CAP_GET_TSC_KHZ,
    /// Setting the guest's TSC frequency.
    tsc_control: KVM_CAP_TSC_CONTROL,
    /// Local APIC timer in TSC-deadline mode.
    tsc_deadline: KVM_CAP_TSC_DEADLINE_TIMER,
    /// Memory slots that the guest cannot write.
    readonly_mem: KVM_CAP_READONLY_MEM,
    /// Dirty log cleared by request; the flags it may be enabled with.
    manual_dirty_log: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    /// Dirty ring: most bytes of it.
    dirty_log_ring: KVM_CAP_DIRTY_LOG_RING,
    /// The address of an access that the host could not satisfy.
    memory_fault_info: KVM_CAP_MEMORY_FAULT_INFO,
    /// Where a page of private memory can come from a file.
    guest_memfd: KVM_CAP_GUEST_MEMFD,
    /// Private and shared memory by range.
    memory_attributes: KVM_CAP_MEMORY_ATTRIBUTES,
    /// Populating guest page tables before the guest runs.
    pre_fault_memory: KVM_CAP_PRE_FAULT_MEMORY,
    /// Nested virtualization state: most bytes of it.
    nested_state: KVM_CAP_NESTED_STATE,
    /// Hyper-V enlightenments.
    hyperv: KVM_CAP_HYPERV,
    /// System management mode.
    smm: KVM_CAP_X86_SMM,
    /// MSR accesses given to user space.
    user_space_msr: KVM_CAP_X86_USER_SPACE_MSR,
    /// MSR accesses filtered.
    msr_filter: KVM_CAP_X86_MSR_FILTER,
    /// Exits that can be disabled, a mask.
    disable_exits: KVM_CAP_X86_DISABLE_EXITS,
    /// Per-VM halt polling.
    halt_poll: KVM_CAP_HALT_POLL,
    /// Breakpoints and single-stepping.
    guest_debug: KVM_CAP_SET_GUEST_DEBUG,
    /// Flags of guest debugging beyond the first ones, a mask.
    guest_debug_flags: KVM_CAP_SET_GUEST_DEBUG2,
    /// Registers shared in `kvm_run`, a mask.
    sync_regs: KVM_CAP_SYNC_REGS,
    /// Statistics as a file.
    binary_stats: KVM_CAP_BINARY_STATS_FD,
    /// Counters of the guest's PMU can be hidden.
    pmu: KVM_CAP_PMU_CAPABILITY,
    /// Address of the three pages that real mode needs on old Intel CPUs.
    set_tss_addr: KVM_CAP_SET_TSS_ADDR,
    /// Address of the page of page tables that real mode needs on old Intel CPUs.
    set_identity_map_addr: KVM_CAP_SET_IDENTITY_MAP_ADDR,
}

impl Capabilities {
    /// What Nyx cannot do without, with the kernel's names, if it is absent.
    pub fn missing_essentials(&self) -> Vec<&'static str> {
        [
            ("KVM_CAP_USER_MEMORY", self.user_memory),
            ("KVM_CAP_EXT_CPUID", self.ext_cpuid),
            ("KVM_CAP_SPLIT_IRQCHIP", self.split_irqchip),
            ("KVM_CAP_IRQ_ROUTING", self.irq_routing),
            ("KVM_CAP_SIGNAL_MSI", self.signal_msi),
            ("KVM_CAP_IMMEDIATE_EXIT", self.immediate_exit),
            ("KVM_CAP_MP_STATE", self.mp_state),
        ]
        .into_iter()
        .filter_map(|(name, value)| (value == 0).then_some(name))
        .collect()
    }
}
