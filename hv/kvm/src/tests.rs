//! Tests on this machine's KVM, with guests of a few instructions in real mode.
//!
//! Where a host runs guest kernels by emulation these take microseconds per instruction, which is
//! why every guest here is tiny.

use crate::Kvm;
use nyx_device::{Doorbell, Msi, RegionId, Space};
use nyx_hypervisor::{
    Activity, Broken, DebugControl, DebugStop, Direction, EntryState, Exit, HardwareBreakpoint,
    Hypervisor, Registers, Segment, Topology, Vcpu, Vm, WatchAccess,
};
use nyx_memory::{Extent, Memory, RamConfig};
use nyx_reactor::EventFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// Where the code of every test guest lies.
const CODE: u64 = 0x1000;
/// A stack and a place for data.
const STACK: u64 = 0x8000;
const RAM: usize = 0x10_0000;
/// Not RAM: a page beyond its end, still within reach of a real-mode segment.
const MMIO: u64 = 0x10_0000;

fn kvm() -> Kvm {
    Kvm::open().unwrap_or_else(|e| panic!("these tests need KVM: {e}"))
}

struct Machine {
    vm: Box<dyn Vm>,
    memory: Memory,
}

impl Machine {
    fn new(cpus: u32) -> Self {
        let extents = vec![Extent {
            base: GuestAddress(0),
            len: RAM,
        }];
        let mut memory = Memory::allocate(&RamConfig {
            extents,
            ..RamConfig::default()
        })
        .unwrap();
        let vm = kvm().create_vm(Topology::flat(cpus)).unwrap();
        memory.subscribe(vm.ram_observer()).unwrap();
        vm.power_interrupts(24).unwrap();
        Self { vm, memory }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory
            .space()
            .view()
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .space()
            .view()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// vCPU `index` in real mode at `code`, with ES based at [`MMIO`] when `mmio`.
    fn cpu(&self, index: u32, code: &[u8]) -> Box<dyn Vcpu> {
        self.write(CODE, code);
        let mut cpu = self.vm.create_vcpu(index).unwrap();
        cpu.set_entry(&real_mode()).unwrap();
        cpu
    }
}

fn real_mode() -> EntryState {
    let segment = Segment {
        limit: 0xffff,
        kind: 3,
        s: true,
        present: true,
        ..Segment::default()
    };
    EntryState {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        cr0: 0x10,
        cs: Segment {
            kind: 0xb,
            ..segment
        },
        data: segment,
        idt: (0, 0x3ff),
        ..EntryState::default()
    }
}

/// `mov ax, 0xffff; mov ds, ax; mov es, ax`: offset 0x10 is [`MMIO`].
const HIGH_SEGMENTS: [u8; 7] = [0xb8, 0xff, 0xff, 0x8e, 0xd8, 0x8e, 0xc0];

/// One exit as plain values.
#[derive(Debug, PartialEq)]
enum Seen {
    Out(u16, u8, Vec<u8>),
    In(u16, u8, usize),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Other(String),
}

/// Runs to the next exit that is not an interruption, answering reads with 1, 2, 3 and so on.
fn next(cpu: &mut dyn Vcpu) -> Seen {
    loop {
        if let Some(seen) = see(cpu.run().unwrap()) {
            return seen;
        }
    }
}

fn see(exit: Exit<'_>) -> Option<Seen> {
    let count = |data: &mut [u8]| data.iter_mut().zip(1..).for_each(|(d, i)| *d = i);
    Some(match exit {
        Exit::Pio {
            port,
            width,
            direction: Direction::Out,
            data,
        } => Seen::Out(port, width, data.to_vec()),
        Exit::Pio {
            port,
            width,
            direction: Direction::In,
            data,
        } => {
            count(data);
            Seen::In(port, width, data.len() / usize::from(width))
        }
        Exit::Mmio {
            address,
            write: true,
            data,
        } => Seen::Write(address, data.to_vec()),
        Exit::Mmio {
            address,
            write: false,
            data,
        } => {
            count(data);
            Seen::Read(address, data.len())
        }
        Exit::Interrupted => return None,
        other => Seen::Other(format!("{other:?}")),
    })
}

#[test]
fn ports_of_every_width() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(
        0,
        &[
            0x66, 0xb8, 0x44, 0x33, 0x22, 0x11, // mov eax, 0x11223344
            0xe6, 0x80, // out 0x80, al
            0xe7, 0x81, // out 0x81, ax
            0x66, 0xe7, 0x82, // out 0x82, eax
            0xe4, 0x60, // in al, 0x60
            0xe5, 0x61, // in ax, 0x61
            0x66, 0xe5, 0x62, // in eax, 0x62
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x66, 0xef, // out dx, eax
        ],
    );
    let cpu = cpu.as_mut();
    assert_eq!(next(cpu), Seen::Out(0x80, 1, vec![0x44]));
    assert_eq!(next(cpu), Seen::Out(0x81, 2, vec![0x44, 0x33]));
    assert_eq!(next(cpu), Seen::Out(0x82, 4, vec![0x44, 0x33, 0x22, 0x11]));
    assert_eq!(next(cpu), Seen::In(0x60, 1, 1));
    assert_eq!(next(cpu), Seen::In(0x61, 2, 1));
    assert_eq!(next(cpu), Seen::In(0x62, 4, 1));
    assert_eq!(
        next(cpu),
        Seen::Out(0x3f8, 4, vec![1, 2, 3, 4]),
        "what was read"
    );
}

