//! Controller commands, keyboard and mouse.

use super::*;
use nyx_device::{Attach, DeviceKind, Hit, PowerRequest, Registers};
use nyx_state::Persist;
use nyx_testkit::{Bench, conformance, json};

conformance!(conforms, I8042, json!({"present_in_acpi": true}));

struct Board {
    bench: Bench,
    chip: I8042,
}

impl Board {
    fn new() -> Self {
        let bench = Bench::new::<I8042>(json!({}));
        let mut wiring = bench.wiring();
        let (keyboard, mouse) = (
            wiring.irq("keyboard").unwrap(),
            wiring.irq("mouse").unwrap(),
        );
        let chip = I8042::new(keyboard, mouse, wiring.power.clone());
        drop(wiring);
        Self { bench, chip }
    }
    fn status(&mut self) -> u8 {
        let mut data = [0];
        self.chip.read(Hit::new(1, 0), &mut data).unwrap();
        data[0]
    }
    fn data(&mut self) -> u8 {
        let mut data = [0];
        self.chip.read(Hit::new(0, 0), &mut data).unwrap();
        data[0]
    }
    fn command(&mut self, command: u8) {
        self.chip.write(Hit::new(1, 0), &[command]).unwrap();
    }
    fn send(&mut self, value: u8) {
        self.chip.write(Hit::new(0, 0), &[value]).unwrap();
    }
    /// Everything that waits.
    fn drain(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.status() & 1 != 0 {
            bytes.push(self.data());
            assert!(bytes.len() < 100);
        }
        bytes
    }
    fn mouse(&mut self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            self.command(0xd4);
            self.send(byte);
        }
        self.drain()
    }
    fn raw(&mut self) {
        self.command(0x60);
        self.send(0x07);
    }
}

#[test]
fn the_controller_answers_its_commands() {
    let mut board = Board::new();
    for (command, reply) in [
        (0x20, 0x65),
        (0xaa, 0x55),
        (0xab, 0x00),
        (0xa9, 0x00),
        (0xc0, 0x80),
        (0xd0, 0xc3),
    ] {
        board.command(command);
        assert_eq!(board.status() & 0x0d, 0x0d, "{command:#x}");
        assert_eq!(board.drain(), [reply], "{command:#x}");
    }
    for value in [0x40, 0x74, 0x00] {
        board.command(0x60);
        board.send(value);
        assert_eq!(
            board.status() & 0x0c,
            value & 4,
            "the system flag shows in the status"
        );
        board.command(0x20);
        assert_eq!(board.drain(), [value]);
    }
    for (command, byte) in [(0xad, 0x10), (0xa7, 0x30), (0xae, 0x20), (0xa8, 0x00)] {
        board.command(command);
        board.command(0x20);
        assert_eq!(board.drain(), [byte]);
    }
}

#[test]
fn bytes_can_be_put_into_the_output_buffer() {
    let mut board = Board::new();
    board.raw();
    board.command(0xd2);
    board.send(0x5c);
    assert_eq!(
        (board.status() & 0x21, board.bench.pins.high()),
        (0x01, vec![1])
    );
    assert_eq!((board.data(), board.bench.pins.high()), (0x5c, vec![]));
    board.command(0xd3);
    board.send(0xa5);
    assert_eq!(
        (board.status() & 0x21, board.bench.pins.high()),
        (0x21, vec![12])
    );
    assert_eq!((board.data(), board.bench.pins.high()), (0xa5, vec![]));
    assert_eq!(board.data(), 0xa5, "an empty buffer shows the last byte");
}

#[test]
fn three_ways_to_reset() {
    let mut board = Board::new();
    board.command(0xfe);
    assert_eq!(board.bench.power.take(), [PowerRequest::Reset]);
    board.command(0xff);
    board.command(0xd1);
    board.send(0x03);
    assert!(board.bench.power.take().is_empty());
    board.command(0xd1);
    board.send(0x02);
    board.command(0xf0);
    assert_eq!(
        board.bench.power.take(),
        [PowerRequest::Reset, PowerRequest::Reset]
    );
    board.command(0xd1);
    board.send(0x01);
    board.command(0xd0);
    assert_eq!(board.drain(), [0xc1], "A20 is off");
}

