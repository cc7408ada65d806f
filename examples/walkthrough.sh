#!/usr/bin/env bash
# The life of a volume on the command line, in a scratch directory, with nothing left behind. Needs root.
#
#   cargo build --release && examples/walkthrough.sh target/*/release/hawser
set -euo pipefail

hawser=$(realpath "${1:?usage: examples/walkthrough.sh PATH-OF-HAWSER}")
scratch=$(mktemp -d)
# A machine's own mounts, so that what this script mounts is gone with it.
if [ -z "${HAWSER_WALKTHROUGH_UNSHARED:-}" ]; then
    rmdir "$scratch"
    HAWSER_WALKTHROUGH_UNSHARED=1 exec unshare --mount --propagation private "$0" "$hawser"
fi
unset HAWSER_WALKTHROUGH_UNSHARED

driver=
finish() {
    status=$?
    [ -z "$driver" ] || { kill "$driver" && wait "$driver"; } 2>/dev/null || true
    umount "$scratch/pool/mnt" 2>/dev/null || true
    for loop in $(losetup --list --noheadings --output NAME --associated "$scratch/pool/pool.img" 2>/dev/null); do
        losetup --detach "$loop"
    done
    rm -rf --one-file-system "$scratch"
    exit $status
}
trap finish EXIT

cat > "$scratch/config.toml" <<CONFIG
node_id = "walkthrough"
endpoint = "unix://$scratch/csi.sock"
state_dir = "$scratch/node"

[[backend]]
directory = "$scratch/pool"
# An image with xfs, so that snapshots and clones share blocks whatever the scratch directory is on.
image_bytes = "4GiB"
reserve_bytes = "64MiB"
CONFIG

run() {
    printf '\n$ hawser %s\n' "$*"
    "$hawser" --config "$scratch/config.toml" "$@"
}

"$hawser" --config "$scratch/config.toml" serve &
driver=$!
for _ in $(seq 100); do
    [ -S "$scratch/csi.sock" ] && break
    sleep 0.1
done
[ -S "$scratch/csi.sock" ] || { echo "the driver did not start" >&2; exit 1; }

run node ls
run volume create db --size 1GiB
run volume snapshot db before-upgrade
run volume restore before-upgrade db-test --size 2GiB
run volume clone db db-copy
run volume expand db 2GiB
run volume ls
run snapshot ls --volume db
run volume inspect db
run fence walkthrough
run node ls
run unfence walkthrough
for volume in db db-test db-copy; do
    run volume rm "$volume"
done
run snapshot rm before-upgrade
run volume ls
