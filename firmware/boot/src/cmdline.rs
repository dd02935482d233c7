//! Composing the kernel command line: Nyx adds `console=` and `root=` when the user does not, and says why.

use crate::disk_probe::RootDisk;

/// Longest command line composed here, as the longest Linux keeps on x86.
pub const MAX: usize = 2047;

/// What is known when the command line is composed.
#[derive(Debug, Clone, Default)]
pub struct CommandLineRequest<'a> {
    /// The user's own text; its words come last, so that they win.
    pub user: &'a str,
    /// Console to name when the user names none: `ttyS0`, `hvc0`.
    pub console: Option<&'a str>,
    /// Root disk to name when the user names none.
    pub root: Option<RootRequest<'a>>,
    /// Further words of the machine, `virtio_mmio.device=…` for instance.
    pub machine: &'a [String],
}

/// The disk a `root=` would be made of.
#[derive(Debug, Clone)]
pub struct RootRequest<'a> {
    /// The guest's name for the disk: `/dev/vda`.
    pub device: &'a str,
    /// What was found on it.
    pub disk: &'a RootDisk,
    /// The machine offers the disk read-only.
    pub read_only: bool,
}

/// A finished command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The text for the kernel.
    pub text: String,
    /// One sentence for each thing that was added, or deliberately not.
    pub explanation: Vec<String>,
}

/// Why no command line could be composed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// `root=` more than once.
    #[error("the command line names two root devices, `{0}` and `{1}`: keep one")]
    TwoRoots(String, String),
    /// A byte that would end or break the command line.
    #[error("the command line contains a {0} at byte {1}: write it as one line of text")]
    Broken(&'static str, usize),
    /// A quote without its partner swallows every word after it.
    #[error("the command line has an opening quote at byte {0} that is never closed: close it")]
    OpenQuote(usize),
    /// Longer than the kernel keeps.
    #[error(
        "the command line has {0} bytes with what was added, but Linux keeps at most {MAX}: shorten it"
    )]
    TooLong(usize),
}

/// Composes the command line.
///
/// Words of the user after ` -- ` belong to init and are neither looked at nor moved.
pub fn compose(request: &CommandLineRequest<'_>) -> Result<CommandLine, ComposeError> {
    let user = request.user.trim();
    check_text(user)?;
    let words = split(user)?;
    let own = words
        .iter()
        .take_while(|word| word.as_str() != "--")
        .collect::<Vec<_>>();
    let value = |name: &str| {
        own.iter()
            .filter(|word| key(word) == name)
            .collect::<Vec<_>>()
    };

    let mut added: Vec<String> = Vec::new();
    let mut explanation = Vec::new();
    match (request.console, value("console").first()) {
        (Some(console), None) => {
            added.push(format!("console={console}"));
            explanation.push(format!(
                "console={console} added: the command line names no console"
            ));
        }
        (Some(_), Some(word)) => explanation.push(format!("{word} kept: given by the user")),
        (None, _) => {}
    }

    let roots = value("root");
    if let [first, second, ..] = roots.as_slice() {
        return Err(ComposeError::TwoRoots(
            first.to_string(),
            second.to_string(),
        ));
    }
    match (&request.root, roots.first()) {
        (_, Some(word)) => explanation.push(format!("{word} kept: given by the user")),
        (Some(root), None) => {
            let (word, why) = root_word(root);
            explanation.push(format!("{word} added: {why}"));
            added.push(word);
            if value("ro").is_empty() && value("rw").is_empty() {
                let (mode, why) = root_mode(root);
                explanation.push(format!("{mode} added: {why}"));
                added.push(mode.into());
            }
        }
        (None, None) => {}
    }
    for word in request.machine {
        check_text(word)?;
        // A machine's word may not smuggle in a second root either.
        if key(word) == "root"
            && let Some(other) = roots
                .first()
                .map(|w| w.to_string())
                .or(added.iter().find(|w| key(w) == "root").cloned())
        {
            return Err(ComposeError::TwoRoots(other, word.clone()));
        }
        added.push(word.clone());
    }
    if !user.is_empty() {
        added.push(user.into());
    }
    let text = added.join(" ");
    if text.len() > MAX {
        return Err(ComposeError::TooLong(text.len()));
    }
    Ok(CommandLine { text, explanation })
}

fn root_word(root: &RootRequest<'_>) -> (String, String) {
    let device = root.device;
    match root.disk {
        RootDisk::GptPartition {
            partuuid, index, ..
        } => (
            format!("root=PARTUUID={partuuid}"),
            format!("partition {index} of {device} is its Linux root partition (GPT)"),
        ),
        RootDisk::MbrPartition { disk_id: 0, index } => (
            format!("root={device}{index}"),
            format!(
                "partition {index} of {device} is its only Linux partition (MBR without disk id)"
            ),
        ),
        RootDisk::MbrPartition { disk_id, index } => (
            format!("root=PARTUUID={disk_id:08x}-{index:02x}"),
            format!("partition {index} of {device} is its only Linux partition (MBR)"),
        ),
        RootDisk::WholeDisk { file_system } => (
            format!("root={device}"),
            format!("{device} is one {file_system} file system without partitions"),
        ),
    }
}

fn root_mode(root: &RootRequest<'_>) -> (&'static str, &'static str) {
    match root.disk {
        _ if root.read_only => ("ro", "the disk is read-only"),
        RootDisk::WholeDisk { file_system } if file_system.is_read_only() => {
            ("ro", "this kind of file system is read-only")
        }
        RootDisk::GptPartition {
            read_only: true, ..
        } => ("ro", "the partition is marked read-only"),
        _ => ("rw", "the command line says neither ro nor rw"),
    }
}

