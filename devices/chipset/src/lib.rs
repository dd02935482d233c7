//! Platform devices: serial, ioapic, rtc, i8042, pm, debug ports, pvpanic, VM generation id.
