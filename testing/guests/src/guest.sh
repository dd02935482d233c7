# What the guest's half finds around it. Run as /check by the first process of the generic initramfs; a test
# that wants Debian's programs runs again inside the read-only disk with the serial number "debian".
option() {
    value=
    for word in $(cat /proc/cmdline); do
        case $word in "$1="*) value=${word#*=} ;; esac
    done
    echo "$value"
}
# The device of the disk with a serial number.
disk() {
    for block in /sys/block/vd*; do
        [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${block##*/}" && return
    done
    return 1
}
# Tells the host's half, which waits for it with `await`.
say() { echo "said: $*"; }
# Counts the processors that the kernel lists.
cpus() { grep -c '^processor' /proc/cpuinfo; }
memory_mib() { echo $(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024)); }
between() { [ "$2" -ge "$1" ] && [ "$2" -le "$3" ] || { echo "$2 is not within $1 and $3"; false; }; }
# What the kernel has to complain about, if anything, except the processor itself: its bugs it has of the host.
complaints() {
    dmesg | grep -Ei 'ACPI (BIOS )?(Error|Warning)|ACPI: .*(error|warning|invalid)|firmware bug|BUG:|WARNING:|call trace' |
        grep -v 'WARNING: See https://kernel.org/doc/'
}
sum() { sha256sum | cut -d' ' -f1; }

name=$(option nyx.test)
if [ "$(option nyx.system)" = debian ] && [ "$1" != inside ]; then
    mount -t ext4 -o ro,noload "$(disk debian)" /newroot || exit 1
    mount -t tmpfs tmp /newroot/tmp
    mount -t tmpfs run /newroot/run
    for place in dev proc sys; do
        mount --bind /$place /newroot/$place
    done
    cp /check /newroot/tmp/check
    # PATH is the initramfs's own otherwise.
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin
    exec chroot /newroot /bin/sh /tmp/check inside
fi