#[test]
fn string_output_keeps_every_element() {
    let machine = Machine::new(1);
    machine.write(0x2000, b"nyx!ABCDEFGH");
    let mut cpu = machine.cpu(
        0,
        &[
            0xbe, 0x00, 0x20, // mov si, 0x2000
            0xb9, 0x04, 0x00, // mov cx, 4
            0xba, 0xe9, 0x00, // mov dx, 0xe9
            0xf3, 0x6e, // rep outsb
            0xb9, 0x02, 0x00, // mov cx, 2
            0xf3, 0x66, 0x6f, // rep outsd
            0xe6, 0x80, // out 0x80, al
        ],
    );
    let mut bytes = Vec::new();
    loop {
        match next(cpu.as_mut()) {
            Seen::Out(0xe9, 1 | 4, data) => bytes.extend(data),
            Seen::Out(0x80, 1, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, b"nyx!ABCDEFGH");
}

#[test]
fn string_input_fills_memory_element_by_element() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(
        0,
        &[
            0xbf, 0x00, 0x30, // mov di, 0x3000
            0xb9, 0x06, 0x00, // mov cx, 6
            0xba, 0xf0, 0x01, // mov dx, 0x1f0
            0xf3, 0x6d, // rep insw
            0xe6, 0x80, // out 0x80, al
        ],
    );
    let mut next_byte = 10;
    let mut elements = 0;
    let mut calls = 0;
    loop {
        match cpu.run().unwrap() {
            Exit::Pio {
                port: 0x1f0,
                width: 2,
                direction: Direction::In,
                data,
            } => {
                for byte in data.iter_mut() {
                    *byte = next_byte;
                    next_byte += 1;
                }
                elements += data.len() / 2;
                calls += 1;
            }
            Exit::Pio { port: 0x80, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(elements, 6);
    assert!(calls <= 6);
    assert_eq!(
        machine.read(0x3000, 13),
        [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 0]
    );
}

#[test]
fn memory_accesses_of_every_size() {
    let machine = Machine::new(1);
    let mut code = HIGH_SEGMENTS.to_vec();
    code.extend([
        0x66, 0xb8, 0x44, 0x33, 0x22, 0x11, // mov eax, 0x11223344
        0xa2, 0x10, 0x00, // mov [0x10], al
        0xa3, 0x12, 0x00, // mov [0x12], ax
        0x66, 0xa3, 0x14, 0x00, // mov [0x14], eax
        0xa0, 0x21, 0x00, // mov al, [0x21]
        0xa1, 0x21, 0x00, // mov ax, [0x21]: misaligned
        0x66, 0xa1, 0x23, 0x00, // mov eax, [0x23]: misaligned
        0x66, 0xe7, 0x80, // out 0x80, eax
        0x0f, 0x6f, 0x06, 0x40, 0x00, // movq mm0, [0x40]
        0x0f, 0x7f, 0x06, 0x48, 0x00, // movq [0x48], mm0
    ]);
    let mut cpu = machine.cpu(0, &code);
    let cpu = cpu.as_mut();
    assert_eq!(next(cpu), Seen::Write(MMIO, vec![0x44]));
    assert_eq!(next(cpu), Seen::Write(MMIO + 2, vec![0x44, 0x33]));
    assert_eq!(
        next(cpu),
        Seen::Write(MMIO + 4, vec![0x44, 0x33, 0x22, 0x11])
    );
    assert_eq!(next(cpu), Seen::Read(MMIO + 0x11, 1));
    assert_eq!(next(cpu), Seen::Read(MMIO + 0x11, 2));
    assert_eq!(next(cpu), Seen::Read(MMIO + 0x13, 4));
    assert_eq!(next(cpu), Seen::Out(0x80, 4, vec![1, 2, 3, 4]));
    assert_eq!(next(cpu), Seen::Read(MMIO + 0x30, 8));
    assert_eq!(
        next(cpu),
        Seen::Write(MMIO + 0x38, vec![1, 2, 3, 4, 5, 6, 7, 8])
    );
}

#[test]
fn an_access_across_the_end_of_ram_is_an_odd_sized_exit() {
    let machine = Machine::new(1);
    let mut code = HIGH_SEGMENTS.to_vec();
    code.extend([
        0x66, 0xb8, 0x44, 0x33, 0x22, 0x11, // mov eax, 0x11223344
        0x66, 0xa3, 0x0d, 0x00, // mov [0x0d], eax: three bytes in RAM's last page, ...
        0x66, 0xa3, 0x0f, 0x00, // mov [0x0f], eax: one byte in RAM, three outside
        0xe6, 0x80,
    ]);
    let mut cpu = machine.cpu(0, &code);
    assert_eq!(next(cpu.as_mut()), Seen::Write(MMIO, vec![0x11]));
    assert_eq!(machine.read(MMIO - 3, 3), [0x44, 0x33, 0x22]);
    assert_eq!(
        next(cpu.as_mut()),
        Seen::Write(MMIO, vec![0x33, 0x22, 0x11])
    );
    assert_eq!(machine.read(MMIO - 1, 1), [0x44]);
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0x44]));
}

#[test]
fn settling_completes_an_access_without_another_instruction() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(
        0,
        &[
            0xe4, 0x60, // in al, 0x60
            0xa2, 0x00, 0x20, // mov [0x2000], al
            0xe6, 0x80, // out 0x80, al
        ],
    );
    assert_eq!(next(cpu.as_mut()), Seen::In(0x60, 1, 1));
    assert!(cpu.settle().unwrap().is_none());
    assert_eq!(
        cpu.program_counter().unwrap(),
        CODE + 2,
        "the input is done, nothing after it"
    );
    assert_eq!(machine.read(0x2000, 1), [0]);
    assert!(
        cpu.settle().unwrap().is_none(),
        "settling twice is harmless"
    );
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![1]));
    assert_eq!(machine.read(0x2000, 1), [1]);
}

