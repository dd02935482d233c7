//! Tests on made-up kernels: tables written here as the kernel's build writes them.

use crate::kallsyms::{Image, image_for_tests, parse};
use crate::{Cpu, Location, SymbolKind, Symbols, Trust};
use proptest::prelude::*;

const BASE: u64 = 0xffff_ffff_8100_0000;

/// Where the offsets are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Up to 6.1.
    Before,
    /// 6.2 and 6.3: numbers of symbols in the order of names lie between.
    Between,
    /// From 6.4 on.
    Behind,
}

struct Maker {
    bytes: Vec<u8>,
}

impl Maker {
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
    fn u32s(&mut self, values: impl IntoIterator<Item = u32>) {
        for value in values {
            self.bytes.extend(value.to_le_bytes());
        }
        self.align();
    }
}

/// What a table of `symbols` (letter and name, address) looks like in memory. Every letter is a token of
/// its own, and token 1 stands for `sys_`.
fn table(symbols: &[(String, u64)], layout: Layout) -> Vec<u8> {
    let mut maker = Maker {
        bytes: b"some code of the kernel, and data too...".to_vec(),
    };
    maker.align();
    let base = BASE;
    let offsets: Vec<u32> = symbols
        .iter()
        .map(|(_, address)| match address.checked_sub(base) {
            Some(offset) => (-1 - offset as i64) as u32,
            None => *address as u32, // of the per-CPU area
        })
        .collect();
    let places = |maker: &mut Maker| {
        maker.u32s(offsets.iter().copied());
        maker.bytes.extend(base.to_le_bytes());
    };
    if layout != Layout::Behind {
        places(&mut maker);
    }
    maker.u32s([symbols.len() as u32]);
    let mut markers = Vec::new();
    let start = maker.bytes.len();
    for (n, (name, _)) in symbols.iter().enumerate() {
        if n % 256 == 0 {
            markers.push((maker.bytes.len() - start) as u32);
        }
        let compressed = name.replace("sys_", "\u{1}").into_bytes();
        match compressed.len() {
            len @ 0..0x80 => maker.bytes.push(len as u8),
            len => maker
                .bytes
                .extend([(len & 0x7f | 0x80) as u8, (len >> 7) as u8]),
        }
        maker.bytes.extend(compressed);
    }
    maker.align();
    maker.u32s(markers);
    if layout == Layout::Between {
        maker
            .bytes
            .extend((0..symbols.len()).flat_map(|n| [0, (n >> 8) as u8, n as u8]));
        maker.align();
    }
    let mut index = Vec::new();
    let start = maker.bytes.len();
    for token in 0..=255_u8 {
        index.push((maker.bytes.len() - start) as u16);
        match token {
            0 => {}
            1 => maker.bytes.extend(b"sys_"),
            token if token.is_ascii_graphic() => maker.bytes.push(token),
            _ => {}
        }
        maker.bytes.push(0);
    }
    maker.align();
    maker
        .bytes
        .extend(index.iter().flat_map(|i| i.to_le_bytes()));
    maker.align();
    if layout == Layout::Behind {
        places(&mut maker);
    }
    maker.bytes.extend([0; 64]);
    maker.bytes
}

fn kernel(count: u64) -> Vec<(String, u64)> {
    let mut symbols = vec![
        ("Afixed_percpu_data".to_owned(), 0),
        ("Acurrent_task".to_owned(), 0x1fb80),
        ("T_text".to_owned(), BASE),
        (format!("t{}", "long_".repeat(40)), BASE + 0x10),
    ];
    symbols.extend((1..count).map(|n| (format!("Tsys_call_{n}"), BASE + 0x100 * n)));
    symbols
}

fn image(bytes: Vec<u8>) -> Image {
    image_for_tests(BASE, bytes)
}

#[test]
fn a_kernels_own_table_is_read_in_every_layout() {
    for layout in [Layout::Before, Layout::Between, Layout::Behind] {
        let symbols = parse(&image(table(&kernel(3000), layout)))
            .unwrap_or_else(|| panic!("{layout:?} was not found"));
        assert_eq!(symbols.len(), 3003, "{layout:?}");
        assert_eq!(symbols.address_of("_text"), Some(BASE));
        assert_eq!(symbols.address_of("current_task"), Some(0x1fb80));
        assert_eq!(
            symbols.address_of("sys_call_2999"),
            Some(BASE + 0x100 * 2999)
        );
        assert_eq!(symbols.address_of(&"long_".repeat(40)), Some(BASE + 0x10));
        let found = symbols.lookup(BASE + 0x50_007).unwrap();
        assert_eq!(found.to_string(), "sys_call_1280+0x7/0x100");
    }
}

