//! Reads what the guest prints.

/// A failed check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fail {
    /// The test it belongs to.
    pub test: String,
    /// What was wrong, with the value found and the value wanted where there are such.
    pub why: String,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bench {
    /// The bench.
    pub name: String,
    /// How many iterations ran.
    pub iterations: u64,
    /// Cycles of the guest's TSC for all of them.
    pub cycles: u64,
}

impl Bench {
    /// Cycles per iteration.
    #[must_use]
    pub fn cycles_each(&self) -> f64 {
        self.cycles as f64 / self.iterations.max(1) as f64
    }
}

/// Something said by the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The test it belongs to.
    pub test: String,
    /// What it said.
    pub text: String,
}

/// Everything that one run of the guest said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tests that passed.
    pub oks: Vec<String>,
    /// Failed checks; a test may have several.
    pub fails: Vec<Fail>,
    /// Tests that found nothing to test, with the reason.
    pub skips: Vec<Note>,
    /// Measurements.
    pub benches: Vec<Bench>,
    /// Remarks.
    pub notes: Vec<Note>,
    /// Lines of no known form: other output on the same console.
    pub others: Vec<String>,
    /// Whether the last line came: without it the guest did not get to its end.
    pub done: bool,
}

impl Report {
    /// Reads a whole output. Carriage returns and the first-byte mark are left out.
    #[must_use]
    pub fn parse(output: &str) -> Self {
        let mut report = Self::default();
        for line in output.lines() {
            report.push(line);
        }
        report
    }

    /// Reads one line, without its line end.
    pub fn push(&mut self, line: &str) {
        let line = line.trim_end_matches('\r');
        // Where the debug port goes to the same place, the mark stands before the first line.
        let line = line.strip_prefix('!').unwrap_or(line);
        if !line.is_empty() && !self.read(line) {
            self.others.push(line.to_owned());
        }
    }

    fn read(&mut self, line: &str) -> bool {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (word, rest) {
            ("done", "") => self.done = true,
            ("ok", name) if !name.is_empty() => self.oks.push(name.to_owned()),
            ("fail", _) => match rest.split_once(": ") {
                Some((test, why)) => {
                    self.fails.push(Fail {
                        test: test.to_owned(),
                        why: why.to_owned(),
                    });
                }
                None => return false,
            },
            ("skip", _) => match rest.split_once(": ") {
                Some((test, text)) => {
                    self.skips.push(Note {
                        test: test.to_owned(),
                        text: text.to_owned(),
                    });
                }
                None => return false,
            },
            ("note", _) => match rest.split_once(' ') {
                Some((test, text)) => {
                    self.notes.push(Note {
                        test: test.to_owned(),
                        text: text.to_owned(),
                    });
                }
                None => return false,
            },
            ("bench", _) => {
                let words: Vec<&str> = rest.split(' ').collect();
                let [name, iterations, cycles] = words[..] else {
                    return false;
                };
                let (Ok(iterations), Ok(cycles)) = (iterations.parse(), cycles.parse()) else {
                    return false;
                };
                self.benches.push(Bench {
                    name: name.to_owned(),
                    iterations,
                    cycles,
                });
            }
            _ => return false,
        }
        true
    }

    /// Whether the guest came to its end and nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.done && self.fails.is_empty()
    }

    /// Whether this very test passed.
    #[must_use]
    pub fn is_ok(&self, test: &str) -> bool {
        self.oks.iter().any(|ok| ok == test)
    }

    /// The last measurement with this name.
    #[must_use]
    pub fn bench(&self, name: &str) -> Option<&Bench> {
        self.benches.iter().rev().find(|bench| bench.name == name)
    }

    /// The guest's TSC rate in Hz, said with the first bench.
    #[must_use]
    pub fn tsc_rate(&self) -> Option<u64> {
        self.notes
            .iter()
            .find(|note| note.test == "tsc-rate")?
            .text
            .parse()
            .ok()
    }
}
