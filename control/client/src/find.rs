//! Where machines leave word of themselves, and which of them is meant.

use nyx_api::{MachineRecord, place};
use rustix::process::{Pid, test_kill_process};
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The runtime folder: one folder per machine in it, with `vm.json` and `api.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

/// A machine that left word of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it wrote.
    pub record: MachineRecord,
    /// Whether it is there.
    pub state: State,
}

/// Whether a machine is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its socket takes connections.
    Alive,
    /// Its process is gone: it was killed, or the host was restarted.
    Dead,
    /// Its process is there, but its socket takes no connections; why.
    Deaf(String),
}

/// A machine could not be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The folder cannot be read.
    #[error("the runtime folder {} cannot be read: {why}", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        why: String,
    },
    /// No machine is called so.
    #[error("{}", no_machine(.name, .nearest.as_deref(), .running))]
    NotFound {
        /// What was asked for.
        name: String,
        /// The running machine with the most similar name.
        nearest: Option<String>,
        /// Every running machine.
        running: Vec<String>,
    },
    /// Several are called so.
    #[error("{prefix:?} fits several machines, {}: write more of the name or id", .fitting.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// Which it may be.
        fitting: Vec<String>,
    },
    /// It was there once.
    #[error(
        "machine `{name}` is no longer running: its process {pid} has ended; `nyx why {name}` may say why"
    )]
    Dead {
        /// Its name.
        name: String,
        /// The process that is gone.
        pid: u32,
    },
}

fn no_machine(name: &str, nearest: Option<&str>, running: &[String]) -> String {
    let mend = match (nearest, running) {
        (Some(nearest), _) => format!("did you mean `{nearest}`?"),
        (None, []) => "no machine is running; start one with `nyx run --name NAME …`".into(),
        (None, running) if running.len() <= 8 => format!("running: {}", running.join(", ")),
        (None, running) => format!("{} are running, `nyx ps` lists them", running.len()),
    };
    format!("no machine is called {name:?}; {mend}")
}

/// Longest `vm.json` that is read.
const LONGEST_RECORD: u64 = 64 << 10;

impl Folder {
    /// The folder this user's machines use ([`place::runtime_root`]).
    pub fn of_user() -> Self {
        Self(place::runtime_root(rustix::process::geteuid().as_raw()))
    }

    /// Another folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Every machine that left word, by name. What is no machine's folder is passed over.
    ///
    /// # Errors
    ///
    /// [`FindError::Folder`]; a folder that does not exist yet is an empty one.
    pub fn machines(&self) -> Result<Vec<Found>, FindError> {
        let fail = |e: std::io::Error| FindError::Folder {
            path: self.0.clone(),
            why: e.to_string(),
        };
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(fail(e)),
        };
        let mut machines = Vec::new();
        for entry in entries {
            let folder = entry.map_err(fail)?.path();
            if let Some(record) = record(&folder) {
                let state = state(&record);
                machines.push(Found { record, state });
            }
        }
        machines
            .sort_by(|a, b| (&a.record.name, &a.record.id).cmp(&(&b.record.name, &b.record.id)));
        Ok(machines)
    }

    /// The one machine whose name or id is `name`, or begins so when only one does. A machine that is there is
    /// preferred to one that is not.
    ///
    /// # Errors
    ///
    /// It is not there, or several are meant.
    pub fn find(&self, name: &str) -> Result<Found, FindError> {
        pick(&self.machines()?, name)
    }
}

fn record(folder: &Path) -> Option<MachineRecord> {
    let file = std::fs::File::open(folder.join(place::RECORD)).ok()?;
    // A pipe would make the reader wait for ever.
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(LONGEST_RECORD).read_to_string(&mut text).ok()?;
    let mut record: MachineRecord = serde_json::from_str(&text).ok()?;
    if Path::new(&record.socket).is_relative() {
        record.socket = folder.join(&record.socket).to_str()?.to_string();
    }
    Some(record)
}

fn state(record: &MachineRecord) -> State {
    match UnixStream::connect(&record.socket) {
        Ok(_) => State::Alive,
        Err(_) if !exists(record.pid) => State::Dead,
        Err(e) => State::Deaf(e.to_string()),
    }
}

/// Whether process `pid` is there and has not ended.
pub fn exists(pid: u32) -> bool {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    // "Not permitted" is the answer for a process of somebody else.
    if test_kill_process(raw) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    // One that has ended stays until its parent looks (proc(5): the state follows the name in parentheses).
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X'))
}

fn pick(machines: &[Found], name: &str) -> Result<Found, FindError> {
    let alive = |found: &&Found| found.state != State::Dead;
    let exact = |found: &&Found| found.record.name == name || found.record.id == name;
    let begins =
        |found: &&Found| found.record.name.starts_with(name) || found.record.id.starts_with(name);
    if let Some(found) = machines.iter().filter(alive).find(exact) {
        return Ok(found.clone());
    }
    let dead = |found: &Found| FindError::Dead {
        name: found.record.name.clone(),
        pid: found.record.pid,
    };
    if let Some(found) = machines.iter().find(exact) {
        return Err(dead(found));
    }
    let fitting: Vec<_> = machines.iter().filter(alive).filter(begins).collect();
    match fitting[..] {
        _ if name.is_empty() => {}
        [] => {
            let gone: Vec<_> = machines.iter().filter(begins).collect();
            if let [only] = gone[..] {
                return Err(dead(only));
            }
        }
        [only] => return Ok(only.clone()),
        _ => {
            let fitting = fitting
                .iter()
                .map(|found| format!("{} ({})", found.record.name, found.record.id));
            return Err(FindError::Ambiguous {
                prefix: name.into(),
                fitting: fitting.collect(),
            });
        }
    }
    let names = machines
        .iter()
        .filter(alive)
        .map(|found| &found.record.name);
    let running: Vec<String> = names.cloned().collect();
    Err(FindError::NotFound {
        name: name.into(),
        nearest: nearest(name, running.iter().map(String::as_str)).map(Into::into),
        running,
    })
}

/// The one of `known` that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&word, &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn found(name: &str, id: &str, state: State) -> Found {
        let record = MachineRecord {
            id: id.into(),
            name: name.into(),
            pid: 42,
            started: "2026-11-21T06:00:00Z".into(),
            socket: "/nowhere".into(),
            version: "0.1.0".into(),
        };
        Found { record, state }
    }

    fn picked(machines: &[Found], name: &str) -> Result<String, String> {
        match pick(machines, name) {
            Ok(found) => Ok(found.record.id),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn names_ids_and_unique_prefixes_find_a_machine() {
        let machines = [
            found("db", "a1b2c3d4e5f6", State::Alive),
            found("web", "b1b2c3d4e5f6", State::Alive),
            found("web2", "b9b2c3d4e5f6", State::Deaf("refused".into())),
            found("old", "c1b2c3d4e5f6", State::Dead),
        ];
        let picked = |name| picked(&machines, name);
        assert_eq!(picked("db").unwrap(), "a1b2c3d4e5f6");
        // The whole name of one is meant, though it begins another's.
        assert_eq!(picked("web").unwrap(), "b1b2c3d4e5f6");
        assert_eq!(picked("a1").unwrap(), "a1b2c3d4e5f6");
        assert_eq!(picked("b9b2c3d4e5f6").unwrap(), "b9b2c3d4e5f6");
        let said = picked("we").unwrap_err();
        assert_eq!(
            said,
            "\"we\" fits several machines, web (b1b2c3d4e5f6), web2 (b9b2c3d4e5f6): write more of the name or id"
        );
        assert!(picked("old").unwrap_err().contains("process 42 has ended"));
        assert!(picked("ol").unwrap_err().contains("process 42 has ended"));
        assert_eq!(
            picked("wbe2").unwrap_err(),
            "no machine is called \"wbe2\"; did you mean `web2`?"
        );
        assert_eq!(
            picked("").unwrap_err(),
            "no machine is called \"\"; running: db, web, web2"
        );
    }

    #[test]
    fn without_machines_the_mend_is_to_start_one() {
        assert_eq!(
            picked(&[], "web").unwrap_err(),
            "no machine is called \"web\"; no machine is running; start one with `nyx run --name NAME …`"
        );
    }

    #[test]
    fn the_folder_tells_the_living_from_the_dead_and_passes_over_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::at(root.path());
        assert_eq!(folder.machines().unwrap(), []);
        assert_eq!(Folder::at("/nowhere/at/all").machines().unwrap(), []);
        let write = |name: &str, pid: u32| {
            let place = root.path().join(name);
            std::fs::create_dir(&place).unwrap();
            let mut record = found(name, "0", State::Alive).record;
            record.pid = pid;
            record.socket = "api.sock".into();
            let text = serde_json::to_string(&record).unwrap();
            std::fs::write(place.join("vm.json"), text).unwrap();
            place.join("api.sock")
        };
        let _listener = UnixListener::bind(write("alive", 1)).unwrap();
        drop(UnixListener::bind(write("deaf", std::process::id())).unwrap());
        write("dead", 0);
        for (name, text) in [("garbage", "{\"id\": 3"), ("empty", "")] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("vm.json"), text).unwrap();
        }
        std::fs::write(root.path().join("stray"), "").unwrap();
        let machines = folder.machines().unwrap();
        let states: Vec<_> = machines
            .iter()
            .map(|found| (found.record.name.as_str(), &found.state))
            .collect();
        assert_eq!(states[0], ("alive", &State::Alive));
        assert_eq!(states[1], ("dead", &State::Dead));
        assert!(matches!(states[2], ("deaf", State::Deaf(_))));
        assert_eq!(states.len(), 3);
    }
}
