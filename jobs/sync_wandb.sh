#!/usr/bin/env bash
# Upload offline W&B runs from a machine with a network, such as a login node:
#
#   jobs/sync_wandb.sh runs                  every run below runs/
#   jobs/sync_wandb.sh runs/delay_gpt2       one run
#
# A run that was stopped and requeued becomes one W&B run. Only new data is sent, so this can run repeatedly during
# training, for example from cron. Needs `wandb login`, or WANDB_API_KEY.
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
for folder in "${folders[@]}"; do
    echo "$folder"
    wandb sync --yes "$folder" || status=1
done
exit "$status"
