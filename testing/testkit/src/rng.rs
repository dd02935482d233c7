//! Reproducible randomness.

/// A seeded generator (Marsaglia, "Xorshift RNGs", 2003): the same seed gives the same test.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator of the sequence `seed`.
    pub fn new(seed: u64) -> Self {
        // The all-zero state is the one xorshift never leaves.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }
    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
    /// Fills `bytes`; small and extreme values come more often than chance would have it, since
    /// that is where registers differ.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let flavour = self.below(4);
        for byte in bytes {
            *byte = match flavour {
                0 => self.pick(&[0x00, 0x01, 0x7f, 0x80, 0xff]),
                1 => 1u8 << self.below(8),
                _ => self.word() as u8,
            };
        }
    }
}
