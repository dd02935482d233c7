//! How machines end, and what they leave behind.

use nyx_guest_tests::GuestTest;

pub(crate) const ALL: &[&GuestTest] = &[&PANIC, &KILLED, &TRIPLE_FAULT];

/// A kernel that panics says so, and Nyx passes it on with the last words.
const PANIC: GuestTest = GuestTest {
    name: "panic",
    options: "--cpus 1 --memory 256M",
    guest: r#"
        say "about to panic"
        echo c >/proc/sysrq-trigger
        sleep 60
    "#,
    after: r#"
        holds "nyx says what happened" grep -q "nyx: the guest panicked" $D/errors
        holds "with the console's last lines" grep -q "nyx: .*Kernel panic - not syncing: sysrq triggered crash" $D/errors
    "#,
    exit: 3,
    ..GuestTest::NOTHING
};

/// Killed, it leaves no helper and no lock; told to stop, it stops in order.
const KILLED: GuestTest = GuestTest {
    name: "killed",
    options: "--cpus 1 --memory 256M --disk $D/data,serial=data --net user --vsock cid=7,socket=$D/vsock \
        --console stdio --console file,path=$D/hvc,device=virtio",
    guest: r#"
        say "up"
        sleep 100
    "#,
    before: r#"
        truncate -s 16M $D/data
    "#,
    beside: r#"
        holds "first came up" await "said: up"
        expect "first had a helper" slirp4netns "$(running slirp4netns)"
        # Its disk is locked: another machine must not have it.
        (export NYX_RUNTIME_DIR=$D/other; boot) </dev/null >$D/second 2>&1 &
        wait $!
        expect "second was refused" 1 $?
        holds "second was told why" grep -qi "lock\|in use" $D/second
        # Nor may it have its name.
        boot </dev/null >$D/second 2>&1 &
        wait $!
        expect "its name is taken" 1 $?
        holds "and that is said" grep -q "a machine called .killed. runs already" $D/second
        kill -9 $nyx
        finish
        expect "killed" 137 $code
        no_helper() { [ -z "$(running slirp4netns)" ]; }
        holds "no helper survives a kill" until_true no_helper
        mv $D/console $D/console1
        start
        holds "boots again from the same disk" await "said: up"
        kill -TERM $nyx
    "#,
    after: r#"
        holds "nyx says that it was stopped" grep -q "nyx: stopped" $D/errors
        expect "no helper is left" "" "$(running slirp4netns)"
        holds "socket is gone" test ! -e $D/vsock
    "#,
    exit: 6,
    ..GuestTest::NOTHING
};

/// A processor that gives up is neither a reset nor a panic.
const TRIPLE_FAULT: GuestTest = GuestTest {
    name: "triple_fault",
    options: "--cpus 1 --memory 256M",
    cmdline: "root= reboot=triple",
    guest: r#"
        say "about to give up"
        reboot -f
    "#,
    after: r#"
        holds "nyx says what happened" grep -q "nyx: .*triple fault" $D/errors
    "#,
    exit: 4,
    ..GuestTest::NOTHING
};
