//! The control socket of a machine that lives in a program: `nyx ps`, `nyx console` and `nyx top` find it.

use nyx_api::{MachineRecord, place};
use nyx_vmm::{Control, Identity, Request, RuntimeFolder, Server, Socket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The machine's runtime folder and its control socket. Dropping it closes the socket, then removes the
/// folder.
pub(crate) struct Door {
    _server: Server,
    folder: RuntimeFolder,
}

impl Door {
    /// Claims the machine's name among those of this user, and serves its control socket.
    pub(crate) fn open(control: &Control) -> Result<Self, String> {
        let Identity { id, name, started } = control.identity().clone();
        let root = place::runtime_root(rustix::process::geteuid().as_raw());
        let folder = RuntimeFolder::claim(&root, &name).map_err(|e| e.to_string())?;
        let path = folder.socket();
        let refused = |e| format!("cannot open the control socket {}: {e}", path.display());
        let victim = control.clone();
        let kill = move || {
            // The process is the program's: only its machine goes.
            let _ = victim.submit(Request::Kill);
        };
        let server = Socket::bind(&path)
            .and_then(|socket| socket.serve(control.clone(), Arc::new(kill)))
            .map_err(refused)?;
        let record = MachineRecord {
            id,
            name,
            pid: std::process::id(),
            started,
            socket: path.display().to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        folder.publish(&record).map_err(|e| e.to_string())?;
        Ok(Self {
            _server: server,
            folder,
        })
    }

    /// Where the socket is.
    pub(crate) fn socket(&self) -> PathBuf {
        let path: &Path = &self.folder.socket();
        path.to_owned()
    }
}
