//! One test, and the scripts made of it.

use std::collections::BTreeSet;

use std::path::PathBuf;

use anyhow::Result;
use nyx_harness::guests::{Flavour, Kernel};

const VOCABULARY: &str = include_str!("vocabulary.sh");
const GUEST: &str = include_str!("guest.sh");
const HOST: &str = include_str!("host.sh");

/// What stands before the console in the output of a test.
pub(crate) const CONSOLE: &str = "--- console:";
/// What stands before the standard error of `nyx`.
pub(crate) const ERRORS: &str = "--- standard error:";

/// How long one guest may run, in seconds.
const LIMIT: u32 = 180;

/// The form of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// As the distribution ships it, compressed, entered by the 64-bit Linux boot protocol.
    BzImage,
    /// Unpacked, entered by PVH.
    Elf,
}

/// The initial RAM disk of a guest.
#[derive(Clone, Copy, Debug)]
pub enum Initrd {
    /// The generic one, which runs the guest's half.
    Checks,
    /// None.
    Absent,
    /// One that this makes (or finds) on the machine that the lab runs on.
    Made(fn(&Kernel) -> Result<PathBuf>),
}

/// A guest and its host.
#[derive(Clone, Copy, Debug)]
pub struct GuestTest {
    /// Its name: letters, digits and underscores.
    pub name: &'static str,
    /// The kernel.
    pub flavour: Flavour,
    /// Its form.
    pub image: Image,
    /// Its initial RAM disk.
    pub initrd: Initrd,
    /// What to tell `nyx run`, as words of a shell; `$D` is a folder for this test alone, `$DEBIAN` and
    /// `$DEBIAN_GPT` are masters of Debian disks, to be copied or attached read-only.
    pub options: &'static str,
    /// What to add to the kernel's command line. With `root=` (and nothing behind it) the guest's half runs;
    /// without, Nyx composes the argument and Debian boots.
    pub cmdline: &'static str,
    /// The guest's half.
    pub guest: &'static str,
    /// The host's half before the machine starts.
    pub before: &'static str,
    /// The host's half while it runs. The machine is `$nyx`.
    pub beside: &'static str,
    /// The host's half when it has ended; its exit code is `$code`, its console `$D/console`, its standard
    /// error `$D/errors`.
    pub after: &'static str,
    /// The exit code that `nyx run` must have.
    pub exit: i32,
}

impl GuestTest {
    /// A test that boots the stock cloud kernel, unpacked, and does nothing.
    pub const NOTHING: Self = Self {
        name: "nothing",
        flavour: Flavour::Cloud,
        image: Image::Elf,
        initrd: Initrd::Checks,
        options: "",
        cmdline: "root=",
        guest: "",
        before: "",
        beside: "",
        after: "",
        exit: 0,
    };

    /// The labels of all checks of both halves.
    pub fn labels(&self) -> BTreeSet<String> {
        [self.guest, self.before, self.beside, self.after]
            .iter()
            .flat_map(|script| script.lines().filter_map(label))
            .map(str::to_owned)
            .collect()
    }

    /// The host's half as one script; its standard output ends with the console's.
    pub(crate) fn host_script(&self, nyx: &str, kernel: &Kernel, initrd: Option<&str>) -> String {
        let image = match self.image {
            Image::BzImage => &kernel.vmlinuz,
            Image::Elf => &kernel.vmlinux,
        };
        let Self {
            name,
            options,
            cmdline,
            before,
            beside,
            after,
            exit,
            ..
        } = self;
        let initrd = initrd.map_or(String::new(), |path| format!("--initrd {path}"));
        // Not so quiet that a failing test has nothing to show: errors of the kernel are printed.
        format!(
            "D=/dev/shm/{name}\nmkdir -p $D\ncd $D\nexport NYX_STATE_DIR=$D/state\nNYX={nyx}\nLIMIT={LIMIT}\n{VOCABULARY}\n{HOST}\n\
             with_machine() {{\nverb=$1\nshift\n\
             exec $NYX $verb \"$@\" --name {name} --kernel {} {initrd} \
             --cmdline \"loglevel=4 nyx.test={name} {cmdline}\" {options}\n}}\n\
             boot() {{\nwith_machine run\n}}\n\
             {before}\nstart\n{beside}\nfinish\nexpect \"exit code\" {exit} $code\n{after}\n\
             echo '{CONSOLE}'\ncat $D/console\necho '{ERRORS}'\ncat $D/errors\nrm -rf $D\n",
            image.display()
        )
    }
}

/// The label of the check on a line of a script, if there is one.
fn label(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = line
        .strip_prefix("expect \"")
        .or_else(|| line.strip_prefix("holds \""))?;
    rest.split_once('"').map(|(label, _)| label)
}

/// The script that runs the guest's half of whichever test the command line names.
pub(crate) fn guest_script(tests: &[&GuestTest]) -> String {
    let mut script = format!("{VOCABULARY}\n{GUEST}\n");
    for test in tests {
        // A function must not be empty.
        script.push_str(&format!("test_{}() {{\n:\n{}\n}}\n", test.name, test.guest));
    }
    script.push_str("test_$name\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use nyx_harness::tool::Tool;

    #[test]
    fn labels_are_found_on_both_sides() {
        let test = GuestTest {
            guest: "expect \"one\" 1 1\n  holds \"two words\" true\nsay \"expect\"",
            after: "if true; then\n    expect \"three\" 3 $code\nfi",
            ..GuestTest::NOTHING
        };
        let labels: Vec<String> = test.labels().into_iter().collect();
        assert_eq!(labels, ["one", "three", "two words"]);
    }

    #[test]
    fn the_vocabulary_tells_good_from_bad() {
        let script = format!(
            "{VOCABULARY}\nexpect a 1 1\nexpect b 1 2\nholds c true\nholds d sh -c 'echo why; false'\n"
        );
        let said = Tool::new("sh").args(["-c", &script]).text().unwrap();
        assert_eq!(
            said.lines().map(str::trim).collect::<Vec<_>>(),
            [
                "check ok: a",
                "check failed: b: wanted '1', found '2'",
                "check ok: c",
                "check failed: d: sh -c echo why; false says 'why'",
            ]
        );
    }

    #[test]
    fn the_scripts_are_valid() {
        let test = GuestTest::NOTHING;
        let kernel = Kernel {
            release: "1".into(),
            vmlinuz: "/a".into(),
            vmlinux: "/b".into(),
            modules: "/c".into(),
        };
        for script in [
            guest_script(&[&test]),
            test.host_script("/nyx", &kernel, Some("/initrd")),
        ] {
            Tool::new("sh")
                .args(["-n", "-c", &script])
                .output()
                .unwrap();
        }
    }
}
