//! The server's side of the protocol against a machine of toy processors, over a real socket.
//!
//! A toy processor executes guest memory for itself: `90` does nothing, `01` adds one to the byte at
//! [`CELL`], `02` reads it, `eb` goes back to [`CODE`], `f4` waits for ever, `cc` is INT3.

use crate::{GdbServer, Listen, MachineCommands, Start, StartError, read_virtual, sample};
use nyx_device::{
    BackendOpener, BackendSpec, BlockBackend, BoxError, CharBackend, Doorbells, EjectionSink,
    Fault, FaultSink, Msi, MsiSink, NetBackend, NoDoorbells, PowerRequest, PowerSink,
};
use nyx_hypervisor::{
    Activity, DebugControl, DebugStop, EntryState, Exit, FpuRegisters, HvError, Hypervisor,
    IoapicRoutes, Kick, Registers, Topology, Vcpu, VcpuDebug, Vm, WatchAccess,
};
use nyx_machine::{Machine, Ports, VcpuEvent, VcpuSink};
use nyx_memory::{Backing, DirtySource, DmaSpace, Extent, RamObserver};
use nyx_plan::{BootPlan, CpuPlan, Layout, MachinePlan, RamPlan, Range};
use nyx_spec::{CpuSpec, HugePageSize};
use nyx_state::{Blob, RestoreError, SaveError};
use parking_lot::Mutex;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x1000;
const CELL: u64 = 0x2000;
const STAR: u32 = 0xc000_0081;

// The toy hypervisor --------------------------------------------------------------------------

#[derive(Default)]
struct Toy {
    memory: OnceLock<DmaSpace>,
    /// INT3 that the guest took itself.
    taken: AtomicUsize,
    resets: AtomicUsize,
    /// INT3 does not stop for the debugger.
    without_int3: AtomicBool,
}

#[derive(Clone, Default)]
struct ToyHypervisor(Arc<Toy>);

#[derive(Default)]
struct ToyKick(AtomicBool);
impl Kick for ToyKick {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct ToyCpu {
    toy: Arc<Toy>,
    kick: Arc<ToyKick>,
    registers: Registers,
    fpu: FpuRegisters,
    star: u64,
    control: DebugControl,
    /// The guest's own exception comes next.
    injected: bool,
}

impl ToyCpu {
    fn byte(&self, at: u64) -> u8 {
        let memory = self.toy.memory.get().unwrap();
        memory.view().read_obj(GuestAddress(at)).unwrap()
    }

    /// Whether a breakpoint of `kinds` is at `address`, as DR6 says it.
    fn met(&self, address: u64, kinds: &[WatchAccess]) -> u64 {
        let all = self.control.hardware.iter().enumerate();
        all.filter_map(|(n, breakpoint)| Some((n, (*breakpoint)?)))
            .filter(|(_, b)| kinds.contains(&b.access))
            .filter(|(_, b)| (b.address..b.address + u64::from(b.len)).contains(&address))
            .fold(0, |dr6, (n, _)| dr6 | 1 << n)
    }

    fn stop(&self, exception: u32, dr6: u64) -> Exit<'static> {
        Exit::Debug(DebugStop {
            exception,
            pc: self.registers.rip,
            dr6,
            dr7: 0,
        })
    }

