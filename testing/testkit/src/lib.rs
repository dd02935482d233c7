//! Fakes and the conformance suite that every device kind passes.
