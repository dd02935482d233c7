//! Processors, memory, chipset and tables, over both transports and both forms of a kernel.

use nyx_guest_tests::{GuestTest, Image};
use nyx_harness::guests::Flavour;

pub(crate) const ALL: &[&GuestTest] = &[&PLATFORM, &LARGE, &MMIO, &LOOKED_INTO];

/// The stock kernel for everything finds nothing to complain about.
const PLATFORM: GuestTest = GuestTest {
    name: "platform",
    flavour: Flavour::Full,
    image: Image::BzImage,
    options: "--cpus 2 --memory 768M --disk $DEBIAN,readonly,serial=debian \
        --console stdio --console file,path=$D/hvc,device=virtio",
    guest: r#"
        expect "two cpus listed" 2 "$(cpus)"
        expect "two cpus online" 2 "$(nproc)"
        holds "memory as configured" between 690 "$(memory_mib)" 768
        expect "no complaints of the kernel" "" "$(complaints)"
        expect "clock source" kvm-clock "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
        holds "smbios names nyx" sh -c 'dmesg | grep -q "DMI: .*Nyx"'
        expect "smbios product" Nyx "$(cat /sys/class/dmi/id/sys_vendor)"
        holds "clock chip" test -c /dev/rtc0
        clock=$(cat /sys/class/rtc/rtc0/since_epoch)
        holds "clock chip and system agree" between $(($(date +%s) - 5)) "$clock" $(($(date +%s) + 5))
        holds "clock chip read by hwclock" hwclock -r -u -f /dev/rtc0
        holds "interrupts by message" grep -q 'PCI-MSI.*virtio' /proc/interrupts
        expect "no interrupt lost or spurious" "0 0" "$(awk '/^(ERR|MIS):/ { printf "%s%s", s, $2; s = " " }' /proc/interrupts)"
        holds "virtio on pci" sh -c 'readlink -f /sys/bus/virtio/devices/virtio0 | grep -q /pci0000:00/'
        holds "power button" sh -c 'grep -q "Power Button" /proc/bus/input/devices'
        holds "pvpanic bound" sh -c 'ls -d /sys/bus/acpi/devices/QEMU0001:00 && lsmod | grep -q pvpanic_mmio'
        expect "entropy source" virtio_rng.0 "$(cat /sys/class/misc/hw_random/rng_current)"
        dd if=/dev/hwrng of=/tmp/random1 bs=512 count=8 2>/dev/null
        dd if=/dev/hwrng of=/tmp/random2 bs=512 count=8 2>/dev/null
        expect "entropy amount" 4096 "$(stat -c %s /tmp/random1)"
        holds "entropy differs" sh -c '! cmp -s /tmp/random1 /tmp/random2'
        holds "entropy is none of zeros" sh -c 'test $(gzip -c /tmp/random1 | wc -c) -gt 4000'
        holds "virtio console written" sh -c 'echo "hello from hvc0" >/dev/hvc0'
        holds "serial port" sh -c 'grep -q "^0: uart:16550A" /proc/tty/driver/serial'
        holds "keyboard controller" sh -c 'ls /sys/bus/serio/devices | grep -q serio'
        holds "ecam in use" sh -c 'dmesg | grep -q "MMCONFIG\|ECAM"'
        lspci 2>/dev/null
        cat /proc/interrupts
    "#,
    after: r#"
        holds "virtio console arrived" grep -q "hello from hvc0" $D/hvc
    "#,
    ..GuestTest::NOTHING
};

