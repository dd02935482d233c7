//! Escape sequences typed on a raw terminal: Ctrl-A and one more key.

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// Ctrl-A x: end the virtual machine.
    Quit,
    /// Ctrl-A c: reserved for a command prompt.
    Prompt,
    /// Ctrl-A b: a break condition on the serial line.
    Break,
    /// Ctrl-A h or Ctrl-A ?: show [`HELP`].
    Help,
}

/// What Ctrl-A h prints on a raw terminal.
pub const HELP: &str = "\r\n\
    Ctrl-A h       this help\r\n\
    Ctrl-A x       quit: power the virtual machine off at once\r\n\
    Ctrl-A b       send a break\r\n\
    Ctrl-A Ctrl-A  send Ctrl-A\r\n";

const CTRL_A: u8 = 0x01;

/// Takes escapes out of a stream of typed bytes. It remembers a Ctrl-A between reads.
#[derive(Clone, Debug, Default)]
pub struct EscapeFilter {
    pending: bool,
}

impl EscapeFilter {
    /// Creates one that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes escapes from `bytes`, in place, reports each to `on_escape` and returns how many
    /// bytes are left for the guest. Ctrl-A with a key that means nothing is swallowed.
    pub fn filter(&mut self, bytes: &mut [u8], mut on_escape: impl FnMut(Escape)) -> usize {
        let mut kept = 0;
        for at in 0..bytes.len() {
            let byte = bytes[at];
            if !std::mem::take(&mut self.pending) {
                if byte == CTRL_A {
                    self.pending = true;
                    continue;
                }
            } else {
                match byte {
                    CTRL_A | b'a' => {
                        bytes[kept] = CTRL_A;
                        kept += 1;
                    }
                    b'x' | b'X' => on_escape(Escape::Quit),
                    b'c' => on_escape(Escape::Prompt),
                    b'b' => on_escape(Escape::Break),
                    b'h' | b'?' => on_escape(Escape::Help),
                    _ => {}
                }
                continue;
            }
            bytes[kept] = byte;
            kept += 1;
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(filter: &mut EscapeFilter, typed: &[u8]) -> (Vec<u8>, Vec<Escape>) {
        let (mut bytes, mut escapes) = (typed.to_vec(), Vec::new());
        let kept = filter.filter(&mut bytes, |e| escapes.push(e));
        bytes.truncate(kept);
        (bytes, escapes)
    }

    #[test]
    fn escapes_are_taken_out_and_the_rest_passes() {
        let mut filter = EscapeFilter::new();
        assert_eq!(run(&mut filter, b"ls\r"), (b"ls\r".to_vec(), vec![]));
        assert_eq!(
            run(&mut filter, b"a\x01xb"),
            (b"ab".to_vec(), vec![Escape::Quit])
        );
        assert_eq!(run(&mut filter, b"\x01\x01\x01a"), (vec![1, 1], vec![]));
        assert_eq!(
            run(&mut filter, b"\x01h\x01b\x01c\x01z."),
            (
                b".".to_vec(),
                vec![Escape::Help, Escape::Break, Escape::Prompt]
            )
        );
    }

    #[test]
    fn an_escape_may_span_two_reads() {
        let mut filter = EscapeFilter::new();
        assert_eq!(run(&mut filter, b"1\x01"), (b"1".to_vec(), vec![]));
        assert_eq!(run(&mut filter, b""), (vec![], vec![]));
        assert_eq!(run(&mut filter, b"x2"), (b"2".to_vec(), vec![Escape::Quit]));
    }
}
