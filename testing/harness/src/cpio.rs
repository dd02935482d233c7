//! Writes cpio archives in the "newc" form that Linux unpacks as an initramfs.
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.

use std::collections::BTreeSet;
use std::io::{self, Write};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Parent folders are added by themselves; times are zero and owners root, so
/// the same content gives the same bytes.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
    folders: BTreeSet<String>,
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            folders: BTreeSet::new(),
        }
    }

    /// Adds a folder and those above it.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parent(path)?;
        self.folders.insert(path.to_owned());
        self.entry(&Entry {
            path,
            mode: FOLDER | 0o755,
            device: (0, 0),
            content: &[],
        })
    }

    /// Adds a regular file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parent(path)?;
        self.entry(&Entry {
            path,
            mode: FILE | (mode & 0o7777),
            device: (0, 0),
            content,
        })
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parent(path)?;
        self.entry(&Entry {
            path,
            mode: LINK | 0o777,
            device: (0, 0),
            content: target.as_bytes(),
        })
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parent(path)?;
        let mode = CHARACTER_DEVICE | 0o600;
        self.entry(&Entry {
            path,
            mode,
            device: (major, minor),
            content: &[],
        })
    }

    /// Writes the trailer and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(&Entry {
            path: "TRAILER!!!",
            mode: 0,
            device: (0, 0),
            content: &[],
        })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parent(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let size = u32::try_from(entry.content.len())
            .map_err(|_| io::Error::other(format!("{} is larger than 4 GiB", entry.path)))?;
        let name_size = u32::try_from(entry.path.len() + 1)
            .map_err(|_| io::Error::other("a path is longer than 4 GiB"))?;
        self.inode += 1;
        let links = if entry.mode & FOLDER == FOLDER { 2 } else { 1 };
        let fields = [
            self.inode,
            entry.mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            entry.device.0,
            entry.device.1,
            name_size,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(entry.path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + entry.path.len() + 1)?;
        self.out.write_all(entry.content)?;
        self.pad(entry.content.len())
    }

    /// Pads to the next multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        let zeros = [0; 3];
        self.out
            .write_all(&zeros[..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads names, modes and contents back, as the kernel's unpacker does.
    fn read(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&archive[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, archive[start..start + size].to_vec()));
            archive = &archive[start + size.next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_read_back() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/tool", 0o755, b"12345").unwrap();
        archive.link("/bin/other", "tool").unwrap();
        archive.device("dev/console", 5, 1).unwrap();
        archive.folder("/bin").unwrap();
        archive.file("init", 0o700, b"#!").unwrap();
        let entries = read(&archive.finish().unwrap());
        let names: Vec<&str> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            ["bin", "bin/tool", "bin/other", "dev", "dev/console", "init"]
        );
        assert_eq!(entries[0].1, 0o040_755);
        assert_eq!(entries[1].1, 0o100_755);
        assert_eq!(entries[1].2, b"12345");
        assert_eq!(entries[2].2, b"tool");
        assert_eq!(entries[4].1, 0o020_600);
        assert_eq!(entries[5].1, 0o100_700);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let make = || {
            let mut archive = Archive::new(Vec::new());
            archive.file("a/b/c", 0o644, b"x").unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(make(), make());
    }
}