#[test]
fn a_table_that_does_not_hold_together_is_none() {
    let whole = table(&kernel(700), Layout::Before);
    assert!(parse(&image(whole.clone())).is_some());
    // Cut anywhere, or with a byte of its structure changed.
    for end in [0, 100, whole.len() / 2, whole.len() - 600] {
        assert!(parse(&image(whole[..end].to_vec())).is_none(), "{end}");
    }
    let names = 40 + 4 * 704 + 8;
    for at in [names, names + 1, names + 9, names + 5000] {
        let mut broken = whole.clone();
        broken[at] ^= 0x5a;
        // Found or not, nothing is made up: a name more or less shows.
        if let Some(symbols) = parse(&image(broken)) {
            assert_eq!(symbols.len(), 703);
        }
    }
    assert!(parse(&image(vec![0; 4096])).is_none());
    let digits = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00".repeat(500);
    assert!(parse(&image(digits)).is_none());
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_over_its_table_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        layout in prop::sample::select(vec![Layout::Before, Layout::Between, Layout::Behind]),
    ) {
        let mut bytes = table(&kernel(600), layout);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = parse(&image(bytes));
    }

    #[test]
    fn noise_is_no_file_of_symbols(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Symbols::parse(&bytes);
        let elf = [b"\x7fELF\x02\x01\x01".to_vec(), bytes].concat();
        let _ = Symbols::parse(&elf);
    }

    #[test]
    fn stacks_of_noise_end(words in prop::collection::vec(any::<u64>(), 0..200), rbp in any::<u64>(), rsp in any::<u64>()) {
        let symbols = parse(&image(table(&kernel(600), Layout::Before))).unwrap();
        let cpu = Cpu {
            rip: BASE + 0x123,
            rsp,
            rbp,
            stack: words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            ..Cpu::default()
        };
        let mut nothing = |_: u32, _: u64, _: &mut [u8]| false;
        prop_assert!(symbols.stack(&mut nothing, &cpu).len() <= 65);
    }
}

/// Memory that consists of one piece.
fn piece(base: u64, bytes: &[u8]) -> impl FnMut(u32, u64, &mut [u8]) -> bool + '_ {
    move |_, address, into| {
        let place = address
            .checked_sub(base)
            .and_then(|at| bytes.get(at as usize..)?.get(..into.len()));
        place.map(|from| into.copy_from_slice(from)).is_some()
    }
}

#[test]
fn a_guest_is_searched_where_its_kernel_is() {
    let mut bytes = vec![0x90; 3 << 20];
    bytes.extend(table(&kernel(1000), Layout::Behind));
    bytes.resize(6 << 20, 0);
    let mut memory = piece(BASE, &bytes);
    let at = |lstar, cpl| Cpu {
        lstar,
        cpl,
        ..Cpu::default()
    };
    let symbols = Symbols::from_guest(&mut memory, &[at(0, 0), at(BASE + 0x12345, 3)]).unwrap();
    assert_eq!(symbols.address_of("_text"), Some(BASE));
    let none = Symbols::from_guest(&mut memory, &[at(0, 0)]).unwrap_err();
    assert!(none.to_string().contains("no vCPU runs"), "{none}");
    let mut empty = |_: u32, _: u64, _: &mut [u8]| false;
    let none = Symbols::from_guest(&mut empty, &[at(BASE, 0)]).unwrap_err();
    assert!(none.to_string().contains("no table"), "{none}");
}

const MAP: &str = "0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 T schedule
ffffffff81000200 t io_schedule
ffffffff81c00080 T entry_SYSCALL_64
ffffffff81c00be0 T asm_exc_page_fault
ffffffff82000000 D init_task
";

fn from_map() -> Symbols {
    Symbols::parse(MAP.as_bytes()).unwrap()
}

