# The lab's agent, its first process: sets the machine up, then runs what the harness asks for over a
# virtio-serial port. Only busybox is used, so nothing of the machine it was started on can be missing.

L=/run/nyx-lab
B=$L/busybox
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

$B mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$B mount -t tmpfs -o mode=1777 shm /dev/shm
$B mount -t mqueue mqueue /dev/mqueue
$B mount -t hugetlbfs hugetlbfs /dev/hugepages
$B mount -t cgroup2 cgroup2 /sys/fs/cgroup
$B ln -sfn /proc/self/fd /dev/fd
$B ln -sfn /proc/self/fd/0 /dev/stdin
$B ln -sfn /proc/self/fd/1 /dev/stdout
$B ln -sfn /proc/self/fd/2 /dev/stderr
$B hostname nyx-lab
$B ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
# Modules that a command or the kernel asks for later come from where the lab's kernel was unpacked.
read -r folder <$L/modules-folder
read -r release <$L/release
$B mkdir -p "/lib/modules/$release"
$B mount --bind "$folder" "/lib/modules/$release"

port() {
    for port in /sys/class/virtio-ports/*; do
        [ -e "$port/name" ] && read -r name <"$port/name" && [ "$name" = "$1" ] && echo "/dev/${port##*/}" && return
    done
    echo "nyx-lab: no port $1" >&2
}
if [ -e /sys/class/net/eth0 ]; then
    $B ip addr add 192.168.76.15/24 dev eth0
    $B ip link set eth0 up
    $B ip route add default via 192.168.76.2
fi
CONTROL=$(port nyx.control)
OUT=$(port nyx.out)
ERR=$(port nyx.err)
IN=$(port nyx.in)

# Reads as many bytes of the control port as asked for into a file.
take() {
    $B dd bs="$1" count=1 iflag=fullblock of="$2" <&3 2>/dev/null
}
# Starts `sh FILE` in a control group of its own; the streams are the caller's.
launch() {
    $B mkdir /sys/fs/cgroup/command
    (
        exec 3>&-
        echo 0 >/sys/fs/cgroup/command/cgroup.procs
        exec $B env -i /bin/sh $L/command
    )
}
# Ends what the command left running, so that its output has an end.
sweep() {
    echo 1 >/sys/fs/cgroup/command/cgroup.kill
    tries=0
    while ! $B rmdir /sys/fs/cgroup/command 2>/dev/null && [ $tries -lt 100 ]; do
        $B find /sys/fs/cgroup/command -mindepth 1 -depth -type d -exec $B rmdir {} \; 2>/dev/null
        tries=$((tries + 1))
        $B usleep 20000
    done
}
# Carries a stream to its port and marks its end.
relay() {
    {
        $B dd bs=32k status=none 2>/dev/null
        printf '%s' "$2"
    } >"$1"
}
run() { # length of the script, end mark, none|stream
    take "$1" $L/command
    $B rm -f $L/out $L/err
    $B mkfifo $L/out $L/err
    relay "$OUT" "$2" <$L/out 3>&- &
    out=$!
    relay "$ERR" "$2" <$L/err 3>&- &
    err=$!
    if [ "$3" = stream ]; then in=$IN; else in=/dev/null; fi
    launch <"$in" >$L/out 2>$L/err
    code=$?
    sweep
    wait $out $err
    echo "exit $code" >&3
}
terminal() { # length of the script, end mark, rows, columns
    take "$1" $L/command
    (
        $B stty rows "$3" cols "$4"
        $B mkdir /sys/fs/cgroup/command
        echo 0 >/sys/fs/cgroup/command/cgroup.procs
        exec $B setsid -c $B env -i /bin/sh $L/command 3>&-
    ) <>/dev/hvc0 >&0 2>&1
    code=$?
    sweep
    printf '%s' "$2" >/dev/hvc0
    echo "exit $code" >&3
}
share() { # tag, length of the path
    take "$2" $L/path
    read -r path <$L/path
    if $B mkdir -p "$path" &&
        $B mount -t 9p -o "$3",trans=virtio,version=9p2000.L,msize=512000,cache=mmap "$1" "$path"; then
        echo "done" >&3
    else
        echo "failed cannot mount $path" >&3
    fi
}

exec 3<>"$CONTROL"
echo "up $($B cut -d' ' -f1 /proc/uptime)" >&3
while read -r verb a b c d <&3; do
    case $verb in
        run) run "$a" "$b" "$c" ;;
        terminal) terminal "$a" "$b" "$c" "$d" ;;
        share) share "$a" "$b" "$c" ;;
        end) break ;;
    esac
done
$B sync
echo "ended" >&3
$B poweroff -f
