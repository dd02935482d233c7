#!/bin/sh
# Tells what this guest is made of, and whether it works. The last line is the verdict.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
failures=
fail() { failures="$failures${failures:+, }$*"; }
say() { printf 'nyx-demo: %-10s %s\n' "$1" "$2"; }
option() {
    value=
    for word in $(cat /proc/cmdline); do
        case $word in "$1="*) value=${word#*=} ;; esac
    done
    echo "$value"
}

say kernel "$(uname -sr)"
say system "$(. /etc/os-release && echo "$PRETTY_NAME")"

# Processors: all that there are must be at work. The kernel lists them as 0-3,5.
online=$(nproc --all)
count=$(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l)
say cpus "$(nproc) online of $count$(sed -n 's/^model name.*: /, /p' /proc/cpuinfo | head -n 1)"
[ "$(nproc)" = "$count" ] || fail "only $(nproc) of $count cpus are online"
wanted=$(option nyx.cpus)
[ -z "$wanted" ] || [ "$wanted" = "$online" ] || fail "$online cpus instead of $wanted"

memory=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
say memory "$memory MiB"
wanted=$(option nyx.memory)
if [ -n "$wanted" ]; then
    # The kernel keeps a part to itself.
    [ "$memory" -gt $((wanted * 3 / 4)) ] && [ "$memory" -le "$wanted" ] || fail "$memory MiB of memory instead of $wanted"
fi

# The root disk: what is written comes back, past the cache.
device=$(sed -n 's|^\(/dev/[^ ]*\) / .*|\1|p' /proc/mounts | tail -n 1)
say root "${device:-?} $(sed -n 's|^[^ ]* / \([^ ]*\) \([^,]*\).*|\1 \2|p' /proc/mounts | tail -n 1), $(df -h / | awk 'END { print $4 }') free"
if dd if=/dev/urandom of=/var/tmp/probe bs=64k count=16 conv=fsync 2>/dev/null; then
    before=$(busybox sha256sum </var/tmp/probe)
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(busybox sha256sum </var/tmp/probe)" = "$before" ] || fail "the disk gave back other bytes"
    rm -f /var/tmp/probe
else
    fail "cannot write to the disk"
fi

address=$(ip -4 -o addr show scope global | awk '{ print $2, $4; exit }')
if [ -n "$address" ]; then
    gateway=$(ip -4 route show default | awk '{ print $3; exit }')
    if [ -n "$gateway" ] && ping -c 1 -W 3 "$gateway" >/dev/null 2>&1; then
        say network "$address, gateway $gateway answers"
    else
        say network "$address, gateway ${gateway:-none} does not answer"
        fail "the gateway ${gateway:-none} does not answer"
    fi
else
    say network none
    [ -z "$(ls /sys/class/net | grep -v '^lo$')" ] || [ "$(option nyx.ip)" = none ] || fail "the network has no address"
fi

source=$(cat /sys/class/misc/hw_random/rng_current 2>/dev/null)
bytes=$(timeout 5 head -c 32 /dev/random | wc -c)
say entropy "$bytes bytes of /dev/random, source ${source:-none}"
[ "$bytes" = 32 ] || fail "/dev/random gives nothing"

# The clock: it goes, and it is not before this system was made.
start=$(date +%s%N)
sleep 0.2
passed=$((($(date +%s%N) - start) / 1000000))
say clock "$(date -u '+%Y-%m-%d %H:%M:%S UTC'), $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource), a fifth of a second took $passed ms"
[ "$passed" -ge 200 ] && [ "$passed" -lt 5000 ] || fail "a sleep of 200 ms took $passed ms"
[ "$(date +%s)" -ge "$(stat -c %Y /usr/lib/nyx/self-check)" ] || fail "the clock is in the past: $(date -u)"
say uptime "$(cut -d' ' -f1 /proc/uptime) s"

if [ -z "$failures" ]; then
    echo "nyx-demo: self-check passed"
else
    echo "nyx-demo: self-check failed: $failures"
    exit 1
fi
