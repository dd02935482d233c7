//! Devices that come to a running guest and leave it, as a stock kernel's ACPI hot-plug driver takes it.

use nyx_guest_tests::GuestTest;

pub(crate) const ALL: &[&GuestTest] = &[&HOTPLUG, &SURPRISE];

/// Disks and networks come, carry data, and go, several times; one stays over a reboot; what was there at
/// the start leaves too.
const HOTPLUG: GuestTest = GuestTest {
    name: "hotplug",
    options: "--cpus 2 --memory 384M --disk $D/boot,serial=boot,name=boot --net user,name=first",
    cmdline: "root= nyx.sum=$SUM",
    before: r#"
        export NYX_RUNTIME_DIR=$D/runtime
        truncate -s 64M $D/boot
        mke2fs -q -F -t ext4 $D/boot
        dd if=/dev/urandom of=$D/bytes bs=1M count=4 2>/dev/null
        SUM=$(sum <$D/bytes)
        for disk in one stays; do
            truncate -s 48M $D/$disk
            mke2fs -q -F -t ext4 $D/$disk
            debugfs -w -R "write $D/bytes bytes" $D/$disk 2>/dev/null
        done
    "#,
    guest: r#"
        until_true() {
            tries=0
            until "$@"; do
                tries=$((tries + 1))
                [ $tries -gt 300 ] && return 1
                sleep 0.1
            done
        }
        arrives() { until_true disk "$1"; }
        leaves() { until_true gone "$1"; }
        gone() { ! disk "$1"; }
        net_arrives() { until_true test -e /sys/class/net/$1; }
        net_leaves() { until_true test ! -e /sys/class/net/$1; }
        slots() { echo $(cat /sys/bus/pci/slots/*/adapter 2>/dev/null | sort -n | tr '\n' ' '); }
        mount -t ext4 "$(disk boot)" /newroot
        if [ ! -e /newroot/rebooted ]; then
            # Every slot but the host bridge's.
            expect "hot-plug slots" 31 "$(ls /sys/bus/pci/slots | wc -l)"
            for round in 1 2 3; do
                say "ready $round"
                holds "the disk arrives" arrives one
                mkdir -p /tmp/one
                mount -t ext4 "$(disk one)" /tmp/one
                expect "its content" "$(option nyx.sum)" "$(sum </tmp/one/bytes)"
                dd if=/dev/urandom of=/tmp/one/new bs=1M count=4 2>/dev/null
                say "sum $round $(sum </tmp/one/new)"
                umount /tmp/one
                holds "the network arrives" net_arrives eth1
                ip link set eth1 up
                ip addr add 10.9.7.2/24 dev eth1
                holds "the host answers" ping -c 2 -W 5 10.9.7.1
                say "used $round"
                holds "the disk leaves" leaves one
                holds "the network leaves" net_leaves eth1
            done
            say "paused"
            holds "a disk that came during a pause arrives" arrives stays
            touch /newroot/rebooted
            umount /newroot
            reboot -f
        fi
        expect "what came stays over a reboot" "$(option nyx.sum)" "$(mkdir -p /tmp/stays && mount -t ext4 "$(disk stays)" /tmp/stays && sum </tmp/stays/bytes)"
        umount /tmp/stays /newroot
        say "again"
        holds "what came leaves after a reboot" leaves stays
        holds "the disk of the start leaves" leaves boot
        holds "the network of the start leaves" net_leaves eth0
        expect "no complaints of the kernel" "" "$(complaints)"
        say "end"
    "#,
    beside: r#"
        socket=$D/runtime/hotplug/api.sock
        # Method, path behind the machine, body: what becomes of it.
        api() {
            curl -sS --max-time 60 --unix-socket $socket -X "$1" -H 'Content-Type: application/json' \
                ${3:+-d "$3"} "http://nyx/v1/machine/$2?wait=40" >$D/answer
            sed -n 's/.*"state":"\([a-z]*\)".*/\1/p;s/.*"code":"\([a-z-]*\)".*/\1/p' $D/answer | head -n 1
        }
        disk() { echo "{\"path\":\"$D/$1\",\"name\":\"$1\",\"serial\":\"$1\"}"; }
        network='{"kind":"tap","tap":"nyxplug","address":"10.9.7.1/24","name":"late"}'
        for round in 1 2 3; do
            await "said: ready $round"
            expect "a disk is added" done "$(api POST disks "$(disk one)")"
            expect "a name is used once" invalid "$(api POST disks "$(disk one)")"
            await "said: sum $round"
            expect "a network is added" done "$(api POST nets "$network")"
            await "said: used $round"
            expect "the guest lets go of the disk" done "$(api DELETE disks/one)"
            expect "the guest lets go of the network" done "$(api DELETE nets/late)"
            holds "its interface is gone" test ! -e /sys/class/net/nyxplug
            wanted=$(sed -n "s/^said: sum $round \([0-9a-f]*\).*/\1/p" $D/console)
            # The lock is open: another program may write.
            debugfs -R "cat new" $D/one 2>/dev/null >$D/new
            expect "what the guest wrote is in the file" "$wanted" "$(sum <$D/new)"
            holds "its file system is clean" e2fsck -fn $D/one
        done
        await "said: paused"
        expect "a pause" done "$(api POST pause)"
        expect "a disk is added during a pause" done "$(api POST disks "$(disk stays)")"
        expect "the pause ends" done "$(api POST resume)"
        await "said: again"
        expect "no such disk" not-found "$(api DELETE disks/one)"
        expect "no disk in that file" failed "$(api POST disks "$(disk missing)")"
        expect "what was added leaves" done "$(api DELETE disks/stays)"
        expect "what was there leaves" done "$(api DELETE disks/boot)"
        expect "its network leaves" done "$(api DELETE nets/first)"
        await "said: end"
        expect "no network helper is left" "" "$(running slirp4netns)"
    "#,
    ..GuestTest::NOTHING
};

/// A disk is pulled while the guest has it mounted and writes to it, and another comes to the same slot.
const SURPRISE: GuestTest = GuestTest {
    name: "surprise",
    options: "--cpus 2 --memory 256M --disk $D/boot,serial=boot,name=boot",
    // The kernel has much to say about the disk, in the middle of lines.
    cmdline: "root= loglevel=1",
    before: r#"
        export NYX_RUNTIME_DIR=$D/runtime
        truncate -s 64M $D/boot $D/other
        mke2fs -q -F -t ext4 $D/boot
        dd if=/dev/urandom of=$D/bytes bs=1M count=8 2>/dev/null
        debugfs -w -R "write $D/bytes bytes" $D/boot 2>/dev/null
    "#,
    guest: r#"
        until_true() {
            tries=0
            until "$@"; do
                tries=$((tries + 1))
                [ $tries -gt 300 ] && return 1
                sleep 0.1
            done
        }
        gone() { ! disk "$1"; }
        mount -t ext4 "$(disk boot)" /newroot
        exec 3</newroot/bytes
        say "open"
        holds "the disk is gone" until_true gone boot
        holds "what was open fails" sh -c '! dd bs=1M count=8 iflag=direct of=/dev/null <&3'
        exec 3<&-
        umount -l /newroot
        say "gone"
        holds "another one arrives" until_true disk other
        expect "its content" "$(dd if=/dev/zero bs=1M count=64 2>/dev/null | sum)" "$(dd if="$(disk other)" bs=1M 2>/dev/null | sum)"
        expect "no complaints of the kernel" "" "$(complaints)"
    "#,
    beside: r#"
        socket=$D/runtime/surprise/api.sock
        state() { sed -n 's/.*"state":"\([a-z]*\)".*/\1/p'; }
        await "said: open"
        pulled=$(curl -sS --max-time 60 --unix-socket $socket -X DELETE "http://nyx/v1/machine/disks/boot?force=true&wait=30" | state)
        expect "pulled" done "$pulled"
        await "said: gone"
        body="{\"path\":\"$D/other\",\"serial\":\"other\"}"
        added=$(curl -sS --max-time 60 --unix-socket $socket -H 'Content-Type: application/json' -d "$body" "http://nyx/v1/machine/disks?wait=30" | state)
        expect "plugged" done "$added"
    "#,
    ..GuestTest::NOTHING
};
