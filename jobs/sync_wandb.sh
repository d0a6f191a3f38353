#!/usr/bin/env bash
# Upload offline W&B runs from a machine with a network, such as a login node:
#
#   jobs/sync_wandb.sh runs                  every run below runs/
#   jobs/sync_wandb.sh runs/delay_gpt2       one run
#
# A run that was stopped and requeued becomes one W&B run. What was uploaded completely is not sent again; rows of a
# restart that is still running are sent again by the next sync. Needs `wandb login`, or WANDB_API_KEY.
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 FOLDER..." >&2
    exit 2
fi
folders=()
while IFS= read -r -d '' folder; do
    folders+=("$folder")
done < <(find "$@" -type d -name wandb -exec sh -c 'set -- "$1"/*run-*-*; [ -e "$1" ]' _ {} \; -prune -print0)
if ((${#folders[@]} == 0)); then
    echo "no W&B runs in $*"
    exit 0
fi
status=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT
for folder in "${folders[@]}"; do
    echo "$folder"
    starts=("$folder"/*run-*-*) # one by one: a killed one ends the upload of those after it
    for start in "${starts[@]}"; do
        wandb sync --yes "$start" 2>&1 | tee "$output" || status=1
        # W&B finds no end of a killed one, and would upload its rows again each time
        if [ "$start" != "${starts[${#starts[@]} - 1]}" ] && grep -q "incomplete record" "$output"; then
            touch "$start/run-${start##*-}.wandb.synced"
        fi
    done
done
exit "$status"
