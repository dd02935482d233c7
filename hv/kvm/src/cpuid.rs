//! A vCPU's CPUID from what the host's KVM offers: a pure function.
//!
//! Bits and leaves are those of Intel SDM vol. 2A, CPUID, and AMD APM vol. 3, appendix E. What KVM
//! offers is kept unless it would be wrong in this machine: topology and ids are the guest's own,
//! nested virtualization is hidden, and features whose state could not be saved are hidden.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use nyx_hypervisor::Topology;

/// What a vCPU's CPUID depends on besides the host's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) topology: Topology,
    pub(crate) index: u32,
    /// `KVM_CAP_TSC_DEADLINE_TIMER`.
    pub(crate) tsc_deadline: bool,
    /// The guest's TSC frequency, if KVM tells.
    pub(crate) tsc_khz: Option<u32>,
    /// `KVM_CAP_X2APIC_API` is in force: messages reach 32-bit ids.
    pub(crate) wide_ids: bool,
    /// `KVM_CAP_XSAVE2`: FPU state beyond 4096 bytes can be saved.
    pub(crate) large_xsave: bool,
}

// Leaf 1.
const ECX1_MONITOR: u32 = 1 << 3;
const ECX1_VMX: u32 = 1 << 5;
const ECX1_SMX: u32 = 1 << 6;
const ECX1_X2APIC: u32 = 1 << 21;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_OSXSAVE: u32 = 1 << 27;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
// Leaf 7.
const ECX7_OSPKE: u32 = 1 << 4;
const EDX7_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25; // BF16, tile, INT8
const EAX7_1_AMX_FP16: u32 = 1 << 21;
const EDX7_1_AMX_COMPLEX: u32 = 1 << 8;
// Leaf 0xD.
const XFEATURE_TILES: u32 = 1 << 17 | 1 << 18;
// Leaf 0x8000_0001.
const ECX81_CMP_LEGACY: u32 = 1 << 1;
const ECX81_SVM: u32 = 1 << 2;
const ECX81_SKINIT: u32 = 1 << 12;

/// The first leaf of KVM's own range, and the leaf with its features
/// (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
/// TSC and bus frequency in kHz; VMware's convention, which BSDs and macOS follow on KVM too.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 1 << 15;
/// KVM's local APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Bits that ids of `count` things need.
fn bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

struct Table(Vec<kvm_cpuid_entry2>);

impl Table {
    fn get(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.0.iter().find(|e| e.function == function)
    }

    fn each(&mut self, function: u32, mut change: impl FnMut(&mut kvm_cpuid_entry2)) {
        self.0
            .iter_mut()
            .filter(|e| e.function == function)
            .for_each(&mut change);
    }

    fn remove(&mut self, function: u32) {
        self.0.retain(|e| e.function != function);
    }

    /// Replaces a leaf without subleaves.
    fn put(&mut self, function: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.remove(function);
        self.0.push(kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        });
    }

    fn put_subleaf(&mut self, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let entry = kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        self.0.push(entry);
    }
}

/// CPUID of vCPU `request.index`, from `host` as `KVM_GET_SUPPORTED_CPUID` gave it.
pub(crate) fn for_vcpu(host: &[kvm_cpuid_entry2], request: &Request) -> Vec<kvm_cpuid_entry2> {
    let mut table = Table(host.to_vec());
    let vendor = table.get(0).map(|e| (e.ebx, e.edx, e.ecx));
    // "AuthenticAMD", "HygonGenuine"; everyone else follows Intel here.
    let amd = matches!(
        vendor,
        Some((0x6874_7541, 0x6974_6e65, 0x444d_4163) | (0x6f67_7948, 0x6e65_4772, 0x656e_6975))
    );
    features(&mut table, request);
    topology(&mut table, request, amd);
    hypervisor(&mut table, request);
    timing(&mut table, request, amd);
    table.0
}

fn features(table: &mut Table, request: &Request) {
    table.each(1, |leaf| {
        // OSXSAVE follows CR4 in the kernel; MONITOR would exit, and KVM does not idle with it.
        leaf.ecx &= !(ECX1_VMX | ECX1_SMX | ECX1_OSXSAVE | ECX1_MONITOR | ECX1_TSC_DEADLINE);
        leaf.ecx |= ECX1_HYPERVISOR | ECX1_X2APIC;
        if request.tsc_deadline {
            leaf.ecx |= ECX1_TSC_DEADLINE;
        }
    });
    table.each(0x8000_0001, |leaf| leaf.ecx &= !(ECX81_SVM | ECX81_SKINIT));
    table.remove(0x8000_000a); // SVM's own features
    table.each(7, |leaf| {
        if leaf.index == 0 {
            leaf.ecx &= !ECX7_OSPKE; // follows CR4
        }
    });
    let tiles = table
        .0
        .iter()
        .any(|e| e.function == 0xd && e.index == 0 && e.eax & XFEATURE_TILES == XFEATURE_TILES);
    if !(tiles && request.large_xsave) {
        hide_amx(table);
    }
}