#[test]
fn kaslr_is_solved_by_system_calls_or_exceptions() {
    let mut symbols = from_map();
    let mut nothing = |_: u32, _: u64, _: &mut [u8]| false;
    let slide = 0x1240_0000;
    let cpu = Cpu {
        lstar: 0xffff_ffff_81c0_0080 + slide,
        ..Cpu::default()
    };
    assert_eq!(symbols.align(&mut nothing, &[cpu]), Some(slide));
    let moved = symbols.lookup(0xffff_ffff_8100_0110 + slide).unwrap();
    assert_eq!(moved.to_string(), "schedule+0x10/0x100");
    assert_eq!(symbols.address_of("fixed_percpu_data"), Some(0));
    assert_eq!(
        symbols.lookup(0xffff_ffff_8100_0110),
        None,
        "before it moved"
    );
    // The table of interrupts: vector 14 at offset 224.
    let handler: u64 = 0xffff_ffff_81c0_0be0 + slide;
    let mut gates = vec![0; 4096];
    gates[224..226].copy_from_slice(&handler.to_le_bytes()[..2]);
    gates[230..236].copy_from_slice(&handler.to_le_bytes()[2..]);
    let cpu = Cpu {
        idt_base: 0xffff_fe00_0000_0000,
        ..Cpu::default()
    };
    let mut memory = piece(cpu.idt_base, &gates);
    assert_eq!(
        symbols.align(&mut memory, &[Cpu::default(), cpu]),
        Some(slide)
    );
    // Another kernel's entry is at no multiple of 2 MiB.
    let other = Cpu {
        lstar: 0xffff_ffff_81c0_0140,
        ..Cpu::default()
    };
    assert_eq!(symbols.align(&mut nothing, &[other]), None);
}

#[test]
fn the_nearest_symbol_before_an_address_names_it() {
    let mut symbols = Symbols::new();
    symbols.register_symbol(0x40_1000, "main", SymbolKind::Code, None);
    symbols.register_symbol(0x40_2000, "table", SymbolKind::Data, Some(0x20));
    symbols.register_module("program", 0x40_0000, 0x1800);
    let found = symbols.lookup(0x40_1010).unwrap();
    assert_eq!((&*found.symbol, found.offset), ("main", 0x10));
    assert_eq!(found.to_string(), "main+0x10/0x1000 [program]");
    let data = symbols.lookup(0x40_2004).unwrap();
    assert_eq!(data.module, None);
    assert_eq!(data.size, Some(0x20));
    assert_eq!(symbols.lookup(0x40_0fff), None);
    assert_eq!(symbols.lookup(u64::MAX), None);
    // Code before marks, and names before names of the linker.
    let text = from_map().lookup(0xffff_ffff_8100_0001).unwrap();
    assert_eq!(text.symbol, "startup_64");
    assert_eq!(symbols.modules().count(), 1);
}