#[test]
fn settling_hands_out_the_further_accesses_of_one_instruction() {
    let machine = Machine::new(1);
    let mut code = HIGH_SEGMENTS.to_vec();
    // movsw from 0x10 to 0x20: a read that the same instruction follows with a write.
    code.extend([0xbe, 0x10, 0x00, 0xbf, 0x20, 0x00, 0xa5, 0xe6, 0x80]);
    let end = CODE + code.len() as u64 - 2;
    let mut cpu = machine.cpu(0, &code);
    assert_eq!(next(cpu.as_mut()), Seen::Read(MMIO, 2));
    let further = cpu.settle().unwrap().and_then(see);
    assert_eq!(further, Some(Seen::Write(MMIO + 0x10, vec![1, 2])));
    assert!(cpu.settle().unwrap().is_none());
    assert_eq!(cpu.program_counter().unwrap(), end);
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0xff]));
}

#[test]
fn a_kick_before_running_is_not_lost_and_settling_does_not_eat_it() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &[0xe6, 0x80, 0xf4]); // out; hlt
    let kick = cpu.kick_handle().unwrap();
    kick.kick();
    assert!(matches!(cpu.run().unwrap(), Exit::Interrupted));
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0]));
    kick.kick();
    assert!(cpu.settle().unwrap().is_none());
    // Without the kick this would halt for ever.
    assert!(matches!(cpu.run().unwrap(), Exit::Interrupted));
}

#[test]
fn ten_thousand_kicks_of_a_halted_vcpu_are_all_heard() {
    const KICKS: u64 = 10_000;
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &[0xf4, 0xeb, 0xfd]); // hlt; jmp back
    let asked = Arc::new(AtomicU64::new(0));
    let heard = Arc::new(AtomicU64::new(0));
    let (hand_over, handle) = std::sync::mpsc::channel();
    let runner = {
        let (asked, heard) = (asked.clone(), heard.clone());
        std::thread::spawn(move || {
            hand_over.send(cpu.kick_handle().unwrap()).unwrap();
            while heard.load(Ordering::Acquire) < KICKS {
                assert!(matches!(cpu.run().unwrap(), Exit::Interrupted));
                // The command that came with the kick.
                heard.store(asked.load(Ordering::Acquire), Ordering::Release);
            }
        })
    };
    let kick = handle.recv().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for number in 1..=KICKS {
        asked.store(number, Ordering::Release);
        kick.kick();
        // Every kick must be heard by itself: nothing else wakes the vCPU.
        while heard.load(Ordering::Acquire) < number {
            assert!(Instant::now() < deadline, "kick {number} was lost");
            std::thread::yield_now();
        }
    }
    runner.join().unwrap();
    // The thread is gone, the handle is not: this must reach nobody.
    for _ in 0..1000 {
        kick.kick();
    }
}

#[test]
fn a_spinning_guest_is_kicked_out() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &[0xeb, 0xfe]); // jmp $
    let (hand_over, handle) = std::sync::mpsc::channel();
    let runner = std::thread::spawn(move || {
        hand_over.send(cpu.kick_handle().unwrap()).unwrap();
        matches!(cpu.run().unwrap(), Exit::Interrupted)
    });
    let kick = handle.recv().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    kick.kick();
    assert!(runner.join().unwrap());
}

/// Flat 32-bit protected mode without an interrupt table: no exception can be delivered.
fn protected_mode() -> EntryState {
    let flat = Segment {
        limit: 0xffff_ffff,
        kind: 3,
        s: true,
        present: true,
        db: true,
        g: true,
        ..Segment::default()
    };
    EntryState {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        cr0: 0x11,
        cs: Segment {
            selector: 8,
            kind: 0xb,
            ..flat
        },
        data: Segment {
            selector: 16,
            ..flat
        },
        ..EntryState::default()
    }
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    let machine = Machine::new(1);
    let mut cpu = machine.vm.create_vcpu(0).unwrap();
    machine.write(CODE, &[0x0f, 0x0b]); // ud2
    cpu.set_entry(&protected_mode()).unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Other("Shutdown".into()));
}

#[test]
fn executing_device_memory_is_an_internal_error_with_evidence() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &[0xea, 0x10, 0x00, 0xff, 0xff]); // jmp 0xffff:0x10
    match cpu.run().unwrap() {
        Exit::Broken(broken @ Broken::Internal { suberror: 1, .. }) => {
            assert!(
                broken
                    .to_string()
                    .contains("could not emulate an instruction"),
                "{broken}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(cpu.program_counter().unwrap(), 0x10);
}

/// Enables the local APIC through its spurious vector register and waits with interrupts on.
/// The handler of `vector` writes to port 0x80; then the guest writes EOI and says 0x81.
fn interruptible(machine: &Machine, vector: u8) -> Box<dyn Vcpu> {
    let handler = 0x1800u16;
    let mut slot = handler.to_le_bytes().to_vec();
    slot.extend([0, 0]);
    machine.write(u64::from(vector) * 4, &slot);
    machine.write(
        handler.into(),
        &[
            0xe6, 0x80, // out 0x80, al
            0x66, 0xc7, 0x06, 0xb0, 0x00, 0, 0, 0, 0, // mov dword [0xb0], 0: EOI
            0xe6, 0x81, // out 0x81, al
            0xcf, // iret
        ],
    );
    machine.write(
        CODE,
        &[
            0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0, 0, // mov dword [0xf0], 0x1ff
            0xe6, 0x82, // out 0x82, al
            0xfb, // sti
            0xf4, // hlt
            0xeb, 0xfd, // jmp to the hlt
        ],
    );
    let mut cpu = machine.vm.create_vcpu(0).unwrap();
    let mut entry = real_mode();
    // The data segments show the local APIC; the stack works because nothing is popped from it but
    // what the interrupt pushed: it needs RAM, so a segment of its own would be better, but the
    // seam gives all data segments one base. Therefore: code sets SS.
    entry.data.base = 0;
    cpu.set_entry(&entry).unwrap();
    // Unreal mode is not to be had through `set_entry` for DS alone either; use a far base for all
    // and let the guest load SS = 0 first.
    let prologue = [0x31, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x80]; // xor ax,ax; mov ss,ax; mov sp,0x8000
    let mut code = prologue.to_vec();
    code.extend(machine.read(CODE, 15));
    machine.write(CODE, &code);
    entry.data.base = 0xfee0_0000;
    cpu.set_entry(&entry).unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x82, 1, vec![0]));
    cpu
}

