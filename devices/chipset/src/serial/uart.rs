//! The port itself.

use super::registers::*;
use super::saved::SavedSerial;
use crate::ports::{read_each, write_each};
use nyx_device::{
    AccessResult, CharBackend, Device, Drain, DrainToken, FaultKind, FaultPort, Hit, IrqLine,
    Lifecycle, Registers, ResetKind,
};
use nyx_inspect::{Counter, Gauge, Inspect};
use nyx_state::{Persist, RestoreError, SaveError};
use std::collections::VecDeque;
use std::io::ErrorKind;

/// Output that waits for the backend, at most.
pub(super) const QUEUE: usize = 64 * 1024;

/// One received character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) byte: u8,
    pub(super) is_break: bool,
}

/// A 16550A serial port.
#[derive(Inspect)]
#[inspect(prefix = "serial")]
pub struct Serial {
    // Wiring
    #[inspect(skip)]
    irq: IrqLine,
    #[inspect(skip)]
    backend: Option<Box<dyn CharBackend>>,
    #[inspect(skip)]
    faults: FaultPort,
    running: bool,
    /// The machine has ended, and somebody waits for the last output to leave.
    #[inspect(skip)]
    finishing: Option<DrainToken>,
    /// The backend may hold input that did not fit the receiver.
    input_waiting: bool,
    /// Just restored: the transmitter interrupt is due another look.
    restored: bool,
    /// A backend error has been reported.
    failed: bool,
    // State
    #[inspect(hex)]
    interrupt_enable: u8,
    #[inspect(hex)]
    fifo_control: u8,
    #[inspect(hex)]
    line_control: u8,
    #[inspect(hex)]
    modem_control: u8,
    #[inspect(hex)]
    scratch: u8,
    divisor: u16,
    #[inspect(hex)]
    line_errors: u8,
    #[inspect(hex)]
    modem_deltas: u8,
    /// The transmitter became empty and nobody has noticed.
    transmitter_event: bool,
    /// The guest looked at the port since it last wrote a character.
    guest_looked: bool,
    #[inspect(skip)]
    received: VecDeque<Received>,
    #[inspect(skip)]
    queue: VecDeque<u8>,
    // Statistics
    /// Bytes carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "rx"))]
    rx_bytes: Counter,
    /// Bytes carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "tx"))]
    tx_bytes: Counter,
    /// Bytes of the guest that the backend did not take in time.
    #[inspect(metric = "dropped_bytes")]
    tx_dropped: Counter,
    /// Bytes that came while the receiver was full.
    overruns: Counter,
    /// Failed reads and writes of the backend.
    backend_errors: Counter,
    /// Bytes of the guest waiting for the backend.
    #[inspect(metric = "queued_bytes")]
    tx_queued: Gauge,
}

impl Serial {
    /// A port in its reset state that talks to `backend` and interrupts by `irq`.
    pub fn new(irq: IrqLine, backend: Option<Box<dyn CharBackend>>, faults: FaultPort) -> Self {
        Self {
            irq,
            backend,
            faults,
            running: false,
            finishing: None,
            input_waiting: true,
            restored: false,
            failed: false,
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: 0,
            line_errors: 0,
            modem_deltas: 0,
            transmitter_event: false,
            guest_looked: false,
            received: VecDeque::new(),
            queue: VecDeque::new(),
            rx_bytes: Counter::default(),
            tx_bytes: Counter::default(),
            tx_dropped: Counter::default(),
            overruns: Counter::default(),
            backend_errors: Counter::default(),
            tx_queued: Gauge::default(),
        }
    }

    /// The line went to a break and back (§8.4.5): the guest receives a zero with the break flag.
    pub fn receive_break(&mut self) {
        self.receive(Received {
            byte: 0,
            is_break: true,
        });
        self.drive();
    }

