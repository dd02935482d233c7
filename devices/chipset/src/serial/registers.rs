//! Register bits of the 16550A (PC16550D data sheet, table II and §8).

/// Interrupt enable: received data available.
pub(super) const IER_RDA: u8 = 0x01;
/// Interrupt enable: transmitter holding register empty.
pub(super) const IER_THRE: u8 = 0x02;
/// Interrupt enable: receiver line status.
pub(super) const IER_RLS: u8 = 0x04;
/// Interrupt enable: modem status.
pub(super) const IER_MODEM: u8 = 0x08;
/// The bits of IER that exist.
pub(super) const IER_MASK: u8 = 0x0f;

/// Interrupt identification: none pending (§8.6).
pub(super) const IIR_NONE: u8 = 0x01;
/// Interrupt identification: modem status.
pub(super) const IIR_MODEM: u8 = 0x00;
/// Interrupt identification: transmitter holding register empty.
pub(super) const IIR_THRE: u8 = 0x02;
/// Interrupt identification: received data available.
pub(super) const IIR_RDA: u8 = 0x04;
/// Interrupt identification: receiver line status.
pub(super) const IIR_RLS: u8 = 0x06;
/// Interrupt identification: character timeout.
pub(super) const IIR_TIMEOUT: u8 = 0x0c;
/// Both bits are set while the FIFOs are enabled.
pub(super) const IIR_FIFO: u8 = 0xc0;

/// FIFO control: enable (§8.5).
pub(super) const FCR_ENABLE: u8 = 0x01;
/// FIFO control: clear the receiver's. Clears itself.
pub(super) const FCR_CLEAR_RX: u8 = 0x02;
/// FIFO control: the bits that are kept (enable, DMA mode, trigger level).
pub(super) const FCR_KEPT: u8 = 0xc9;

/// Line control: divisor latch access (§8.1).
pub(super) const LCR_DLAB: u8 = 0x80;

/// Modem control: data terminal ready (§8.7).
pub(super) const MCR_DTR: u8 = 0x01;
/// Modem control: request to send.
pub(super) const MCR_RTS: u8 = 0x02;
/// Modem control: auxiliary output 1.
pub(super) const MCR_OUT1: u8 = 0x04;
/// Modem control: auxiliary output 2, which on a PC gates the interrupt.
pub(super) const MCR_OUT2: u8 = 0x08;
/// Modem control: local loopback.
pub(super) const MCR_LOOP: u8 = 0x10;
/// The bits of MCR that exist.
pub(super) const MCR_MASK: u8 = 0x1f;

/// Line status: data ready (§8.4).
pub(super) const LSR_DR: u8 = 0x01;
/// Line status: overrun.
pub(super) const LSR_OE: u8 = 0x02;
/// Line status: break.
pub(super) const LSR_BI: u8 = 0x10;
/// Line status: transmitter holding register empty.
pub(super) const LSR_THRE: u8 = 0x20;
/// Line status: transmitter empty.
pub(super) const LSR_TEMT: u8 = 0x40;
/// Line status: an error somewhere in the receiver FIFO.
pub(super) const LSR_FIFO_ERROR: u8 = 0x80;
/// Overrun, parity, framing, break: what raises a line-status interrupt and a read clears.
pub(super) const LSR_ERRORS: u8 = 0x1e;

/// Modem status: clear to send (§8.8).
pub(super) const MSR_CTS: u8 = 0x10;
/// Modem status: data set ready.
pub(super) const MSR_DSR: u8 = 0x20;
/// Modem status: ring indicator.
pub(super) const MSR_RI: u8 = 0x40;
/// Modem status: data carrier detect.
pub(super) const MSR_DCD: u8 = 0x80;
/// Modem status: the ring indicator ended (the delta bits of the others follow their order).
pub(super) const MSR_TERI: u8 = 0x04;
/// The four delta bits.
pub(super) const MSR_DELTAS: u8 = 0x0f;

/// Depth of each FIFO (§8.5).
pub(super) const FIFO: usize = 16;
/// Receiver trigger levels by FCR bits 7 and 6 (§8.5).
pub(super) const TRIGGERS: [usize; 4] = [1, 4, 8, 14];
