//! Cost of an exit.
use nyx_hypervisor::*; use nyx_memory::*; use vm_memory::*;
fn main() {
    let k = nyx_kvm::Kvm::open().unwrap();
    let t = std::time::Instant::now();
    let vm = k.create_vm(Topology::flat(1)).unwrap();
    let mut m = Memory::allocate(&RamConfig { extents: vec![Extent { base: GuestAddress(0), len: 1<<20 }], ..Default::default() }).unwrap();
    m.subscribe(vm.ram_observer()).unwrap();
    vm.power_interrupts(24).unwrap();
    println!("vm {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let mut c = vm.create_vcpu(0).unwrap();
    println!("vcpu0 {:?}", t.elapsed());
    let vm2 = k.create_vm(Topology::flat(64)).unwrap(); vm2.power_interrupts(24).unwrap();
    let t = std::time::Instant::now();
    let v: Vec<_> = (0..64).map(|i| vm2.create_vcpu(i).unwrap()).collect();
    println!("64 vcpus {:?}", t.elapsed()); drop(v);
    m.space().view().write_slice(&[0xe6, 0x80, 0xeb, 0xfc], GuestAddress(0x1000)).unwrap();
    let s = Segment { limit: 0xffff, kind: 3, s: true, present: true, ..Default::default() };
    c.set_entry(&EntryState { rip: 0x1000, rflags: 2, cr0: 0x10, cs: Segment { kind: 0xb, ..s }, data: s, ..Default::default() }).unwrap();
    let n = 200_000u64;
    for round in 0..3 {
        let mut sum = 0u64; let mut outside = 0u64;
        let t0 = unsafe { core::arch::x86_64::_rdtsc() };
        for _ in 0..n {
            match c.run().unwrap() { Exit::Pio { port, data, .. } => sum += port as u64 + data.len() as u64, o => panic!("{o:?}") }
        }
        let t1 = unsafe { core::arch::x86_64::_rdtsc() };
        outside += t1 - t0;
        println!("round {round}: {} cycles per run() sum {sum}", outside / n);
    }
}
