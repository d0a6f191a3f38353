#!/usr/bin/env bash
# Upload what W&B was told offline, from where there is a network (a login node):
#
#   jobs/sync_wandb.sh runs                  every run below runs/
#   jobs/sync_wandb.sh runs/delay_gpt2       one run
#
# A run that was stopped and requeued becomes one W&B run. What was uploaded before is not sent again, so this may be
# called again and again while training goes on (from cron, say). Needs `wandb login`, or WANDB_API_KEY.
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
    echo "no W&B runs below $*"
    exit 0
fi
status=0
for folder in "${folders[@]}"; do
    echo "$folder"
    wandb sync --yes "$folder" || status=1
done
exit "$status"
