//! Registers, interrupts, FIFOs, back-pressure and persistence of the serial port.

use super::*;
use nyx_device::{BackendSpec, Device, Hit, Registers};
use nyx_state::Persist;
use nyx_testkit::{Bench, Console, conformance, json};

const IRQ: u32 = 4;

conformance!(conforms, Serial, json!({"backend": {"kind": "tty"}}));
conformance!(
    conforms_without_backend,
    Serial,
    json!({"port": 0x2f8, "irq": 3})
);

struct Port {
    bench: Bench,
    console: Console,
    uart: Box<dyn Device>,
}

impl Port {
    fn new() -> Self {
        let bench = Bench::new::<Serial>(json!({"backend": {"kind": "tty"}}));
        let console = bench.consoles.at("tty");
        let mut uart = bench.build::<Serial>();
        uart.start();
        Self {
            bench,
            console,
            uart,
        }
    }
    fn out(&mut self, port: u64, value: u8) {
        self.uart.write(Hit::new(0, port), &[value]).unwrap();
    }
    fn r#in(&mut self, port: u64) -> u8 {
        let mut data = [0];
        self.uart.read(Hit::new(0, port), &mut data).unwrap();
        data[0]
    }
    fn irq(&self) -> bool {
        self.bench.pins.is_high(IRQ)
    }
    fn type_in(&mut self, bytes: &[u8]) {
        self.console.type_in(bytes);
        self.uart.wake();
    }
}

