#!/bin/busybox sh
# The first process of the lab: lays the machine it was started on, read-only, under a layer in memory,
# and hands over to the agent.

B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
exec 0</dev/console 1>/dev/console 2>&1

insert() {
    while read -r module; do
        $B insmod /modules/$module.ko 2>/dev/null || echo "nyx-lab: cannot insert $module"
    done <"$1"
}
insert /modules/order
# Emulated processors are slow: the second one inserts the rest while this one mounts.
insert /modules/later &

fail() {
    echo "nyx-lab: $*"
    $B poweroff -f
}
$B mkdir -p /lower /upper /newroot
$B mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /lower || fail "cannot mount the host"
$B mount -t tmpfs -o size=75%,mode=755 upper /upper || fail "cannot mount memory"
$B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /newroot || fail "cannot layer"

cd /newroot
$B mkdir -p dev proc sys run
for place in dev proc sys; do
    $B mount --move /$place /newroot/$place
done
# What runs on the host is not what runs here.
$B mount -t tmpfs -o mode=755 run /newroot/run
$B mkdir -p run/lock run/nyx-lab dev/pts dev/shm dev/hugepages dev/mqueue
$B cp /bin/busybox /agent.sh run/nyx-lab/
$B cp /modules-folder /release run/nyx-lab/
# switch_root empties the initramfs, where the modules are.
wait
exec $B switch_root /newroot /run/nyx-lab/busybox sh /run/nyx-lab/agent.sh
