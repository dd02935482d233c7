//! The parts that need breakpoints in programs and kernels alike: run inside the lab by the tests whose
//! names begin with `lab`. The lab's processor does not let INT3 leave a guest, so the processor's four
//! breakpoints stand in there.

use crate::rig::{payload, with_machine};
use nyx_debug::Start;
use nyx_harness::guests::{self, Flavour};
use nyx_harness::initramfs;
use nyx_harness::lab::{Lab, LabCommand};
use nyx_harness::packages::{DEBUGGER, install};
use nyx_payload::Command as Guest;
use nyx_symbols::{Symbols, Trust};
use std::path::Path;
use std::time::Duration;

/// Runs test `name` of this file's in a lab, with `env`.
fn in_lab(name: &str, env: &[(&str, &Path)]) {
    install(DEBUGGER).unwrap();
    let program = std::env::current_exe().unwrap();
    let mut command = LabCommand::new([
        program.into_os_string(),
        format!("in_lab::{name}").into(),
        "--exact".into(),
        "--ignored".into(),
        "--nocapture".into(),
    ])
    .within(Duration::from_secs(400));
    command.env = env
        .iter()
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    command.env.push(("RUST_BACKTRACE".into(), "1".into()));
    let passed = |lab: Lab| {
        let output = lab.run(&command)?.success()?;
        anyhow::ensure!(
            output.text().contains("test result: ok. 1 passed"),
            "{}",
            output.text()
        );
        anyhow::Ok(output)
    };
    let output = match passed(Lab::default()) {
        Ok(output) => output,
        // QEMU's emulation of AMD-V has a rare fault with several processors, which stops one of the kernels or
        // all of them (`EMULATOR_FAULTS` in this crate). With one it has not.
        Err(error) => {
            println!("{error:#}; once more with one processor");
            let lab = Lab {
                cpus: 1,
                ..Lab::default()
            };
            passed(lab).unwrap()
        }
    };
    let text = output.text();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok. 1 passed"), "{text}");
}

#[test]
#[ignore = "boots the lab"]
fn lab_gdb_debugs_every_ring_of_the_payload() {
    in_lab("inside_gdb_debugs_every_ring_of_the_payload", &[]);
}

#[test]
#[ignore = "boots the lab"]
fn lab_gdb_debugs_a_stock_kernel_by_its_own_symbols() {
    let kernel = guests::kernel(Flavour::Cloud).unwrap();
    let initrd = initramfs::guest(&kernel, Some(LOOP)).unwrap();
    in_lab(
        "inside_gdb_debugs_a_stock_kernel_by_its_own_symbols",
        &[
            ("NYX_KERNEL", &kernel.vmlinuz),
            ("NYX_VMLINUX", &kernel.vmlinux),
            ("NYX_INITRD", &initrd),
        ],
    );
}

/// Reads and writes files for ever, and says so.
const LOOP: &str = "n=0\nwhile :; do n=$((n + 1)); cat /proc/uptime >/tmp/uptime; \
    [ $((n % 20)) = 0 ] && echo \"round $n\"; done\n";

