//! Properties of the CPUID tables.

use super::*;
use proptest::prelude::*;

const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];

fn entry(function: u32, index: u32, r: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = r;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// A host with everything the tables must change.
fn host([ebx, edx, ecx]: [u32; 3]) -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0, 0, [0x1f, ebx, ecx, edx]),
        entry(1, 0, [0x806f8, 0xff40_0800, !0, !0]),
        entry(4, 0, [0xfc00_4121, 1, 2, 3]), // L1d
        entry(4, 1, [0xfc00_4122, 1, 2, 3]), // L1i
        entry(4, 2, [0xfc00_4143, 1, 2, 3]), // L2
        entry(4, 3, [0xfc1f_c163, 1, 2, 3]), // L3
        entry(4, 4, [0, 0, 0, 0]),
        entry(7, 0, [1, 0, !0, !0]),
        entry(7, 1, [!0, 0, 0, !0]),
        entry(0xb, 0, [0; 4]),
        entry(0xd, 0, [0x6_02e7, 0x2b00, 0x2b00, 0]),
        entry(0xd, 17, [64, 0xac0, 2, 0]),
        entry(0xd, 18, [8192, 0xb00, 6, 0]),
        entry(0x15, 0, [2, 168, 25_000_000, 0]),
        entry(0x1d, 0, [1, 0, 0, 0]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 1]),
        entry(0x8000_0000, 0, [0x8000_001e, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, !0, 0]),
        entry(0x8000_0008, 0, [0x302e, 0, 0xffff, 0]),
        entry(0x8000_000a, 0, [1, 8, 0, 0]),
        entry(0x8000_001d, 0, [0xfc1f_c163, 1, 2, 3]),
        entry(0x8000_001e, 0, [77, 77, 77, 0]),
    ]
}

fn request(topology: Topology, index: u32) -> Request {
    Request {
        topology,
        index,
        tsc_deadline: true,
        tsc_khz: Some(2_400_000),
        wide_ids: true,
        large_xsave: true,
    }
}

fn leaf(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    let mut found = table
        .iter()
        .filter(|e| (e.function, e.index) == (function, index));
    let one = *found
        .next()
        .unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
    one
}

#[test]
fn features_are_those_of_a_guest() {
    let table = for_vcpu(&host(INTEL), &request(Topology::flat(2), 1));
    let one = leaf(&table, 1, 0);
    assert_eq!(
        one.ecx & (ECX1_VMX | ECX1_SMX | ECX1_OSXSAVE | ECX1_MONITOR),
        0
    );
    assert_eq!(one.ecx >> 21 & 1, 1, "x2APIC");
    assert_eq!(one.ecx >> 24 & 1, 1, "TSC deadline");
    assert_eq!(one.ecx >> 31, 1, "hypervisor");
    assert_eq!(leaf(&table, 0x8000_0001, 0).ecx & ECX81_SVM, 0);
    assert!(!table.iter().any(|e| e.function == 0x8000_000a));
    assert_eq!(leaf(&table, 0x4000_0001, 0).eax, 0x0100_fefb);
    assert_eq!(leaf(&table, 0x4000_0001, 0).edx, 0, "no hints");
    assert_eq!(leaf(&table, 0x4000_0000, 0).eax, 0x4000_0010);
    assert_eq!(leaf(&table, 0x4000_0010, 0).eax, 2_400_000);
    assert_eq!(leaf(&table, 0x16, 0).eax, 2400);
    assert_eq!(leaf(&table, 0x15, 0).ecx, 0);
    assert_eq!(
        leaf(&table, 7, 0).edx & EDX7_AMX,
        EDX7_AMX,
        "AMX stays where it can be saved"
    );
}

#[test]
fn what_the_kernel_cannot_do_is_hidden() {
    let none = Request {
        tsc_deadline: false,
        tsc_khz: None,
        wide_ids: false,
        large_xsave: false,
        ..request(Topology::flat(1), 0)
    };
    let table = for_vcpu(&host(INTEL), &none);
    assert_eq!(leaf(&table, 1, 0).ecx & ECX1_TSC_DEADLINE, 0);
    assert_eq!(leaf(&table, 0x4000_0000, 0).eax, 0x4000_0001);
    assert_eq!(
        leaf(&table, 0x4000_0001, 0).eax & KVM_FEATURE_MSI_EXT_DEST_ID,
        0
    );
    assert_eq!(leaf(&table, 7, 0).edx & EDX7_AMX, 0);
    assert_eq!(leaf(&table, 7, 1).eax & EAX7_1_AMX_FP16, 0);
    assert_eq!(leaf(&table, 0xd, 0).eax, 0x2e7);
    assert!(
        !table
            .iter()
            .any(|e| e.function == 0x1d || (e.function, e.index) == (0xd, 18))
    );
    assert!(
        !table
            .iter()
            .any(|e| e.function == 0x16 || e.function == 0x4000_0010)
    );
}