#[test]
fn a_message_wakes_a_halted_vcpu() {
    let machine = Machine::new(1);
    let mut cpu = interruptible(&machine, 0x41);
    let msi = machine.vm.msi();
    let sender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        // Physical destination 0, fixed, edge.
        msi.signal(Msi {
            address: 0xfee0_0000,
            data: 0x41,
        });
    });
    let begin = Instant::now();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0]));
    assert!(
        begin.elapsed() >= Duration::from_millis(25),
        "it was halted"
    );
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x81, 1, vec![0]));
    sender.join().unwrap();
}

#[test]
fn the_end_of_a_level_interrupt_is_told_and_of_an_edge_one_not() {
    let machine = Machine::new(1);
    let mut cpu = interruptible(&machine, 0x51);
    let routes = machine.vm.ioapic_routes();
    let level = Msi {
        address: 0xfee0_0000,
        data: 0x8051,
    };
    let mut table = [None; 24];
    table[5] = Some(level);
    routes.set(&table);
    routes.set(&table);
    machine.vm.msi().signal(level);
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0]));
    assert_eq!(
        next(cpu.as_mut()),
        Seen::Other("EndOfInterrupt { vector: 81 }".into())
    );
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x81, 1, vec![0]));
    routes.set(&[None; 24]);
    machine.vm.msi().signal(Msi {
        data: 0x51,
        ..level
    });
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0]));
    assert_eq!(
        next(cpu.as_mut()),
        Seen::Out(0x81, 1, vec![0]),
        "no exit in between"
    );
}

#[test]
fn an_nmi_wakes_a_halted_vcpu() {
    let machine = Machine::new(1);
    machine.write(2 * 4, &[0x00, 0x18, 0, 0]);
    machine.write(0x1800, &[0xe6, 0x83]); // out 0x83, al
    let mut cpu = machine.cpu(0, &[0xe6, 0x82, 0xf4]); // out 0x82; hlt
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x82, 1, vec![0]));
    cpu.inject_nmi().unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x83, 1, vec![0]));
}

#[test]
fn doorbells_ring_without_an_exit_and_unbind_behind_our_back() {
    let machine = Machine::new(1);
    let mut code = HIGH_SEGMENTS.to_vec();
    code.extend([
        0xb8, 0x02, 0x00, // mov ax, 2
        0xe7, 0x90, // out 0x90, ax
        0xa3, 0x10, 0x00, // mov [0x10], ax
        0xa2, 0x10, 0x00, // mov [0x10], al: any width
        0xb8, 0x03, 0x00, // mov ax, 3
        0xe7, 0x90, // out 0x90, ax: another value
        0xa3, 0x10, 0x00, // mov [0x10], ax: unbound by then
    ]);
    let mut cpu = machine.cpu(0, &code);
    let doorbells = machine.vm.doorbells();
    let bell = |len, value| Doorbell {
        region: RegionId(0),
        offset: 0,
        len,
        value,
        event: Arc::new(EventFd::new().unwrap()),
    };
    let (port, memory) = (bell(2, Some(2)), bell(0, None));
    let _port = doorbells.bind(Space::Pio, 0x90, &port).unwrap();
    let on_memory = doorbells.bind(Space::Mmio, MMIO, &memory).unwrap();
    // The first exit is the value that the doorbell does not take.
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x90, 2, vec![3, 0]));
    assert!(port.event.clear() && memory.event.clear());

    // A bind of the same doorbell right after an unbind succeeds, parked or reaped.
    drop(on_memory);
    let again = doorbells.bind(Space::Mmio, MMIO, &memory).unwrap();
    // Another event at the same address waits for the old binding to go.
    drop(again);
    let other = bell(0, None);
    let begin = Instant::now();
    let on_memory = doorbells.bind(Space::Mmio, MMIO, &other).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(
        doorbells.bind(Space::Mmio, MMIO, &bell(0, None)).is_err(),
        "taken"
    );
    drop(on_memory);
    // To see it gone, bind something elsewhere in the same place until the old one has left.
    let probe = bell(4, Some(9));
    drop(doorbells.bind(Space::Mmio, MMIO, &probe).unwrap());
    assert_eq!(next(cpu.as_mut()), Seen::Write(MMIO, vec![3, 0]));
    assert!(!other.event.clear());
}

