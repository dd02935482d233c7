//! A machine with a GDB server, and a real gdb at it.

use nyx_catalog::{Backends, Consoles};
use nyx_debug::{GdbServer, Listen, MachineCommands, Start, read_virtual, sample};
use nyx_harness::packages::{DEBUGGER, install};
use nyx_kvm::Kvm;
use nyx_machine::DebugPort;
use nyx_payload::Command as Guest;
use nyx_spec::parse_toml;
use nyx_symbols::{Cpu, GuestMemory};
use nyx_vmm::{Control, Desk, Ending, HostSource, Identity, Prepared, Request, Vmm};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest that a gdb may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Longest that a guest may take to say that it is ready.
const BOOT: Duration = Duration::from_secs(150);

struct Asks(Control);

impl MachineCommands for Asks {
    fn reset(&self) {
        self.0.submit(Request::Reset).unwrap();
    }
    fn nmi(&self) {
        self.0.submit(Request::Nmi).unwrap();
    }
    fn stop(&self) {
        self.0.submit(Request::Kill).unwrap();
    }
    fn describe(&self) -> String {
        "the machine of a test".into()
    }
}

/// A machine under test, for the thread beside it.
pub(crate) struct Bench {
    folder: PathBuf,
    control: Control,
    pub(crate) port: DebugPort,
    address: String,
}

/// What came of a machine.
#[derive(Debug)]
pub(crate) struct Outcome<R> {
    /// What the session made of it.
    pub(crate) session: R,
    /// What the guest printed.
    pub(crate) console: String,
    pub(crate) ending: Ending,
}

/// What gdb printed.
#[derive(Debug)]
pub(crate) struct Said(pub(crate) String);

impl Said {
    /// Every text of `texts` is there, in this order.
    pub(crate) fn assert(&self, texts: &[&str]) {
        let mut rest = self.0.as_str();
        for text in texts {
            match rest.split_once(text) {
                Some((_, after)) => rest = after,
                None => panic!("gdb did not say {text:?} where it should:\n{}", self.0),
            }
        }
    }

    /// The number behind the first `key`, in gdb's hexadecimal.
    pub(crate) fn number(&self, key: &str) -> u64 {
        let (_, rest) = self
            .0
            .split_once(key)
            .unwrap_or_else(|| panic!("no {key}:\n{}", self.0));
        let digits: String = rest
            .trim_start()
            .trim_start_matches("0x")
            .chars()
            .take_while(char::is_ascii_hexdigit)
            .collect();
        u64::from_str_radix(&digits, 16).unwrap()
    }
}

/// Runs a machine of `text` with a GDB server, and `session` beside it; ends the machine when the session
/// has ended and the machine has not.
pub(crate) fn with_machine<R: Send + 'static>(
    text: &str,
    start: Start,
    session: impl FnOnce(&Bench) -> R + Send + 'static,
) -> Outcome<R> {
    install(DEBUGGER).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let console = folder.path().join("console");
    let text = format!("{text}\n[[consoles]]\nkind = \"file\"\npath = {console:?}\n");
    let config = parse_toml(&text).unwrap();
    let kvm = Kvm::open().unwrap();
    let prepared = Prepared::new(&config, &HostSource::Hypervisor(&kvm)).unwrap();
    let desk = Desk::new(Identity::new("debugged"), Consoles::default());
    let control = desk.control();
    let quiet = Box::new(|_| {});
    let mut vmm = Vmm::new(prepared, &kvm, &Backends::default(), desk, quiet).unwrap();
    let socket = folder.path().join("gdb.sock");
    let listen = Listen::parse(socket.to_str().unwrap(), false).unwrap();
    let commands = Arc::new(Asks(control.clone()));
    let server = GdbServer::start(vmm.debug_port(), &listen, start, commands).unwrap();
    let bench = Bench {
        folder: folder.path().to_owned(),
        control,
        port: vmm.debug_port(),
        address: server.address().to_owned(),
    };
    let beside = std::thread::spawn(move || {
        let made = session(&bench);
        // A guest that was let go on may come to its end by itself.
        bench.wait(Duration::from_secs(2), |_| false);
        let _ = bench.control.submit(Request::Kill);
        made
    });
    let ending = vmm.run(nyx_vmm::Start::default());
    drop(server);
    drop(vmm);
    Outcome {
        session: beside.join().unwrap(),
        console: std::fs::read_to_string(console).unwrap(),
        ending,
    }
}

impl Bench {
    /// Waits until `done` likes the console's text.
    pub(crate) fn wait(&self, limit: Duration, done: impl Fn(&str) -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            let bytes = std::fs::read(self.folder.join("console")).unwrap_or_default();
            if done(&String::from_utf8_lossy(&bytes)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Where files of the session may be.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How often the guest has said `round`.
    pub(crate) fn rounds(&self) -> usize {
        let bytes = std::fs::read(self.folder.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).matches("round ").count()
    }

    /// Waits until the guest has printed `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        if !self.wait(BOOT, |console| console.contains(text)) {
            let console = std::fs::read(self.folder.join("console")).unwrap_or_default();
            panic!("no {text:?} of\n{}", String::from_utf8_lossy(&console));
        }
    }

    /// Lets gdb, which knows the symbols of `program`, run `script` at the machine.
    pub(crate) fn gdb(&self, program: &Path, script: &str) -> Said {
        let path = self.folder.join("script");
        let script = format!(
            "set pagination off\nset confirm off\nset width 0\nset height 0\n\
             target remote {}\n{script}\n",
            self.address
        );
        std::fs::write(&path, script).unwrap();
        let mut child = Command::new("gdb")
            .args(["-nx", "-batch", "-x"])
            .arg(&path)
            .arg(program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = collect(child.stdout.take().unwrap());
        let errors = collect(child.stderr.take().unwrap());
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > LIMIT {
                // Politely, so that what it has printed gets out.
                let pid = child.id().to_string();
                let _ = Command::new("kill").args(["-INT", &pid]).status();
                std::thread::sleep(Duration::from_secs(3));
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // What `monitor` prints goes to standard error.
        let text = format!("{}\n{}", output.join().unwrap(), errors.join().unwrap());
        if std::env::var_os("NYX_SHOW_GDB").is_some() {
            eprintln!("{text}");
        }
        Said(text)
    }

    /// The vCPUs at this moment, as a walker of stacks wants them.
    pub(crate) fn cpus(&self) -> Vec<Cpu> {
        let samples = sample(&self.port, 16 << 10).unwrap();
        samples
            .into_iter()
            .map(|s| Cpu {
                index: s.index,
                cpl: s.cpl,
                rip: s.rip,
                rsp: s.rsp,
                rbp: s.rbp,
                r10: s.r10,
                r13: s.r13,
                lstar: s.lstar,
                idt_base: s.idt_base,
                stack: s.stack,
            })
            .collect()
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> impl GuestMemory {
        let port = self.port.clone();
        move |vcpu: u32, address: u64, bytes: &mut [u8]| {
            let read = read_virtual(&port, vcpu as usize, address, bytes.len());
            read.map(|read| bytes.copy_from_slice(&read)).is_ok()
        }
    }
}

fn collect(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The description of a machine that boots the payload.
pub(crate) fn payload(cpus: u32, guest: &Guest) -> String {
    let kernel = nyx_payload::elf_path().to_str().unwrap();
    format!(
        "cpus = {cpus}\nmemory = \"64M\"\n[boot]\nkernel = {kernel:?}\ncmdline = {:?}\n",
        guest.to_string()
    )
}
