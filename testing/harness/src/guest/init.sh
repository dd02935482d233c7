#!/bin/busybox sh
# The first process of a generic guest: inserts modules, finds the root file system, hands over.

B=/bin/busybox
export PATH=/bin:/sbin
$B mkdir -p /sbin /usr/bin /usr/sbin
$B --install -s /bin
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
# The kernel opened /dev/console before devtmpfs covered it; the device is the same one.
exec 0</dev/console 1>/dev/console 2>&1

while read -r module; do
    insmod /modules/$module.ko 2>/dev/null || echo "nyx-guest: cannot insert $module"
done </modules/order

option() {
    # The last one given counts, as with the kernel's own options.
    value=
    for word in $(cat /proc/cmdline); do
        case $word in
            "$1="*) value=${word#*=} ;;
        esac
    done
    echo "$value"
}
flag() {
    for word in $(cat /proc/cmdline); do
        [ "$word" = "$1" ] && return 0
    done
    return 1
}

# The bytes of a disk as lower-case hexadecimal: device, offset, count.
hex() {
    hexdump -v -s "$2" -n "$3" -e '1/1 "%02x"' "$1"
}
# A little-endian number of four bytes: device, offset.
number() {
    set -- $(hexdump -v -s "$2" -n 4 -e '1/1 "%02x "' "$1")
    echo $((0x$4$3$2$1))
}
# The PARTUUID of a partition: disk device, partition number.
partuuid() {
    block=$(cat "/sys/class/block/${1#/dev/}/queue/logical_block_size")
    if [ "$(hex "$1" "$block" 8)" = 4546492050415254 ]; then
        # GPT (UEFI 2.10, section 5.3): first entry block at 72, entry size at 84, unique GUID at 16 in the entry.
        entries=$(number "$1" $((block + 72)))
        size=$(number "$1" $((block + 84)))
        digits=$(hex "$1" $((entries * block + ($2 - 1) * size + 16)) 16)
        a=${digits%????????????????????????}
        rest=${digits#????????}
        b=${rest%????????????????????}
        rest=${rest#????}
        c=${rest%????????????????}
        rest=${rest#????}
        d=${rest%????????????}
        e=${rest#????}
        echo "$(swap "$a")-$(swap "$b")-$(swap "$c")-$d-$e"
    else
        # MBR: the disk signature at 440, then the partition number.
        printf '%08x-%02x\n' "$(number "$1" 440)" "$2"
    fi
}
# The four-or-two bytes of a GUID's first parts are little-endian (UEFI 2.10, appendix A).
swap() {
    echo "$1" | sed 's/\(..\)/\1 /g' | {
        read -r w x y z
        echo "$z$y$x$w"
    }
}
find_root() {
    case $1 in
        PARTUUID=*)
            wanted=$(echo "${1#PARTUUID=}" | tr A-F a-f)
            for entry in /sys/class/block/*/partition; do
                [ -e "$entry" ] || continue
                partition=${entry%/partition}
                disk=$(basename "$(dirname "$(readlink -f "$partition")")")
                if [ "$(partuuid "/dev/$disk" "$(cat "$entry")")" = "$wanted" ]; then
                    echo "/dev/$(basename "$partition")"
                    return 0
                fi
            done
            return 1
            ;;
        LABEL=* | UUID=*) findfs "$1" 2>/dev/null ;;
        *) [ -b "$1" ] && echo "$1" ;;
    esac
}

root=$(option root)
if [ -n "$root" ]; then
    tries=100
    flag rootwait && tries=600
    while ! device=$(find_root "$root"); do
        tries=$((tries - 1))
        if [ $tries -le 0 ]; then
            echo "nyx-guest: found no root file system $root; block devices: $(echo $(ls /sys/class/block))"
            [ "$(option nyx.demo)" = check ] && poweroff -f
            exec setsid cttyhack sh
        fi
        usleep 100000
    done
    mode=ro
    flag rw && mode=rw
    flags=$(option rootflags)
    type=$(option rootfstype)
    if ! mount ${type:+-t "$type"} -o "$mode${flags:+,$flags}" "$device" /newroot; then
        echo "nyx-guest: cannot mount $device as root"
        [ "$(option nyx.demo)" = check ] && poweroff -f
        exec setsid cttyhack sh
    fi
    echo "nyx-guest: root is $root${device:+ ($device)}, $mode, after $(cut -d' ' -f1 /proc/uptime) s"
    init=$(option init)
    for place in dev sys proc; do
        mount --move /$place /newroot/$place
    done
    exec switch_root /newroot "${init:-/sbin/init}"
fi

if [ -x /check ]; then
    sh /check
    echo "nyx-check: exit $?"
    sync
    poweroff -f
fi
echo "nyx-guest: no root= given; this is a shell of busybox, and poweroff -f ends the machine"
setsid cttyhack sh
poweroff -f