    fn has_fifo(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    fn is_looped(&self) -> bool {
        self.modem_control & MCR_LOOP != 0
    }

    fn depth(&self) -> usize {
        if self.has_fifo() { FIFO } else { 1 }
    }

    /// Whether the transmitter takes a FIFO's worth of characters.
    fn is_transmitter_empty(&self) -> bool {
        self.queue.len() + FIFO <= QUEUE
    }

    fn line_status(&self) -> u8 {
        let mut status = self.line_errors;
        if !self.received.is_empty() {
            status |= LSR_DR;
        }
        if self.is_transmitter_empty() {
            status |= LSR_THRE | LSR_TEMT;
        }
        if self.has_fifo() && self.received.iter().any(|r| r.is_break) {
            status |= LSR_FIFO_ERROR;
        }
        status
    }

    /// The modem inputs. Without loopback they are those of a terminal that is always ready;
    /// looped, the four outputs drive them (§8.7.4).
    fn modem_lines(&self) -> u8 {
        if !self.is_looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        [
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ]
        .into_iter()
        .filter(|(output, _)| self.modem_control & output != 0)
        .fold(0, |lines, (_, input)| lines | input)
    }

    /// The interrupt of highest priority (§8.6, table III).
    fn interrupt(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        let trigger = if self.has_fifo() {
            TRIGGERS[usize::from(self.fifo_control >> 6)]
        } else {
            1
        };
        if enabled(IER_RLS) && self.line_errors & LSR_ERRORS != 0 {
            IIR_RLS
        } else if enabled(IER_RDA) && self.received.len() >= trigger {
            IIR_RDA
        } else if enabled(IER_RDA) && !self.received.is_empty() {
            // Below the trigger level, and four character times of silence have passed.
            IIR_TIMEOUT
        } else if enabled(IER_THRE) && self.transmitter_event {
            IIR_THRE
        } else if enabled(IER_MODEM) && self.modem_deltas != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    /// Drives the wire. OUT2 gates it on a PC, and loopback forces OUT2 inactive (§8.7.4).
    fn drive(&self) {
        let gate = self.modem_control & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        self.irq.set(gate && self.interrupt() != IIR_NONE);
    }

    fn receive(&mut self, character: Received) {
        if self.received.len() >= self.depth() {
            // §8.4.1: a full FIFO keeps what it has, the holding register takes the new one.
            self.line_errors |= LSR_OE;
            self.overruns.inc();
            if !self.has_fifo() {
                self.received.clear();
                self.received.push_back(character);
                self.reveal();
            }
            return;
        }
        self.received.push_back(character);
        if self.received.len() == 1 {
            self.reveal();
        }
    }

    /// A character's errors show when it reaches the top of the FIFO (§8.4).
    fn reveal(&mut self) {
        if self.received.front().is_some_and(|r| r.is_break) {
            self.line_errors |= LSR_BI;
        }
    }

    /// Fills the receiver from the backend, as far as there is room.
    fn fill(&mut self) {
        while self.running && self.input_waiting && !self.is_looped() {
            let room = self.depth().saturating_sub(self.received.len());
            let (Some(backend), 1..) = (self.backend.as_mut(), room) else {
                return;
            };
            let mut bytes = [0; FIFO];
            let Some(room) = bytes.get_mut(..room) else {
                return;
            };
            let read = backend.read(room);
            let is_break = backend.take_break();
            match read {
                Ok(count @ 1..) => {
                    for &byte in bytes.iter().take(count) {
                        self.receive(Received {
                            byte,
                            is_break: false,
                        });
                    }
                    self.rx_bytes.add(count as u64);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.input_waiting = false,
                Ok(0) => self.input_waiting = false,
                Err(e) => {
                    self.input_waiting = false;
                    self.fail(&e);
                }
            }
            if is_break {
                self.receive(Received {
                    byte: 0,
                    is_break: true,
                });
            }
        }
    }

    fn fail(&mut self, error: &std::io::Error) {
        self.backend_errors.inc();
        if !self.failed {
            self.failed = true;
            self.faults
                .report(FaultKind::Backend, format_args!("serial backend: {error}"));
        }
    }

    /// Hands queued output to the backend: one call, unless it takes part of it.
    fn flush(&mut self) {
        let was_empty = self.is_transmitter_empty();
        while !self.queue.is_empty() {
            let Some(backend) = self.backend.as_mut() else {
                self.queue.clear();
                break;
            };
            match backend.write(self.queue.as_slices().0) {
                Ok(count @ 1..) => {
                    self.queue.drain(..count.min(self.queue.len()));
                    self.tx_bytes.add(count as u64);
                }
                Ok(0) => break,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    // A broken backend must not make the guest wait for it.
                    self.tx_dropped.add(self.queue.len() as u64);
                    self.queue.clear();
                    self.fail(&e);
                }
            }
        }
        self.tx_queued.set(self.queue.len() as u64);
        if !was_empty && self.is_transmitter_empty() {
            self.transmitter_event = true;
        }
    }

    fn transmit(&mut self, byte: u8) {
        if std::mem::take(&mut self.guest_looked) && self.transmitter_event {
            // §8.6: writing a character ends the interrupt, and an empty transmitter raises it
            // anew. An edge-triggered pin needs to see that, once for each burst of characters.
            self.transmitter_event = false;
            self.drive();
        }
        if self.is_looped() {
            self.receive(Received {
                byte,
                is_break: false,
            });
        } else if self.queue.len() < QUEUE {
            self.queue.push_back(byte);
            self.flush();
        } else {
            self.tx_dropped.inc();
        }
        self.transmitter_event = self.is_transmitter_empty();
    }

    fn set_fifo_control(&mut self, value: u8) {
        // §8.5: changing the enable bit clears both; the other bits count only together with it.
        let switched = (self.fifo_control ^ value) & FCR_ENABLE != 0;
        if switched || value & FCR_CLEAR_RX != 0 {
            self.received.clear();
        }
        // What was transmitted has left the port already: there is nothing to clear.
        self.fifo_control = if value & FCR_ENABLE != 0 {
            value & FCR_KEPT
        } else {
            0
        };
    }

    fn set_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value & MCR_MASK;
        let after = self.modem_lines();
        // §8.8: CTS, DSR and DCD report any change, RI only its end.
        let changed = (before ^ after) & (MSR_CTS | MSR_DSR | MSR_DCD);
        self.modem_deltas |= changed >> 4;
        if before & !after & MSR_RI != 0 {
            self.modem_deltas |= MSR_TERI;
        }
    }

    fn has_divisor_access(&self) -> bool {
        self.line_control & LCR_DLAB != 0
    }

    fn read_port(&mut self, offset: u64) -> Option<u8> {
        let [low, high] = self.divisor.to_le_bytes();
        Some(match offset {
            0 if self.has_divisor_access() => low,
            1 if self.has_divisor_access() => high,
            0 => {
                let byte = self.received.pop_front().map_or(0, |r| r.byte);
                self.reveal();
                if self.received.is_empty() {
                    self.fill();
                }
                byte
            }
            1 => self.interrupt_enable,
            2 => {
                self.guest_looked = true;
                let id = self.interrupt();
                if id == IIR_THRE {
                    self.transmitter_event = false;
                }
                id | if self.has_fifo() { IIR_FIFO } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                self.guest_looked = true;
                let status = self.line_status();
                self.line_errors = 0;
                status
            }
            6 => self.modem_lines() | std::mem::take(&mut self.modem_deltas),
            7 => self.scratch,
            _ => return None,
        })
    }

    fn write_port(&mut self, offset: u64, value: u8) -> bool {
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            0 if self.has_divisor_access() => self.divisor = u16::from_le_bytes([value, high]),
            1 if self.has_divisor_access() => self.divisor = u16::from_le_bytes([low, value]),
            0 => self.transmit(value),
            1 => {
                let raised = value & !self.interrupt_enable;
                self.interrupt_enable = value & IER_MASK;
                // §8.9: enabling the interrupt with an empty transmitter raises it.
                if raised & IER_THRE != 0 && self.is_transmitter_empty() {
                    self.transmitter_event = true;
                }
            }
            2 => {
                self.set_fifo_control(value);
                self.fill();
            }
            3 => self.line_control = value,
            4 => {
                self.set_modem_control(value);
                self.fill();
            }
            // LSR is for reading only (§8.4), and so is MSR here: nothing drives it but the lines.
            5 | 6 => {}
            7 => self.scratch = value,
            _ => return false,
        }
        true
    }
}

