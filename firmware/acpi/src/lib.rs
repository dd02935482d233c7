//! ACPI tables as a pure function of a machine description.
