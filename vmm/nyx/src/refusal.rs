//! What a builder says no to: one sentence each, naming the method.

use nyx_spec::SpecError;
use std::fmt;

/// Why a call cannot be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BuildErrorKind {
    /// Nyx does not have it yet.
    NotInThisVersion,
    /// The value is wrong, or does not go with another.
    Invalid,
    /// A file cannot be used.
    File,
    /// This host cannot do it.
    Host,
}

/// One problem: which method, and one sentence with the mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// What sort of problem.
    pub kind: BuildErrorKind,
    /// The builder's method.
    pub method: String,
    /// What is wrong with which value, and how to mend it.
    pub reason: String,
}

impl BuildError {
    pub(crate) fn new(
        kind: BuildErrorKind,
        method: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            method: method.into(),
            reason: reason.into(),
        }
    }

    /// What the description says about `error`, in terms of the builder.
    pub(crate) fn from_spec(error: &SpecError) -> Self {
        Self::about_field(BuildErrorKind::Invalid, &error.field, &error.reason)
    }

    /// A problem with a field of the description, in terms of the builder.
    pub(crate) fn about_field(kind: BuildErrorKind, field: &str, reason: &str) -> Self {
        // `disks[1].path`: the second call of `disk`, and what of it.
        let (first, rest) = field.split_once('.').unwrap_or((field, ""));
        let (list, index) = match first.split_once('[') {
            Some((list, index)) => (list, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (first, None),
        };
        let method = match (list, rest) {
            ("boot", "kernel" | "initrd" | "cmdline") => return Self::new(kind, rest, reason),
            ("boot", _) => "kernel",
            ("disks", _) => "disk",
            ("nets", _) => "net",
            ("consoles", _) => "console",
            (other, _) => other,
        };
        let mut place = index
            .map(|index| format!("number {}", index.saturating_add(1)))
            .unwrap_or_default();
        if !rest.is_empty() {
            let comma = if place.is_empty() { "" } else { ", " };
            place = format!("{place}{comma}{rest}");
        }
        let reason = if place.is_empty() {
            reason.to_string()
        } else {
            format!("{place}: {reason}")
        };
        Self::new(kind, method, reason)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.method, self.reason)
    }
}

impl std::error::Error for BuildError {}

/// Everything that is wrong with a machine: never empty, in the order of the calls, each problem once.
#[derive(Clone, PartialEq, Eq)]
pub struct BuildErrors(Vec<BuildError>);

impl BuildErrors {
    /// `None` if there is nothing wrong.
    pub(crate) fn from_list(errors: Vec<BuildError>) -> Option<Self> {
        let mut unique: Vec<BuildError> = Vec::new();
        for error in errors {
            if !unique.contains(&error) {
                unique.push(error);
            }
        }
        (!unique.is_empty()).then_some(Self(unique))
    }

    pub(crate) fn one(error: BuildError) -> Self {
        Self(vec![error])
    }

    /// Each problem.
    pub fn iter(&self) -> std::slice::Iter<'_, BuildError> {
        self.0.iter()
    }

    /// The methods that ask for what this version of Nyx does not have, each once, in order.
    pub fn not_in_this_version(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for error in &self.0 {
            let method = error.method.as_str();
            if error.kind == BuildErrorKind::NotInThisVersion && !methods.contains(&method) {
                methods.push(method);
            }
        }
        methods
    }
}

impl<'e> IntoIterator for &'e BuildErrors {
    type Item = &'e BuildError;
    type IntoIter = std::slice::Iter<'e, BuildError>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for BuildErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            write!(f, "{gap}{error}")?;
        }
        Ok(())
    }
}

/// As text: it is what a `main` that returns it prints.
impl fmt::Debug for BuildErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for BuildErrors {}

/// `what` is yet to come; `mend` is what to do until then.
pub(crate) fn not_yet(method: &str, what: &str, mend: &str) -> BuildError {
    BuildError::new(
        BuildErrorKind::NotInThisVersion,
        method,
        format!("{what} not part of this version of Nyx; {mend}"),
    )
}

/// The value given to `method` is wrong.
pub(crate) fn invalid(method: &str, reason: impl Into<String>) -> BuildError {
    BuildError::new(BuildErrorKind::Invalid, method, reason)
}

/// Image formats by the ending of a file's name: those that are not sector for sector.
const FORMATS: [(&str, &str); 7] = [
    ("qcow2", "qcow2"),
    ("qcow", "qcow2"),
    ("vhdx", "VHDX"),
    ("vhd", "VHD"),
    ("vpc", "VHD"),
    ("vmdk", "VMDK"),
    ("vdi", "VDI"),
];

/// The format that the ending of `path` promises, if it is one that Nyx cannot read yet.
pub(crate) fn promised_format(path: &std::path::Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?;
    FORMATS
        .iter()
        .find(|(known, _)| ending.eq_ignore_ascii_case(known))
        .map(|(_, format)| *format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn fields_become_methods() {
        let said = |field: &str| {
            BuildError::from_spec(&SpecError {
                field: field.into(),
                reason: "bad".into(),
            })
            .to_string()
        };
        assert_eq!(said("memory"), "memory: bad");
        assert_eq!(said("boot.kernel"), "kernel: bad");
        assert_eq!(said("boot.initrd"), "initrd: bad");
        assert_eq!(said("disks[1].path"), "disk: number 2, path: bad");
        assert_eq!(said("consoles[0]"), "console: number 1: bad");
        assert_eq!(said("nets[0].queues"), "net: number 1, queues: bad");
        assert_eq!(said("vsock.cid"), "vsock: cid: bad");
        assert_eq!(said("consoles"), "console: bad");
        assert_eq!(said("debug_console.path"), "debug_console: path: bad");
    }

    #[test]
    fn only_names_that_promise_a_format_do() {
        assert_eq!(promised_format(Path::new("/a/b.QCOW2")), Some("qcow2"));
        assert_eq!(promised_format(Path::new("b.vhdx")), Some("VHDX"));
        for raw in [
            "a.img",
            "a.raw",
            "a.nvme",
            "qcow2",
            "/dev/vg/root",
            "a.qcow2.img",
        ] {
            assert_eq!(promised_format(Path::new(raw)), None, "{raw}");
        }
    }

    #[test]
    fn each_problem_is_told_once() {
        let list = vec![
            not_yet("nic", "the e1000 is", "use nic(\"virtio\")"),
            not_yet("nic", "the e1000 is", "use nic(\"virtio\")"),
            invalid("cpus", "0"),
        ];
        let errors = BuildErrors::from_list(list).unwrap();
        assert_eq!(errors.iter().count(), 2);
        assert_eq!(errors.not_in_this_version(), ["nic"]);
        assert_eq!(
            errors.to_string(),
            "nic: the e1000 is not part of this version of Nyx; use nic(\"virtio\")\ncpus: 0"
        );
        assert_eq!(BuildErrors::from_list(Vec::new()), None);
    }
}
