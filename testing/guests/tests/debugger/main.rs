//! A real gdb debugs guests: the payload on this machine's KVM, as far as that can be debugged, and the
//! payload and a stock kernel in the lab, where KVM is a whole one.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what cannot be unwrapped fails the test"
)]

mod in_lab;
mod rig;

use nyx_debug::Start;
use nyx_payload::Command as Guest;
use rig::{payload, with_machine};

/// Ring 0 of the payload: behind its jump to 64-bit code.
fn script_for_kernel_code() -> String {
    let symbols = nyx_symbols::Symbols::open(nyx_payload::elf_path()).unwrap();
    let entry = symbols.address_of("pvh_entry").unwrap();
    let code64 = entry + 0x3c;
    format!(
        "info registers rip cr0
         hbreak *{code64:#x} if $cr3 != 0
         hbreak *{entry:#x}+7 if $rax == 12345
         continue
         info registers rip cs cr0 cr3 efer cr8 lstar
         stepi
         stepi
         info registers rip
         set $rax = 0x1234567890
         p/x $rax
         set $xmm1.uint128 = 5
         p $xmm1.uint128
         p/x *(unsigned int*)&percpu0
         set *(unsigned int*)&percpu0 = 0x55
         p/x *(unsigned int*)&percpu0
         set *(unsigned int*)&percpu0 = 0
         info threads
         monitor info
         monitor msr read 0xc0000080
         monitor translate {entry:#x}
         monitor nonsense
         maint packet qqemu.PhyMemMode
         maint packet Qqemu.PhyMemMode:1
         x/xb {entry:#x}
         maint packet Qqemu.PhyMemMode:0
         thread 2
         info registers rip cs
         p $ymm0
         x/xw 0x7fff00000000
         detach"
    )
}

#[test]
#[ignore = "needs /dev/kvm and gdb"]
fn native_gdb_debugs_kernel_code_of_the_payload() {
    let guest = Guest::new().test("serial");
    let script = script_for_kernel_code();
    let outcome = with_machine(&payload(2, &guest), Start::Held, move |bench| {
        bench.gdb(nyx_payload::elf_path(), &script)
    });
    let said = &outcome.session;
    said.assert(&[
        "in pvh_entry ()",
        "cr0            0x11                [ PE ET ]",
        "Thread 1 hit Breakpoint 1",
        "cs             0x8",
        "[ PE MP ET NE WP PG ]",
        "efer           0x500               [ LME LMA ]",
        "in pvh_entry ()",
        "in pvh_entry ()",
        "$1 = 0x1234567890",
        "$2 = 5",
        "$3 = 0x0",
        "$4 = 0x55",
        "Thread 1.1 (vCPU 0, ring 0)",
        "Thread 1.2 (vCPU 1, not started)",
        "received: \"0\"",
        "received: \"OK\"",
        "[Switching to thread 2 (Thread 1.2)]",
        "cs             0xf000",
        "[Inferior 1 (process 1) detached]",
        "the machine of a test",
        "vCPU 1: not started",
        ": 1 hits",
        "msr 0xc0000080 = 0x500",
        "what is \"nonsense\"?",
        "Cannot access memory at address 0x7fff00000000",
    ]);
    assert_eq!(said.number("cr3 "), 0x10_6000, "{}", said.0);
    assert!(outcome.console.contains("ok serial\n"), "{outcome:?}");
    assert_eq!(outcome.ending, nyx_vmm::Ending::PoweredOff);
}

#[test]
#[ignore = "needs /dev/kvm and gdb"]
fn native_a_guest_that_waits_for_gdb_hears_of_kill_and_gdb_of_the_end() {
    // The end of the machine ends what gdb debugs.
    let guest = Guest::new().test("serial");
    let outcome = with_machine(&payload(1, &guest), Start::Held, |bench| {
        bench.gdb(nyx_payload::elf_path(), "continue")
    });
    outcome.session.assert(&["exited normally"]);
    assert_eq!(outcome.ending, nyx_vmm::Ending::PoweredOff);
    // What ends what gdb debugs ends the machine.
    let guest = Guest::new().then(nyx_payload::Ending::Hang);
    let outcome = with_machine(&payload(1, &guest), Start::Running, |bench| {
        bench.wait_for("done");
        bench.gdb(nyx_payload::elf_path(), "info registers cs\nkill")
    });
    outcome
        .session
        .assert(&["cs             0x23", "[Inferior 1 (process 1) killed]"]);
    assert_eq!(outcome.ending, nyx_vmm::Ending::Killed);
}

#[test]
#[ignore = "needs /dev/kvm and gdb"]
fn native_ctrl_c_stops_every_vcpu_and_reset_is_survived() {
    let guest = Guest::new().option("run", "tick").option("tick_ms", 10);
    let outcome = with_machine(&payload(1, &guest), Start::Running, |bench| {
        bench.wait_for("tick 3");
        bench.gdb(
            nyx_payload::elf_path(),
            "shell (sleep 1; kill -INT $PPID) &
             continue
             info registers cs
             monitor reset
             shell sleep 1
             maintenance flush register-cache
             info registers rip
             detach
             shell sleep 1",
        )
    });
    let said = &outcome.session;
    said.assert(&[
        "received signal SIGINT",
        "cs             0x23",
        "<pvh_entry>",
    ]);
    // The reset may have cut a line short, so the second first tick may stand behind another.
    let text = outcome.console.replace('\r', "");
    assert_eq!(text.matches("tick 1\n").count(), 2, "{outcome:?}");
}
