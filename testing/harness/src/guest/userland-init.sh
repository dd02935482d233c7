#!/bin/sh
# The first process of the demo's Debian guest: mounts, network, self-check, then a login on the console or,
# with nyx.demo=check on the kernel's command line, power-off.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=vt100
mounted() { [ "$(stat -c %d "$1")" != "$(stat -c %d "$1/..")" ]; }
mounted /proc || mount -t proc proc /proc
mounted /sys || mount -t sysfs sys /sys
mounted /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,gid=5 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /run/lock
exec </dev/console >/dev/console 2>&1
mount -o remount,rw / || echo "nyx-demo: the root file system stays read-only"
hostname nyx-guest
echo "nyx-demo: userland reached after $(cut -d' ' -f1 /proc/uptime) s"

option() {
    value=
    for word in $(cat /proc/cmdline); do
        case $word in "$1="*) value=${word#*=} ;; esac
    done
    echo "$value"
}

# The network. nyx.ip=dhcp, nyx.ip=none or nyx.ip=ADDRESS/BITS,GATEWAY; by default DHCP, and the address that
# user-mode networks expect when nobody answers.
ip link set lo up
network() {
    interface=$(ls /sys/class/net | grep -v '^lo$' | head -n 1)
    [ -n "$interface" ] || return
    wanted=$(option nyx.ip)
    [ "$wanted" = none ] && return
    ip link set "$interface" up
    case $wanted in
        */*)
            ip addr add "${wanted%,*}" dev "$interface"
            ip route add default via "${wanted#*,}"
            return
            ;;
    esac
    cat >/run/lease <<'SCRIPT'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
[ -n "$router" ] && ip route add default via "${router%% *}"
for server in $dns; do echo "nameserver $server"; done >/run/resolv.conf
SCRIPT
    chmod +x /run/lease
    if busybox udhcpc -i "$interface" -q -n -f -t 3 -T 1 -s /run/lease >/run/dhcp.log 2>&1; then
        return
    fi
    [ "$wanted" = dhcp ] && return
    ip addr add 10.0.2.15/24 dev "$interface"
    ip route add default via 10.0.2.2
    echo "nameserver 10.0.2.3" >/run/resolv.conf
}
network
[ -e /run/resolv.conf ] && cat /run/resolv.conf >/etc/resolv.conf 2>/dev/null

/usr/lib/nyx/self-check
if [ "$(option nyx.demo)" = check ]; then
    exec poweroff
fi

console=$(cat /sys/class/tty/console/active)
console=${console##* }
while true; do
    # The demo's user is the machine's owner: no password stands in the way.
    setsid agetty --autologin root --keep-baud 115200,38400,9600 "$console" vt100
done
