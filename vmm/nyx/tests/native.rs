//! The library with the payload guest on this machine's own `/dev/kvm`.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by panicking"
)]

use nyx::api::{Code, Happening, Phase};
use nyx::journal::Level;
use nyx::{
    Console, Disk, Ending, Feature, Net, SizeUnits, StartError, State, Transport, VmBuilder,
    WaitForError,
};
use nyx_payload::{Command as Guest, Ending as Way, Report};
use parking_lot::Mutex;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The payload, with nobody at its console.
fn payload(guest: &Guest) -> VmBuilder {
    VmBuilder::new()
        .kernel(nyx_payload::elf_path())
        .cmdline(guest.to_string())
        .memory(64.mib())
        .headless()
}

/// A guest that prints a line every 10 ms for as long as it runs.
fn ticking() -> Guest {
    let guest = Guest::new().option("run", "tick").option("tick_ms", 10);
    guest.option("ticks", 100_000)
}

fn image(folder: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    path
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_the_quick_start_is_three_steps() {
    let guest = Guest::new().test("serial").test("virtio-rng");
    let mut vm = payload(&guest).with_metrics().build().unwrap();
    assert_eq!(vm.state(), State::Stopped);
    assert_eq!(
        vm.get_performance_report().why_absent(),
        Some("the machine has not run")
    );

    let ending = vm.run().unwrap();
    assert_eq!(
        (ending.clone(), ending.exit_code()),
        (Ending::PoweredOff, 0)
    );
    assert_eq!(vm.state(), State::Stopped);

    let report = vm.get_performance_report();
    let figures = report.figures().unwrap();
    assert!(figures.summary.total_exits > 0, "{report}");
    assert!(report.to_string().starts_with("exits "), "{report}");
    assert_eq!(vm.metrics().unwrap().get_performance_report(), report);
    assert!(
        vm.metrics()
            .unwrap()
            .page()
            .contains("nyx_vcpu_exits_total")
    );
    assert!(vm.inspect()["units"]["rng"].is_object(), "{}", vm.inspect());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_what_was_not_asked_for_is_off() {
    let mut vm = payload(&Guest::new()).build().unwrap();
    assert!(vm.features().all(|(_, on)| !on));
    assert!(vm.run().unwrap().is_clean());
    let report = vm.get_performance_report();
    assert!(
        report.why_absent().unwrap().contains("with_metrics"),
        "{report}"
    );
    assert!(vm.metrics().is_none());
    let run = vm.last_run().unwrap();
    assert!(run.faults().is_none() && run.metrics().is_none());
    let refused = run.register_export_callback(|_, _, _| ()).unwrap_err();
    assert_eq!(refused.code, Code::Unsupported);
    let refused = run.add_disk("x.img").unwrap_err();
    assert!(
        refused.to_string().contains("with_pci_hotplug"),
        "{refused}"
    );
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_the_serial_callback_hears_everything_in_order() {
    for mmio in [false, true] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        let mut builder = VmBuilder::new()
            .kernel(nyx_payload::elf_path())
            .cmdline(Guest::new().test("serial").test("memory").to_string())
            .serial(move |bytes| ears.lock().extend_from_slice(bytes));
        if mmio {
            builder = builder.transport(Transport::Mmio);
        }
        let mut vm = builder.build().unwrap();
        assert!(vm.run().unwrap().is_clean());
        // All of it is there by the time that the end is told.
        let report = Report::parse(&String::from_utf8_lossy(&heard.lock()));
        assert!(report.passed() && report.is_ok("serial") && report.is_ok("memory"));
        // And again in a second run.
        let before = heard.lock().len();
        assert!(vm.run().unwrap().is_clean());
        assert_eq!(heard.lock().len(), 2 * before);
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_machine_is_paused_resumed_and_stopped() {
    let mut vm = payload(&ticking()).with_metrics().build().unwrap();
    let running = vm.start().unwrap();
    assert_eq!(
        (running.state(), vm.state()),
        (State::Running, State::Running)
    );
    assert!(matches!(vm.start(), Err(StartError::Running)));
    let mut console = running.serial().unwrap();
    console.wait_for("tick 3", LIMIT).unwrap();

    running.pause().unwrap();
    assert_eq!(running.state(), State::Paused);
    console.read_now();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(console.read_now(), b"", "its time stands still");
    let refused = running.pause().unwrap_err();
    assert_eq!(refused.code, Code::Conflict, "{refused}");
    assert!(
        running.power_button().is_ok(),
        "it is pressed when it goes on"
    );

    running.resume().unwrap();
    console.wait_for("tick ", LIMIT).unwrap();
    assert_eq!(running.resume().unwrap_err().code, Code::Conflict);
    assert!(
        running
            .get_performance_report()
            .figures()
            .unwrap()
            .summary
            .total_exits
            > 0
    );

    // It hears no power button, so the plug is pulled.
    let begun = Instant::now();
    let ending = running.stop(Duration::from_millis(300)).unwrap();
    assert_eq!(ending, Ending::Stopped, "{}", running.read_serial_output());
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        (running.state(), vm.state()),
        (State::Stopped, State::Stopped)
    );
    assert_eq!(running.wait(), ending);
    assert_eq!(running.pause().unwrap_err().code, Code::Ended);
    assert_eq!(running.stop(Duration::ZERO).unwrap(), ending);
    assert_eq!(running.kill().unwrap(), ending);
    let refused = console.wait_for("nothing", LIMIT).unwrap_err();
    assert!(matches!(refused, WaitForError::Ended { .. }), "{refused}");
    assert!(console.type_bytes(b"x").is_err());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_machine_waits_before_its_first_instruction() {
    let mut vm = payload(&Guest::new().test("serial")).build().unwrap();
    let running = vm.start_paused().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(running.read_serial_output(), "");
    assert_eq!((running.ending(), running.state()), (None, State::Paused));
    running.resume().unwrap();
    assert_eq!(running.wait_for(LIMIT), Some(Ending::PoweredOff));
    assert!(Report::parse(&running.read_serial_output()).passed());
    assert_eq!(running.read_serial_output(), "");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_console_is_read_and_written() {
    let mut vm = payload(&Guest::new().option("run", "echo"))
        .build()
        .unwrap();
    let running = vm.start().unwrap();
    let mut console = running.console("com1").unwrap();
    // What is typed before the port is set up is lost, as it is on a real one.
    console.wait_for("echo ready", LIMIT).unwrap();
    writeln!(console, "hello").unwrap();
    let said = console.wait_for("HELLO", LIMIT).unwrap();
    assert!(said.ends_with("HELLO"), "{said:?}");
    let short = Duration::from_millis(20);
    let refused = console.wait_for("never said", short).unwrap_err();
    assert!(matches!(refused, WaitForError::Timeout { .. }), "{refused}");
    let refused = running.console("com9").err().unwrap();
    assert_eq!(refused.code, Code::NotFound);
    assert!(refused.to_string().contains("com1"), "{refused}");
    writeln!(console, "quit").unwrap();
    assert!(running.wait_for(LIMIT).unwrap().is_clean());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_reset_boots_again_and_is_an_event() {
    let mut vm = payload(&ticking()).build().unwrap();
    let running = vm.start().unwrap();
    running.serial().unwrap().wait_for("tick 3", LIMIT).unwrap();
    let events = running.events();
    running.reset().unwrap();
    assert_eq!(running.kill().unwrap(), Ending::Killed);
    let events: Vec<_> = events.map(|event| event.what).collect();
    let place = |what: &dyn Fn(&Happening) -> bool| events.iter().position(what).unwrap();
    let reset = place(&|e| matches!(e, Happening::Reset { resets: 1, by } if by == "operator"));
    let ended = place(&|e| matches!(e, Happening::Ended { ending, .. } if ending == "killed"));
    assert!(reset < ended);
    assert_eq!(
        events.last(),
        Some(&Happening::Phase {
            phase: Phase::Ended
        })
    );
    // Who comes late sees it too, and is not kept waiting.
    let mut late = running.events();
    assert_eq!(late.by_ref().count(), events.len());
    assert!(late.next_within(Duration::ZERO).is_none());
    assert!(
        running
            .ending()
            .is_some_and(|ending| ending.exit_code() == 7)
    );
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_crashes_are_told_apart_and_the_machine_starts_again() {
    use State::{Faulted, Running, Stopped};
    for (way, ending) in [
        (Way::TripleFault, Ending::TripleFault { vcpu: 0 }),
        (Way::PvPanic, Ending::GuestPanic),
    ] {
        let mut vm = payload(&Guest::new().then(way)).build().unwrap();
        let moves = Arc::new(Mutex::new(Vec::new()));
        let notes = moves.clone();
        vm.on_transition(move |from, to| {
            notes.lock().push((from, to));
            true
        });
        for _ in 0..2 {
            assert_eq!(vm.run().unwrap(), ending);
            assert!(vm.crashed() && vm.state() == Faulted);
        }
        let expected = [
            (Stopped, Running),
            (Running, Faulted),
            (Faulted, Stopped),
            (Stopped, Running),
            (Running, Faulted),
        ];
        assert_eq!(*moves.lock(), expected);
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_callback_forbids_moves() {
    let mut vm = payload(&ticking()).build().unwrap();
    let allowed = Arc::new(Mutex::new(vec![State::Running]));
    let list = allowed.clone();
    vm.on_transition(move |_, to| list.lock().contains(&to));
    let refused = vm.start_paused().unwrap_err();
    assert!(matches!(refused, StartError::Forbidden(_)), "{refused}");
    assert_eq!(vm.state(), State::Stopped);
    let running = vm.start().unwrap();
    assert_eq!(running.pause().unwrap_err().code, Code::Conflict);
    assert_eq!(
        running.stop(Duration::ZERO).unwrap_err().code,
        Code::Conflict
    );
    assert_eq!(running.state(), State::Running);
    assert!(
        running.describe().operations.is_empty(),
        "nothing was begun"
    );
    allowed.lock().push(State::Stopped);
    assert_eq!(running.stop(Duration::ZERO).unwrap(), Ending::Stopped);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_an_ended_machine_lets_go_of_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(&folder, "disk.img");
    let guest = Guest::new().test("virtio-blk");
    let mut vm = payload(&guest)
        .disk(Disk::new(&disk).serial("D"))
        .build()
        .unwrap();
    assert!(vm.run().unwrap().is_clean());
    let old = vm.last_run().unwrap();
    assert!(
        vm.run().unwrap().is_clean(),
        "the handle of the first run keeps nothing locked"
    );
    assert_eq!(old.ending(), Some(Ending::PoweredOff));
    assert!(old.inspect_at("units/disk0").is_some());
    assert!(Report::parse(&old.read_serial_output()).is_ok("virtio-blk"));
    let other = payload(&guest).disk(&disk).build().unwrap().run().unwrap();
    assert!(other.is_clean());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_metrics_are_exported() {
    let told = Arc::new(AtomicU64::new(0));
    let count = told.clone();
    let mut vm = payload(&ticking()).with_metrics().build().unwrap();
    let running = vm.start().unwrap();
    let exported = running.register_export_callback(move |name, value, labels| {
        if name == "nyx_vcpu_exits_total" && value > 0.0 {
            assert!(labels.iter().any(|(key, _)| key == "vm"), "{labels:?}");
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    exported.unwrap();
    running.serial().unwrap().wait_for("tick 3", LIMIT).unwrap();
    // The payload takes an interrupt that it does not expect for its end, if it gets to it.
    running.nmi().unwrap();
    let ending = running.kill().unwrap();
    assert!(
        matches!(ending, Ending::Killed | Ending::GuestPanic),
        "{ending}"
    );
    assert!(told.load(Ordering::SeqCst) > 0, "at the end at the latest");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_everything_at_once_runs_and_is_dumped() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::new()
        .test("virtio-blk")
        .test("virtio-net")
        .test("smp");
    let mut vm = payload(&guest.option("want_cpus", 2))
        .name("all")
        .cpus(2)
        .disk(Disk::new(image(&folder, "a.img")).queues(2))
        .disk(Disk::new(image(&folder, "b.img")).read_only().name("extra"))
        .net(Net::null().mac("52:54:00:00:00:01"))
        .console(Console::file(folder.path().join("hvc")).virtio())
        .with_error_handling()
        .with_metrics()
        .with_pci_hotplug()
        .build()
        .unwrap();
    assert_eq!((vm.name(), vm.active_vcpu_count()), ("all", 2));
    assert!(vm.is_enabled(Feature::Metrics) && !vm.is_enabled(Feature::Logging));
    let running = vm.start().unwrap();
    let names: Vec<_> = running.list_devices().into_iter().map(|d| d.name).collect();
    for name in ["disk0", "extra", "net0", "com1"] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    let ending = running.wait_for(LIMIT).unwrap();
    assert!(
        ending.is_clean(),
        "{ending}: {}",
        running.read_serial_output()
    );
    assert_eq!(running.faults().unwrap().get_fault_count(), 0);
    let dump = folder.path().join("dump.json");
    running.save_diagnostic_dump(&dump).unwrap();
    let dump: serde_json::Value = serde_json::from_slice(&std::fs::read(dump).unwrap()).unwrap();
    assert_eq!(dump["machine"]["name"], "all");
    assert_eq!(dump["config"]["cpus"], 2);
    assert!(dump["consoles"]["com1"].as_str().unwrap().contains("done"));
    assert!(dump["report"]["disk_io"]["writes"].as_u64().unwrap() > 0);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_the_journal_keeps_what_the_machine_does() {
    let mut vm = payload(&ticking())
        .with_logging()
        .with_performance_tracing()
        .build()
        .unwrap();
    let logger = vm.logger().unwrap().clone();
    let begun = std::time::SystemTime::now();
    let running = vm.start().unwrap();
    running.serial().unwrap().wait_for("tick 1", LIMIT).unwrap();
    running.pause().unwrap();
    running.kill().unwrap();
    let of_vm = logger.dump_component("vm").unwrap();
    let said = |what: &str| of_vm.iter().any(|entry| entry.message.contains(what));
    assert!(said("pause") && said("ended"), "{of_vm:?}");
    assert!(logger.dump_since(begun).len() >= 2);
    assert!(logger.dump_buffer().len() >= of_vm.len());
    assert_eq!(logger.get_logger_level("vm"), Level::Info);
    logger.set_logger_level("vm", Level::Error).unwrap();
    assert_eq!(logger.get_logger_level("vm"), Level::Error);
    let before = logger.dump_component("vm").unwrap().len();
    vm.start().unwrap().kill().unwrap();
    assert_eq!(logger.dump_component("vm").unwrap().len(), before);
    logger.set_logger_level("vm", Level::Info).unwrap();
    let mut trace = Vec::new();
    logger.export_trace(&mut trace).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
    assert!(
        trace["traceEvents"].is_array() || trace.is_array(),
        "{trace}"
    );
    // Another machine of this process writes to the same journal.
    let other = payload(&Guest::new()).with_logging().build().unwrap();
    assert!(other.logger().is_some());
    assert!(payload(&Guest::new()).build().unwrap().logger().is_none());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_debugger_may_come_and_a_boot_is_explained() {
    let mut vm = payload(&ticking()).build().unwrap();
    let running = vm.start().unwrap();
    running.serial().unwrap().wait_for("tick 1", LIMIT).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("gdb");
    let address = running
        .listen_for_gdb(&format!("unix:{}", socket.display()))
        .unwrap();
    assert!(address.contains("gdb"), "{address}");
    let mut debugger = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    // "Why has it stopped": the first question of gdb's remote protocol.
    debugger.write_all(b"+$?#3f").unwrap();
    let mut answer = [0; 2];
    debugger.read_exact(&mut answer).unwrap();
    assert!(
        answer.starts_with(b"+") || answer.starts_with(b"$"),
        "{answer:?}"
    );
    drop(debugger);
    assert_eq!(
        running.listen_for_gdb("nowhere").unwrap_err().code,
        Code::Invalid
    );
    let bundle = running.why().unwrap();
    assert!(!bundle.scene.consoles.is_empty());
    running.kill().unwrap();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn native_a_machine_in_a_program_has_a_control_socket() {
    let mut vm = payload(&ticking())
        .name("nyx-lib-test")
        .with_control_socket()
        .build()
        .unwrap();
    let running = vm.start().unwrap();
    let socket = running.control_socket().unwrap().to_owned();
    let mut client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let request = "GET /v1/machine HTTP/1.1\r\nHost: nyx\r\nConnection: close\r\n\r\n";
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"name\":\"nyx-lib-test\""), "{answer}");
    // The name is taken while it runs, and free again then.
    let mut twin = payload(&ticking())
        .name("nyx-lib-test")
        .with_control_socket()
        .build()
        .unwrap();
    let refused = twin.start().unwrap_err();
    assert!(matches!(refused, StartError::Door(_)), "{refused}");
    running.kill().unwrap();
    assert!(!socket.exists());
    twin.start().unwrap().kill().unwrap();
}
