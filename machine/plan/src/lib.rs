//! From a specification to addresses, interrupts and slots, as a pure function.