/// The name of a parameter; quotes may surround a whole word, and Linux takes `-` and `_` for the same.
fn key(word: &str) -> &str {
    let word = word.trim_start_matches('"');
    word.split_once('=')
        .map_or(word, |(key, _)| key)
        .trim_end_matches('"')
}

fn check_text(text: &str) -> Result<(), ComposeError> {
    for (byte, what) in [
        ('\0', "NUL"),
        ('\n', "line break"),
        ('\r', "carriage return"),
    ] {
        if let Some(at) = text.find(byte) {
            return Err(ComposeError::Broken(what, at));
        }
    }
    Ok(())
}

/// Splits as Linux does (lib/cmdline.c, `next_arg`): white space separates, double quotes hold together.
fn split(text: &str) -> Result<Vec<String>, ComposeError> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for (at, character) in text.char_indices() {
        match character {
            '"' => {
                quote = if quote.is_some() { None } else { Some(at) };
                word.push('"');
            }
            c if c.is_ascii_whitespace() && quote.is_none() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if let Some(at) = quote {
        return Err(ComposeError::OpenQuote(at));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_probe::FileSystem;

    fn gpt() -> RootDisk {
        RootDisk::GptPartition {
            partuuid: "4e1b0a43-94b6-4ac1-a2a7-5a9c3a0c2d11".into(),
            index: 1,
            sector_size: 512,
            read_only: false,
        }
    }

    fn request<'a>(user: &'a str, disk: Option<&'a RootDisk>) -> CommandLineRequest<'a> {
        CommandLineRequest {
            user,
            console: Some("ttyS0"),
            root: disk.map(|disk| RootRequest {
                device: "/dev/vda",
                disk,
                read_only: false,
            }),
            machine: &[],
        }
    }

    fn text(user: &str, disk: Option<&RootDisk>) -> String {
        compose(&request(user, disk)).unwrap().text
    }

    #[test]
    fn adds_console_and_root() {
        let line = compose(&request("quiet", Some(&gpt()))).unwrap();
        assert_eq!(
            line.text,
            "console=ttyS0 root=PARTUUID=4e1b0a43-94b6-4ac1-a2a7-5a9c3a0c2d11 rw quiet"
        );
        assert_eq!(line.explanation.len(), 3);
        assert!(line.explanation[1].contains("partition 1 of /dev/vda"));
        let whole = RootDisk::WholeDisk {
            file_system: FileSystem::Ext4,
        };
        assert_eq!(text("ro", Some(&whole)), "console=ttyS0 root=/dev/vda ro");
        let squash = RootDisk::WholeDisk {
            file_system: FileSystem::Squashfs,
        };
        assert_eq!(text("", Some(&squash)), "console=ttyS0 root=/dev/vda ro");
        let mbr = RootDisk::MbrPartition {
            disk_id: 0x00ab_cdef,
            index: 2,
        };
        assert_eq!(
            text("", Some(&mbr)),
            "console=ttyS0 root=PARTUUID=00abcdef-02 rw"
        );
        let no_id = RootDisk::MbrPartition {
            disk_id: 0,
            index: 2,
        };
        assert_eq!(text("", Some(&no_id)), "console=ttyS0 root=/dev/vda2 rw");
        assert_eq!(text("  ", None), "console=ttyS0");
    }

    #[test]
    fn leaves_the_users_words_alone() {
        assert_eq!(
            text("console=hvc0 root=/dev/vdb2 -- console=x", Some(&gpt())),
            "console=hvc0 root=/dev/vdb2 -- console=x"
        );
        // rootflags= and roothash= are other parameters.
        assert!(text("rootflags=subvol=a", Some(&gpt())).contains("root=PARTUUID="));
        // Words after -- are init's.
        assert!(text("-- root=/dev/x", Some(&gpt())).starts_with("console=ttyS0 root=PARTUUID="));
        assert!(text("dyndbg=\"file a root=x +p\"", Some(&gpt())).contains("root=PARTUUID="));
        let machine = ["virtio_mmio.device=4K@0xd0000000:5".to_string()];
        let line = compose(&CommandLineRequest {
            machine: &machine,
            ..request("quiet", None)
        })
        .unwrap();
        assert_eq!(
            line.text,
            "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 quiet"
        );
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        let refuse = |user: &str| compose(&request(user, None)).unwrap_err();
        let error = refuse("root=/dev/vda root=/dev/vdb");
        assert_eq!(
            error.to_string(),
            "the command line names two root devices, `root=/dev/vda` and `root=/dev/vdb`: keep one"
        );
        assert_eq!(
            refuse("root=a \"root=b c\""),
            ComposeError::TwoRoots("root=a".into(), "\"root=b c\"".into())
        );
        assert_eq!(refuse("a\nb"), ComposeError::Broken("line break", 1));
        assert_eq!(refuse("a\0b"), ComposeError::Broken("NUL", 1));
        assert_eq!(refuse("a \"b c"), ComposeError::OpenQuote(2));
        assert_eq!(refuse(&"x".repeat(2040)), ComposeError::TooLong(2054));
        let machine = ["root=/dev/vdc".to_string()];
        let user = CommandLineRequest {
            machine: &machine,
            ..request("root=/dev/vda", None)
        };
        assert!(matches!(compose(&user), Err(ComposeError::TwoRoots(..))));
    }
}