/// AMX needs 8 KiB of FPU state: the kernel must have granted it, and it must be possible to save.
fn hide_amx(table: &mut Table) {
    table.each(7, |leaf| match leaf.index {
        0 => leaf.edx &= !EDX7_AMX,
        1 => {
            leaf.eax &= !EAX7_1_AMX_FP16;
            leaf.edx &= !EDX7_1_AMX_COMPLEX;
        }
        _ => {}
    });
    table.each(0xd, |leaf| {
        if leaf.index == 0 {
            leaf.eax &= !XFEATURE_TILES;
        }
    });
    table.0.retain(|e| {
        !matches!((e.function, e.index), (0xd, 17 | 18)) && !matches!(e.function, 0x1d | 0x1e)
    });
}

fn topology(table: &mut Table, request: &Request, amd: bool) {
    let Topology { cores, threads, .. } = request.topology;
    let (cores, threads) = (cores.max(1), threads.max(1));
    let per_socket = cores.saturating_mul(threads);
    let (thread_bits, core_bits) = (bits(threads), bits(cores));
    let package_bits = (thread_bits + core_bits).min(31);
    let id = request.topology.apic_id(request.index);

    table.each(1, |leaf| {
        // Ids that fit in a package, a power of two, saturating in its eight bits.
        let ids = (1u32 << package_bits).min(255);
        leaf.ebx = (leaf.ebx & 0xff00) | (id & 0xff) << 24 | ids << 16;
        leaf.edx &= !EDX1_HTT;
        if per_socket > 1 {
            leaf.edx |= EDX1_HTT;
        }
    });

    // Caches: 4 (Intel) and 0x8000_001d (AMD). Levels 1 and 2 belong to a core, 3 to the package.
    for function in [4, 0x8000_001d] {
        table.each(function, |leaf| {
            if leaf.eax & 0x1f == 0 {
                return; // the end of the list
            }
            let shared_bits = if leaf.eax >> 5 & 7 <= 2 {
                thread_bits
            } else {
                package_bits
            };
            let sharing = ((1u32 << shared_bits) - 1).min(0xfff);
            leaf.eax = (leaf.eax & 0x3fff) | sharing << 14;
            if function == 4 {
                leaf.eax |= ((1u32 << core_bits.min(6)) - 1) << 26;
            }
        });
    }

    // Extended topology. A processor with x2APIC has leaf 0xb; 0x1f only where the host has it.
    let most = table.get(0).map_or(0, |e| e.eax);
    for function in [0xb, 0x1f] {
        table.remove(function);
        if function == 0xb || most >= 0x1f {
            table.put_subleaf(function, 0, [thread_bits, threads & 0xffff, 1 << 8, id]);
            table.put_subleaf(
                function,
                1,
                [package_bits, per_socket & 0xffff, 2 << 8 | 1, id],
            );
            table.put_subleaf(function, 2, [0, 0, 2, id]);
        }
    }
    table.each(0, |leaf| leaf.eax = leaf.eax.max(0xb));

    table.each(0x8000_0001, |leaf| {
        leaf.ecx &= !ECX81_CMP_LEGACY;
        if amd && per_socket > 1 {
            leaf.ecx |= ECX81_CMP_LEGACY;
        }
    });
    table.each(0x8000_0008, |leaf| {
        // Reserved on Intel.
        leaf.ecx = if amd {
            (per_socket - 1).min(0xff) | package_bits.min(15) << 12
        } else {
            0
        };
    });
    if amd && table.get(0x8000_001e).is_some() {
        let core = id >> thread_bits & ((1 << core_bits) - 1);
        let socket = id >> package_bits;
        let ebx = (core & 0xff) | (threads - 1).min(0xff) << 8;
        // One node for each package.
        table.put(0x8000_001e, [id, ebx, socket & 0xff, 0]);
    }
}

fn hypervisor(table: &mut Table, request: &Request) {
    table.each(KVM_FEATURES, |leaf| {
        if request.wide_ids {
            leaf.eax |= KVM_FEATURE_MSI_EXT_DEST_ID;
        }
        leaf.edx = 0; // hints: nothing is promised about dedicated CPUs
    });
    let last = if request.tsc_khz.is_some() {
        HYPERVISOR_TIMING
    } else {
        KVM_FEATURES
    };
    table.each(KVM_SIGNATURE, |leaf| leaf.eax = last);
    table.remove(HYPERVISOR_TIMING);
    if let Some(khz) = request.tsc_khz {
        table.put(HYPERVISOR_TIMING, [khz, APIC_BUS_KHZ, 0, 0]);
    }
}

fn timing(table: &mut Table, request: &Request, amd: bool) {
    // Leaf 0x15 stays zero, "not enumerated": from a crystal frequency guests also derive the
    // local APIC timer's, and the host's crystal is not what drives KVM's timer.
    table.each(0x15, |leaf| {
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0)
    });
    let most = table.get(0).map_or(0, |e| e.eax);
    let mhz = request.tsc_khz.map_or(0, |khz| khz / 1000).min(0xffff);
    if !amd && most >= 0x16 && mhz != 0 {
        // Base, maximum and bus frequency in MHz, for people: a bus of 100 MHz is what these
        // processors have.
        table.put(0x16, [mhz, mhz, 100, 0]);
    }
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
mod tests;
