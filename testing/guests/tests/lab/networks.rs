//! The world outside: user-mode network, TAP, sockets.

use nyx_guest_tests::GuestTest;

pub(crate) const ALL: &[&GuestTest] = &[&USER, &TAP, &VSOCK];

/// A network without privileges: gateway, both directions, a forwarded port. (In the lab, each frame of it costs
/// a millisecond: there are fewer bytes than for TAP.)
const USER: GuestTest = GuestTest {
    name: "user",
    options: "--cpus 1 --memory 512M --disk $DEBIAN,readonly,serial=debian \
        --net user,host_loopback=true,forward=tcp:127.0.0.1:7080:80,mac=52:54:00:12:34:56",
    cmdline: "root= nyx.system=debian nyx.sum=$SUM",
    before: r#"
        dd if=/dev/urandom of=$D/down bs=1M count=16 2>/dev/null
        SUM=$(sum <$D/down)
        socat -u -b 131072 OPEN:$D/down TCP-LISTEN:7001,bind=127.0.0.1 &
        socat -u -b 131072 TCP-LISTEN:7002,bind=127.0.0.1 CREATE:$D/up &
    "#,
    guest: r#"
        expect "hardware address" 52:54:00:12:34:56 "$(cat /sys/class/net/eth0/address)"
        ip link set eth0 up
        echo '[ "$1" = bound ] && ip addr add "$ip/24" dev "$interface" && ip route add default via "$router"' >/tmp/lease
        printf '#!/bin/sh\n%s\n' "$(cat /tmp/lease)" >/tmp/lease
        chmod +x /tmp/lease
        busybox udhcpc -i eth0 -q -n -f -t 5 -T 2 -s /tmp/lease
        expect "address by dhcp" 10.0.2.15/24 "$(ip -4 -o addr show dev eth0 | awk '{ print $4 }')"
        holds "gateway answers" ping -c 3 -W 5 10.0.2.2
        expect "sum of 16 MB from the host" "$(option nyx.sum)" "$(socat -u -b 131072 TCP:10.0.2.2:7001 - | sum)"
        dd if=/dev/urandom of=/tmp/up bs=1M count=16 2>/dev/null
        holds "16 MB to the host" socat -u -b 131072 OPEN:/tmp/up TCP:10.0.2.2:7002
        say "sum $(sum </tmp/up)"
        say "listening"
        expect "through the forwarded port" "hello guest" "$(timeout 20 socat - TCP-LISTEN:80 </tmp/lease | head -n 1)"
        expect "no complaints of the kernel" "" "$(complaints)"
    "#,
    beside: r#"
        await "said: listening"
        # The host's side takes connections before the guest listens; the guest may still refuse them.
        ask() { echo "hello guest" | socat -t 5 - TCP:127.0.0.1:7080 | grep -q bound; }
        holds "forwarded port answers" until_true ask
    "#,
    after: r#"
        expect "sum of 16 MB to the host" "$(sed -n 's/^said: sum \([0-9a-f]*\).*/\1/p' $D/console)" "$(sum <$D/up)"
        expect "no helper is left" "" "$(running slirp4netns)"
    "#,
    ..GuestTest::NOTHING
};

