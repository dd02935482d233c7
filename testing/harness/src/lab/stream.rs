//! Splits a stream of bytes at an end mark that may arrive in pieces.

/// Passes bytes through until the mark has come.
#[derive(Debug)]
pub(crate) struct Splitter {
    mark: Vec<u8>,
    /// Bytes that may be the mark's beginning.
    held: Vec<u8>,
    has_ended: bool,
}

impl Splitter {
    /// Waits for `mark`, which is not empty.
    pub(crate) fn new(mark: &[u8]) -> Self {
        Self {
            mark: mark.to_vec(),
            held: Vec::new(),
            has_ended: false,
        }
    }

    /// Takes bytes and gives those known to stand before the mark; bytes behind it are dropped.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.has_ended {
            return Vec::new();
        }
        self.held.extend_from_slice(bytes);
        let mark = self.mark.as_slice();
        if let Some(at) = self
            .held
            .windows(mark.len())
            .position(|window| window == mark)
        {
            self.has_ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let longest = self.held.len().min(mark.len() - 1);
        let kept = (0..=longest)
            .rev()
            .find(|&length| mark.starts_with(&self.held[self.held.len() - length..]))
            .unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, tail)
    }

    /// Has the mark come?
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_found_however_it_is_cut() {
        let whole = b"some text, aab, and aaabXaab";
        for size in 1..=whole.len() {
            let mut splitter = Splitter::new(b"aabX");
            let mut passed = Vec::new();
            for piece in whole.chunks(size) {
                passed.extend(splitter.feed(piece));
            }
            assert_eq!(passed, b"some text, aab, and a", "in pieces of {size}");
            assert!(splitter.has_ended());
        }
    }

    #[test]
    fn without_mark_only_its_possible_beginning_is_held() {
        let mut splitter = Splitter::new(b"<<end>>");
        assert_eq!(splitter.feed(b"one <<e"), b"one ");
        assert_eq!(splitter.feed(b"lse"), b"<<else");
        assert!(!splitter.has_ended());
    }
}