#[test]
fn caches_are_shared_by_cores_and_packages() {
    let t = Topology {
        cpus: 12,
        sockets: 2,
        cores: 3,
        threads: 2,
    };
    let table = for_vcpu(&host(INTEL), &request(t, 7));
    let sharing = |f, i| leaf(&table, f, i).eax >> 14 & 0xfff;
    assert_eq!((sharing(4, 0), sharing(4, 2), sharing(4, 3)), (1, 1, 7));
    assert_eq!(
        leaf(&table, 4, 3).eax >> 26,
        3,
        "core ids in a package, less one"
    );
    assert_eq!(leaf(&table, 4, 3).eax & 0x3fff, 0xfc1f_c163 & 0x3fff);
    assert_eq!(leaf(&table, 4, 4).eax, 0);
}

#[test]
fn amd_has_its_own_leaves() {
    let t = Topology {
        cpus: 12,
        sockets: 2,
        cores: 3,
        threads: 2,
    };
    let table = for_vcpu(&host(AMD), &request(t, 9));
    // Index 9 is socket 1, core 1, thread 1: id 8 + 2 + 1.
    let e = leaf(&table, 0x8000_001e, 0);
    assert_eq!((e.eax, e.ebx, e.ecx), (11, 1 << 8 | 1, 1));
    assert_eq!(leaf(&table, 0x8000_0008, 0).ecx, 3 << 12 | 5);
    assert_eq!(
        leaf(&table, 0x8000_0001, 0).ecx & ECX81_CMP_LEGACY,
        ECX81_CMP_LEGACY
    );
    assert_eq!(leaf(&table, 0x8000_001d, 0).eax >> 14 & 0xfff, 7);
    assert!(!table.iter().any(|e| e.function == 0x16));
    let intel = for_vcpu(&host(INTEL), &request(t, 9));
    assert_eq!(leaf(&intel, 0x8000_0008, 0).ecx, 0);
    assert_eq!(leaf(&intel, 0x8000_0001, 0).ecx & ECX81_CMP_LEGACY, 0);
}

/// How an operating system reads the package, core and thread from leaf 0xb.
fn parsed(table: &[kvm_cpuid_entry2]) -> (u32, u32, u32) {
    let (smt, core) = (leaf(table, 0xb, 0), leaf(table, 0xb, 1));
    let id = smt.edx;
    let package = id >> core.eax;
    let core_id = id >> smt.eax & ((1 << (core.eax - smt.eax)) - 1);
    (package, core_id, id & ((1 << smt.eax) - 1))
}

proptest! {
    #[test]
    fn every_vcpu_finds_its_place(
        sockets in 1u32..5, cores in 1u32..40, threads in 1u32..3, amd: bool,
    ) {
        let cpus = sockets * cores * threads;
        let t = Topology { cpus, sockets, cores, threads };
        let host = host(if amd { AMD } else { INTEL });
        for index in 0..cpus {
            let table = for_vcpu(&host, &request(t, index));
            let expected = (index / threads / cores, index / threads % cores, index % threads);
            prop_assert_eq!(parsed(&table), expected);
            let id = leaf(&table, 0xb, 0).edx;
            prop_assert_eq!(id, t.apic_id(index));
            prop_assert_eq!(leaf(&table, 0x1f, 1).edx, id);
            let one = leaf(&table, 1, 0);
            prop_assert_eq!(one.ebx >> 24, id & 0xff);
            prop_assert_eq!(one.ebx >> 8 & 0xff, 8, "CLFLUSH size is kept");
            prop_assert!(one.ebx >> 16 & 0xff >= (cores * threads).min(255));
            prop_assert_eq!(one.edx & EDX1_HTT != 0, cores * threads > 1);
            prop_assert_eq!(leaf(&table, 0xb, 1).ebx, cores * threads);
        }
    }

    #[test]
    fn any_host_table_is_survived(
        leaves in proptest::collection::vec(
            (prop_oneof![0u32..0x20, 0x4000_0000u32..0x4000_0012, 0x8000_0000u32..0x8000_0020],
             0u32..4, any::<[u32; 4]>()), 0..40),
        sockets: u32, cores: u32, threads: u32, index: u32,
    ) {
        let host: Vec<_> = leaves.into_iter().map(|(f, i, r)| entry(f, i, r)).collect();
        // The seam's own topology is checked before; only sizes that fit 31 bits get here.
        let t = Topology {
            cpus: 1, sockets: sockets % 64 + 1, cores: cores % 4096 + 1, threads: threads % 64 + 1,
        };
        let table = for_vcpu(&host, &request(t, index % 4096));
        prop_assert_eq!(table.iter().filter(|e| e.function == 0xb).count(), 3);
    }
}
