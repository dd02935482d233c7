//! A pseudo-terminal (pty(7)): the guest's console is the master, people open the slave.

use crate::OpenError;
use crate::watch::{Arm, Edge, Watch};
use nyx_device::{CharBackend, WindowSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};
use serde::Deserialize;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Configuration of kind `pty`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PtyConfig {
    /// A symbolic link to make to the slave, removed when the machine ends. A dangling link there
    /// is replaced.
    pub link: Option<PathBuf>,
}

/// A symbolic link that is removed on drop, if it still is ours.
struct Link {
    path: PathBuf,
    target: PathBuf,
}

impl Link {
    fn make(path: PathBuf, target: &Path) -> Result<Self, OpenError> {
        let field = "pty link";
        let is_link = std::fs::symlink_metadata(&path).map(|m| m.is_symlink());
        match is_link {
            Ok(true) if !path.exists() => {
                let _ = std::fs::remove_file(&path);
            }
            Ok(_) => {
                return Err(OpenError::Path {
                    field,
                    path,
                    why: "already exists: remove it or choose another name",
                });
            }
            Err(_) => {}
        }
        match std::os::unix::fs::symlink(target, &path) {
            Ok(()) => Ok(Self {
                path,
                target: target.to_owned(),
            }),
            Err(source) => Err(OpenError::System {
                action: "create",
                field,
                path,
                source,
            }),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if std::fs::read_link(&self.path).is_ok_and(|t| t == self.target) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

const MASTER: u64 = 0;
const OPENS: u64 = 1;

pub(crate) struct Pty {
    master: Arc<OwnedFd>,
    slave: PathBuf,
    link: Option<Link>,
    watch: Option<(Watch, Arm)>,
}

impl Pty {
    pub(crate) fn open(config: PtyConfig) -> Result<Self, OpenError> {
        let (master, slave) = pair().map_err(|source| OpenError::Resource {
            action: "create a pseudo-terminal",
            source,
        })?;
        let link = config
            .link
            .map(|path| Link::make(path, &slave))
            .transpose()?;
        Ok(Self {
            master: Arc::new(master),
            slave,
            link,
            watch: None,
        })
    }

    /// Whether nobody has the slave open. The kernel says so as a hang-up of the master.
    fn is_alone(&self) -> bool {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&*self.master, PollFlags::empty())];
        poll(&mut fds, Some(&zero)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }
}

fn pair() -> io::Result<(OwnedFd, PathBuf)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
    let name = ptsname(&master, Vec::new())?;
    let name = name.into_string().map_err(io::Error::other)?;
    // The guest does its own echo and line editing. Closing the slave again is what makes the
    // master report a hang-up until somebody opens it.
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    let mut settings = tcgetattr(&slave)?;
    settings.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &settings)?;
    Ok((master, name.into()))
}

impl CharBackend for Pty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_alone() {
            return Ok(bytes.len());
        }
        match rustix::io::retry_on_intr(|| rustix::io::write(&*self.master, bytes)) {
            Err(Errno::AGAIN) => {
                if let Some((_, arm)) = &self.watch {
                    arm.rearm(&*self.master, MASTER, Edge::Both);
                }
                Err(io::ErrorKind::WouldBlock.into())
            }
            // The slave was closed between the question and the write.
            Err(Errno::IO) => Ok(bytes.len()),
            other => Ok(other?),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&*self.master, &mut *bytes)) {
            // Nobody there now; somebody may come.
            Ok(0) | Err(Errno::IO) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other?),
        }
    }

    fn notify(&mut self, ready: Box<dyn Fn() + Send>) -> io::Result<()> {
        let watch = Watch::new()?;
        watch.add(&*self.master, MASTER, Edge::Input)?;
        // The master does not tell when the slave is opened, inotify does. Where the user has no
        // inotify instance left, connecting is noticed with the first key.
        let opens = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .and_then(|fd| {
                inotify::add_watch(&fd, &self.slave, inotify::WatchFlags::OPEN).map(|_| fd)
            })
            .ok();
        if let Some(opens) = &opens {
            watch.add(opens, OPENS, Edge::Input)?;
        }
        let arm = watch.arm();
        let (rearm, master) = (watch.arm(), Arc::clone(&self.master));
        watch.start("char-pty", move |token| {
            match token {
                MASTER => rearm.rearm(&*master, MASTER, Edge::Input),
                _ => {
                    let mut events = [MaybeUninit::uninit(); 512];
                    if let Some(opens) = &opens {
                        let mut reader = inotify::Reader::new(opens, &mut events);
                        while reader.next().is_ok() {}
                    }
                }
            }
            ready();
        })?;
        self.watch = Some((watch, arm));
        Ok(())
    }

    fn window_size(&self) -> Option<WindowSize> {
        let size = tcgetwinsize(&*self.master).ok()?;
        (size.ws_col != 0 && size.ws_row != 0).then_some(WindowSize {
            columns: size.ws_col,
            rows: size.ws_row,
        })
    }

    fn is_connected(&self) -> bool {
        !self.is_alone()
    }

    fn describe(&self) -> String {
        match &self.link {
            Some(link) => format!("pty {} ({})", self.slave.display(), link.path.display()),
            None => format!("pty {}", self.slave.display()),
        }
    }
}