    /// One instruction.
    fn step(&mut self) -> Option<Exit<'static>> {
        let pc = self.registers.rip;
        let executes = self.met(pc, &[WatchAccess::Execute]);
        if executes != 0 {
            return Some(self.stop(1, executes));
        }
        let mut dr6 = 0;
        match self.byte(pc) {
            0x01 => {
                let memory = self.toy.memory.get().unwrap();
                let value = self.byte(CELL).wrapping_add(1);
                memory.view().write_obj(value, GuestAddress(CELL)).unwrap();
                dr6 = self.met(CELL, &[WatchAccess::Write, WatchAccess::ReadWrite]);
            }
            0x02 => {
                self.registers.rax = self.byte(CELL).into();
                dr6 = self.met(CELL, &[WatchAccess::ReadWrite]);
            }
            0xcc if self.control.software && !std::mem::take(&mut self.injected) => {
                return Some(self.stop(3, 0));
            }
            0xcc => {
                self.toy.taken.fetch_add(1, Ordering::SeqCst);
            }
            0xf4 => {
                std::thread::yield_now();
                return None;
            }
            _ => {}
        }
        self.registers.rip = match self.byte(pc) {
            0xeb => CODE,
            _ => pc + 1,
        };
        if self.control.step {
            dr6 |= 1 << 14;
        }
        (dr6 != 0).then(|| self.stop(1, dr6))
    }
}

impl Vcpu for ToyCpu {
    fn run(&mut self) -> Result<Exit<'_>, HvError> {
        loop {
            if self.kick.0.swap(false, Ordering::SeqCst) {
                return Ok(Exit::Interrupted);
            }
            if let Some(exit) = self.step() {
                return Ok(exit);
            }
        }
    }
    fn settle(&mut self) -> Result<Option<Exit<'_>>, HvError> {
        Ok(None)
    }
    fn kick_handle(&mut self) -> Result<Arc<dyn Kick>, HvError> {
        Ok(self.kick.clone())
    }
    fn set_entry(&mut self, entry: &EntryState) -> Result<(), HvError> {
        self.registers.rip = entry.rip;
        Ok(())
    }
    fn reset(&mut self) -> Result<(), HvError> {
        self.toy.resets.fetch_add(1, Ordering::SeqCst);
        self.registers = Registers::default();
        self.registers.rip = CODE;
        Ok(())
    }
    fn save(&mut self) -> Result<Blob, SaveError> {
        Err(SaveError::Unsupported("a toy"))
    }
    fn restore(&mut self, _: &Blob) -> Result<(), RestoreError> {
        Ok(())
    }
    fn inject_nmi(&mut self) -> Result<(), HvError> {
        Ok(())
    }
    fn program_counter(&mut self) -> Result<u64, HvError> {
        Ok(self.registers.rip)
    }
    fn debug(&mut self) -> Option<&mut dyn VcpuDebug> {
        Some(self)
    }
}

impl VcpuDebug for ToyCpu {
    fn registers(&mut self) -> Result<Registers, HvError> {
        Ok(self.registers)
    }
    fn set_registers(&mut self, registers: &Registers) -> Result<(), HvError> {
        self.registers = *registers;
        Ok(())
    }
    fn activity(&mut self) -> Result<Activity, HvError> {
        Ok(Activity::Running)
    }
    fn fpu(&mut self) -> Result<FpuRegisters, HvError> {
        Ok(self.fpu)
    }
    fn set_fpu(&mut self, fpu: &FpuRegisters) -> Result<(), HvError> {
        self.fpu = *fpu;
        Ok(())
    }
    fn msrs(&mut self, indices: &[u32]) -> Vec<Option<u64>> {
        let value = |index: &u32| (*index == STAR).then_some(self.star);
        indices.iter().map(value).collect()
    }
    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        if index == STAR {
            self.star = value;
        }
        index == STAR
    }
    fn stops_at_int3(&mut self) -> bool {
        !self.toy.without_int3.load(Ordering::SeqCst)
    }
    fn control(&mut self, control: &DebugControl) -> Result<(), HvError> {
        self.control = *control;
        Ok(())
    }
    fn return_to_guest(&mut self, _: &DebugStop) -> Result<(), HvError> {
        self.injected = true;
        Ok(())
    }
}