#[test]
fn dropping_a_doorbell_does_not_wait() {
    let machine = Machine::new(1);
    let doorbells = machine.vm.doorbells();
    let bindings: Vec<_> = (0..16u64)
        .map(|i| {
            let bell = Doorbell {
                region: RegionId(0),
                offset: 0,
                len: 4,
                value: None,
                event: Arc::new(EventFd::new().unwrap()),
            };
            doorbells.bind(Space::Mmio, MMIO + 8 * i, &bell).unwrap()
        })
        .collect();
    let begin = Instant::now();
    drop(bindings);
    assert!(
        begin.elapsed() < Duration::from_millis(15),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn dirty_pages_are_reported_once() {
    let machine = Machine::new(1);
    let mut source = machine.vm.dirty_source();
    let mut cpu = machine.cpu(
        0,
        &[
            0xe6, 0x7f, // out 0x7f, al
            0xa2, 0x00, 0x50, // mov [0x5000], al
            0xa2, 0x00, 0x60, // mov [0x6000], al
            0xe6, 0x80, // out 0x80, al
            0xa2, 0x00, 0x90, // mov [0x9000], al
            0xe6, 0x81, // out 0x81, al
        ],
    );
    let drain = |source: &mut dyn nyx_memory::DirtySource| {
        let mut runs = Vec::new();
        source.drain(&mut |e| runs.push((e.base.0, e.len))).unwrap();
        runs
    };
    assert_eq!(drain(source.as_mut()), [], "not logging yet");
    // The code's page is mapped now. KVM may report a page that is first read while logging.
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x7f, 1, vec![0]));
    source.log(true).unwrap();
    assert_eq!(drain(source.as_mut()), []);
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0]));
    assert_eq!(drain(source.as_mut()), [(0x5000, 0x2000)]);
    assert_eq!(drain(source.as_mut()), []);
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x81, 1, vec![0]));
    assert_eq!(drain(source.as_mut()), [(0x9000, 0x1000)]);
    source.log(false).unwrap();
    assert_eq!(drain(source.as_mut()), []);
}

/// Sets general registers, MM0 (from 0x2000) and a debug register, says 0x80; then shows what they
/// hold and stores MM0 at 0x2008.
const RICH: [u8; 40] = [
    0x66, 0xb8, 0x44, 0x33, 0x22, 0x11, // mov eax, 0x11223344
    0x66, 0xb9, 0x88, 0x77, 0x66, 0x55, // mov ecx, 0x55667788
    0x0f, 0x6f, 0x06, 0x00, 0x20, // movq mm0, [0x2000]
    0x0f, 0x23, 0xc0, // mov dr0, eax
    0xe6, 0x80, // out 0x80, al
    0x66, 0x0f, 0x21, 0xc0, // mov eax, dr0
    0x66, 0x40, // inc eax
    0x66, 0xe7, 0x81, // out 0x81, eax
    0x66, 0x91, // xchg eax, ecx
    0x0f, 0x7f, 0x06, 0x08, 0x20, // movq [0x2008], mm0
    0xe7, 0x82, // out 0x82, ax
];

#[test]
fn state_survives_a_round_trip_into_another_vm() {
    let machine = Machine::new(2);
    machine.write(0x2000, b"FPU data");
    let mut cpu = machine.cpu(0, &RICH);
    let mut second = machine.vm.create_vcpu(1).unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0x44]));
    assert!(cpu.settle().unwrap().is_none());
    let (blob, second_blob) = (cpu.save().unwrap(), second.save().unwrap());
    let clock = machine.vm.save().unwrap();
    assert_eq!(
        (blob.name.as_str(), clock.name.as_str()),
        ("vcpu/1", "vm/1")
    );

    let other = Machine::new(2);
    other.write(CODE, &RICH);
    let mut cpu = other.vm.create_vcpu(0).unwrap();
    let mut second = other.vm.create_vcpu(1).unwrap();
    cpu.restore(&blob).unwrap();
    second.restore(&second_blob).unwrap();
    other.vm.restore(&clock).unwrap();
    assert_same(&cpu.save().unwrap(), &blob);
    assert_same(&second.save().unwrap(), &second_blob);
    assert_eq!(cpu.program_counter().unwrap(), CODE + 22);
    assert_eq!(
        next(cpu.as_mut()),
        Seen::Out(0x81, 4, vec![0x45, 0x33, 0x22, 0x11])
    );
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x82, 2, vec![0x88, 0x77]));
    assert_eq!(other.read(0x2008, 8), b"FPU data");
}

/// What differs between two saved vCPUs, apart from the TSC, which runs.
fn differences(a: &nyx_state::Blob, b: &nyx_state::Blob) -> Vec<String> {
    let [a, b]: [crate::saved::SavedVcpu; 2] =
        [a, b].map(|blob| minicbor::decode(&blob.bytes).unwrap());
    let mut found = Vec::new();
    let mut compare = |name: &str, same: bool| {
        if !same {
            found.push(name.to_string());
        }
    };
    compare("mp_state", a.mp_state == b.mp_state);
    compare("regs", a.regs == b.regs);
    compare("sregs", a.sregs == b.sregs && a.sregs2 == b.sregs2);
    compare("xsave", a.xsave == b.xsave);
    compare("xcrs", a.xcrs == b.xcrs);
    compare("debugregs", a.debugregs == b.debugregs);
    compare("lapic", a.lapic == b.lapic);
    compare("events", a.events == b.events);
    compare("tsc_khz", a.tsc_khz == b.tsc_khz);
    compare("number of MSRs", a.msrs.len() == b.msrs.len());
    for (one, other) in a.msrs.iter().zip(&b.msrs) {
        assert_eq!(one.index, other.index);
        assert!(one.index != 0x10 || one.value != 0, "the TSC runs");
        compare(
            &format!("{one:x?} {other:x?}"),
            one.index == 0x10 || one == other,
        );
    }
    found
}

fn assert_same(a: &nyx_state::Blob, b: &nyx_state::Blob) {
    assert_eq!(differences(a, b), Vec::<String>::new());
}