impl Registers for Serial {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        let result = read_each(at.offset, data, |offset| self.read_port(offset));
        self.drive();
        result
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        let result = write_each(at.offset, data, |offset, value| {
            self.write_port(offset, value)
        });
        self.drive();
        result
    }
}

impl Lifecycle for Serial {
    fn start(&mut self) {
        self.running = true;
        self.input_waiting = true;
        self.flush();
        if std::mem::take(&mut self.restored) && self.is_transmitter_empty() {
            // A guest that waits for this interrupt waits for ever if it was lost between two
            // machines; one that does not wait takes a spurious one in its stride.
            self.transmitter_event = true;
        }
        self.fill();
        self.drive();
    }

    fn stop(&mut self) -> Drain {
        // What the backend takes now need not travel in a snapshot.
        self.flush();
        self.drive();
        self.running = false;
        Drain::idle()
    }

    fn finish(&mut self) -> Drain {
        self.flush();
        if self.queue.is_empty() {
            return Drain::idle();
        }
        let (drain, token) = Drain::pending();
        self.finishing = Some(token);
        drain
    }

    /// Master reset (table I). The line keeps what was already transmitted, if it takes it now.
    fn reset(&mut self, _: ResetKind) {
        self.flush();
        let Self {
            irq: _,
            backend: _,
            faults: _,
            running: _,
            finishing: _,
            input_waiting,
            restored,
            failed: _,
            interrupt_enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            divisor,
            line_errors,
            modem_deltas,
            transmitter_event,
            guest_looked,
            received,
            queue,
            rx_bytes: _,
            tx_bytes: _,
            tx_dropped,
            overruns: _,
            backend_errors: _,
            tx_queued,
        } = self;
        for register in [
            interrupt_enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            line_errors,
            modem_deltas,
        ] {
            *register = 0;
        }
        *divisor = 0;
        (*transmitter_event, *guest_looked, *restored) = (false, false, false);
        *input_waiting = true;
        received.clear();
        tx_dropped.add(queue.len() as u64);
        queue.clear();
        tx_queued.set(0);
        self.drive();
    }

