# shellcheck shell=bash
# shellcheck disable=SC2034
# Sourced by every job. Needs REPO (the repository); defines PYTHON, log and requeue.

environment=$'\n'$(compgen -e)$'\n'
for file in "$REPO/jobs/site.env" ${SITE:+"$SITE"}; do # the first has a default for each variable
    # shellcheck source=/dev/null
    source <(while IFS= read -r line; do # assignments to variables that the environment has are left out
        name=${line#export }
        [[ $environment == *$'\n'"${name%%=*}"$'\n'* ]] || printf '%s\n' "$line"
    done <"$file")
done

if [[ -n $MODULES ]]; then
    type module &>/dev/null || source /etc/profile
    for module in $MODULES; do module load "$module"; done
fi
PYTHON=(python)
if [[ -n $CONTAINER ]]; then
    PYTHON=(apptainer exec --nv --bind "$REPO,$PWD${CONTAINER_BINDS:+,$CONTAINER_BINDS}" "$CONTAINER" python)
elif [[ -n $VENV || -d $REPO/.venv ]]; then
    export PATH="${VENV:-$REPO/.venv}/bin:$PATH"
fi
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 # so that a job's log is complete while it runs

log() { printf '%(%F %T)T %s: %s\n' -1 "$(uname -n)" "$*"; }

# Make Slurm run this job again from its start. Does not return.
requeue() {
    log "$*: requeued"
    # the job id of an array would requeue all of its tasks
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    sleep 300 # Slurm ends this job within seconds
    log "Slurm does not requeue this kind of job"
    exit 75
}