#[test]
fn reset_returns_to_power_on() {
    let machine = Machine::new(2);
    let mut fresh = machine.vm.create_vcpu(0).unwrap();
    let power_on = fresh.save().unwrap();
    fresh.set_entry(&real_mode()).unwrap();
    machine.write(CODE, &RICH);
    assert_eq!(next(fresh.as_mut()), Seen::Out(0x80, 1, vec![0x44]));
    assert!(fresh.settle().unwrap().is_none());
    let changed = differences(&fresh.save().unwrap(), &power_on);
    assert!(
        changed.contains(&"regs".into()) && changed.contains(&"xsave".into()),
        "{changed:?}"
    );
    fresh.reset().unwrap();
    assert_same(&fresh.save().unwrap(), &power_on);
    assert_eq!(
        fresh.program_counter().unwrap(),
        0xfff0,
        "Intel SDM vol. 3 table 10-1"
    );

    let mut second = machine.vm.create_vcpu(1).unwrap();
    let waiting = second.save().unwrap();
    assert!(
        differences(&waiting, &power_on).contains(&"mp_state".into()),
        "only the boot processor runs"
    );
    second.reset().unwrap();
    assert_same(&second.save().unwrap(), &waiting);
    fresh.set_entry(&real_mode()).unwrap();
    assert_eq!(
        next(fresh.as_mut()),
        Seen::Out(0x80, 1, vec![0x44]),
        "and it runs again"
    );
}

#[test]
fn hostile_saved_state_is_refused() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &RICH);
    let good = cpu.save().unwrap();
    let saved: crate::saved::SavedVcpu = minicbor::decode(&good.bytes).unwrap();
    let mut refuse = |change: &dyn Fn(&mut crate::saved::SavedVcpu), why: &str| {
        let mut bad = saved.clone();
        change(&mut bad);
        let blob = nyx_state::Blob {
            bytes: minicbor::to_vec(&bad).unwrap(),
            ..good.clone()
        };
        let error = cpu.restore(&blob).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refuse(
        &|s| s.regs = vec![0; 3].into(),
        "general registers of another size",
    );
    refuse(
        &|s| (s.sregs, s.sregs2) = (None, None),
        "no system registers",
    );
    refuse(&|s| s.mp_state = 77, "KVM_SET_MP_STATE");
    refuse(
        &|s| s.lapic = Some(vec![].into()),
        "local APIC of another size",
    );
    refuse(&|s| s.xsave = Some(vec![1; 1 << 20].into()), "FPU state");
    refuse(&|s| s.tsc_khz = Some(1), "TSC runs at 1 kHz");
    refuse(
        &|s| {
            s.msrs.push(crate::saved::SavedMsr {
                index: 0xdead_beef,
                value: 1,
            })
        },
        "MSR 0xdeadbeef",
    );
    for end in [0, 1, 100, good.bytes.len() - 1] {
        let blob = nyx_state::Blob {
            bytes: good.bytes[..end].to_vec(),
            ..good.clone()
        };
        assert!(cpu.restore(&blob).is_err());
    }
    cpu.restore(&good).unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0x44]));
}

#[test]
fn an_application_processor_starts_by_init_and_sipi() {
    let machine = Machine::new(2);
    let mut cpu = interruptible(&machine, 0x41);
    let mut second = machine.vm.create_vcpu(1).unwrap();
    // At the start-up vector's page: out 0x84, al; hlt.
    machine.write(0x3000, &[0xe6, 0x84, 0xf4]);
    // From the handler's EOI on, the boot processor sends INIT and then start-up to id 1.
    let icr = |high: u32, low: u32| {
        let mut code = vec![0x66, 0xc7, 0x06, 0x10, 0x03];
        code.extend(high.to_le_bytes());
        code.extend([0x66, 0xc7, 0x06, 0x00, 0x03]);
        code.extend(low.to_le_bytes());
        code
    };
    let mut handler = icr(1 << 24, 0x4500);
    handler.extend(icr(1 << 24, 0x4603));
    handler.extend([0xe6, 0x85]); // out 0x85, al
    machine.write(0x1800, &handler);
    let (hand_over, handle) = std::sync::mpsc::channel();
    let runner = std::thread::spawn(move || {
        hand_over.send(second.kick_handle().unwrap()).unwrap();
        next(second.as_mut())
    });
    let _kick = handle.recv().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    machine.vm.msi().signal(Msi {
        address: 0xfee0_0000,
        data: 0x41,
    });
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x85, 1, vec![0]));
    assert_eq!(runner.join().unwrap(), Seen::Out(0x84, 1, vec![0]));
}

#[test]
fn memory_above_the_hole_is_reached_and_logged() {
    const HIGH: u64 = 1 << 32;
    let extents = [(0, RAM), (HIGH, 0x20_0000)]
        .map(|(base, len)| Extent {
            base: GuestAddress(base),
            len,
        })
        .to_vec();
    let mut memory = Memory::allocate(&RamConfig {
        extents,
        ..RamConfig::default()
    })
    .unwrap();
    let vm = kvm().create_vm(Topology::flat(1)).unwrap();
    memory.subscribe(vm.ram_observer()).unwrap();
    vm.power_interrupts(24).unwrap();
    let space = memory.space();
    let code = [
        0x48, 0xb8, 0, 0, 0, 0, 1, 0, 0, 0, // mov rax, 1 << 32
        0xe6, 0x80, // out 0x80, al
        0xc6, 0x40, 0x08, 0x5a, // mov byte [rax + 8], 0x5a
        0xe6, 0x81, // out 0x81, al
    ];
    space.view().write_slice(&code, GuestAddress(CODE)).unwrap();
    // The first 2 MiB and the first 2 MiB above 4 GiB, mapped to themselves in large pages.
    for (at, entry) in [
        (0x2000u64, 0x3003u64),
        (0x3000, 0x4003),
        (0x3000 + 8 * 4, 0x5003),
        (0x4000, 0x83),
        (0x5000, HIGH | 0x83),
    ] {
        space.view().write_obj(entry, GuestAddress(at)).unwrap();
    }
    let mut cpu = vm.create_vcpu(0).unwrap();
    let mut entry = protected_mode();
    (entry.cr0, entry.cr3, entry.cr4, entry.efer) = (0x8000_0011, 0x2000, 0x20, 0x500);
    (entry.cs.l, entry.cs.db) = (true, false);
    cpu.set_entry(&entry).unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0]));
    let mut source = vm.dirty_source();
    source.log(true).unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x81, 1, vec![0]));
    let mut runs = Vec::new();
    source.drain(&mut |e| runs.push((e.base.0, e.len))).unwrap();
    // The page tables' own dirty bits may have been written as well.
    runs.retain(|&(base, _)| base >= HIGH);
    assert_eq!(runs, [(HIGH, 0x1000)]);
    assert_eq!(
        space.view().read_obj::<u8>(GuestAddress(HIGH + 8)).unwrap(),
        0x5a
    );
    drop(memory);
    // The slots are gone: the code is no longer memory.
    assert!(!matches!(cpu.run(), Ok(Exit::Pio { .. })));
}