#[test]
#[ignore = "runs in the lab"]
fn inside_gdb_debugs_every_ring_of_the_payload() {
    let symbols = Symbols::open(nyx_payload::elf_path()).unwrap();
    let named = |part: &str| {
        let found = symbols.iter().find(|s| s.name.contains(part));
        found.unwrap().address
    };
    let (ready, line) = (named("3smp5READY"), named("3out4line"));
    let guest = Guest::new().test("smp").option("want_cpus", 4);
    let outcome = with_machine(&payload(4, &guest), Start::Held, move |bench| {
        let script = format!(
            "break ring3_main
             continue
             info registers cs cr3 cr0
             stepi
             stepi
             delete
             break ap_main
             continue
             info threads
             delete
             watch *(unsigned int*){ready:#x}
             continue
             continue
             delete
             set $n = 0
             break *{line:#x} if ++$n == 2
             continue
             p $n
             x/xb {line:#x}
             monitor info
             delete
             continue"
        );
        bench.gdb(nyx_payload::elf_path(), &script)
    });
    outcome.session.assert(&[
        "Thread 1 hit Breakpoint 1",
        "in ring3_main ()",
        "cs             0x23",
        "cr3            0x106000",
        "in ring3_main ()",
        "Thread 2 hit Breakpoint 2",
        "in ap_main ()",
        "Thread 1.4 (vCPU 3",
        "Hardware watchpoint 3",
        "Old value = 1",
        "New value = 2",
        "Old value = 2",
        // Two that count at the same moment are seen at once.
        "New value = ",
        "hit Breakpoint 4",
        "$1 = 2",
        "exited normally",
        ": 2 hits",
    ]);
    assert!(outcome.console.contains("ok smp"), "{outcome:?}");
}

#[test]
#[ignore = "runs in the lab"]
fn inside_gdb_debugs_a_stock_kernel_by_its_own_symbols() {
    let path = |name: &str| std::env::var(name).unwrap();
    let text = format!(
        "cpus = 2\nmemory = \"512M\"\n[boot]\nkernel = {:?}\ninitrd = {:?}\n\
         cmdline = \"console=ttyS0 loglevel=4\"\n",
        path("NYX_KERNEL"),
        path("NYX_INITRD"),
    );
    let vmlinux = path("NYX_VMLINUX");
    let outcome = with_machine(&text, Start::Running, move |bench| {
        bench.wait_for("round 20");
        let (cpus, mut memory) = (bench.cpus(), bench.memory());
        let begun = std::time::Instant::now();
        let symbols = Symbols::from_guest(&mut memory, &cpus).unwrap();
        println!("{} symbols in {:?}", symbols.len(), begun.elapsed());
        assert_eq!(symbols.address_of("entry_SYSCALL_64"), Some(cpus[0].lstar));
        // KASLR solved in two ways that must agree.
        let mut from_file = Symbols::open(vmlinux.as_ref()).unwrap();
        assert_eq!(from_file.slide(), 0);
        let slide = from_file.align(&mut memory, &cpus).unwrap();
        println!("moved by {slide:#x}");
        for name in ["vfs_read", "init_task", "asm_exc_page_fault"] {
            assert_eq!(
                from_file.address_of(name),
                symbols.address_of(name),
                "{name}"
            );
        }
        let mut unwound = 0;
        for _ in 0..8 {
            for cpu in bench.cpus() {
                let stack = symbols.stack(&mut memory, &cpu);
                println!("vCPU {}, ring {}", cpu.index, cpu.cpl);
                stack.iter().for_each(|frame| println!("  {frame}"));
                let known = |f: &nyx_symbols::Frame| f.location.is_some();
                if cpu.cpl == 0 {
                    assert!(stack.iter().all(known), "{stack:?}");
                    unwound += usize::from(stack.iter().any(|f| f.trust == Trust::Unwound));
                    let outer = stack.last().and_then(|f| f.location.clone()).unwrap();
                    println!("  outermost: {outer}");
                }
            }
        }
        assert!(unwound > 2, "{unwound}");
        let elf = bench.folder().join("symbols.elf");
        std::fs::write(&elf, symbols.to_elf()).unwrap();
        let said = bench.gdb(
            &elf,
            "set $n = 0
             break do_sys_openat2 if ++$n == 3
             continue
             p $n
             info registers rip cs cr3 gs_base
             p/x $lstar
             stepi
             x/i $pc
             delete
             hbreak vfs_write
             continue
             delete
             watch *(unsigned long*)&jiffies_64
             continue
             continue
             delete
             break do_sys_openat2
             continue
             continue
             info threads
             monitor info
             delete
             detach",
        );
        let before = bench.rounds();
        assert!(bench.wait(Duration::from_secs(60), |_| bench.rounds() > before + 1));
        said
    });
    println!("{}\n{}", outcome.session.0, outcome.console);
    outcome.session.assert(&[
        "Breakpoint 1",
        "in do_sys_openat2 ()",
        "$1 = 3",
        "<do_sys_openat2",
        "cs             0x10",
        "<do_sys_openat2",
        "hit Breakpoint 2",
        "in vfs_write ()",
        "Hardware watchpoint 3",
        "Old value = ",
        "New value = ",
        "Old value = ",
        "New value = ",
        "hit Breakpoint 4",
        "in do_sys_openat2 ()",
        "hit Breakpoint 4",
        "detached",
    ]);
    for bad in ["BUG", "Oops", "int3", "stall"] {
        assert!(!outcome.console.contains(bad), "{}", outcome.console);
    }
}