/// An interface of the host's: both directions, many queues, a smaller largest packet.
const TAP: GuestTest = GuestTest {
    name: "tap",
    options: "--cpus 2 --memory 512M --disk $DEBIAN,readonly,serial=debian \
        --net tap,tap=nyx0,address=10.9.0.1/24,mac=52:54:00:ab:cd:ef,mtu=1400,queues=2",
    cmdline: "root= nyx.system=debian nyx.sum=$SUM",
    before: r#"
        dd if=/dev/urandom of=$D/down bs=1M count=100 2>/dev/null
        SUM=$(sum <$D/down)
    "#,
    guest: r#"
        expect "hardware address" 52:54:00:ab:cd:ef "$(cat /sys/class/net/eth0/address)"
        expect "largest packet" 1400 "$(cat /sys/class/net/eth0/mtu)"
        expect "queue pairs" 2 "$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
        ip link set eth0 up
        ip addr add 10.9.0.2/24 dev eth0
        holds "host answers" ping -c 3 -W 5 10.9.0.1
        holds "largest packet passes" ping -c 1 -W 5 -M do -s 1372 10.9.0.1
        say "up"
        expect "sum of 100 MB from the host" "$(option nyx.sum)" "$(socat -u -b 131072 TCP-LISTEN:7001 - | sum)"
        dd if=/dev/urandom of=/tmp/up bs=1M count=100 2>/dev/null
        holds "100 MB to the host" socat -u -b 131072 OPEN:/tmp/up TCP:10.9.0.1:7002
        say "sum $(sum </tmp/up)"
        expect "no complaints of the kernel" "" "$(complaints)"
        expect "no packet in error" "0 0" "$(cat /sys/class/net/eth0/statistics/rx_errors) $(cat /sys/class/net/eth0/statistics/tx_errors)"
    "#,
    beside: r#"
        await "said: up"
        socat -u -b 131072 TCP-LISTEN:7002,bind=10.9.0.1 CREATE:$D/up &
        holds "guest answers" /run/nyx-lab/busybox ping -c 3 -W 5 10.9.0.2
        expect "largest packet of the host's side" 1400 "$(cat /sys/class/net/nyx0/mtu)"
        holds "100 MB to the guest" socat -u -b 131072 OPEN:$D/down TCP:10.9.0.2:7001,retry=20,interval=0.5
    "#,
    after: r#"
        expect "sum of 100 MB to the host" "$(sed -n 's/^said: sum \([0-9a-f]*\).*/\1/p' $D/console)" "$(sum <$D/up)"
        holds "interface is gone" test ! -e /sys/class/net/nyx0
    "#,
    ..GuestTest::NOTHING
};

/// Connections by socket address family, both ways, and a second console.
const VSOCK: GuestTest = GuestTest {
    name: "vsock",
    options: "--cpus 2 --memory 384M --disk $DEBIAN,readonly,serial=debian --vsock cid=5,socket=$D/vsock",
    cmdline: "root= nyx.system=debian nyx.sum=$SUM",
    before: r#"
        dd if=/dev/urandom of=$D/down bs=1M count=10 2>/dev/null
        SUM=$(sum <$D/down)
        socat -u -b 131072 UNIX-LISTEN:$D/vsock_5000 CREATE:$D/up &
    "#,
    guest: r#"
        holds "vsock device" test -c /dev/vsock
        dd if=/dev/urandom of=/tmp/up bs=1M count=10 2>/dev/null
        holds "10 MB to the host" socat -u -b 131072 OPEN:/tmp/up VSOCK-CONNECT:2:5000
        say "sum $(sum </tmp/up)"
        holds "nobody listens there" sh -c '! socat -u -b 131072 OPEN:/tmp/check VSOCK-CONNECT:2:5001'
        say "listening"
        expect "sum of 10 MB from the host" "$(option nyx.sum)" "$(timeout 60 socat -u -b 131072 VSOCK-LISTEN:1234 - | sum)"
        expect "no complaints of the kernel" "" "$(complaints)"
    "#,
    beside: r#"
        await "said: listening"
        sleep 1
        # The bytes follow at once: Nyx must keep what comes before the guest has accepted.
        { printf 'CONNECT 1234\n'; cat $D/down; } | socat -b 131072 -t 60 - UNIX-CONNECT:$D/vsock >$D/answer
        holds "the guest accepts" grep -q '^OK [0-9]*$' $D/answer
    "#,
    after: r#"
        expect "sum of 10 MB to the host" "$(sed -n 's/^said: sum \([0-9a-f]*\).*/\1/p' $D/console)" "$(sum <$D/up)"
        holds "socket is gone" test ! -e $D/vsock
    "#,
    ..GuestTest::NOTHING
};