#[test]
fn impossible_topologies_are_refused_in_words() {
    let kvm = kvm();
    let refuse = |cpus, sockets, cores, threads| {
        let topology = Topology {
            cpus,
            sockets,
            cores,
            threads,
        };
        kvm.create_vm(topology).err().unwrap().to_string()
    };
    assert!(refuse(0, 0, 0, 0).contains("from 1 to"));
    assert!(refuse(4, 1, 3, 1).contains("product must be"));
    assert!(refuse(u32::MAX, 1, u32::MAX, 1).contains("from 1 to"));
    let most = kvm.max_vcpus();
    assert!(most >= 1);
    assert!(refuse(most + 1, 1, most + 1, 1).contains("from 1 to"));
    let vm = kvm.create_vm(Topology::flat(1)).unwrap();
    assert!(
        vm.create_vcpu(0)
            .err()
            .unwrap()
            .to_string()
            .contains("interrupt controllers")
    );
    vm.power_interrupts(24).unwrap();
    assert!(
        vm.create_vcpu(1)
            .err()
            .unwrap()
            .to_string()
            .contains("no CPU 1")
    );
    drop(vm.create_vcpu(0).unwrap());
    assert!(vm.create_vcpu(0).is_err(), "each is made once");
}

#[test]
fn ids_beyond_a_byte_get_messages() {
    let kvm = kvm();
    if kvm.max_vcpus() < 300 || kvm.capabilities().x2apic_api & 3 != 3 {
        // A host that cannot must say so instead.
        assert!(kvm.create_vm(Topology::flat(300)).is_err());
        return;
    }
    let vm = kvm.create_vm(Topology::flat(300)).unwrap();
    vm.power_interrupts(24).unwrap();
    let mut cpu = vm.create_vcpu(299).unwrap();
    let saved: crate::saved::SavedVcpu = minicbor::decode(&cpu.save().unwrap().bytes).unwrap();
    assert_ne!(saved.mp_state, 0);
}

#[test]
fn the_probe_measures_something_plausible() {
    let speed = crate::measure_guest_kernel(&kvm()).unwrap();
    let ns = speed.nanoseconds_per_instruction;
    // No processor retires more than some tens of instructions in a nanosecond.
    assert!((0.01..1_000_000.0).contains(&ns), "{ns}");
    assert_eq!(
        speed.is_native(),
        ns < crate::GuestKernelSpeed::NATIVE_BELOW_NANOSECONDS
    );
}

#[test]
fn addresses_and_limits_are_plausible() {
    let kvm = kvm();
    assert!((32..=52).contains(&kvm.physical_address_bits()));
    let all = kvm.capabilities().all();
    assert!(
        all.iter()
            .any(|&(name, value)| name == "KVM_CAP_SPLIT_IRQCHIP" && value > 0)
    );
}