#[test]
fn the_keyboard_answers_its_commands() {
    let mut board = Board::new();
    board.raw();
    let dialogue: [(&[u8], &[u8]); 9] = [
        (&[0xff], &[0xfa, 0xaa]),
        (&[0xf2], &[0xfa, 0xab, 0x83]),
        (&[0xee], &[0xee]),
        (&[0xed, 0x07], &[0xfa, 0xfa]),
        (&[0xf0, 0x00], &[0xfa, 0xfa, 0x02]),
        (&[0xf0, 0x03, 0xf0, 0x00], &[0xfa, 0xfa, 0xfa, 0xfa, 0x03]),
        (&[0xf3, 0x20, 0xf5, 0xf4], &[0xfa]),
        (&[0xf0, 0x09], &[0xfa, 0xfe]),
        (&[0x55], &[0xfe]),
    ];
    for (sent, expected) in dialogue {
        sent.iter().for_each(|byte| board.send(*byte));
        // F4 and F5 clear what waits, except the byte already in the output buffer.
        let got = board.drain();
        assert_eq!(got[got.len() - expected.len()..], *expected, "{sent:x?}");
    }
    board.send(0xfe);
    assert_eq!(board.drain(), [0xfe], "the last byte again");
}

#[test]
fn keys_are_translated_unless_the_guest_wants_them_raw() {
    let mut board = Board::new();
    // A pressed and released, then the right arrow, which has a prefix.
    let keys = [0x1c, 0xf0, 0x1c, 0xe0, 0x74, 0xe0, 0xf0, 0x74];
    board.chip.press(&keys);
    assert_eq!(board.drain(), [0x1e, 0x9e, 0xe0, 0x4d, 0xe0, 0xcd]);
    board.raw();
    board.chip.press(&keys);
    assert_eq!(board.drain(), keys);
    board.send(0xf5);
    assert_eq!(board.drain(), [0xfa]);
    board.chip.press(&keys);
    assert!(board.drain().is_empty(), "scanning is off");
}

#[test]
fn a_disabled_keyboard_keeps_its_keys_and_loses_what_does_not_fit() {
    let mut board = Board::new();
    board.raw();
    board.command(0xad);
    (0..20).for_each(|key| board.chip.press(&[key]));
    assert_eq!(board.status() & 1, 0);
    board.command(0xae);
    assert_eq!(board.drain(), (0..16).collect::<Vec<u8>>());
}

#[test]
fn every_key_is_an_edge() {
    let mut board = Board::new();
    board.raw();
    board.chip.press(&[1, 2, 3]);
    board.drain();
    let expected: Vec<_> = (0..3).flat_map(|_| [(1, true), (1, false)]).collect();
    assert_eq!(board.bench.pins.take_changes(), expected);
}

#[test]
fn the_mouse_answers_its_commands() {
    let mut board = Board::new();
    assert_eq!(board.mouse(&[0xff]), [0xfa, 0xaa, 0x00]);
    assert_eq!(board.mouse(&[0xf2]), [0xfa, 0x00]);
    assert_eq!(
        board.mouse(&[0xe8, 0x03, 0xf3, 0x28, 0xe7, 0xf4]),
        [0xfa; 6]
    );
    assert_eq!(board.mouse(&[0xe9]), [0xfa, 0x30, 0x03, 0x28]);
    assert_eq!(board.mouse(&[0xeb]), [0xfa, 0x08, 0x00, 0x00]);
    assert_eq!(board.mouse(&[0xee, 0x42, 0xec]), [0xfa, 0x42, 0xfa]);
    assert_eq!(board.mouse(&[0xf6, 0xe9]), [0xfa, 0xfa, 0x00, 0x02, 0x64]);
    assert_eq!(board.mouse(&[0x01]), [0xfe]);
    board.command(0x60);
    board.send(0x02);
    board.command(0xd4);
    board.send(0xf2);
    assert_eq!(
        (board.status() & 0x21, board.bench.pins.high()),
        (0x21, vec![12])
    );
}

#[test]
fn a_guest_that_never_reads_fills_bounded_queues() {
    let mut board = Board::new();
    board.raw();
    for _ in 0..1000 {
        board.command(0x20);
        board.send(0xf2);
        board.command(0xd4);
        board.send(0xe9);
    }
    assert!(board.drain().len() <= 1 + 3 * 16);
}

#[test]
fn impossible_states_are_refused() {
    let board = Board::new();
    let change: [fn(&mut SavedI8042); 7] = [
        |s| s.awaiting = 0x20,
        |s| s.replies = vec![0; 17],
        |s| s.output = Some(0x200),
        |s| s.keyboard.scan_code_set = 0,
        |s| s.keyboard.buffer = vec![0; 17],
        |s| s.mouse.sample_rate = 0,
        |s| s.mouse.awaiting = 0xff,
    ];
    for (index, change) in change.iter().enumerate() {
        let mut saved = board.chip.save().unwrap();
        change(&mut saved);
        assert!(Board::new().chip.restore(saved).is_err(), "change {index}");
    }
}

#[test]
fn it_shows_in_the_dsdt_on_request_only() {
    let fragments = |present_in_acpi| {
        let config = I8042Config { present_in_acpi };
        I8042::demand(&config, Attach::Pci).unwrap();
        I8042::acpi(&config, &Bench::new::<I8042>(json!({})).placement).len()
    };
    assert_eq!((fragments(false), fragments(true)), (0, 2));
}
