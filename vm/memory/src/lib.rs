//! Guest memory: RAM, the DMA view of one bus master, observers and dirty sources.