/// Four processors, and memory on both sides of the hole below 4 GiB.
const LARGE: GuestTest = GuestTest {
    name: "large",
    image: Image::BzImage,
    options: "--cpus 4 --memory 4608M --disk $DEBIAN,readonly,serial=debian",
    guest: r#"
        expect "four cpus listed" 4 "$(cpus)"
        expect "four cpus online" 0-3 "$(cat /sys/devices/system/cpu/online)"
        holds "memory as configured" between 4400 "$(memory_mib)" 4608
        holds "memory above 4 GiB" grep -Eiq '^ *1[0-9a-f]{8}-[0-9a-f]+ : System RAM' /proc/iomem
        mount -t tmpfs -o size=2g tmpfs /tmp
        dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>/dev/null
        cp /tmp/a /tmp/b
        expect "memory keeps what it is given" "$(sum </tmp/a)" "$(sum </tmp/b)"
        for cpu in 0 1 2 3; do
            (echo 0 >/dev/null; taskset $((1 << cpu)) sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; echo done') >/tmp/cpu$cpu &
        done
        wait
        expect "every cpu works" "done done done done" "$(echo $(cat /tmp/cpu?))"
        expect "no complaints of the kernel" "" "$(complaints)"
        expect "one disk queue for each cpu" 4 "$(ls -d /sys/block/vda/mq/* | wc -l)"
    "#,
    ..GuestTest::NOTHING
};

/// One processor, and devices behind memory-mapped windows.
const MMIO: GuestTest = GuestTest {
    name: "mmio",
    options: "--cpus 1 --memory 256M --no-pci --disk $DEBIAN,readonly,serial=debian --net user \
        --console stdio --console file,path=$D/hvc,device=virtio",
    guest: r#"
        expect "one cpu" "1 1" "$(cpus) $(nproc)"
        holds "memory as configured" between 200 "$(memory_mib)" 256
        expect "no pci" 0 "$(ls /sys/bus/pci/devices 2>/dev/null | wc -l)"
        holds "virtio without pci" sh -c 'readlink -f /sys/bus/virtio/devices/virtio0 | grep -q LNRO0005'
        expect "no complaints of the kernel" "" "$(complaints)"
        expect "disk found" /dev/vda "$(disk debian)"
        expect "disk content" "$(option nyx.sum)" "$(dd if=/dev/vda bs=1M count=16 2>/dev/null | sum)"
        dd if=/dev/hwrng of=/tmp/random bs=512 count=8 2>/dev/null
        expect "entropy amount" 4096 "$(stat -c %s /tmp/random)"
        holds "virtio console written" sh -c 'echo "hello from hvc0" >/dev/hvc0'
        ip link set eth0 up
        ip addr add 10.0.2.15/24 dev eth0
        holds "gateway answers" ping -c 2 -W 5 10.0.2.2
        cat /proc/interrupts
    "#,
    cmdline: "root= nyx.sum=$SUM",
    before: r#"
        SUM=$(dd if=$DEBIAN bs=1M count=16 2>/dev/null | sum)
    "#,
    after: r#"
        holds "virtio console arrived" grep -q "hello from hvc0" $D/hvc
    "#,
    ..GuestTest::NOTHING
};

/// A kernel that was moved (KASLR) is looked into from outside: stacks by its own symbols, and a debugger.
const LOOKED_INTO: GuestTest = GuestTest {
    name: "looked_into",
    image: Image::BzImage,
    options: "--cpus 2 --memory 256M --trace",
    guest: r#"
        say "up"
        sleep 600
    "#,
    beside: r#"
        holds "the guest came up" await "said: up"
        $NYX stack looked_into >$D/stacks 2>$D/complaints
        holds "idle processors are seen to idle" grep -qE "do_idle|cpu_startup_entry|default_idle" $D/stacks
        holds "stacks begin where the kernel did" grep -qE "secondary_startup_64|start_kernel|rest_init" $D/stacks
        holds "a debugger may connect" $NYX debug looked_into --gdb 127.0.0.1:7777
        gdb -nx -batch -ex "target remote 127.0.0.1:7777" -ex "info threads" -ex "info registers rip cr3" -ex detach >$D/gdb 2>&1
        expect "a thread for each vCPU" 2 "$(grep -c 'vCPU [01]' $D/gdb)"
        holds "and its control registers" grep -q "^cr3" $D/gdb
        holds "spans of the boot were kept" sh -c "$NYX trace looked_into -O - | grep -q '\"name\":\"assemble\"'"
        holds "the guest goes on" sh -c "$NYX describe looked_into | grep -q 'Phase *running'"
        $NYX stop looked_into --timeout 0 >/dev/null
    "#,
    exit: 6,
    ..GuestTest::NOTHING
};