#[test]
fn reset_state_is_that_of_the_data_sheet() {
    let mut port = Port::new();
    let registers: Vec<u8> = (0..8).map(|i| port.r#in(i)).collect();
    assert_eq!(registers, [0, 0, 0x01, 0, 0, 0x60, 0xb0, 0]);
}

#[test]
fn every_written_byte_is_one_backend_write() {
    let mut port = Port::new();
    for byte in b"hello" {
        assert_eq!(port.r#in(5) & 0x60, 0x60);
        port.out(0, *byte);
    }
    assert_eq!(port.console.take_output(), b"hello");
    assert_eq!(port.console.writes(), 5);
}

#[test]
fn the_divisor_hides_behind_dlab() {
    let mut port = Port::new();
    port.out(3, 0x83);
    port.out(0, 0x0c);
    port.out(1, 0x01);
    assert_eq!((port.r#in(0), port.r#in(1)), (0x0c, 0x01));
    port.out(3, 0x03);
    assert_eq!((port.r#in(0), port.r#in(1)), (0, 0));
    assert!(port.console.take_output().is_empty());
    port.out(7, 0x5a);
    assert_eq!(port.r#in(7), 0x5a);
}

#[test]
fn trigger_levels_decide_between_data_and_timeout() {
    for (bits, level) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xc0, 14)] {
        let mut port = Port::new();
        port.out(2, bits | 1);
        port.out(4, 0x08);
        port.out(1, 0x01);
        port.type_in(&vec![b'x'; level]);
        assert!(port.irq());
        assert_eq!(port.r#in(2), 0xc4, "{level} bytes reach the trigger");
        port.r#in(0);
        if level > 1 {
            assert_eq!(port.r#in(2), 0xcc, "one below it times out");
        }
        while port.r#in(5) & 1 != 0 {
            port.r#in(0);
        }
        assert_eq!(port.r#in(2), 0xc1);
        assert!(!port.irq());
    }
}

#[test]
fn input_is_read_only_as_far_as_there_is_room() {
    let mut port = Port::new();
    port.out(2, 0x01);
    let text: Vec<u8> = (0..40).collect();
    port.type_in(&text);
    assert_eq!(port.console.unread(), 24);
    let got: Vec<u8> = (0..40).map(|_| port.r#in(0)).collect();
    assert_eq!(got, text);
    assert_eq!(
        (port.console.unread(), port.r#in(5) & 3),
        (0, 0),
        "no overrun, nothing left"
    );
    // More arrives after the backend said that there was nothing.
    port.type_in(b"z");
    assert_eq!(port.r#in(0), b'z');
}

#[test]
fn interrupts_come_by_priority_and_each_is_cleared_its_own_way() {
    let mut port = Port::new();
    port.out(2, 0x01);
    // Loop a byte too many, so that data and overrun are pending; raise a modem delta.
    port.out(4, 0x10 | 0x08);
    for byte in 0..17 {
        port.out(0, byte);
    }
    assert_eq!(
        port.r#in(6),
        0x80 | 0x03,
        "CTS and DSR fell when loopback took them"
    );
    port.out(4, 0x10 | 0x08 | 0x01);
    port.out(1, 0x0f);
    assert_eq!(port.r#in(2), 0xc6);
    assert_eq!(port.r#in(5) & 0x0f, 0x03, "overrun and data ready");
    assert_eq!(port.r#in(2), 0xc4);
    let got: Vec<u8> = (0..16).map(|_| port.r#in(0)).collect();
    assert_eq!(
        got,
        (0..16).collect::<Vec<u8>>(),
        "the seventeenth was lost"
    );
    assert_eq!(
        port.r#in(2),
        0xc2,
        "the transmitter is empty; reading this clears it"
    );
    assert_eq!(port.r#in(2), 0xc0, "modem status is last");
    assert_eq!(port.r#in(6) & 0x0f, 0x02);
    assert_eq!(port.r#in(2), 0xc1);
}

#[test]
fn out2_and_loopback_gate_the_wire() {
    let mut port = Port::new();
    port.out(1, 0x02);
    assert!(!port.irq());
    port.out(4, 0x08);
    assert!(port.irq());
    port.out(4, 0x18);
    assert!(!port.irq());
    port.out(4, 0x08);
    assert!(port.irq());
    assert_eq!(port.r#in(2), 0x02);
    assert!(!port.irq());
}

#[test]
fn a_write_with_the_interrupt_pending_gives_an_edge_once_per_burst() {
    let mut port = Port::new();
    port.out(4, 0x08);
    port.out(1, 0x02);
    port.bench.pins.take_changes();
    port.r#in(5);
    for _ in 0..16 {
        port.out(0, b'x');
    }
    assert_eq!(port.bench.pins.take_changes(), [(IRQ, false), (IRQ, true)]);
}

#[test]
fn enabling_the_transmitter_interrupt_twice_raises_it_twice() {
    let mut port = Port::new();
    port.out(4, 0x08);
    for _ in 0..2 {
        port.out(1, 0x02);
        assert_eq!(port.r#in(2), 0x02);
        assert_eq!(port.r#in(2), 0x01);
        port.out(1, 0x00);
    }
}

#[test]
fn loopback_connects_the_modem_lines() {
    let mut port = Port::new();
    for (outputs, lines) in [(0x02, 0x10), (0x01, 0x20), (0x04, 0x40), (0x08, 0x80)] {
        port.out(4, 0x10 | outputs);
        assert_eq!(port.r#in(6) & 0xf0, lines);
    }
    port.out(4, 0x10 | 0x04);
    port.r#in(6);
    port.out(4, 0x10);
    assert_eq!(port.r#in(6), 0x04, "the ring ended");
    // Linux probes with LOOP, OUT2 and RTS and expects DCD and CTS.
    port.out(4, 0x1a);
    assert_eq!(port.r#in(6) & 0xf0, 0x90);
    port.out(0, b'q');
    assert_eq!((port.r#in(0), port.console.take_output()), (b'q', vec![]));
}

#[test]
fn without_fifo_the_newest_character_wins_and_overruns() {
    let mut port = Port::new();
    port.out(4, 0x10);
    port.out(0, b'a');
    port.out(0, b'b');
    assert_eq!(port.r#in(5) & 0x1f, 0x03);
    assert_eq!(port.r#in(5) & 0x1f, 0x01, "reading cleared the overrun");
    assert_eq!(port.r#in(0), b'b');
}

#[test]
fn fifo_control_clears_and_identifies() {
    let mut port = Port::new();
    assert_eq!(port.r#in(2) & 0xc0, 0);
    port.out(2, 0x01);
    assert_eq!(port.r#in(2) & 0xc0, 0xc0);
    port.type_in(b"abc");
    port.out(2, 0x03);
    assert_eq!(port.r#in(5) & 1, 0);
    port.type_in(b"abc");
    port.out(2, 0x00);
    assert_eq!(
        (port.r#in(5) & 1, port.r#in(2)),
        (0, 1),
        "switching off clears too"
    );
}

#[test]
fn a_slow_backend_fills_the_queue_and_only_then_the_guest_waits() {
    let mut port = Port::new();
    port.console.set_room(Some(3));
    port.out(4, 0x08);
    port.out(1, 0x02);
    let mut sent = Vec::new();
    while port.r#in(5) & 0x20 != 0 {
        let byte = sent.len() as u8;
        port.out(0, byte);
        sent.push(byte);
        assert!(sent.len() < 70_000, "the queue is bounded");
    }
    assert_eq!(port.r#in(5) & 0x60, 0);
    assert!(sent.len() > 65_000);
    assert!(!port.irq(), "no room, no interrupt");
    // A guest that does not look loses what does not fit, and nothing else.
    for _ in 0..100 {
        port.out(0, 0xee);
    }
    port.console.set_room(None);
    port.uart.wake();
    assert!(port.irq(), "room again");
    let output = port.console.take_output();
    assert_eq!(output[..sent.len()], sent[..]);
    assert_eq!(port.r#in(5) & 0x60, 0x60);
}

#[test]
fn a_blocked_transmitter_goes_on_after_restore() {
    let mut port = Port::new();
    port.out(4, 0x08);
    port.out(1, 0x02);
    port.console.set_room(Some(0));
    port.out(0, b'!');
    port.r#in(2);
    assert!(!port.irq());
    drop(port.uart.stop());
    let blob = port.uart.save_blob().unwrap();
    let mut other = Port::new();
    drop(other.uart.stop());
    other.uart.restore_blob(&blob).unwrap();
    assert_eq!(other.uart.save_blob().unwrap(), blob);
    other.uart.start();
    assert_eq!(other.console.take_output(), b"!");
    assert!(other.irq(), "a guest waiting for the transmitter is told");
}

#[test]
fn a_stopped_port_reads_no_input() {
    let mut port = Port::new();
    drop(port.uart.stop());
    port.type_in(b"k");
    assert_eq!(port.console.unread(), 1);
    port.uart.start();
    assert_eq!(port.r#in(0), b'k');
}

#[test]
fn a_break_is_a_zero_with_a_flag() {
    let bench = Bench::new::<Serial>(json!({}));
    let mut wiring = bench.wiring();
    let mut uart = Serial::new(wiring.irq("intr").unwrap(), None, bench.fault_port());
    uart.write(Hit::new(0, 2), &[1]).unwrap();
    uart.receive_break();
    let mut data = [0; 2];
    let mut read = |port, uart: &mut Serial| {
        uart.read(Hit::new(0, port), &mut data[..1]).unwrap();
        data[0]
    };
    assert_eq!(read(5, &mut uart) & 0x91, 0x91);
    assert_eq!(read(5, &mut uart) & 0x11, 0x01);
    assert_eq!(read(0, &mut uart), 0);
    assert_eq!(read(5, &mut uart) & 0x81, 0);
}

#[test]
fn a_break_from_the_terminal_reaches_the_guest_behind_what_was_typed() {
    let mut port = Port::new();
    port.out(2, 1);
    port.console.type_in(b"a");
    port.console.send_break();
    port.uart.wake();
    assert_eq!(port.r#in(5) & 0x11, 0x01);
    assert_eq!(port.r#in(0), b'a');
    assert_eq!(port.r#in(5) & 0x11, 0x11);
    assert_eq!(port.r#in(0), 0);
    assert_eq!(port.r#in(5) & 0x11, 0);
}

#[test]
fn a_wide_access_is_split_into_bytes() {
    let mut port = Port::new();
    port.uart.write(Hit::new(0, 6), &[0xff, 0x77]).unwrap();
    let mut data = [0; 4];
    port.uart.read(Hit::new(0, 4), &mut data).unwrap();
    assert_eq!(data, [0x00, 0x60, 0xb0, 0x77]);
}

#[test]
fn impossible_states_are_refused() {
    let bench = Bench::new::<Serial>(json!({}));
    let uart = Serial::new(
        bench.wiring().irq("intr").unwrap(),
        None,
        bench.fault_port(),
    );
    let change: [fn(&mut SavedSerial); 7] = [
        |s| s.interrupt_enable = 0x10,
        |s| s.modem_control = 0x20,
        |s| s.received = vec![0; 2],
        |s| s.queue = vec![0; 65_537],
        |s| s.breaks = 1,
        |s| s.fifo_control = 0xc0,
        |s| s.line_errors = 0x60,
    ];
    for (index, change) in change.iter().enumerate() {
        let mut saved = uart.save().unwrap();
        change(&mut saved);
        let wiring = &mut bench.wiring();
        let mut other = Serial::new(wiring.irq("intr").unwrap(), None, bench.fault_port());
        assert!(other.restore(saved).is_err(), "change {index}");
    }
}

#[test]
fn a_wild_port_is_refused_by_name() {
    use nyx_device::DeviceKind;
    let config = SerialConfig {
        port: 0x3f9,
        irq: 4,
        backend: None::<BackendSpec>,
    };
    let error = Serial::demand(&config, Default::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "serial.port: 0x3f9 is not a multiple of 8 below 0x8000, as 0x3f8 is"
    );
}
