# What both halves of a test say.
ok() { echo "check ok: $1"; }
failed() { echo "check failed: $1: $2" | tr '\n' ' '; echo; }
expect() {
    if [ "$2" = "$3" ]; then ok "$1"; else failed "$1" "wanted '$2', found '$3'"; fi
}
holds() {
    label=$1
    shift
    if found=$("$@" 2>&1); then ok "$label"; else failed "$label" "$* says '$found'"; fi
}
