//! What the payload says, a line at a time:
//!
//! ```text
//! ok NAME
//! fail NAME: why (got X, want Y)
//! bench NAME iterations cycles
//! note NAME text
//! done
//! ```
//!
//! Lines go to COM1, or with `out=e9` to the debug port.

use crate::cmdline;
use crate::cpu::{inb, outb, outsb};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const COM1: u16 = 0x3f8;
const DEBUG: u16 = 0xe9;

static TO_DEBUG_PORT: AtomicBool = AtomicBool::new(false);
static LOCK: AtomicBool = AtomicBool::new(false);
static FAILS: AtomicU32 = AtomicU32::new(0);

/// Chooses the port and sets the UART to 115200 8N1 with FIFOs.
pub fn init() {
    let debug = cmdline::value("out") == Some("e9");
    TO_DEBUG_PORT.store(debug, Ordering::Relaxed);
    if !debug {
        set_up_uart();
    }
}

/// Brings COM1 into the state that printing needs; tests of the UART end with it.
pub fn set_up_uart() {
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x80);
    outb(COM1, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    outb(COM1 + 2, 7);
    outb(COM1 + 4, 3);
}

struct Line {
    bytes: [u8; 240],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == self.bytes.len() - 1 {
                break; // a line too long is cut
            }
            self.bytes[self.len] = if byte == b'\n' { b' ' } else { byte };
            self.len += 1;
        }
        Ok(())
    }
}

/// Prints one line.
pub fn line(args: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; 240],
        len: 0,
    };
    let _ = line.write_fmt(args);
    line.bytes[line.len] = b'\n';
    let bytes = &line.bytes[..=line.len];
    while LOCK.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    if TO_DEBUG_PORT.load(Ordering::Relaxed) {
        for &byte in bytes {
            outb(DEBUG, byte);
        }
    } else {
        // 16550: an empty FIFO takes 16 bytes. A UART that never says so must not stop the test.
        for burst in bytes.chunks(16) {
            for _ in 0..100_000 {
                if inb(COM1 + 5) & 0x20 != 0 {
                    break;
                }
            }
            for &byte in burst {
                outb(COM1, byte);
            }
        }
    }
    LOCK.store(false, Ordering::Release);
}

/// Writes to the debug port with one string instruction.
pub fn debug_string(bytes: &[u8]) {
    outsb(DEBUG, bytes);
}

/// The last line.
pub fn end() {
    line(format_args!("done"));
}

/// A test under way. Fails may be many; `ok` is said at the end if there was none.
pub struct Test {
    name: &'static str,
    fails: u32,
    skipped: bool,
}

impl Test {
    /// Begins the test `name`.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            fails: 0,
            skipped: false,
        }
    }

    /// Reports a failure; of many in one test, the first twenty are printed.
    pub fn fail(&mut self, why: fmt::Arguments<'_>) {
        self.fails += 1;
        FAILS.fetch_add(1, Ordering::Relaxed);
        if self.fails <= 20 {
            line(format_args!("fail {}: {why}", self.name));
        }
    }

    /// Requires `holds`.
    pub fn check(&mut self, holds: bool, why: &str) -> bool {
        if !holds {
            self.fail(format_args!("{why}"));
        }
        holds
    }

    /// Requires `got == want`.
    pub fn eq<T: Into<u64>, U: Into<u64>>(&mut self, why: &str, got: T, want: U) -> bool {
        let (got, want) = (got.into(), want.into());
        if got != want {
            self.fail(format_args!("{why} (got {got:#x}, want {want:#x})"));
        }
        got == want
    }

    /// Requires `got == want` at an offset or index.
    pub fn eq_at<T: Into<u64>, U: Into<u64>>(
        &mut self,
        why: &str,
        at: u64,
        got: T,
        want: U,
    ) -> bool {
        let (got, want) = (got.into(), want.into());
        if got != want {
            self.fail(format_args!(
                "{why} at {at:#x} (got {got:#x}, want {want:#x})"
            ));
        }
        got == want
    }

    /// Says something that is neither success nor failure.
    pub fn note(&self, text: fmt::Arguments<'_>) {
        line(format_args!("note {} {text}", self.name));
    }

    /// Ends the test as not applicable: neither `ok` nor `fail` is said.
    pub fn skip(&mut self, why: &str) {
        self.skipped = true;
        line(format_args!("skip {}: {why}", self.name));
    }

    /// Whether nothing failed so far.
    pub fn passing(&self) -> bool {
        self.fails == 0
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        if self.fails == 0 && !self.skipped {
            line(format_args!("ok {}", self.name));
        }
    }
}

/// Failures of all tests so far.
pub fn failures() -> u32 {
    FAILS.load(Ordering::Relaxed)
}

/// Reports a measurement.
pub fn bench(name: &str, iterations: u64, cycles: u64) {
    line(format_args!("bench {name} {iterations} {cycles}"));
}
