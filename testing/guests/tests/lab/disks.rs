//! Disks: what is written stays, across the guest's reboot and in the host's file; roots that Nyx finds.

use nyx_guest_tests::{GuestTest, Image};
use nyx_harness::guests::Flavour;

pub(crate) const ALL: &[&GuestTest] = &[&REBOOT, &REBOOT_MMIO, &SEVERAL, &PARTITION, &WHOLE, &FULL];

/// Written, flushed, and there after reboots in the same process; every other device works again too.
const REBOOT: GuestTest = GuestTest {
    name: "reboot",
    options: "--cpus 2 --memory 256M --disk $D/data,serial=data,engine=io_uring --net user \
        --vsock cid=9,socket=$D/vsock --console stdio --console file,path=$D/hvc,device=virtio",
    before: MAKE_DATA,
    guest: r#"
        mount -t ext4 "$(disk data)" /newroot
        ip link set eth0 up
        ip addr add 10.0.2.15/24 dev eth0
        boots=$(($(cat /newroot/boots 2>/dev/null || echo 0) + 1))
        echo $boots >/newroot/boots
        say "boot $boots"
        expect "cpus" 2 "$(nproc)"
        holds "gateway answers" ping -c 2 -W 5 10.0.2.2
        expect "entropy amount" 4096 "$(dd if=/dev/hwrng bs=512 count=8 2>/dev/null | wc -c)"
        echo "hello from boot $boots" >/dev/hvc0
        case $boots in
            1)
                dd if=/dev/urandom of=/newroot/bytes bs=1M count=8 2>/dev/null
                sum </newroot/bytes >/newroot/sum
                ;;
            3)
                expect "what was written is there after the reboots" "$(cat /newroot/sum)" "$(sum </newroot/bytes)"
                expect "no complaints of the kernel" "" "$(complaints)"
                ;;
        esac
        sync
        umount /newroot
        [ $boots = 3 ] || reboot -f
    "#,
    after: r#"
        expect "booted three times" "boot 1 boot 2 boot 3" "$(echo $(grep -ao 'boot [0-9]$\|boot [0-9].$' $D/console | tr -d '\r'))"
        expect "virtio console thrice" "hello from boot 1 hello from boot 2 hello from boot 3" "$(echo $(tr -d '\r' <$D/hvc))"
        holds "nyx tells of the resets" grep -q "nyx: reset 2" $D/errors
        holds "file system is clean" e2fsck -fn $D/data
    "#,
    ..GuestTest::NOTHING
};

/// A small file system for the guest to write to.
const MAKE_DATA: &str = r#"
    truncate -s 64M $D/data
    mke2fs -q -F -t ext4 $D/data
"#;

/// The same without PCI, reset by the keyboard controller.
const REBOOT_MMIO: GuestTest = GuestTest {
    name: "reboot_mmio",
    options: "--cpus 1 --memory 256M --no-pci --disk $D/data,serial=data,engine=threads",
    cmdline: "root= reboot=kbd",
    before: MAKE_DATA,
    guest: r#"
        mount -t ext4 "$(disk data)" /newroot
        if [ ! -e /newroot/sum ]; then
            dd if=/dev/urandom of=/newroot/bytes bs=1M count=8 2>/dev/null
            sum </newroot/bytes >/newroot/sum
            sync
            umount /newroot
            reboot -f
        fi
        expect "what was written is there after the reboot" "$(cat /newroot/sum)" "$(sum </newroot/bytes)"
        umount /newroot
    "#,
    after: r#"
        holds "nyx tells of the reset" grep -q "nyx: reset 1" $D/errors
        holds "file system is clean" e2fsck -fn $D/data
    "#,
    ..GuestTest::NOTHING
};