    fn wake(&mut self) {
        if !self.running {
            // Start looks at both directions again; at the end there is no start.
            if self.finishing.is_some() {
                self.flush();
                if self.queue.is_empty() {
                    self.finishing = None;
                }
            }
            return;
        }
        self.input_waiting = true;
        self.flush();
        self.fill();
        self.drive();
    }
}

impl Persist for Serial {
    type Saved = SavedSerial;

    fn save(&self) -> Result<SavedSerial, SaveError> {
        let Self {
            irq: _,
            backend: _,
            faults: _,
            running: _,
            finishing: _,
            input_waiting: _,
            restored: _,
            failed: _,
            interrupt_enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            divisor,
            line_errors,
            modem_deltas,
            transmitter_event,
            guest_looked,
            received,
            queue,
            rx_bytes: _,
            tx_bytes: _,
            tx_dropped: _,
            overruns: _,
            backend_errors: _,
            tx_queued: _,
        } = self;
        let breaks = received.iter().enumerate().filter(|(_, r)| r.is_break);
        Ok(SavedSerial {
            interrupt_enable: *interrupt_enable,
            fifo_control: *fifo_control,
            line_control: *line_control,
            modem_control: *modem_control,
            scratch: *scratch,
            divisor: *divisor,
            line_errors: *line_errors,
            modem_deltas: *modem_deltas,
            transmitter_event: *transmitter_event,
            guest_looked: *guest_looked,
            received: received.iter().map(|r| r.byte).collect(),
            breaks: breaks.fold(0, |mask, (at, _)| mask | 1 << at),
            queue: queue.iter().copied().collect(),
        })
    }

    fn restore(&mut self, saved: SavedSerial) -> Result<(), RestoreError> {
        saved.check()?;
        let SavedSerial {
            interrupt_enable,
            fifo_control,
            line_control,
            modem_control,
            scratch,
            divisor,
            line_errors,
            modem_deltas,
            transmitter_event,
            guest_looked,
            received,
            breaks,
            queue,
        } = saved;
        self.interrupt_enable = interrupt_enable;
        self.fifo_control = fifo_control;
        self.line_control = line_control;
        self.modem_control = modem_control;
        self.scratch = scratch;
        self.divisor = divisor;
        self.line_errors = line_errors;
        self.modem_deltas = modem_deltas;
        self.transmitter_event = transmitter_event;
        self.guest_looked = guest_looked;
        let is_break = |at: usize| breaks & (1 << at) != 0;
        let received = received.iter().enumerate();
        self.received = received
            .map(|(at, &byte)| Received {
                byte,
                is_break: is_break(at),
            })
            .collect();
        self.queue = queue.into();
        self.tx_queued.set(self.queue.len() as u64);
        self.restored = true;
        self.drive();
        Ok(())
    }
}

impl Device for Serial {}