#[test]
fn files_of_other_kinds_are_refused_with_a_reason() {
    for (bytes, why) in [
        (&b"hello\nworld\n"[..], "line 1 is not"),
        (
            b"ffffffff81000000 T a\nffffffff8100000 TT b\n",
            "line 2 is not",
        ),
        (b"\n\n", "no symbol"),
        (b"\x7fELF garbage", "broken ELF"),
    ] {
        let error = Symbols::parse(bytes).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let missing = Symbols::open("/no/such/file".as_ref()).unwrap_err();
    assert!(
        missing.to_string().starts_with("/no/such/file: "),
        "{missing}"
    );
}

#[test]
fn an_elf_file_is_read_and_one_is_written_that_says_the_same() {
    let payload = Symbols::open(nyx_payload::elf_path()).unwrap();
    let main = payload.address_of("ring3_main").unwrap();
    let found = payload.lookup(main + 1).unwrap();
    assert_eq!((&*found.symbol, found.offset), ("ring3_main", 1));
    assert!(found.size.is_some());

    let mut symbols = from_map();
    let mut nothing = |_: u32, _: u64, _: &mut [u8]| false;
    let cpu = Cpu {
        lstar: 0xffff_ffff_91c0_0080,
        ..Cpu::default()
    };
    symbols.align(&mut nothing, &[cpu]).unwrap();
    let again = Symbols::parse(&symbols.to_elf()).unwrap();
    for name in ["schedule", "init_task"] {
        assert_eq!(again.address_of(name), symbols.address_of(name), "{name}");
    }
    assert_eq!(
        again.lookup(0xffff_ffff_9100_0204).unwrap().symbol,
        "io_schedule"
    );
}

/// A stack of words at `rsp`.
fn cpu(rip: u64, rbp: u64, words: &[u64]) -> Cpu {
    Cpu {
        rip,
        rbp,
        rsp: 0xffff_c900_0000_1000,
        stack: words.iter().flat_map(|w| w.to_le_bytes()).collect(),
        ..Cpu::default()
    }
}

#[test]
fn frame_pointers_are_followed_and_words_are_guessed_without() {
    let symbols = from_map();
    let mut nothing = |_: u32, _: u64, _: &mut [u8]| false;
    let rsp = 0xffff_c900_0000_1000;
    let (a, b) = (0xffff_ffff_8100_0150, 0xffff_ffff_8100_0250);
    let words = [7, rsp + 32, a, 0xffff_ffff_8200_0001, 0, b, 3];
    let names = |frames: &[crate::Frame]| -> Vec<(String, Trust)> {
        frames
            .iter()
            .map(|f| {
                (
                    f.location
                        .as_ref()
                        .map_or("?".into(), |l| format!("{}+{:#x}", l.symbol, l.offset)),
                    f.trust,
                )
            })
            .collect()
    };
    let here = ("schedule+0x5".to_owned(), Trust::Pointer);
    let frames = symbols.stack(&mut nothing, &cpu(0xffff_ffff_8100_0105, rsp + 8, &words));
    let unwound = |name: &str| (name.to_owned(), Trust::Unwound);
    assert_eq!(
        names(&frames),
        [
            here.clone(),
            unwound("schedule+0x50"),
            unwound("io_schedule+0x50")
        ]
    );
    let frames = symbols.stack(&mut nothing, &cpu(0xffff_ffff_8100_0105, 12, &words));
    let guess = |name: &str| (name.to_owned(), Trust::Guess);
    assert_eq!(
        names(&frames),
        [here, guess("schedule+0x50"), guess("io_schedule+0x50")]
    );
    assert_eq!(
        frames[1].to_string(),
        "0xffffffff81000150 ? schedule+0x50/0x100"
    );
    // A program's stack is not the kernel's business.
    let program = Cpu {
        cpl: 3,
        ..cpu(0x40_1000, 0, &words)
    };
    let frames = symbols.stack(&mut nothing, &program);
    assert_eq!(
        (frames.len(), frames[0].to_string()),
        (1, "0x0000000000401000 ??".into())
    );
}

#[test]
fn unwinding_tables_are_followed_across_an_interrupt() {
    use crate::orc::Orc;
    // From BASE+0x100: sp+16 is the caller's; from +0x200: registers of an interrupt at sp; from +0x300
    // on: bp+16, and the caller's bp below that; from +0x400: unknown.
    let places: [u64; 4] = [0x100, 0x200, 0x300, 0x400];
    let table = BASE + 0x100_0000;
    let relative = places.iter().enumerate();
    let ips = relative
        .flat_map(|(n, p)| ((BASE + p).wrapping_sub(table + 4 * n as u64) as u32).to_le_bytes());
    let entry = |sp: i16, bp: i16, bits: u16| {
        [sp.to_le_bytes(), bp.to_le_bytes(), bits.to_le_bytes()].concat()
    };
    let rows = [
        entry(16, 0, 5),
        entry(0, 0, 5 | 1 << 8),
        entry(16, -16, 4 | 1 << 4),
        entry(0, 0, 0),
    ];
    let mut symbols = from_map();
    symbols.register_symbol(BASE + 0x300, "interrupted", SymbolKind::Code, None);
    symbols.register_symbol(BASE + 0x400, "outer", SymbolKind::Code, None);
    symbols.orc = Orc::new(table, ips.collect(), rows.concat());
    assert!(symbols.orc.is_some());
    let rsp = 0xffff_c900_0000_1000;
    let mut words = vec![0; 64];
    words[1] = BASE + 0x210; // returns into what has registers
    // Registers from word 2 on: bp is the 5th, ip the 17th, then cs, flags, sp.
    let frame = rsp + 8 * 40;
    words[2 + 4] = frame;
    (words[2 + 16], words[2 + 17], words[2 + 19]) = (BASE + 0x320, 0x10, rsp + 8 * 30);
    (words[40], words[41]) = (0, BASE + 0x410);
    let mut nothing = |_: u32, _: u64, _: &mut [u8]| false;
    let frames = symbols.stack(&mut nothing, &cpu(BASE + 0x105, 0, &words));
    let names: Vec<&str> = frames
        .iter()
        .map(|f| &*f.location.as_ref().unwrap().symbol)
        .collect();
    assert_eq!(names, ["schedule", "io_schedule", "interrupted", "outer"]);
    assert!(frames[1..].iter().all(|f| f.trust == Trust::Unwound));
    // Tables that do not fit each other are none.
    assert!(Orc::new(table, vec![0; 16], vec![0; 6]).is_none());
    assert!(Orc::new(table, vec![0; 15], vec![0; 600]).is_none());
}

#[test]
fn locations_say_what_is_known() {
    let location = Location {
        symbol: "vfs_read".into(),
        offset: 5,
        size: Some(0x310),
        module: Some("nfs".into()),
        line: Some("fs/read_write.c:450".into()),
    };
    assert_eq!(
        location.to_string(),
        "vfs_read+0x5/0x310 [nfs] at fs/read_write.c:450"
    );
}
