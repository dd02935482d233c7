# What the host's half finds around it, in a folder of its own in the lab's memory.
# Waits until the guest's console (or another file) shows a line.
await() {
    tries=0
    until grep -q "$1" "${2:-$D/console}" 2>/dev/null; do
        tries=$((tries + 1))
        if [ $tries -gt 900 ] || ! kill -0 "$nyx" 2>/dev/null; then
            echo "never came: $1"
            return 1
        fi
        sleep 0.1
    done
}
# Waits until a command succeeds.
until_true() {
    tries=0
    until "$@" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -gt 100 ] && return 1
        sleep 0.1
    done
}
# Starts the machine; it must not run longer than a guest of this kind ever does.
start() {
    boot </dev/null >>"$D/console" 2>>"$D/errors" &
    nyx=$!
    (
        sleep "$LIMIT"
        echo "nyx ran longer than $LIMIT s" >>"$D/errors"
        kill -9 $nyx
    ) >/dev/null 2>&1 &
    watch=$!
}
# Waits for its end: the code is in $code.
finish() {
    wait $nyx
    code=$?
    kill $watch 2>/dev/null
}
sum() { sha256sum | cut -d' ' -f1; }
# The names of programs like $1 that run.
running() {
    for comm in /proc/[0-9]*/comm; do
        { read -r word <"$comm"; } 2>/dev/null
        [ "$word" = "$1" ] && echo "$word"
    done
}