#[test]
fn this_hosts_cpuid_makes_a_table_that_kvm_takes() {
    let kvm = kvm();
    let request = crate::cpuid::Request {
        topology: Topology {
            cpus: 4,
            sockets: 1,
            cores: 2,
            threads: 2,
        },
        index: 3,
        tsc_deadline: true,
        tsc_khz: Some(2_000_000),
        wide_ids: true,
        large_xsave: true,
    };
    let table = crate::cpuid::for_vcpu(&kvm.0.cpuid, &request);
    let leaf = |function| table.iter().find(|e| e.function == function).unwrap();
    let signature = leaf(0x4000_0000);
    let text: Vec<u8> = [signature.ebx, signature.ecx, signature.edx]
        .iter()
        .flat_map(|r| r.to_le_bytes())
        .collect();
    assert_eq!(text, b"KVMKVMKVM\0\0\0");
    assert_ne!(leaf(0x4000_0001).eax & 1 << 3, 0, "kvmclock");
    assert_eq!(leaf(1).ebx >> 24, 3);
    assert!(table.len() <= kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    let host = kvm
        .0
        .cpuid
        .iter()
        .find(|e| e.function == 0x8000_0002)
        .unwrap();
    assert_eq!(leaf(0x8000_0002).eax, host.eax, "the brand string is kept");
}

// Under a debugger -----------------------------------------------------------------------------

/// Runs to the next debug stop; anything else but an interruption is a failure.
fn next_stop(cpu: &mut dyn Vcpu) -> DebugStop {
    loop {
        match cpu.run().unwrap() {
            Exit::Debug(stop) => return stop,
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Code of a few instructions whose addresses are known.
const STEPS: [u8; 14] = [
    0xb0, 0x01, // 0x1000: mov al, 1
    0xa2, 0x00, 0x20, // 0x1002: mov [0x2000], al
    0x90, // 0x1005: nop
    0xcc, // 0x1006: int3
    0xa0, 0x00, 0x20, // 0x1007: mov al, [0x2000]
    0xe6, 0x80, // 0x100a: out 0x80, al
    0xeb, 0xfe, // 0x100c: jmp .
];

#[test]
fn registers_of_a_debugged_vcpu_are_read_and_written() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &STEPS);
    let debug = cpu.debug().unwrap();
    let before = debug.registers().unwrap();
    assert_eq!((before.rip, before.rsp), (CODE, STACK));
    assert_eq!(before.cs.limit, 0xffff);
    let wanted = Registers {
        rax: 0x1122_3344_5566_7788,
        r15: 9,
        cr2: 0xdead,
        fs: Segment {
            base: 0x1230,
            selector: 0x123,
            ..before.fs
        },
        ..before
    };
    debug.set_registers(&wanted).unwrap();
    assert_eq!(debug.registers().unwrap(), wanted);
    assert_eq!(debug.activity().unwrap(), Activity::Running);

    let mut fpu = debug.fpu().unwrap();
    fpu.xmm[3] = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
    fpu.st[1] = [1, 2, 3, 4, 5, 6, 7, 0x80, 0xff, 0x3f];
    debug.set_fpu(&fpu).unwrap();
    assert_eq!(debug.fpu().unwrap(), fpu);

    const LSTAR: u32 = 0xc000_0082;
    const NO_SUCH: u32 = 0x1234_5678;
    assert!(debug.set_msr(LSTAR, 0xffff_8000_0000_1000));
    assert!(!debug.set_msr(NO_SUCH, 1));
    let read = debug.msrs(&[NO_SUCH, LSTAR, NO_SUCH]);
    assert_eq!(read, [None, Some(0xffff_8000_0000_1000), None]);
}

#[test]
fn a_breakpoint_instruction_stops_and_can_be_given_back() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &STEPS);
    // The guest's own handler of INT3: vector 3 of the real-mode table.
    machine.write(3 * 4, &[0x00, 0x30, 0x00, 0x00]);
    machine.write(0x3000, &[0xe6, 0x81, 0xcf]); // out 0x81, al; iret
    let control = DebugControl {
        software: true,
        ..DebugControl::default()
    };
    cpu.debug().unwrap().control(&control).unwrap();
    if !cpu.debug().unwrap().stops_at_int3() {
        // KVM's instruction emulator hands INT3 to the guest at once.
        assert_eq!(next(cpu.as_mut()), Seen::Out(0x81, 1, vec![1]));
        return;
    }
    let stop = next_stop(cpu.as_mut());
    assert_eq!((stop.exception, stop.pc), (DebugStop::BP, 0x1006));
    let debug = cpu.debug().unwrap();
    assert_eq!(debug.registers().unwrap().rip, 0x1006);
    debug.return_to_guest(&stop).unwrap();
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x81, 1, vec![1]));
    assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![1]));
}

#[test]
fn single_steps_end_after_one_instruction() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &STEPS);
    let control = DebugControl {
        step: true,
        block_interrupts: true,
        ..DebugControl::default()
    };
    cpu.debug().unwrap().control(&control).unwrap();
    for pc in [0x1002, 0x1005, 0x1006] {
        let stop = next_stop(cpu.as_mut());
        assert!(stop.is_step(), "{stop:?}");
        assert_eq!(stop.pc, pc);
    }
}

#[test]
fn hardware_breakpoints_and_watchpoints_stop() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &STEPS);
    machine.write(0x1006, &[0x90]);
    let breakpoint = |address, access| {
        Some(HardwareBreakpoint {
            address,
            len: 1,
            access,
        })
    };
    let control = DebugControl {
        hardware: [
            None,
            breakpoint(0x1005, WatchAccess::Execute),
            breakpoint(0x2000, WatchAccess::ReadWrite),
            None,
        ],
        ..DebugControl::default()
    };
    cpu.debug().unwrap().control(&control).unwrap();
    let mut stops = Vec::new();
    loop {
        match cpu.run().unwrap() {
            Exit::Debug(stop) => {
                stops.push((stop.pc, stop.met().collect::<Vec<_>>()));
                // The instruction at a breakpoint would stop again.
                let mut without = control;
                without.hardware[1] = None;
                cpu.debug().unwrap().control(&without).unwrap();
            }
            Exit::Interrupted => {}
            Exit::Pio { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(stops.contains(&(0x1005, vec![1])), "{stops:x?}");
}

#[test]
fn kvms_own_counts_can_be_read_while_the_vcpu_lives() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu(0, &[0xe6, 0x80, 0xe6, 0x80, 0xe6, 0x80]);
    let counts = cpu.statistics().expect("Linux 5.14 and later tell them");
    let count = |name: &str| nyx_inspect::Json::of(&*counts)[name].as_u64().unwrap();
    assert_eq!((count("exits"), count("io_exits")), (0, 0));
    for _ in 0..3 {
        assert_eq!(next(cpu.as_mut()), Seen::Out(0x80, 1, vec![0]));
    }
    assert!(count("exits") >= 3);
    // A KVM that cannot run real mode emulates it.
    assert!(count("io_exits") + count("insn_emulation") >= 3);
    let page = nyx_inspect::Prometheus::of(&*counts, &[]);
    assert!(
        page.contains("nyx_kvm_events_total{event=\"pio_exit\"} "),
        "{page}"
    );
    assert!(
        page.contains("# TYPE nyx_kvm_halted_seconds_total counter"),
        "{page}"
    );
}
