//! The journal: levels, component filters, outputs, a ring that outlives a crash, the audit chain, spans.