/// Several disks: read-only, large blocks past the page cache, many queues, discard.
const SEVERAL: GuestTest = GuestTest {
    name: "several",
    flavour: Flavour::Full,
    options: "--cpus 2 --memory 384M --disk $DEBIAN,readonly,serial=debian \
        --disk $D/data,serial=DATA-0123456789,queues=2 \
        --disk $D/direct/data,serial=large,direct,block-size=4096,engine=threads,queues=1 \
        --disk $D/small/data,serial=full,on_enospc=report",
    cmdline: "root= nyx.system=debian",
    before: r#"
        truncate -s 256M $D/data
        mke2fs -q -F -t ext4 -E nodiscard $D/data
        truncate -s 128M $D/below
        mke2fs -q -F -t ext4 $D/below
        mkdir -p $D/direct
        mount -o loop $D/below $D/direct
        truncate -s 64M $D/direct/data
        mkdir -p $D/small
        mount -t tmpfs -o size=4m small $D/small
        truncate -s 64M $D/small/data
    "#,
    guest: r#"
        expect "four disks" "vda vdb vdc vdd" "$(echo $(ls /sys/block | grep vd))"
        expect "serial number" DATA-0123456789 "$(cat /sys/block/vdb/serial)"
        expect "read-only is said" 1 "$(cat /sys/block/vda/ro)"
        holds "read-only refuses writes" sh -c '! dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync,notrunc 2>&1'
        expect "size" 524288 "$(cat /sys/block/vdb/size)"
        expect "queues" "2 1" "$(ls -d /sys/block/vdb/mq/* | wc -l) $(ls -d /sys/block/vdc/mq/* | wc -l)"
        expect "block sizes" "512 4096" "$(cat /sys/block/vdb/queue/logical_block_size) $(cat /sys/block/vdc/queue/logical_block_size)"
        holds "discard is offered" test "$(cat /sys/block/vdb/queue/discard_max_bytes)" -gt 0
        expect "cache is written back" "write back" "$(cat /sys/block/vdb/queue/write_cache)"
        mkdir /tmp/data
        mount -t ext4 /dev/vdb /tmp/data
        dd if=/dev/urandom of=/tmp/data/ballast bs=1M count=96 conv=fsync 2>/dev/null
        dd if=/dev/urandom of=/tmp/data/kept bs=1M count=8 conv=fsync 2>/dev/null
        kept=$(sha256sum </tmp/data/kept)
        say "ballast is on the disk"
        # The host looks at the image, then lets us go on.
        sleep 2
        rm /tmp/data/ballast
        sync
        holds "fstrim" fstrim -v /tmp/data
        echo 3 >/proc/sys/vm/drop_caches
        expect "trimming keeps the rest" "$kept" "$(sha256sum </tmp/data/kept)"
        umount /tmp/data
        mke2fs -q -F -t ext4 /dev/vdc
        mount -t ext4 /dev/vdc /tmp/data
        dd if=/dev/urandom of=/tmp/data/bytes bs=1M count=16 conv=fsync 2>/dev/null
        bytes=$(sha256sum </tmp/data/bytes)
        # Many at a time, from both processors.
        for n in 1 2 3 4 5 6 7 8; do
            cp /tmp/data/bytes /tmp/data/copy$n 2>/dev/null &
            [ $n = 2 ] && wait
        done
        wait
        umount /tmp/data
        echo 3 >/proc/sys/vm/drop_caches
        mount -t ext4 -o ro /dev/vdc /tmp/data
        expect "large blocks past the page cache" "$bytes" "$(sha256sum </tmp/data/copy2)"
        umount /tmp/data
        # The host has no room for these: an error here, and nothing else.
        holds "a full host is an error of the disk" sh -c '! dd if=/dev/urandom of=/dev/vdd bs=1M count=16 conv=fsync 2>&1'
        echo 3 >/proc/sys/vm/drop_caches
        expect "a disk with errors can still be read" 1048576 "$(dd if=/dev/vdd bs=1M skip=60 count=1 2>/dev/null | wc -c)"
        expect "no complaints of the kernel" "" "$(complaints)"
    "#,
    beside: r#"
        await "said: ballast"
        before=$(stat -c %b $D/data)
    "#,
    after: r#"
        freed=$(((before - $(stat -c %b $D/data)) / 2048))
        holds "discarded blocks are given back" test $freed -ge 90
        holds "trimmed file system is clean" e2fsck -fn $D/data
        holds "file system of large blocks is clean" e2fsck -fn $D/direct/data
        holds "read-only image is untouched" e2fsck -fn $DEBIAN
        umount $D/direct $D/small
    "#,
    ..GuestTest::NOTHING
};

/// A GPT disk: Nyx finds the partition and says which by PARTUUID; Debian boots from it.
const PARTITION: GuestTest = GuestTest {
    name: "partition",
    image: Image::BzImage,
    options: "--cpus 2 --memory 512M --disk $D/disk --net user",
    cmdline: "nyx.demo=check nyx.cpus=2 nyx.memory=512",
    before: r#"
        cp --sparse=always $DEBIAN_GPT $D/disk
    "#,
    after: r#"
        holds "root by partition" grep -q "root is PARTUUID=.*/dev/vda1.*, rw" $D/console
        holds "debian checks itself" grep -q "nyx-demo: self-check passed" $D/console
        dd if=$D/disk of=$D/partition bs=1M skip=1 count=768 conv=sparse 2>/dev/null
        holds "file system is clean" e2fsck -fn $D/partition
    "#,
    ..GuestTest::NOTHING
};

/// A full host pauses the machine, and nothing is lost once there is room.
const FULL: GuestTest = GuestTest {
    name: "full",
    options: "--cpus 2 --memory 256M --disk $D/small/data,serial=full",
    before: r#"
        mkdir -p $D/small
        mount -t tmpfs -o size=4m small $D/small
        truncate -s 64M $D/small/data
    "#,
    guest: r#"
        dd if=/dev/urandom of=/tmp/bytes bs=1M count=16 2>/dev/null
        # A processor that is stuck for twice as long is complained of: the pause must not look like that.
        echo 2 >/proc/sys/kernel/watchdog_thresh
        say "writing"
        holds "the write works in the end" dd if=/tmp/bytes of=/dev/vda bs=1M conv=fsync
        echo 3 >/proc/sys/vm/drop_caches
        expect "nothing is lost" "$(sha256sum </tmp/bytes)" "$(dd if=/dev/vda bs=1M count=16 2>/dev/null | sha256sum)"
        expect "no complaints of the kernel" "" "$(complaints)"
    "#,
    beside: r#"
        await "said: writing"
        is_paused() { $NYX describe full -o json | grep -q '"phase": *"paused"'; }
        holds "the machine is paused" until_true is_paused
        sleep 8
        holds "nyx says why" grep -q "has no room on the host; the machine is paused" $D/errors
        # Still no room: paused again, and nothing is lost.
        $NYX resume full >/dev/null
        holds "it is paused again" until_true is_paused
        mount -o remount,size=64m $D/small
        holds "resumed" $NYX resume full
    "#,
    after: r#"
        umount $D/small
    "#,
    ..GuestTest::NOTHING
};

/// A disk that is one file system, read-only: Nyx says so to the kernel.
const WHOLE: GuestTest = GuestTest {
    name: "whole",
    options: "--cpus 1 --memory 256M --disk $DEBIAN,readonly",
    // One of Debian's own programs as the first process; it ends the machine.
    cmdline: "init=/usr/local/sbin/poweroff",
    after: r#"
        holds "root is the whole disk" grep -q "root is /dev/vda (/dev/vda), ro" $D/console
        holds "image is untouched" e2fsck -fn $DEBIAN
    "#,
    ..GuestTest::NOTHING
};
