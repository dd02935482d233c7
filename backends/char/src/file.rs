//! A file that takes the output. Input never comes.

use crate::OpenError;
use nyx_device::CharBackend;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

/// Configuration of kind `file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The file; created with mode 0640 when absent.
    pub path: PathBuf,
    /// Keep what is in it and write after it. Otherwise the file is emptied.
    #[serde(default)]
    pub append: bool,
    /// Stop writing when the file has this many bytes, with one notice. Guests can write for ever.
    pub max_size: Option<u64>,
}

pub(crate) struct LogFile {
    file: File,
    path: PathBuf,
    left: Option<u64>,
    noticed: bool,
}

impl LogFile {
    pub(crate) fn open(config: FileConfig) -> Result<Self, OpenError> {
        let FileConfig {
            path,
            append,
            max_size,
        } = config;
        let field = "file path";
        let refuse = |path, why| Err(OpenError::Path { field, path, why });
        if let Ok(found) = std::fs::metadata(&path) {
            let kind = found.file_type();
            if kind.is_dir() {
                return refuse(path, "is a directory: name a file in it");
            }
            if kind.is_fifo() || kind.is_socket() || kind.is_block_device() {
                return refuse(path, "is neither a regular file nor a character device");
            }
        }
        let opened = File::options()
            .create(true)
            .append(append)
            .write(true)
            .truncate(!append)
            .mode(0o640)
            .custom_flags(libc::O_NOCTTY)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => {
                return Err(OpenError::System {
                    action: "open",
                    field,
                    path,
                    source,
                });
            }
        };
        let used = file
            .metadata()
            .map_or(0, |m| if m.is_file() { m.len() } else { 0 });
        let left = max_size.map(|max| max.saturating_sub(used));
        Ok(Self {
            file,
            path,
            left,
            noticed: false,
        })
    }
}

impl CharBackend for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = match self.left {
            None => bytes.len(),
            Some(left) => bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
        };
        // A full or failing disk must not stop the guest: what does not fit is lost, and writing
        // is tried again with the next bytes.
        let _ = self.file.write_all(&bytes[..take]);
        if let Some(left) = &mut self.left {
            *left -= take as u64;
        }
        if take < bytes.len() && !self.noticed {
            self.noticed = true;
            let _ = writeln!(self.file, "\n[nyx: max_size reached, the rest is dropped]");
        }
        Ok(bytes.len())
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn notify(&mut self, _: Box<dyn Fn() + Send>) -> io::Result<()> {
        Ok(())
    }

    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }
}