struct Nothing;
impl RamObserver for Nothing {
    fn mapped(&mut self, _: Extent, _: &Backing<'_>) -> io::Result<()> {
        Ok(())
    }
    fn unmapped(&mut self, _: Extent) {}
}
impl DirtySource for Nothing {
    fn log(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn drain(&mut self, _: &mut dyn FnMut(Extent)) -> io::Result<()> {
        Ok(())
    }
}
impl MsiSink for Nothing {
    fn signal(&self, _: Msi) {}
}
impl IoapicRoutes for Nothing {
    fn set(&self, _: &[Option<Msi>]) {}
}
impl FaultSink for Nothing {
    fn fault(&self, _: Fault) {}
}
impl PowerSink for Nothing {
    fn request(&self, _: PowerRequest) {}
}
impl VcpuSink for Nothing {
    fn event(&self, _: u32, _: VcpuEvent) {}
}
impl EjectionSink for Nothing {
    fn ejected(&self) {}
}
impl BackendOpener for Nothing {
    fn block(&self, _: &BackendSpec) -> Result<Box<dyn BlockBackend>, BoxError> {
        Err("none".into())
    }
    fn net(&self, _: &BackendSpec) -> Result<Box<dyn NetBackend>, BoxError> {
        Err("none".into())
    }
    fn char(&self, _: &str, _: &BackendSpec) -> Result<Box<dyn CharBackend>, BoxError> {
        Err("none".into())
    }
}

impl Vm for ToyHypervisor {
    fn ram_observer(&self) -> Box<dyn RamObserver> {
        Box::new(Nothing)
    }
    fn power_interrupts(&self, _: u32) -> Result<(), HvError> {
        Ok(())
    }
    fn create_vcpu(&self, _: u32) -> Result<Box<dyn Vcpu>, HvError> {
        Ok(Box::new(ToyCpu {
            toy: self.0.clone(),
            kick: Arc::default(),
            registers: Registers {
                rip: CODE,
                rsp: 0x3000,
                ..Registers::default()
            },
            fpu: FpuRegisters::default(),
            star: 5,
            control: DebugControl::default(),
            injected: false,
        }))
    }
    fn msi(&self) -> Arc<dyn MsiSink> {
        Arc::new(Nothing)
    }
    fn ioapic_routes(&self) -> Arc<dyn IoapicRoutes> {
        Arc::new(Nothing)
    }
    fn doorbells(&self) -> Arc<dyn Doorbells> {
        Arc::new(NoDoorbells)
    }
    fn dirty_source(&self) -> Box<dyn DirtySource> {
        Box::new(Nothing)
    }
    fn save(&self) -> Result<Blob, SaveError> {
        Err(SaveError::Unsupported("a toy"))
    }
    fn restore(&self, _: &Blob) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Hypervisor for ToyHypervisor {
    fn max_vcpus(&self) -> u32 {
        8
    }
    fn physical_address_bits(&self) -> u8 {
        40
    }
    fn create_vm(&self, _: Topology) -> Result<Box<dyn Vm>, HvError> {
        Ok(Box::new(self.clone()))
    }
}

// The bench -----------------------------------------------------------------------------------

#[derive(Default)]
struct Asked(Mutex<Vec<&'static str>>);
impl MachineCommands for Asked {
    fn reset(&self) {
        self.0.lock().push("reset");
    }
    fn nmi(&self) {
        self.0.lock().push("nmi");
    }
    fn stop(&self) {
        self.0.lock().push("stop");
    }
    fn describe(&self) -> String {
        "a toy".into()
    }
}

struct Bench {
    // Dropped in this order.
    server: GdbServer,
    machine: Machine,
    toy: Arc<Toy>,
    asked: Arc<Asked>,
    folder: tempfile::TempDir,
}

/// A machine of `cpus` toys that executes `code`, and its server.
fn bench(cpus: u32, code: &[u8], start: Start) -> Bench {
    let hypervisor = ToyHypervisor::default();
    let sink = Arc::new(Nothing);
    let ports = Ports {
        faults: sink.clone(),
        power: sink.clone(),
        vcpus: sink.clone(),
        hotplug: sink,
        backends: &Nothing,
    };
    let plan = MachinePlan {
        version: 1,
        name: "toy".into(),
        topology: CpuSpec {
            count: cpus,
            sockets: 1,
            cores: cpus,
            threads: 1,
        },
        cpus: (0..cpus)
            .map(|index| CpuPlan {
                index,
                apic_id: index,
            })
            .collect(),
        ram: RamPlan {
            huge_pages: HugePageSize::Off,
            shared: false,
            prefault: false,
        },
        layout: Layout {
            ram: vec![Range {
                base: 0,
                len: 1 << 20,
            }],
            ..Layout::default()
        },
        intx: Vec::new(),
        placements: Vec::new(),
        boot: BootPlan::default(),
    };
    let machine = Machine::assemble(plan, &[], &hypervisor, &ports).unwrap();
    let toy = hypervisor.0;
    toy.memory.set(machine.ram()).unwrap();
    machine
        .ram()
        .view()
        .write_slice(code, GuestAddress(CODE))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listen = Listen::Unix(folder.path().join("gdb"));
    let asked = Arc::new(Asked::default());
    let server = GdbServer::start(machine.debug_port(), &listen, start, asked.clone()).unwrap();
    Bench {
        server,
        machine,
        toy,
        asked,
        folder,
    }
}

fn eventually(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Bench {
    fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.folder.path().join("gdb")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Client(stream)
    }

    fn byte(&self, at: u64) -> u8 {
        self.machine
            .ram()
            .view()
            .read_obj(GuestAddress(at))
            .unwrap()
    }

    /// The guest gets on.
    fn runs(&self) -> bool {
        let before = self.byte(CELL);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            if self.byte(CELL) != before {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    fn stands(&self) -> bool {
        let before = self.byte(CELL);
        std::thread::sleep(Duration::from_millis(30));
        self.byte(CELL) == before
    }
}

/// A debugger of few words.
struct Client(UnixStream);

impl Client {
    fn send(&mut self, body: &str) {
        let sum = body.bytes().fold(0_u8, u8::wrapping_add);
        let packet = format!("${body}#{sum:02x}");
        self.0.write_all(packet.as_bytes()).unwrap();
    }

    /// The body of the next packet, with runs of bytes written out.
    fn answer(&mut self) -> String {
        let mut byte = [0];
        let mut body = String::new();
        let mut within = false;
        loop {
            self.0.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'$' => within = true,
                b'#' => break,
                b'*' if within => {
                    self.0.read_exact(&mut byte).unwrap();
                    let last = body.chars().last().unwrap();
                    body.extend(std::iter::repeat_n(last, usize::from(byte[0] - 29)));
                }
                b if within => body.push(b.into()),
                _ => {}
            }
        }
        self.0.read_exact(&mut [0; 2]).unwrap();
        body
    }

    fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.answer()
    }

    fn monitor(&mut self, command: &str) -> String {
        let hex: String = command.bytes().map(|b| format!("{b:02x}")).collect();
        let mut text = String::new();
        let mut answer = self.ask(&format!("qRcmd,{hex}"));
        while let Some(hex) = answer.strip_prefix('O').filter(|_| answer != "OK") {
            let bytes = (0..hex.len() / 2).map(|n| {
                let digits = &hex[2 * n..2 * n + 2];
                u8::from_str_radix(digits, 16).unwrap() as char
            });
            text.extend(bytes);
            answer = self.answer();
        }
        assert_eq!(answer, "OK");
        text
    }

    /// The number of a register by its name, from the description.
    fn register(&mut self, name: &str) -> String {
        let mut xml = String::new();
        loop {
            let part = self.ask(&format!(
                "qXfer:features:read:target.xml:{:x},800",
                xml.len()
            ));
            let (more, text) = part.split_at(1);
            if more == "l" {
                break;
            }
            xml.push_str(text);
        }
        let names = xml.split("<reg name=\"").skip(1);
        let number = names
            .clone()
            .position(|rest| rest.starts_with(&format!("{name}\"")));
        format!("{:x}", number.unwrap())
    }
}

/// A loop that counts: `nop; inc; read; jump`.
const LOOP: [u8; 4] = [0x90, 0x01, 0x02, 0xeb];

// The tests -----------------------------------------------------------------------------------

#[test]
fn a_debugger_sees_every_vcpu_and_the_guest_stands_meanwhile() {
    let mut bench = bench(2, &LOOP, Start::Running);
    bench.machine.start();
    assert!(bench.runs());
    let mut gdb = bench.connect();
    let features = gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    for feature in [
        "PacketSize=4000",
        "swbreak+",
        "hwbreak+",
        "qXfer:features:read+",
    ] {
        assert!(features.contains(feature), "{features}");
    }
    assert!(gdb.ask("?").starts_with("T05thread:"));
    assert!(bench.stands());
    assert_eq!(gdb.ask("qfThreadInfo"), "mp01.01,p01.02");
    assert_eq!(gdb.ask("Hgp1.2"), "OK");
    assert_eq!(gdb.ask("m1000,4"), "900102eb");
    assert_eq!(gdb.ask("M2100,2:abcd"), "OK");
    assert_eq!((bench.byte(0x2100), bench.byte(0x2101)), (0xab, 0xcd));
    assert!(gdb.ask("mfffff000,4").starts_with('E'));
    // The end of memory: what there is comes, no more.
    assert_eq!(gdb.ask("mffffe,8"), "0000");
    let star = gdb.register("star");
    assert_eq!(gdb.ask(&format!("p{star}")), "0500000000000000");
    assert_eq!(gdb.ask(&format!("P{star}=0700000000000000")), "OK");
    assert!(gdb.monitor("vcpu 1").is_empty());
    assert!(gdb.monitor("msr read 0xc0000081").contains("= 0x7"));
    assert!(gdb.monitor("info").contains("vCPU 1: rip 0x100"));
    assert_eq!(gdb.ask("D"), "OK");
    eventually(|| bench.runs());
}

#[test]
fn breakpoints_in_memory_stop_are_hidden_and_leave_no_trace() {
    let mut bench = bench(1, &LOOP, Start::Held);
    bench.machine.start();
    assert!(bench.stands());
    let mut gdb = bench.connect();
    gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    for round in 1..=5 {
        assert_eq!(gdb.ask("Z0,1002,1"), "OK");
        assert_eq!(bench.byte(0x1002), 0xcc);
        assert_eq!(gdb.ask("m1000,4"), "900102eb", "hidden");
        let stop = gdb.ask("vCont;c");
        assert!(stop.starts_with("T05thread:p01.01;swbreak:"), "{stop}");
        assert_eq!(bench.byte(CELL), round);
        // As gdb goes on from a breakpoint: it takes it back, steps, and sets it again.
        assert_eq!(gdb.ask("z0,1002,1"), "OK");
        let step = gdb.ask("vCont;s:p1.1");
        assert!(step.starts_with("T05thread:p01.01;"), "{step}");
    }
    let counted = gdb.monitor("info");
    assert!(
        counted.contains("breakpoint at 0x1002: 5 hits"),
        "{counted}"
    );
    // What is written over a breakpoint goes under it.
    assert_eq!(gdb.ask("Z0,1002,1"), "OK");
    assert_eq!(gdb.ask("M1002,1:90"), "OK");
    assert_eq!((bench.byte(0x1002), &*gdb.ask("m1002,1")), (0xcc, "90"));
    drop(gdb);
    eventually(|| bench.byte(0x1002) == 0x90);
    assert!(bench.runs(), "a debugger that is lost lets the guest go on");
    assert_eq!(bench.toy.taken.load(Ordering::SeqCst), 0);
}

#[test]
fn watchpoints_and_hardware_breakpoints_stop() {
    let mut bench = bench(1, &LOOP, Start::Held);
    bench.machine.start();
    let mut gdb = bench.connect();
    gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    assert_eq!(gdb.ask("Z2,2000,1"), "OK");
    assert_eq!(gdb.ask("vCont;c"), "T05thread:p01.01;watch:2000;");
    assert_eq!(bench.byte(CELL), 1);
    assert_eq!(gdb.ask("z2,2000,1"), "OK");
    // Reads alone: the write in between does not count.
    assert_eq!(gdb.ask("Z3,2000,1"), "OK");
    assert_eq!(gdb.ask("vCont;c"), "T05thread:p01.01;rwatch:2000;");
    assert_eq!(gdb.ask("vCont;c"), "T05thread:p01.01;rwatch:2000;");
    assert_eq!(bench.byte(CELL), 2);
    assert_eq!(gdb.ask("z3,2000,1"), "OK");
    assert_eq!(gdb.ask("Z4,2000,1"), "OK");
    assert_eq!(gdb.ask("vCont;c"), "T05thread:p01.01;awatch:2000;");
    assert_eq!(gdb.ask("z4,2000,1"), "OK");
    assert_eq!(gdb.ask("Z1,1000,1"), "OK");
    let stop = gdb.ask("vCont;c");
    assert!(stop.starts_with("T05thread:p01.01;hwbreak:"), "{stop}");
    assert!(gdb.ask("z1,1001,1").starts_with('E'), "there is none");
    // The processor has four; lengths and alignment are its own.
    for n in 1..4 {
        assert_eq!(gdb.ask(&format!("Z1,{:x},1", 0x1000 + n)), "OK");
    }
    assert!(gdb.ask("Z1,1010,1").starts_with('E'));
    assert_eq!(gdb.ask("z1,1003,1"), "OK");
    for bad in ["Z2,2001,2", "Z2,2000,3", "Z2,2000,0", "Z2,2000,100"] {
        assert!(gdb.ask(bad).starts_with('E'), "{bad}");
    }
    // Where nothing is mapped, the last of the four stands in for INT3.
    assert_eq!(gdb.ask("Z0,ffffffff81000000,1"), "OK");
    assert!(gdb.ask("Z0,ffffffff81000010,1").starts_with('E'));
    assert_eq!(gdb.ask("z0,ffffffff81000000,1"), "OK");
}

#[test]
fn where_int3_does_not_stop_the_processors_breakpoints_stand_in() {
    let mut bench = bench(1, &LOOP, Start::Running);
    bench.toy.without_int3.store(true, Ordering::SeqCst);
    bench.machine.start();
    let mut gdb = bench.connect();
    gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    assert_eq!(gdb.ask("Z0,1002,1"), "OK");
    assert_eq!(bench.byte(0x1002), 0x02, "memory is as it was");
    let stop = gdb.ask("vCont;c");
    assert!(stop.contains("swbreak"), "{stop}");
    assert!(gdb.monitor("info").contains("INT3"));
    for n in [0, 1, 3] {
        assert_eq!(gdb.ask(&format!("Z0,100{n},1")), "OK");
    }
    assert!(gdb.ask("Z0,1010,1").starts_with('E'), "there are four");
}

#[test]
fn steps_of_one_vcpu_leave_the_others_alone_and_ranges_are_stepped_through() {
    let mut bench = bench(2, &LOOP, Start::Held);
    bench.machine.start();
    let mut gdb = bench.connect();
    gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    let rip = gdb.register("rip");
    let at = |gdb: &mut Client, thread: u32| {
        gdb.ask(&format!("Hgp1.{thread}"));
        gdb.ask(&format!("p{rip}"))
    };
    assert_eq!(gdb.ask("vCont;s:p1.2"), "T05thread:p01.02;");
    assert_eq!(at(&mut gdb, 2), "0110000000000000");
    assert_eq!(at(&mut gdb, 1), "0010000000000000");
    // From 1001 through the range to 1003, in one go.
    assert_eq!(gdb.ask("vCont;r1000,1003:p1.2"), "T05thread:p01.02;");
    assert_eq!(at(&mut gdb, 2), "0310000000000000");
    assert_eq!(bench.byte(CELL), 1);
}

#[test]
fn the_guests_own_breakpoints_are_the_guests() {
    let mut bench = bench(1, &[0x90, 0x01, 0xcc, 0x02, 0xeb], Start::Held);
    bench.machine.start();
    let mut gdb = bench.connect();
    gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    // While there is a breakpoint of the debugger's, all INT3 stop.
    assert_eq!(gdb.ask("Z0,1003,1"), "OK");
    let stop = gdb.ask("vCont;c");
    assert!(stop.contains("swbreak"), "{stop}");
    assert_eq!(bench.toy.taken.load(Ordering::SeqCst), 1);
    let rip = gdb.register("rip");
    assert_eq!(gdb.ask(&format!("p{rip}")), "0310000000000000");
}

#[test]
fn ctrl_c_stops_kill_asks_and_the_end_is_told() {
    let mut bench = bench(2, &LOOP, Start::Running);
    bench.machine.start();
    let mut gdb = bench.connect();
    gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    gdb.send("vCont;c");
    assert!(bench.runs());
    gdb.0.write_all(b"\x03").unwrap();
    assert!(gdb.answer().starts_with("T02thread:"));
    assert!(bench.stands());
    assert!(gdb.monitor("reset").contains("being reset"));
    gdb.monitor("nmi");
    assert_eq!(*bench.asked.0.lock(), ["reset", "nmi"]);
    gdb.send("vCont;c");
    bench
        .machine
        .finish(Instant::now() + Duration::from_secs(5));
    assert_eq!(gdb.answer(), "W00");
    drop(gdb);
    // The next one finds a machine that does not move, and may still ask for its end.
    let mut gdb = bench.connect();
    assert!(gdb.ask("?").starts_with("T05"));
    assert_eq!(gdb.ask("vKill;1"), "OK");
    eventually(|| bench.asked.0.lock().last() == Some(&"stop"));
}

#[test]
fn pause_and_reset_by_the_owner_work_under_a_debugger() {
    let mut bench = bench(2, &LOOP, Start::Held);
    let soon = || Instant::now() + Duration::from_secs(5);
    bench.machine.start();
    let mut gdb = bench.connect();
    gdb.ask("qSupported:multiprocess+;swbreak+;hwbreak+");
    assert_eq!(gdb.ask("Z0,1002,1"), "OK");
    let mut quiesced = bench.machine.quiesce(soon()).unwrap();
    quiesced.reset(nyx_device::ResetKind::Warm).unwrap();
    quiesced.keep();
    assert_eq!(bench.toy.resets.load(Ordering::SeqCst), 2);
    // What is loaded anew covers the breakpoint; it is set again when the machine starts.
    let ram = bench.machine.ram();
    ram.view().write_slice(&LOOP, GuestAddress(CODE)).unwrap();
    bench.machine.start();
    assert_eq!(bench.byte(0x1002), 0xcc);
    assert!(bench.stands(), "the debugger still holds");
    assert!(gdb.ask("vCont;c").contains("swbreak"));
    // A machine that its owner paused does not run for a debugger.
    bench.machine.quiesce(soon()).unwrap().keep();
    assert_eq!(gdb.ask("z0,1002,1"), "OK");
    gdb.send("vCont;c");
    assert!(bench.stands());
    bench.machine.start();
    assert!(bench.runs());
    drop(gdb);
}

#[test]
fn one_debugger_at_a_time() {
    let mut bench = bench(1, &LOOP, Start::Running);
    bench.machine.start();
    let mut gdb = bench.connect();
    gdb.ask("?");
    let mut other = bench.connect();
    assert_eq!(other.0.read(&mut [0; 8]).unwrap(), 0, "sent away");
    assert_eq!(gdb.ask("m1000,1"), "90");
    let second = Listen::Unix(bench.folder.path().join("second"));
    let port = bench.machine.debug_port();
    let refused = GdbServer::start(port, &second, Start::Held, bench.asked.clone());
    assert!(matches!(refused, Err(StartError::Attach(_))));
    drop(gdb);
    eventually(|| bench.runs());
    // Without a debugger too, vCPUs and memory can be looked at.
    let samples = sample(&bench.machine.debug_port(), 16).unwrap();
    assert!((CODE..CODE + 4).contains(&samples[0].rip));
    assert_eq!(samples[0].stack, [0; 16]);
    let port = bench.machine.debug_port();
    assert_eq!(read_virtual(&port, 0, CODE, 4).unwrap(), LOOP);
    let absent = read_virtual(&port, 0, 0xf_fffe, 4).unwrap_err();
    assert_eq!(absent.to_string(), "there is no guest memory at 0x100000");
    assert!(read_virtual(&port, 1, CODE, 4).is_err());
    assert!(read_virtual(&port, 0, CODE, usize::MAX).is_err());
    assert!(bench.runs());
    // What listened is gone with the server, and the machine with its debugger port goes on.
    let Bench { server, folder, .. } = bench;
    drop(server);
    assert!(!folder.path().join("gdb").exists());
}

#[test]
fn hostile_clients_end_their_own_session_only() {
    let mut bench = bench(2, &LOOP, Start::Running);
    bench.machine.start();
    // A generator that needs no crate and repeats itself (Marsaglia, xorshift64).
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    const WORDS: &[&str] = &[
        "m",
        "M",
        "X",
        "Z0,",
        "Z2,",
        "z1,",
        "vCont;",
        "vCont;s",
        "vCont;c:p1.",
        "vCont;r1,2:",
        "H",
        "Hg",
        "p",
        "P",
        "g",
        "G",
        "qXfer:features:read:target.xml:",
        "qRcmd,",
        "qSupported:",
        "T",
        "?",
        "s",
        "c",
        "ffffffffffffffff",
        "0",
        ",",
        ":",
        ";",
        "-1",
        "p-1.-1",
        "=",
        "#",
        "}",
        "1000",
        "2000",
        "1",
        "vFile:open:",
        "qfThreadInfo",
        "Qqemu.PhyMemMode:1",
        "QTinit",
        "bs",
        "k0",
        "D;9",
        "vAttach;",
    ];
    for round in 0..300 {
        let mut gdb = bench.connect();
        for _ in 0..8 {
            let mut body = String::new();
            for _ in 0..1 + random() % 6 {
                body.push_str(WORDS[(random() % WORDS.len() as u64) as usize]);
            }
            if random() % 4 == 0 {
                let sum = body.bytes().fold(0_u8, u8::wrapping_add);
                body = format!(
                    "${body}#{:02x}",
                    sum.wrapping_add((random() % 8 == 0) as u8)
                );
                let _ = gdb.0.write_all(body.as_bytes());
            } else {
                let sum = body.bytes().fold(0_u8, u8::wrapping_add);
                let _ = gdb.0.write_all(format!("+${body}#{sum:02x}").as_bytes());
            }
        }
        if round % 3 == 0 {
            let bytes: Vec<u8> = (0..64).map(|_| random() as u8).collect();
            let _ = gdb.0.write_all(&bytes);
        }
    }
    // A packet without end.
    let mut gdb = bench.connect();
    let _ = gdb.0.write_all(&[b'$'; 1 << 20]);
    drop(gdb);
    eventually(|| {
        let mut gdb = bench.connect();
        gdb.send("m1001,1");
        let mut byte = [0];
        gdb.0.read(&mut byte).is_ok_and(|n| n == 1) && gdb.answer() == "01"
    });
    let code: Vec<u8> = (0..4).map(|n| bench.byte(CODE + n)).collect();
    assert!(!code.contains(&0xcc), "{code:x?}");
}
