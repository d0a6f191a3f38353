#!/bin/bash
# Start (or, after a kill, restart) one emulated node: start_node.sh node1
set -euo pipefail
node=$1
ROOT=${SLURM_TEST_ROOT:-${TMPDIR:-/tmp}/slurm-test-cluster}
MODE=${SLURM_TEST_MODE:-ns}
mkdir -p "$ROOT/spool/$node"
if [ "$MODE" = ns ]; then
    # a hostname and process ids for each node: `hostname` in a job prints node1, and killing the first
    # process of the namespace kills all processes of the node, like a crash
    # shellcheck disable=SC2016  # the inner shell expands it
    setsid unshare --uts --mount --pid --ipc --fork --kill-child --mount-proc \
        sh -c 'hostname "$1" && exec slurmd -D -N "$1" -f "$2"' sh "$node" "$ROOT/slurm.conf" \
        </dev/null >"$ROOT/log/slurmd-$node.out" 2>&1 &
else
    setsid slurmd -D -N "$node" -f "$ROOT/slurm.conf" </dev/null >"$ROOT/log/slurmd-$node.out" 2>&1 &
fi
echo $! > "$ROOT/run/$node.parent"
